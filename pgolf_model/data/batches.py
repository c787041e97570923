"""Tokens as the model takes them: training batches, validation tokens, bytes per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgolf_model.data.bytecount import piece_bytes
from pgolf_model.data.shards import read_shard
from pgolf_model.data.windows import window_starts
from pgolf_model.errors import UserError


class TrainingWindows:
    """Batches of windows of the training shards, in the order of a loader that `window_starts` describes.

    Each rank takes its contiguous slice of a batch's windows, so all ranks together read what a single rank would read.
    When the length of the windows changes, front-to-back loaders go on where they are and the others start a new pass.

    Raises:
        UserError: a shard is missing or damaged, or all of them hold fewer than `batch_tokens` + 1 tokens.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        loader: str,
        batch_tokens: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        self.shards = [read_shard(path) for path in paths]
        self.ends = np.cumsum([0, *(len(shard) for shard in self.shards)])
        if self.ends[-1] < batch_tokens + 1:
            raise UserError(
                f"the training shards hold {self.ends[-1]} tokens, one batch needs {batch_tokens + 1}",
                hint="lower batch_tokens or add shards",
            )
        self.loader, self.rank, self.world_size = loader, rank, world_size
        self.generator = np.random.default_rng(seed)
        self.seq_len, self.position = 0, 0
        self.starts: Iterator[int] = iter(())

    def next_batch(self, num_sequences: int, seq_len: int) -> tuple[Tensor, Tensor]:
        """This rank's share of the next batch.

        Returns:
            (inputs, targets), each (num_sequences, seq_len) int64 on the CPU.
        """
        if seq_len != self.seq_len:
            self.seq_len = seq_len
            self.starts = window_starts(
                self.loader, self.shards, seq_len=seq_len, position=self.position, generator=self.generator
            )
        batch = [int(start) for start in islice(self.starts, num_sequences * self.world_size)]
        self.position = batch[-1] + seq_len
        own = batch[self.rank * num_sequences : (self.rank + 1) * num_sequences]
        windows = torch.from_numpy(np.stack([_span(self.shards, self.ends, at, seq_len + 1) for at in own]))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


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
        UserError: the shards hold less than one window.
    """
    tokens = np.concatenate([read_shard(path) for path in paths])
    num_windows = (len(tokens) - 1) // seq_len
    if num_windows < 1:
        raise UserError(
            f"the validation shards hold {len(tokens)} tokens, one window needs {seq_len + 1}",
            hint="lower the evaluation's seq_len or build with a larger --val-fraction",
        )
    return torch.from_numpy(tokens[: num_windows * seq_len + 1])


def check_token_range(tokens: Tensor, vocab_size: int, path: object) -> None:
    """Raise UserError when a token id has no embedding row; the message names `path`."""
    widest = int((tokens.to(torch.int32) if tokens.dtype == torch.uint16 else tokens).max())
    if widest >= vocab_size:
        raise UserError(
            f"{path}: token id {widest} does not fit vocab_size {vocab_size}",
            hint="the shards come from a larger tokenizer: raise vocab_size or build the shards with this tokenizer",
        )


@dataclass(frozen=True, slots=True)
class ByteTable:
    """How many bytes of the text each token id stands for; `pgolf_model.data.bytecount` has the rule."""

    base_bytes: Tensor  # (vocab_size,) int16
    has_leading_space: Tensor  # (vocab_size,) bool
    is_boundary: Tensor  # (vocab_size,) bool

    def to(self, device: torch.device | str) -> ByteTable:
        """The same table on another device."""
        return ByteTable(self.base_bytes.to(device), self.has_leading_space.to(device), self.is_boundary.to(device))


def byte_table(tokenizer_path: str, vocab_size: int) -> ByteTable:
    """The byte table of a tokenizer, on the CPU; `piece_bytes` says which tokenizers it refuses."""
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
