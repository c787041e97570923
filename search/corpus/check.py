"""Compare a dataset directory with its manifest, and list every problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgolf_model.data.bytecount import PieceBytes, load_tokenizer, piece_bytes
from pgolf_model.data.shards import read_shard
from pgolf_model.errors import UserError
from search.corpus.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, ShardInfo, Split, SplitInfo, read_manifest
from search.corpus.shard_writer import file_sha256, scan_shard
from search.corpus.tokenizer import tokenizer_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """The size of a checked dataset, and its problems."""

    directory: str
    num_shards: int
    tokens: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the dataset has no problem."""
        return not self.problems


def check(directory: Path) -> CheckReport:
    """Check headers, sizes, hashes, tokenizer, token range and document boundaries of a dataset directory.

    Raises:
        UserError: there is no readable manifest to compare with.
    """
    manifest = read_manifest(directory)
    problems = [*_unlisted(directory, manifest)]
    table, bos_id, tokenizer_problems = _tokenizer(directory, manifest)
    problems += tokenizer_problems
    sides: tuple[tuple[Split, SplitInfo], ...] = (("train", manifest.train), ("val", manifest.val))
    for side, info in sides:
        shards = [shard for shard in manifest.shards if shard.split == side]
        damaged = [problem for shard in shards for problem in _damage(directory, shard)]
        problems += damaged
        if not damaged and table is not None:
            problems += _contents(directory, side, shards, info, table, bos_id)
    return CheckReport(
        directory=str(directory),
        num_shards=len(manifest.shards),
        tokens=sum(shard.tokens for shard in manifest.shards),
        problems=tuple(problems),
    )


def quick_check(directory: Path) -> Manifest:
    """Return the manifest of a dataset after checking headers, sizes and the tokenizer, without reading tokens.

    Raises:
        UserError: with the first problem found and its fix.
    """
    manifest = read_manifest(directory)
    tokenizer = directory / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer}: no such file", hint="build or fetch the dataset again")
    if tokenizer_hash(tokenizer) != manifest.tokenizer_sha256:
        raise UserError(f"{tokenizer}: another tokenizer made the shards (sha256 differs)", hint="put that one back")
    for shard in manifest.shards:
        _require_size(directory, shard)
    return manifest


def refuse_foreign_tokenizer(val: str, tokenizer: Path) -> None:
    """Raise UserError if the shards at `val` (folder, glob or file) are known to be another tokenizer's.

    The manifest beside the shards says which tokenizer made them; without one nothing is refused. A wrong tokenizer
    would give a wrong byte count and no error.
    """
    directory = Path(val) if Path(val).is_dir() else Path(val).parent
    if not (directory / MANIFEST_FILE).is_file():
        return
    expected, found = read_manifest(directory).tokenizer_sha256, tokenizer_hash(tokenizer)
    if expected != found:
        raise UserError(
            f"{tokenizer} did not make the shards in {directory}: their tokenizer has sha256 {expected[:16]}, this one "
            f"{found[:16]}",
            hint=f"give {directory / TOKENIZER_FILE}",
        )


def _unlisted(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a problem for each shard that training would read although the manifest does not list it."""
    listed = {shard.name for shard in manifest.shards}
    for path in sorted(directory.glob("fineweb_*.bin")):
        if path.name not in listed:
            yield f"{path}: not in the manifest, yet training would read it; move it away"


def _tokenizer(directory: Path, manifest: Manifest) -> tuple[PieceBytes | None, int, list[str]]:
    """Return (byte table, BOS id, problems) of the dataset's tokenizer; the table is None if it cannot be used."""
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return None, -1, [f"{path}: no such file; build or fetch the dataset again"]
    found = tokenizer_hash(path)
    if found != manifest.tokenizer_sha256:
        expected = manifest.tokenizer_sha256
        return (
            None,
            -1,
            [
                f"{path}: expected sha256 {expected[:16]}, got {found[:16]}: the shards are another tokenizer's; "
                f"put that one back or build the dataset again"
            ],
        )
    try:
        return piece_bytes(str(path), manifest.vocab_size), load_tokenizer(str(path)).bos_id(), []
    except UserError as error:
        return None, -1, [str(error)]


def _damage(directory: Path, shard: ShardInfo) -> Iterator[str]:
    """Yield a problem if a shard's file is not the one that the manifest lists."""
    path = directory / shard.name
    try:
        _require_size(directory, shard)
    except UserError as error:
        yield str(error)
        return
    if file_sha256(path) != shard.sha256:
        yield f"{path}: its sha256 is not the manifest's; fetch or build the shard again"


def _require_size(directory: Path, shard: ShardInfo) -> None:
    """Raise UserError if a shard's header, size or number of tokens is not the manifest's; reads no token."""
    path = directory / shard.name
    num_tokens = len(read_shard(path))
    if num_tokens != shard.tokens:
        raise UserError(
            f"{path}: expected {shard.tokens} tokens, got {num_tokens}", hint="fetch or build the shard again"
        )


def _contents(
    directory: Path, side: Split, shards: list[ShardInfo], info: SplitInfo, table: PieceBytes, bos_id: int
) -> Iterator[str]:
    """Yield problems in the tokens of a split: ids out of range, and documents or bytes that do not add up."""
    num_docs = scored_bytes = 0
    previous = bos_id
    for shard in shards:
        path = directory / shard.name
        scan = scan_shard(path, table, bos_id=bos_id, previous=previous)
        if shard is shards[0] and scan.first_token != bos_id:
            yield f"{path}: expected BOS ({bos_id}) as first token, got {scan.first_token}; build the dataset again"
        if scan.max_token >= len(table.base_bytes):
            yield (
                f"{path}: token id {scan.max_token} does not fit vocab_size {len(table.base_bytes)}; "
                f"the shard comes from another tokenizer: build the dataset again"
            )
        num_docs += scan.num_docs
        scored_bytes += scan.scored_bytes
        previous = min(scan.last_token, len(table.base_bytes) - 1)
    for what, expected, got in (
        ("documents", info.num_docs, num_docs),
        ("scored bytes", info.scored_bytes, scored_bytes),
    ):
        if expected != got:
            yield f"{directory}: expected {expected} {what} in the {side} split, got {got}; build the dataset again"
