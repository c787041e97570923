"""Build a dataset directory from documents: tokenizer, shards, manifest. It appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import numpy as np

from pgolf_model.data.bytecount import load_tokenizer, piece_bytes
from pgolf_model.errors import UserError
from search.corpus.documents import Corpus, batches
from search.corpus.manifest import (
    MANIFEST_FILE,
    MANIFEST_FORMAT,
    TOKENIZER_FILE,
    Manifest,
    ShardInfo,
    Split,
    SplitInfo,
    TokenizerAudit,
    read_manifest,
)
from search.corpus.shard_writer import SHARD_TOKENS, ShardWriter, disk_errors, stream_bytes
from search.corpus.tokenizer import (
    Normalization,
    audit_batch,
    merge_audits,
    normalization_of,
    require_sound,
    tokenizer_hash,
    train_tokenizer,
)
from trials.files import write_json

AUDITED_TRAIN_DOCS = 1000  # the tokenizer is audited on all validation documents and the first of training
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shards:
    """The written shards, with counts and audit."""

    shards: tuple[ShardInfo, ...]
    train: SplitInfo
    val: SplitInfo
    val_docs_sha256: str
    audit: TokenizerAudit


def build(
    corpus: Corpus,
    out: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int = 1024,
    normalization: Normalization = "nmt_nfkc",
    val_fraction: float = 0.05,
    val_corpus: Corpus | None = None,
    shard_tokens: int = SHARD_TOKENS,
    report: Report = lambda line: None,
) -> Manifest:
    """Write a dataset directory and return its manifest; if the same dataset is already there, only return it.

    Args:
        tokenizer: a SentencePiece model to use; without one, `vocab_size` pieces are trained on the training
            documents (on all documents if all of them validate) with `normalization`.
        val_fraction: share of documents, chosen by their hash, that validate; 0 and 1 give one split only.
        val_corpus: documents that validate, instead of a share; exact copies of them are kept out of training.
    Raises:
        UserError: bad documents, an unsound tokenizer, an empty split, a full disk, or `out` has other contents.
    """
    if not 0 <= val_fraction <= 1:
        raise UserError(f"val_fraction must be in [0, 1], got {val_fraction}")
    sides = _Sides(corpus, val_fraction, val_corpus)
    recipe = _recipe(sides, tokenizer, vocab_size, normalization, shard_tokens)
    there = _already_built(out, recipe)
    if there is not None:
        report(f"{out} already holds this dataset: nothing to do")
        return there
    with _staging(out) as folder:
        model = folder / TOKENIZER_FILE
        if tokenizer is not None:
            shutil.copyfile(tokenizer, model)
        else:
            report(f"training a tokenizer of {vocab_size} pieces on {corpus.source}")
            only_val = val_fraction == 1 and val_corpus is None
            texts = (text for side, text in sides.documents() if only_val or side == "train")
            model.write_bytes(train_tokenizer(texts, vocab_size=vocab_size, normalization=normalization))
        written = _write_shards(sides, folder, model, shard_tokens, report)
        pieces = load_tokenizer(str(model))
        manifest = Manifest(
            source=corpus.source,
            recipe_sha256=recipe,
            tokenizer_sha256=tokenizer_hash(model),
            vocab_size=pieces.vocab_size(),
            normalization=normalization_of(pieces),
            shards=written.shards,
            train=written.train,
            val=written.val,
            val_docs_sha256=written.val_docs_sha256,
            audit=written.audit,
        )
        write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def is_validation(text: str, val_fraction: float) -> bool:
    """Return whether a document validates: a pure function of its text, so that copies are on the same side."""
    position = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
    return position < val_fraction * 2**64


@dataclass(frozen=True, slots=True)
class _Sides:
    """The documents, split into training and validation."""

    corpus: Corpus
    val_fraction: float
    val_corpus: Corpus | None

    def documents(self) -> Iterator[tuple[Split, str]]:
        """Yield every document with its side; a given validation corpus comes last."""
        if self.val_corpus is None:
            for text in self.corpus.documents():
                yield ("val" if is_validation(text, self.val_fraction) else "train"), text
            return
        held_out = {_digest(text) for text in self.val_corpus.documents()}
        for text in self.corpus.documents():
            if _digest(text) not in held_out:
                yield "train", text
        for text in self.val_corpus.documents():
            yield "val", text


def _digest(text: str) -> bytes:
    """Return the hash of a document."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def _write_shards(sides_of: _Sides, folder: Path, model: Path, shard_tokens: int, report: Report) -> _Shards:
    """Tokenize every document into its split, count documents, tokens and bytes, and audit the tokenizer."""
    tokenizer = load_tokenizer(str(model))
    bos = tokenizer.bos_id()
    if bos < 0 or tokenizer.vocab_size() > 65_536:
        raise UserError(
            f"{model.name}: a tokenizer needs a BOS piece and at most 65536 pieces (shards are uint16), "
            f"got BOS id {bos} and {tokenizer.vocab_size()} pieces"
        )
    table = piece_bytes(str(model), tokenizer.vocab_size())
    counts: dict[Split, SplitInfo] = {s: SplitInfo(num_docs=0, tokens=0, scored_bytes=0, raw_bytes=0) for s in _SPLITS}
    audited = audit_batch(tokenizer, table, [], [])
    val_docs = hashlib.sha256()
    with (
        ShardWriter(folder, "train", shard_tokens=shard_tokens) as train,
        ShardWriter(folder, "val", shard_tokens=shard_tokens) as val,
    ):
        for batch in batches(sides_of.documents(), text_of=itemgetter(1)):
            sides, texts = [side for side, _ in batch], [text for _, text in batch]
            encoded = tokenizer.encode(texts, num_threads=os.cpu_count() or 1)
            first = max(0, AUDITED_TRAIN_DOCS - counts["train"].num_docs)
            checked = [i for i, side in enumerate(sides) if side == "val" or i < first]
            audited = merge_audits(
                audited, audit_batch(tokenizer, table, [texts[i] for i in checked], [encoded[i] for i in checked])
            )
            for text, side, ids in zip(texts, sides, encoded, strict=True):
                tokens = np.array([bos, *ids])
                (val if side == "val" else train).write(tokens)
                raw = text.encode("utf-8")
                counts[side] = _counted(counts[side], tokens, len(raw), stream_bytes(table, tokens))
                if side == "val":
                    val_docs.update(len(raw).to_bytes(8, "big") + raw)
            report(f"tokenized {counts['train'].num_docs + counts['val'].num_docs} documents")
    require_sound(audited, model)
    _refuse_empty_splits(counts, sides_of)
    return _Shards(
        shards=(*train.shards, *val.shards),
        train=counts["train"],
        val=counts["val"],
        val_docs_sha256=val_docs.hexdigest() if counts["val"].num_docs else "",
        audit=audited,
    )


