"""What quantization must know of the data: the second moment of every matrix's inputs, and how much its errors matter.

One pass over calibration tokens gives both. A matrix error E adds about
    (sensitivity / 2) * sum over rows r of weight_r E_r H E_r^T
nats per token to the loss, H being the mean of x x^T over the inputs x of the matrix. Rows weigh alike, but in an
embedding, where what a row's error costs goes with how often its token occurs; H then also holds what errors cost where
rows are looked up, g g^T over the gradients g of the rows' uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pgolf_model.config import RunConfig
from pgolf_model.data.shards import read_shard, shard_paths
from pgolf_model.distributed import DistEnv, all_reduce_sum
from pgolf_model.errors import UserError
from pgolf_model.model.gpt import GPT
from pgolf_model.shapes import param_shapes

SAMPLING_TEMPERATURE = 0.8
SAMPLING_CONTEXT = 64  # tokens of the past that a generated token sees: without a cache each one costs so many

ROW_FLOOR = 0.02  # least weight of an embedding's row, as a share of the mean: the sample misses rare tokens

CalibrationBatch = tuple[Tensor, Tensor]  # (sequences, seq_len) inputs and targets, int64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """The result of one pass; everything is a mean over tokens."""

    hessians: dict[str, Tensor]  # (cols, cols) float32 on the model's device; a matrix never multiplied is absent
    sensitivity: dict[str, float]  # of every matrix, nats per unit of error under its Hessian, doubled
    row_weights: dict[str, Tensor]  # (rows,) float32 of mean 1, of embeddings only
    batches: tuple[CalibrationBatch, ...]  # this rank's, on the CPU
    tokens: int  # over all ranks
    seconds: float  # sampling text included

    def hessian(self, name: str, cols: int) -> Tensor:
        """The matrix's Hessian; the identity where there is none."""
        found = self.hessians.get(name)
        return torch.eye(cols) if found is None else found


