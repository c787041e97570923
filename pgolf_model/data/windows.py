"""Which windows of the training stream are read, and in which order, as an endless sequence of their first positions.

The stream is all shards end to end. numpy and the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from math import gcd

import numpy as np

from pgolf_model.errors import UserError

DOCUMENT_START = 1  # BOS, before each document in every official tokenizer
GOLDEN_SHARE = 0.6180339887  # the golden ratio's: its multiples modulo 1 stay further apart than other numbers'
FIRST_DOCUMENT_SEARCH = 1 << 20  # tokens


def window_starts(
    loader: str, shards: list[np.ndarray], *, seq_len: int, position: int, generator: np.random.Generator
) -> Iterator[int]:
    """The first positions of windows, each of `seq_len` tokens and the one after them.

    Args:
        loader: `sequential` goes from front to back and around. `shuffled` visits all windows in an order drawn anew
            for every pass; it suits small batches. `strided` steps over them with a stride coprime to their number,
            from another phase and start in every pass: mixed as well as shuffled, without a permutation in memory.
            `packed` goes from front to back in windows that start where a document does.
        position: where `sequential` and `packed` begin.
        generator: the random numbers of the other two.
    """
    num_tokens = sum(len(shard) for shard in shards)
    match loader:
        case "shuffled":
            return _shuffled(num_tokens, seq_len, generator)
        case "strided":
            return _strided(num_tokens, seq_len, generator)
        case "packed":
            return _packed(shards, seq_len, position % num_tokens)
    return (start % num_tokens for start in count(position, seq_len))


def _shuffled(num_tokens: int, seq_len: int, generator: np.random.Generator) -> Iterator[int]:
    """Every window once per pass, each pass in an order of its own."""
    while True:
        yield from generator.permutation((num_tokens - 1) // seq_len) * seq_len


def _strided(num_tokens: int, seq_len: int, generator: np.random.Generator) -> Iterator[int]:
    """Every window once per pass; windows that follow each other lie far apart.

    Source: the loaders of the challenge's records from 2026-03-29 on, https://github.com/openai/parameter-golf
    """
    while True:
        phase = int(generator.integers(min(seq_len, num_tokens - seq_len)))
        num_windows = (num_tokens - 1 - phase) // seq_len
        first = int(generator.integers(num_windows))
        stride = next(n for n in count(max(1, round(num_windows * GOLDEN_SHARE))) if gcd(n, num_windows) == 1)
        for i in range(num_windows):
            yield phase + (first + i * stride) % num_windows * seq_len


def _packed(shards: list[np.ndarray], seq_len: int, position: int) -> Iterator[int]:
    """Windows that start with a document, or go on with a document longer than a window where the last window ended.

    Documents follow each other within a window as they do in the stream. When a window ends inside a document that is
    shorter than a window, the rest of that document is skipped; to read it again from its start would cost up to half a
    document per window. A window lies in one shard.
    """
    while True:
        found, offset = False, 0
        for shard in shards:
            at, offset = position - offset, offset + len(shard)
            if at >= len(shard):
                continue
            at = max(0, at)
            hits = np.flatnonzero(shard[at : at + FIRST_DOCUMENT_SEARCH] == DOCUMENT_START)
            at += int(hits[0]) if len(hits) else 0
            while at + seq_len < len(shard):
                found = True
                yield offset - len(shard) + at
                starts = np.flatnonzero(shard[at : at + 2 * seq_len + 1] == DOCUMENT_START)
                index = int(np.searchsorted(starts, seq_len))
                last = int(starts[index - 1]) if index else 0  # the document that the window's end lies in
                after = int(starts[index]) if index < len(starts) else 3 * seq_len
                at += seq_len if after - last > seq_len else after
        if not found and not position:
            raise UserError(f"no training shard holds a window of {seq_len + 1} tokens", hint="lower seq_len")
        position = 0
