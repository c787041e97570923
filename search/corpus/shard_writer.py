"""Write shards and scan them. Reading is in `pgolf_model.data.shards`, because submissions read shards too."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from pgolf_model.data.bytecount import PieceBytes
from pgolf_model.data.shards import SHARD_HEADER_BYTES, SHARD_MAGIC, SHARD_VERSION, read_shard
from pgolf_model.errors import UserError
from search.corpus.manifest import ShardInfo, Split

SHARD_TOKENS = 100_000_000  # the challenge's shard size; the last one of a split is shorter
SCAN_TOKENS = 4_000_000  # tokens looked at together when a shard is scanned


class ShardWriter:
    """Writes one split as shards `fineweb_{split}_{n:06d}.bin`; a document may continue in the next shard.

    Tokens go to a temporary file at once, so that memory does not grow with the shard; a finished shard is renamed.
    Use it in a `with` block: its end finishes the last shard, an exception drops that shard.
    """

    def __init__(self, directory: Path, split: Split, *, shard_tokens: int = SHARD_TOKENS) -> None:
        if not 1 <= shard_tokens < 2**31:
            raise UserError(f"shard_tokens must be in [1, 2**31), got {shard_tokens}")
        self.shards: list[ShardInfo] = []
        self._directory, self._split, self._shard_tokens = directory, split, shard_tokens
        self._file: BinaryIO | None = None
        self._tokens = 0

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens (any integer dtype, values below 65,536); a full shard is followed by a new one."""
        with disk_errors(self._directory):
            while len(tokens):
                if self._file is None:
                    self._file = self._temporary.open("wb")
                    self._file.write(bytes(SHARD_HEADER_BYTES))
                now, tokens = np.split(tokens, [self._shard_tokens - self._tokens])
                self._file.write(now.astype("<u2").tobytes())
                self._tokens += len(now)
                if self._tokens == self._shard_tokens:
                    self._finish()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None and self._file is not None:
                with disk_errors(self._directory):
                    self._finish()
        finally:
            if self._file is not None:
                with suppress(OSError):  # a full disk fails the flush again
                    self._file.close()
                self._temporary.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        """The unfinished shard's file."""
        return self._directory / f".{self._split}.{os.getpid()}.tmp"

    def _finish(self) -> None:
        """Give the shard its header and its name."""
        assert self._file is not None
        header = np.zeros(SHARD_HEADER_BYTES // 4, dtype="<i4")
        header[:3] = SHARD_MAGIC, SHARD_VERSION, self._tokens
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._directory / f"fineweb_{self._split}_{len(self.shards):06d}.bin"
        os.replace(self._temporary, path)
        self.shards.append(shard_info(path, self._split))
        self._file, self._tokens = None, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardScan:
    """Counts of a pass over one shard's tokens."""

    num_docs: int  # BOS tokens
    scored_bytes: int
    max_token: int
    first_token: int
    last_token: int


def shard_info(path: Path, split: Split) -> ShardInfo:
    """Return size, token count and hash of a shard; raise UserError if it is damaged."""
    return ShardInfo(
        name=path.name, split=split, tokens=len(read_shard(path)), bytes=path.stat().st_size, sha256=file_sha256(path)
    )


def scan_shard(path: Path, table: PieceBytes, *, bos_id: int, previous: int) -> ShardScan:
    """Count documents and scored bytes of a shard; tokens outside the table count no bytes.

    Args:
        previous: last token of the shard before, `bos_id` for the first; it decides whether a space after it counts.
    """
    tokens = read_shard(path)
    num_docs = scored = largest = 0
    last = previous
    for start in range(0, len(tokens), SCAN_TOKENS):
        chunk = np.concatenate(([last], tokens[start : start + SCAN_TOKENS]))
        largest = max(largest, int(chunk[1:].max()))
        num_docs += int((chunk[1:] == bos_id).sum())
        scored += stream_bytes(table, chunk[chunk < len(table.base_bytes)])
        last = int(chunk[-1])
    return ShardScan(
        num_docs=num_docs, scored_bytes=scored, max_token=largest, first_token=int(tokens[0]), last_token=last
    )


def stream_bytes(table: PieceBytes, tokens: np.ndarray) -> int:
    """Return the scored bytes of all tokens but the first, which only decides whether a space after it counts."""
    previous, target = tokens[:-1], tokens[1:]
    spaces = table.has_leading_space[target] & ~table.is_boundary[previous]
    return int(table.base_bytes[target].sum(dtype=np.int64)) + int(spaces.sum())


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the OSError of a full disk into a UserError that names the disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"no space left on the disk of {path}", hint="free some or choose another --out") from error
