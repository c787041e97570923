"""Tokens on their way into the model: training batches, validation tokens, bytes per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgolf_model.bytecount import piece_bytes
from pgolf_model.shards import read_shard


def train_batches(
    paths: Sequence[Path],
    *,
    batch_tokens: int,
    seq_len: int,
    rank: int,
    world_size: int,
    loader: str = "sequential",
    seed: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of windows of `seq_len` inputs, each with the token after it.

    `sequential` reads the shards from front to back, `shuffled` visits their windows in an order drawn anew for every
    pass from `seed`. Each rank takes its contiguous slice of a batch's windows, so all ranks together read what one
    rank alone would.

    Yields:
        (inputs, targets), each (batch_tokens / world_size / seq_len, seq_len) int64 on the CPU.
    Raises:
        ValueError: at the call, when the batch does not divide into sequences per rank or the shards hold less
            than one batch.
    """
    if batch_tokens % (world_size * seq_len):
        raise ValueError(
            f"batch_tokens must be divisible by world_size * seq_len, got {batch_tokens} and {world_size} * {seq_len}"
        )
    shards = [read_shard(path) for path in paths]
    num_tokens = sum(len(shard) for shard in shards)
    if num_tokens < batch_tokens + 1:
        raise ValueError(
            f"the training shards hold {num_tokens} tokens, one batch needs {batch_tokens + 1}; "
            f"lower batch_tokens or add shards"
        )
    num_windows = batch_tokens // seq_len
    if loader == "shuffled":
        starts = _shuffled_starts((num_tokens - 1) // seq_len, num_windows, seq_len, seed)
    else:
        starts = _sequential_starts(num_tokens, num_windows, seq_len)
    share = num_windows // world_size
    return _read_windows(shards, (batch[rank * share : (rank + 1) * share] for batch in starts), seq_len)


def _sequential_starts(num_tokens: int, num_windows: int, seq_len: int) -> Iterator[np.ndarray]:
    """First tokens of each batch's windows, front to back, starting over at the end."""
    position = 0
    while True:
        yield (position + seq_len * np.arange(num_windows)) % num_tokens
        position = (position + seq_len * num_windows) % num_tokens


def _shuffled_starts(corpus_windows: int, num_windows: int, seq_len: int, seed: int) -> Iterator[np.ndarray]:
    """First tokens of each batch's windows: every window once per pass, each pass in an order of its own."""
    generator = np.random.default_rng(seed)
    waiting = np.empty(0, dtype=np.int64)
    while True:
        while len(waiting) < num_windows:
            waiting = np.concatenate((waiting, generator.permutation(corpus_windows)))
        yield waiting[:num_windows] * seq_len
        waiting = waiting[num_windows:]


def _read_windows(
    shards: list[np.ndarray], batches: Iterator[np.ndarray], seq_len: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows at the given positions, as inputs and targets."""
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    for batch in batches:
        windows = torch.from_numpy(np.stack([_span(shards, starts, int(at), seq_len + 1) for at in batch]))
        yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _span(shards: list[np.ndarray], starts: np.ndarray, position: int, count: int) -> np.ndarray:
    """`count` consecutive tokens from `position` of the concatenated, endlessly repeated shards, as int64."""
    span = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        at = (position + filled) % int(starts[-1])
        shard = int(np.searchsorted(starts, at, side="right")) - 1
        piece = shards[shard][at - int(starts[shard]) :][: count - filled]
        span[filled : filled + len(piece)] = piece
        filled += len(piece)
    return span


def validation_tokens(paths: Sequence[Path], seq_len: int) -> Tensor:
    """All validation tokens, cut to whole windows: (num_windows * seq_len + 1,) uint16 on the CPU.

    uint16 keeps the official 62 M tokens at 124 MB; convert slices with `.to(torch.int64)` where they are used.

    Raises:
        ValueError: the shards hold less than one window.
    """
    tokens = np.concatenate([read_shard(path) for path in paths])
    num_windows = (len(tokens) - 1) // seq_len
    if num_windows < 1:
        raise ValueError(
            f"the validation shards hold {len(tokens)} tokens, one window needs {seq_len + 1}; "
            f"lower the evaluation's seq_len or build with a larger --val-fraction"
        )
    return torch.from_numpy(tokens[: num_windows * seq_len + 1])


def check_token_range(tokens: Tensor, vocab_size: int, path: object) -> None:
    """Raise ValueError when a token id has no embedding row; `path` is what to name in the message."""
    widest = int((tokens.to(torch.int32) if tokens.dtype == torch.uint16 else tokens).max())
    if widest >= vocab_size:
        raise ValueError(
            f"{path}: token id {widest} does not fit vocab_size {vocab_size}; "
            f"the shards come from a larger tokenizer: raise vocab_size or build the shards with this tokenizer"
        )


@dataclass(frozen=True, slots=True)
class ByteTable:
    """What each token id contributes to the bytes of the text; `pgolf_model.bytecount` has the rule."""

    base_bytes: Tensor  # (vocab_size,) int16
    has_leading_space: Tensor  # (vocab_size,) bool
    is_boundary: Tensor  # (vocab_size,) bool

    def to(self, device: torch.device | str) -> ByteTable:
        """The same table on another device."""
        return ByteTable(self.base_bytes.to(device), self.has_leading_space.to(device), self.is_boundary.to(device))


def byte_table(tokenizer_path: str, vocab_size: int) -> ByteTable:
    """The byte table of a tokenizer, on the CPU; `piece_bytes` says what it refuses."""
    table = piece_bytes(tokenizer_path, vocab_size)
    return ByteTable(*(torch.from_numpy(column) for column in table))


def count_bytes(table: ByteTable, previous: Tensor, target: Tensor) -> Tensor:
    """UTF-8 bytes each target token stands for, int64 of the targets' shape.

    Args:
        previous: token before each target; a space right after a boundary (BOS) is free.
        target: token ids, any integer dtype that can index.
    """
    space = table.has_leading_space[target] & ~table.is_boundary[previous]
    return table.base_bytes[target].to(torch.int64) + space.to(torch.int64)