class InputMoments(TorchFunctionMode):
    """Sums x x^T for every matrix that `F.linear` multiplies by, however the module around it is written.

    Modules scale, cast, fake-quantize or join weights before they use them, so a weight is followed: a result that has
    the rows and columns of the matrices among a function's arguments counts as these matrices.
    """

    def __init__(self, matrices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sums: dict[str, Tensor] = {}
        self.shapes = {name: weight.shape for name, weight in matrices.items()}
        self.names: dict[int, tuple[str, ...]] = {id(weight): (name,) for name, weight in matrices.items()}
        self.alive: list[Any] = list(matrices.values())  # an id is a tensor's only while it lives
        self.last: tuple[Any, Tensor | None] = (None, None)  # q, k and v read one input
        self.lookups: dict[str, Tensor] = {}  # sums of g g^T, filled by the backward pass

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the function and look at what went in and came out."""
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            inputs, weight = (*args, *(kwargs or {}).values())[:2]
            for name in self.names.get(id(weight), ()):
                self.sums[name] = self.sums.get(name, 0) + self._moment(inputs)
        elif func is F.embedding:
            for name in self.names.get(id(args[1]), ()):
                result.register_hook(lambda gradient, name=name: self._look_up(name, gradient))
        elif isinstance(result, Tensor) and result.ndim == 2:
            given = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]
            found = tuple(dict.fromkeys(name for item in given for name in self.names.get(id(item), ())))
            rows, cols = sum(self.shapes[name][0] for name in found), {self.shapes[name][1] for name in found}
            if cols == {result.shape[1]} and rows == result.shape[0]:
                self.names[id(result)] = found
                self.alive.append(result)
        return result

    def _look_up(self, name: str, gradient: Tensor) -> None:
        flat = gradient.flatten(0, -2).float()
        self.lookups[name] = self.lookups.get(name, 0) + flat.T @ flat

    def _moment(self, inputs: Tensor) -> Tensor:
        if self.last[0] is not inputs or self.last[1] is None:
            flat = inputs.detach().flatten(0, -2).float()
            self.last = inputs, flat.T @ flat
        assert self.last[1] is not None
        return self.last[1]


def calibrate(
    model: GPT,
    batches: Sequence[CalibrationBatch],
    env: DistEnv,
    *,
    seed: int,
    tell: Callable[[float], None] | None = None,
) -> Calibration:
    """One forward and backward pass over the batches of all ranks.

    The sensitivity is the trace of the Gauss-Newton matrix of the loss, by matrix: with targets drawn from the model's
    own predictions, a token's gradient has mean zero and those of different tokens do not correlate, so the squared
    gradient of a batch's mean loss, times its tokens, is the mean of the squared gradients of single tokens.

    Args:
        model: on env.device, not compiled; its gradients are cleared.
        batches: this rank's; every rank needs as many tokens.
        tell: called before each batch with the fraction of the batches that is done.
    """
    started = time.perf_counter()
    parameters = dict(model.named_parameters())
    matrices = {name: parameters[name] for name, info in param_shapes(model.config).items() if info.role != "scalar"}
    sums: dict[str, Tensor] = {}
    lookups: dict[str, Tensor] = {}
    traces = {name: torch.zeros(len(w), dtype=torch.float64, device=env.device) for name, w in matrices.items()}
    generator = torch.Generator(env.device).manual_seed(seed + env.rank)
    num_tokens = 0
    for done, (ids, _) in enumerate(batches):
        if tell:
            tell(done / len(batches))
        num_tokens += ids.numel()
        model.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(env.device).type, dtype=torch.bfloat16, enabled=env.is_cuda):
            with InputMoments(matrices) as seen:
                logits_NV = model.logits(ids.to(env.device)).flatten(0, -2)
            drawn = torch.multinomial(logits_NV.detach().float().softmax(-1), 1, generator=generator)[:, 0]
            F.cross_entropy(logits_NV, drawn).backward()  # type: ignore[no-untyped-call]
        for name, weight in matrices.items():
            if weight.grad is not None:
                traces[name] += (weight.grad.double() * ids.numel()).square().sum(1)
            if name in seen.sums:
                sums[name] = sums.get(name, 0) + seen.sums[name]
            if name in seen.lookups:
                lookups[name] = lookups.get(name, 0) + seen.lookups[name] * ids.numel() ** 2
    model.zero_grad(set_to_none=True)
    num_tokens *= env.world_size
    for group in (sums, lookups, traces):  # the same matrices in the same order on every rank
        for value in group.values():
            all_reduce_sum(value, env).div_(num_tokens)
    sensitivity, row_weights = {}, {}
    for name, weight in matrices.items():
        rows, total = len(weight), float(traces[name].sum())
        if name in lookups:
            row_weights[name] = (traces[name] / max(total / rows, 1e-30)).float().clamp_min(ROW_FLOOR)
            row_weights[name] /= row_weights[name].mean()
            if name in sums:  # of all that errors cost, what is not due to lookups is due to the product
                product = max(total - float(lookups[name].trace()), 0.01 * total)
                lookups[name] *= float(sums[name].trace()) / max(product, 1e-30)
            sums[name] = sums.get(name, 0) + lookups[name]
        inputs = float(sums[name].trace()) if name in sums else float(weight.shape[1])
        sensitivity[name] = total / max(inputs * rows, 1e-30)
    return Calibration(
        hessians=sums,
        sensitivity=sensitivity,
        row_weights=row_weights,
        batches=tuple(batches),
        tokens=num_tokens,
        seconds=time.perf_counter() - started,
    )


def calibration_batches(config: RunConfig, model: GPT, *, data: str, env: DistEnv) -> list[CalibrationBatch]:
    """This rank's share of `calibration_tokens`: random windows of the training shards, or text the model writes.

    Raises:
        UserError: the training shards are missing or too small.
    """
    recipe, wanted = config.train, config.quant.calibration_tokens // env.world_size
    seq_len = recipe.seq_len
    most = min(wanted, recipe.micro_batch_tokens, recipe.batch_tokens // env.world_size)
    sequences = max(1, most // seq_len)
    count = max(1, wanted // (sequences * seq_len))
    if config.quant.calibration == "generate":
        text = [
            generate_tokens(model, sequences, seq_len + 1, env, seed=config.seed + i * env.world_size + env.rank)
            for i in range(count)
        ]
    else:
        shards = [shard for shard in map(read_shard, shard_paths(data, "train")) if len(shard) > seq_len]
        if not shards:
            raise UserError(
                f"{data}: no training shard holds the {seq_len + 1} tokens of one sequence", hint="add shards"
            )
        sizes = np.array([len(shard) - seq_len for shard in shards])
        starts = np.random.default_rng([config.seed, env.rank]).integers(sizes.sum(), size=(count, sequences))
        which = np.searchsorted(sizes.cumsum(), starts, side="right")
        offsets = starts - (sizes.cumsum() - sizes)[which]
        windows = [
            [shards[i][at : at + seq_len + 1].astype(np.int64) for i, at in zip(*row, strict=True)]
            for row in zip(which, offsets, strict=True)
        ]
        text = [torch.from_numpy(np.stack(rows)) for rows in windows]
    return [(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) for tokens in text]


@torch.no_grad()
def generate_tokens(model: GPT, num_sequences: int, length: int, env: DistEnv, *, seed: int) -> Tensor:
    """Text of the model's own, (num_sequences, length) int64 on the CPU, each from a token drawn at random.

    Public records of the challenge calibrate without data in this way.
    """
    generator = torch.Generator(env.device).manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (num_sequences, 1), generator=generator, device=env.device)
    while ids.shape[1] < length:
        with torch.autocast(torch.device(env.device).type, dtype=torch.bfloat16, enabled=env.is_cuda):
            logits_BV = model.logits(ids[:, -SAMPLING_CONTEXT:])[:, -1].float()
        drawn = torch.multinomial((logits_BV / SAMPLING_TEMPERATURE).softmax(-1), 1, generator=generator)
        ids = torch.cat((ids, drawn), 1)
    return ids.cpu()


@torch.inference_mode()
def calibration_loss(model: GPT, batches: Sequence[CalibrationBatch], env: DistEnv) -> float:
    """Mean nats per token over this rank's batches."""
    total, tokens = 0.0, 0
    for ids, targets in batches:
        with torch.autocast(torch.device(env.device).type, dtype=torch.bfloat16, enabled=env.is_cuda):
            total += float(model.token_losses(ids.to(env.device), targets.to(env.device)).double().sum())
        tokens += targets.numel()
    return total / tokens
