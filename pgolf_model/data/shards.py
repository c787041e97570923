"""The challenge's shard files: finding and reading them. numpy only, so that dataset builders need no torch.

A shard is 256 little-endian int32 header words (magic, version, token count, zeros) and then the tokens, uint16.
"""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np

from pgolf_model.errors import UserError

SHARD_MAGIC = 20240520
SHARD_VERSION = 1
SHARD_HEADER_BYTES = 1024


def shard_paths(data: str, split: str) -> list[Path]:
    """Shards of one split in the order they are read.

    Args:
        data: a dataset directory, a glob, or a single shard.
        split: "train" or "val"; only a directory needs it.
    Raises:
        UserError: nothing matches.
    """
    pattern = str(Path(glob.escape(data)) / f"fineweb_{split}_*.bin") if Path(data).is_dir() else data
    found = [Path(data)] if Path(data).is_file() else [Path(name) for name in sorted(glob.glob(pattern))]
    shards = [path for path in found if "_bytes_" not in path.name]  # byte sidecars have the shard format too
    if not shards:
        kind = "validation" if split == "val" else "training"
        raise UserError(
            f"no {kind} shards match {pattern}", hint="build them with `pgolf data build` or `pgolf data fetch`"
        )
    return shards


def read_shard(path: Path) -> np.ndarray:
    """Tokens of one shard as a read-only uint16 memory map.

    Raises:
        UserError: no such file, another format, no tokens, or a size that contradicts the header.
    """
    again = "fetch or build the shard again"
    if not path.is_file():
        raise UserError(f"{path}: no such shard", hint=f"{again}")
    size = path.stat().st_size
    if size < SHARD_HEADER_BYTES:
        raise UserError(f"{path}: expected a header of {SHARD_HEADER_BYTES} bytes, got {size} bytes", hint=f"{again}")
    magic, version, num_tokens = (int(word) for word in np.fromfile(path, dtype="<i4", count=3))
    if magic != SHARD_MAGIC:
        raise UserError(f"{path}: expected shard magic {SHARD_MAGIC}, got {magic}", hint=f"{again}")
    if version != SHARD_VERSION:
        raise UserError(f"{path}: expected shard version {SHARD_VERSION}, got {version}", hint=f"{again}")
    if num_tokens < 1:
        raise UserError(f"{path}: expected at least 1 token, the header says {num_tokens}", hint=f"{again}")
    expected = SHARD_HEADER_BYTES + 2 * num_tokens
    if size != expected:
        raise UserError(f"{path}: expected {expected} bytes for {num_tokens} tokens, got {size}", hint=f"{again}")
    return np.memmap(path, dtype="<u2", mode="r", offset=SHARD_HEADER_BYTES, shape=(num_tokens,))