_SPLITS: tuple[Split, ...] = ("train", "val")


def _counted(split: SplitInfo, tokens: np.ndarray, raw_bytes: int, scored_bytes: int) -> SplitInfo:
    """Return the counts with one more document."""
    return replace(
        split,
        num_docs=split.num_docs + 1,
        tokens=split.tokens + len(tokens),
        scored_bytes=split.scored_bytes + scored_bytes,
        raw_bytes=(split.raw_bytes or 0) + raw_bytes,
    )


def _refuse_empty_splits(counts: dict[Split, SplitInfo], sides_of: _Sides) -> None:
    """Raise UserError if a split that was asked for got no document."""
    share = sides_of.val_fraction if sides_of.val_corpus is None else 0.5
    wanted: tuple[tuple[Split, float], ...] = (("train", 1 - share), ("val", share))
    for side, part in wanted:
        if part > 0 and not counts[side].num_docs:
            total = counts["train"].num_docs + counts["val"].num_docs
            raise UserError(
                f"{sides_of.corpus.source}: none of {total} documents fell into the {side} split at --val-fraction "
                f"{sides_of.val_fraction}",
                hint="give more documents or another --val-fraction",
            )


def _recipe(
    sides_of: _Sides, tokenizer: Path | None, vocab_size: int, normalization: Normalization, shard_tokens: int
) -> str:
    """Return the hash of all inputs and settings that the dataset depends on."""
    if tokenizer is not None and not tokenizer.is_file():
        raise UserError(f"{tokenizer}: no such tokenizer", hint="give a .model file, or --vocab-size to train one")
    pieces = [vocab_size, normalization] if tokenizer is None else [tokenizer_hash(tokenizer)]
    held_out = float(sides_of.val_fraction) if sides_of.val_corpus is None else sides_of.val_corpus.identity
    settings = [MANIFEST_FORMAT, sides_of.corpus.identity, pieces, held_out, shard_tokens]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _already_built(out: Path, recipe: str) -> Manifest | None:
    """Return the manifest in `out` if it has this recipe, None if `out` is empty; raise UserError otherwise."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if (out / MANIFEST_FILE).is_file():
        manifest = read_manifest(out)
        whole = all(_size(out / shard.name) == shard.bytes for shard in manifest.shards)
        if manifest.recipe_sha256 == recipe and whole and (out / TOKENIZER_FILE).is_file():
            return manifest
        if manifest.recipe_sha256 == recipe:
            raise UserError(
                f"{out} holds this dataset with files missing or cut short", hint="delete it to build it again"
            )
        raise UserError(
            f"{out} holds another dataset ({manifest.source}, or other settings)",
            hint="delete it or choose another --out",
        )
    raise UserError(f"{out} is not empty and holds no dataset", hint="choose another --out")


def _size(path: Path) -> int:
    """Return a file's bytes; -1 without a file."""
    return path.stat().st_size if path.is_file() else -1


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yield a folder next to `out`. It is renamed to `out` if the block ends without an error, else deleted."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
        try:
            yield folder
            folder.chmod(0o755)  # mkdtemp's folder is private
            os.rename(folder, out)  # over an empty folder too
        finally:
            shutil.rmtree(folder, ignore_errors=True)
