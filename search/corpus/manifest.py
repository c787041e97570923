"""`manifest.json`, the description of a dataset directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgolf_model.errors import UserError
from space.plain import from_plain

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.model"
MANIFEST_FORMAT = 1
COMPARABLE_BYTES = 0.001  # scored validation bytes of comparable datasets differ by at most this share

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard file."""

    name: str
    split: Split
    tokens: int
    bytes: int  # of the file
    sha256: str  # of the file


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """Counts over all shards of one split."""

    num_docs: int
    tokens: int
    scored_bytes: int  # divisor of bits per byte: UTF-8 bytes of the text after the tokenizer normalised it
    raw_bytes: int | None = None  # UTF-8 bytes of the documents as given; None when only tokens were published


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerAudit:
    """Effects of a tokenizer on documents. The official ones normalise text, so that a round trip is no test."""

    num_documents: int
    raw_bytes: int
    scored_bytes: int
    num_unstable: int  # documents whose decoded tokens encode to other tokens
    num_miscounted: int  # documents whose byte table sum is not the UTF-8 size of their decoded text
    has_bare_space_piece: bool

    @property
    def dropped_share(self) -> float:
        """Share of raw UTF-8 bytes that normalisation removed; negative when it added some."""
        return 1 - self.scored_bytes / self.raw_bytes if self.raw_bytes else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The description of a dataset. Two datasets with equal manifests are the same data."""

    format: int = MANIFEST_FORMAT
    source: str  # where the documents come from, for people
    recipe_sha256: str  # of inputs and settings: same recipe, same dataset
    tokenizer_sha256: str  # of tokenizer.model
    vocab_size: int
    normalization: str  # "identity" when the tokenizer keeps text as it is, else "nmt_nfkc"
    shards: tuple[ShardInfo, ...]
    train: SplitInfo
    val: SplitInfo
    val_docs_sha256: str = ""  # of the raw validation documents, whatever the tokenizer; "" when unknown
    audit: TokenizerAudit | None = None

    def __post_init__(self) -> None:
        if self.format != MANIFEST_FORMAT:
            raise UserError(
                f"expected manifest format {MANIFEST_FORMAT}, got {self.format}", hint="build the dataset again"
            )


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a dataset directory; raise UserError if it is missing or damaged."""
    path = directory / MANIFEST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{directory}: no {MANIFEST_FILE}", hint="make a dataset with `pgolf data build` or `pgolf data fetch`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})", hint="build or fetch the dataset again") from None
    return from_plain(Manifest, data, where=str(path))


def check_comparable(a: Manifest, b: Manifest) -> None:
    """Raise UserError if val_bpb on `a` and on `b` do not compare.

    They compare if the validation documents are the same and the scored bytes differ by at most 0.1 %: a tokenizer that
    drops more text than another would win by scoring less.
    """
    if a.val.num_docs != b.val.num_docs or (
        a.val_docs_sha256 and b.val_docs_sha256 and a.val_docs_sha256 != b.val_docs_sha256
    ):
        raise UserError(
            f"the datasets have different validation documents ({a.source}: {a.val.num_docs}, {b.source}: "
            f"{b.val.num_docs}), so their val_bpb are not comparable",
            hint="build both from the same documents",
        )
    low, high = sorted((a.val.scored_bytes, b.val.scored_bytes))
    if high - low > COMPARABLE_BYTES * high:
        raise UserError(
            f"the tokenizers score {a.val.scored_bytes} and {b.val.scored_bytes} bytes of the same documents, more "
            f"than {COMPARABLE_BYTES:.1%} apart",
            hint="give both the same --normalization",
        )
