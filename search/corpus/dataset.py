"""A dataset folder with its manifest, opened and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgolf_model.errors import UserError
from search.corpus.check import quick_check
from search.corpus.manifest import TOKENIZER_FILE, Manifest, check_comparable


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One dataset folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model next to the shards."""
        return self.folder / TOKENIZER_FILE


def open_dataset(name: str) -> Dataset:
    """Return the dataset in folder `name`.

    Raises:
        UserError: there is none, or it is damaged; says how to make one.
    """
    folder = Path(name).absolute()
    if not folder.is_dir():
        raise UserError(
            f"no dataset at {name}: build one with `pgolf data build FILE... --out {name}` or download the "
            f"challenge's with `pgolf data fetch --out {name}`"
        )
    return Dataset(folder=folder, manifest=quick_check(folder))


def dataset_fingerprint(manifest: Manifest) -> str:
    """Return the hash of the tokenizer and of every shard, in order."""
    parts = [manifest.tokenizer_sha256, *(shard.sha256 for shard in manifest.shards)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def refuse_incomparable(datasets: Sequence[Dataset]) -> None:
    """Raise UserError if the datasets do not score the same text, so that their tokenizers cannot be compared."""
    for other in datasets[1:]:
        check_comparable(datasets[0].manifest, other.manifest)
