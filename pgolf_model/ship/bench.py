"""The trained weights of one run, quantized and packed at any choice of steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from pgolf_model.codec.pack import PackCache, pack_model
from pgolf_model.config import EvalConfig, QuantConfig, RunConfig, code_limit
from pgolf_model.distributed import DistEnv
from pgolf_model.errors import UserError
from pgolf_model.model.gpt import GPT
from pgolf_model.quant.quantize import (
    PackedTensor,
    QuantizedTensor,
    check_names,
    quantize_matrix,
    quantize_rows,
    round_scalars,
)
from pgolf_model.shapes import param_shapes
from pgolf_model.ship.allocate import RateTable
from pgolf_model.ship.calibrate import Calibration, calibration_loss
from pgolf_model.ship.tables import WeighedMatrix, rate_table, weigh_matrix

LOSS_TOKENS = 16_384  # calibration tokens on which losses are compared
LOWRANK_BITS = 4
SAFE_BITS, SAFE_CLIP = 8, 20.0  # quantization that costs nothing: where rollbacks start to measure, and end
KEPT_CHOICES = 3  # quantized forms of a matrix that are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How one matrix is quantized."""

    bits: int
    clip_sigmas: float  # the step is clip_sigmas / code_limit(bits) row deviations
    is_corrected: bool = False  # with the config's low-rank correction

    @property
    def log_step(self) -> float:
        """log2 of the step in row deviations."""
        return math.log2(self.clip_sigmas / code_limit(self.bits))

    def safer(self) -> Choice:
        """One bit more, spent on a finer step and on a wider clip."""
        return replace(
            self,
            bits=min(SAFE_BITS, self.bits + 1),
            clip_sigmas=max(self.clip_sigmas, min(SAFE_CLIP, 1.5 * self.clip_sigmas)),
        )


BitPlan = dict[str, Choice]  # for every matrix, in `param_shapes` order


