"""The score: bits per byte of a model over the validation shards, and of an artifact after unpacking it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from pgolf_model.codec.pack import UnpackedModel, unpack_model
from pgolf_model.config import EvalConfig, ModelConfig
from pgolf_model.data.batches import ByteTable, byte_table, check_token_range, count_bytes, validation_tokens
from pgolf_model.data.shards import shard_paths
from pgolf_model.distributed import DistEnv, all_reduce_sum
from pgolf_model.errors import UserError
from pgolf_model.model.gpt import GPT
from pgolf_model.quant.quantize import dequantize_state


class LossModel(Protocol):
    """A model that can be scored."""

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor, /) -> Tensor:
        """Nats of every target, (B, T), each from the ids up to its own position alone."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well the validation text was predicted; always finite."""

    val_bpb: float  # bits per byte of text: what is compared
    val_loss: float  # nats per token
    tokens: int  # targets scored
    bytes: int  # UTF-8 bytes they stand for
    seconds: float  # wall time on this rank


def score(
    model: LossModel,
    tokens: Tensor,
    table: ByteTable,
    eval_config: EvalConfig,
    env: DistEnv,
    *,
    precision: Literal["float32", "bfloat16"] | None = None,
    tell: Callable[[float], None] | None = None,
) -> Score:
    """Score every target once, in disjoint windows of `eval_config.seq_len`; document boundaries are ignored.

    Each rank scores a contiguous share of the windows, and the sums are added over the ranks. The same call on the same
    machine gives the same bits.

    Args:
        model: on env.device, in eval mode.
        tokens: 1-D, any integer dtype, on the CPU; a tail that fills no window is left out, as in the
            challenge's own scoring (https://github.com/openai/parameter-golf).
        table: on the CPU.
        precision: of matrix products; bfloat16 on CUDA and float32 on the CPU by default.
        tell: called before each batch with the fraction of this rank's windows that is done.
    Raises:
        UserError: less than one window, no bytes, or a loss that is not finite.
    """
    started = time.perf_counter()
    seq_len = eval_config.seq_len
    num_windows = (len(tokens) - 1) // seq_len
    if num_windows < 1:
        raise UserError(
            f"scoring needs at least seq_len + 1 = {seq_len + 1} tokens, got {len(tokens)}", hint="add shards"
        )
    first, last = (num_windows * rank // env.world_size for rank in (env.rank, env.rank + 1))
    step = eval_config.batch_tokens // seq_len
    low_precision = (precision or ("bfloat16" if env.is_cuda else "float32")) == "bfloat16"
    kind = torch.device(env.device).type
    totals = torch.zeros(2, dtype=torch.float64, device=env.device)  # nats, and bytes: exact below 2**53
    with torch.inference_mode(), torch.autocast(kind, dtype=torch.bfloat16, enabled=low_precision):
        for window in range(first, last, step):
            if tell:
                tell((window - first) / (last - first))
            span = tokens[window * seq_len : min(window + step, last) * seq_len + 1].to(torch.int64)
            totals += _nats_and_bytes(model, span, seq_len, table, env)
        total_nats, total_bytes = all_reduce_sum(totals, env).tolist()
    num_tokens = num_windows * seq_len
    if not math.isfinite(total_nats):
        raise UserError(
            f"the validation loss is not finite: {total_nats}", hint="training diverged: lower the learning rate"
        )
    if not total_bytes:
        raise UserError(
            "the validation tokens stand for no bytes of text", hint="the tokenizer does not match the shards"
        )
    return Score(
        val_bpb=total_nats / math.log(2) / total_bytes,
        val_loss=total_nats / num_tokens,
        tokens=num_tokens,
        bytes=int(total_bytes),
        seconds=time.perf_counter() - started,
    )


def _nats_and_bytes(model: LossModel, span: Tensor, seq_len: int, table: ByteTable, env: DistEnv) -> Tensor:
    """(2,) float64 on the device: summed losses of a span's targets, and the bytes that they stand for."""
    previous, target = span[:-1], span[1:]
    num_bytes = int(count_bytes(table, previous, target).sum())
    ids_BT, targets_BT = (part.view(-1, seq_len).to(env.device) for part in (previous, target))
    nats = model.token_losses(ids_BT, targets_BT).sum(dtype=torch.float64)
    return torch.stack([nats, nats.new_tensor(num_bytes)])


def load_model(unpacked: UnpackedModel) -> GPT:
    """The artifact's model on the CPU, in eval mode, its weights dequantized to float32."""
    model = GPT(unpacked.model)
    model.load_state_dict(dequantize_state(unpacked.tensors))
    return model.eval()


def validation_set(
    val: str, tokenizer: str, *, vocab_size: int, seq_len: int, max_tokens: int
) -> tuple[Tensor, ByteTable]:
    """The tokens to score and the bytes they stand for.

    Args:
        val: dataset directory, glob, or one shard.
        max_tokens: keep so many leading targets, in whole windows of `seq_len`, at least one; 0 keeps all.
    Returns:
        (num_windows * seq_len + 1,) tokens and the table, on the CPU.
    Raises:
        UserError: no or bad shards, or a tokenizer that does not fit `vocab_size`.
    """
    table = byte_table(tokenizer, vocab_size)
    tokens = validation_tokens(shard_paths(val, "val"), seq_len)
    if max_tokens:
        tokens = tokens[: max(1, max_tokens // seq_len) * seq_len + 1]
    check_token_range(tokens, vocab_size, val)
    return tokens, table


def evaluate_artifact(
    artifact: bytes,
    *,
    val: str,
    tokenizer: str,
    env: DistEnv,
    max_tokens: int = 0,
    tell: Callable[[float], None] | None = None,
) -> tuple[Score, ModelConfig]:
    """Unpack an artifact, load its model and score it.

    Args:
        val: dataset directory, glob or one shard.
        tokenizer: path of the SentencePiece model that made the shards.
        max_tokens: as in `validation_set`.
        tell: as in `score`.
    Returns:
        The score, whose `seconds` cover all three steps, and the model's config as the artifact states it.
    Raises:
        UserError: a damaged artifact, missing shards, or a vocabulary that does not fit the model's.
    """
    started = time.perf_counter()
    unpacked = unpack_model(artifact)
    vocab_size, seq_len = unpacked.model.vocab_size, unpacked.eval_config.seq_len
    tokens, table = validation_set(val, tokenizer, vocab_size=vocab_size, seq_len=seq_len, max_tokens=max_tokens)
    model = load_model(unpacked).to(env.device)
    result = score(model, tokens, table, unpacked.eval_config, env, tell=tell)
    return replace(result, seconds=time.perf_counter() - started), unpacked.model