class QuantBench:
    """The weights of one run and what they become under bit plans.

    Each answer is a function of the arguments and the plan, but for `estimated_bytes`: it learns from `packed_bytes`.
    A matrix is quantized anew only when its choice has changed, so meeting a size costs little more than one pass over
    the matrices.

    Args:
        state: float32 weights on the CPU.
        calibration: None weighs all errors alike.
        env: its device is where matrices are quantized.
    Raises:
        ValueError: names or shapes differ from the model's, or a scalar cannot be stored; names the tensor.
    """

    def __init__(
        self, state: Mapping[str, Tensor], config: RunConfig, calibration: Calibration | None, env: DistEnv
    ) -> None:
        self.config, self.calibration, self.env = config, calibration, env
        self.shapes = param_shapes(config.model)
        check_names(state, self.shapes)
        self.state = {name: state[name].detach() for name in self.shapes}
        self.scalars: dict[str, Tensor] = {}
        self.matrices: dict[str, WeighedMatrix] = {}
        self.passes = 0  # matrices quantized so far
        self._kept: dict[str, dict[Choice, QuantizedTensor]] = {}
        self._pack_cache: PackCache = {}
        self._entropies: dict[str, tuple[QuantizedTensor, float]] = {}
        self._overhead = 0.0  # bytes by which the last packed artifact was larger than its codes' entropies
        for name, info in self.shapes.items():
            weight = self.state[name]
            if tuple(weight.shape) != info.shape:
                raise ValueError(f"{name}: expected shape {info.shape}, got {tuple(weight.shape)}")
            if info.role != "scalar":
                self.matrices[name] = weigh_matrix(name, weight, calibration)
                continue
            try:
                narrow = config.quant.scalar_format == "fp8"
                self.scalars[name] = round_scalars(weight, "e4m3" if narrow else "float16").cpu().contiguous()
            except UserError as error:
                raise error.at(name) from None

    @cached_property
    def tables(self) -> dict[str, RateTable]:
        """Bits and error of every matrix over the grid of steps."""
        explicit = self.explicit_plan()
        return {name: rate_table(m, self.config.quant, explicit[name].bits) for name, m in self.matrices.items()}

    def explicit_plan(self) -> BitPlan:
        """The bit plan that the config's bits and clips spell out, without corrections."""
        quant, layers = self.config.quant, self.config.model.num_layers
        where = {name: (self.shapes[name].role, self.shapes[name].layer, layers) for name in self.matrices}
        return {name: Choice(bits=quant.bits(*at), clip_sigmas=quant.clip_sigmas(*at)) for name, at in where.items()}

    def plan_at(self, log_steps: Mapping[str, float], corrected: Collection[str] = ()) -> BitPlan:
        """Choices of so large steps, within the config's bits; `corrected` matrices get a low-rank correction."""
        bits = {name: choice.bits for name, choice in self.explicit_plan().items()}
        return {
            name: Choice(
                bits=bits[name], clip_sigmas=2.0**step * code_limit(bits[name]), is_corrected=name in corrected
            )
            for name, step in log_steps.items()
        }

    def most_hurt(self, plan: BitPlan) -> frozenset[str]:
        """The matrices with the largest errors under the bit plan, as many as the config corrects."""
        quant = self.config.quant
        if not (quant.lowrank_rank and quant.lowrank_tensors):
            return frozenset()
        errors = {
            name: float(np.interp(plan[name].log_step, table.log_steps, table.errors))
            for name, table in self.tables.items()
        }
        return frozenset(sorted(errors, key=errors.__getitem__)[-quant.lowrank_tensors :])

    def quantized(self, name: str, choice: Choice) -> QuantizedTensor:
        """One matrix at its choice, on the CPU."""
        kept = self._kept.setdefault(name, {})
        if choice not in kept:
            self.passes += 1
            while len(kept) >= KEPT_CHOICES:
                kept.pop(next(iter(kept)))
            try:
                kept[choice] = _quantized_as(self.matrices[name], choice, self.config.quant, self.env.device)
            except UserError as error:
                raise error.at(name) from None
        return kept[choice]

    def tensors(self, plan: BitPlan) -> dict[str, PackedTensor]:
        """All tensors that the artifact of a bit plan holds, in `param_shapes` order."""
        return {name: self.quantized(name, plan[name]) if name in plan else self.scalars[name] for name in self.shapes}

    def artifact(self, plan: BitPlan) -> bytes:
        """The artifact of a bit plan."""
        return pack_model(self.config.model, shipped_eval(self.config), self.tensors(plan), cache=self._pack_cache)

    @property
    def has_packed(self) -> bool:
        """True once `packed_bytes` has told how far estimates are off."""
        return self._overhead != 0

    def packed_bytes(self, plan: BitPlan) -> int:
        """Bytes of the packed bit plan. From then on `estimated_bytes` gives exactly this number for this plan."""
        size = len(self.artifact(plan))
        self._overhead += size - self.estimated_bytes(plan)
        return size

    def estimated_bytes(self, plan: BitPlan) -> float:
        """Bytes of the bit plan without packing it, which is slow: its codes' entropies and the overhead seen last."""
        total = self._overhead
        for name, choice in plan.items():
            item = self.quantized(name, choice)
            known = self._entropies.get(name)
            if known is None or known[0] is not item:
                known = self._entropies[name] = item, _entropy_bytes(item.codes)
            total += known[1]
        return total

    @cached_property
    def model(self) -> GPT:
        """A model to load weights into."""
        return GPT(self.config.model).eval().to(self.env.device)

    def loss(self, state: Mapping[str, Tensor]) -> float:
        """Nats per token of some weights on the first calibration tokens of this rank."""
        assert self.calibration is not None
        batches = self.calibration.batches
        self.model.load_state_dict(dict(state))
        return calibration_loss(self.model, batches[: max(1, LOSS_TOKENS // batches[0][0].numel())], self.env)


def shipped_eval(config: RunConfig) -> EvalConfig:
    """The artifact's eval config: a proxy's shortcut of scoring fewer tokens is not part of the model."""
    return replace(config.eval, max_tokens=0)


def _quantized_as(matrix: WeighedMatrix, choice: Choice, quant: QuantConfig, device: str) -> QuantizedTensor:
    """The matrix quantized on the device as the config and the choice say, moved to the CPU."""
    weight, factors, is_binary = matrix.weight.to(device), matrix.row_factors, choice.bits == 1
    is_plain = quant.method == "round" and quant.states == 1 and not (quant.rate_weight or quant.group_size)
    if is_plain and factors is None and not choice.is_corrected:
        codes, scales = quantize_rows(weight, bits=choice.bits, clip_sigmas=choice.clip_sigmas)
        item = QuantizedTensor(codes=codes, scales=scales, bits=choice.bits)
    else:
        hessian = matrix.hessian if quant.method == "gptq" else None
        item = quantize_matrix(
            weight,
            bits=choice.bits,
            clip_sigmas=choice.clip_sigmas,
            hessian=hessian,
            states=1 if is_binary else quant.states,
            rate_weight=0.0 if is_binary else quant.rate_weight,
            row_factors=None if factors is None else factors.to(weight.device),
            group=quant.group(weight.shape[1]),
            plan=quant.column_plan and hessian is not None,
            damping=quant.damping,
            rank=min(quant.lowrank_rank, *weight.shape) if choice.is_corrected else 0,
            rank_bits=LOWRANK_BITS,
        )
    low, columns = item.lowrank, item.columns
    return replace(
        item,
        codes=item.codes.cpu().contiguous(),
        scales=item.scales.cpu().contiguous(),
        lowrank=low and replace(low, left=low.left.cpu(), right=low.right.cpu(), scales=low.scales.cpu()),
        columns=None if columns is None else columns.cpu().contiguous(),
    )


def _entropy_bytes(codes: Tensor) -> float:
    """Entropy of codes in rows of about equal mean magnitude, and what learning these costs (space.forecast.sizing)."""
    array = codes.numpy()
    classes = np.rint(4 * np.log2(np.abs(array.astype(np.int16)).mean(1) + 0.05)).astype(np.int64)
    total = 0.27 * len(array)
    for kind in np.unique(classes):
        counts = np.bincount(array[classes == kind].ravel().view(np.uint8), minlength=256)
        shares = counts[counts > 0] / counts.sum()
        total -= counts.sum() / 8 * float((shares * np.log2(shares)).sum())
    return total
