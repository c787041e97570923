"""What several test files share: a small dataset of text that every Python has."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from search.corpus.build import build
from search.corpus.builtin import documentation, group_blocks
from search.corpus.documents import corpus_from_files
from search.engines.ray_tune import secret

# As many processes as cores run tests: each one, and what it starts, has one thread. Without this two of them took
# three times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray reads its secret once a process, at its first import: also for clusters that come after a test of its schedulers.
os.environ.update(secret())

# A loaded machine is slow now and then; that is no failure.
settings.register_profile("pgolf", deadline=None)
settings.load_profile("pgolf")

TINY_BYTES = 300_000
SHARED = Path(__file__).resolve().parents[2] / "shared"  # real FineWeb text, on the machines that have it


def tiny_documents() -> Iterator[str]:
    """About 300 KB of standard-library docstrings, one document per module."""
    num_bytes = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for document in group_blocks(documentation(path)):
            if num_bytes < TINY_BYTES:
                yield document
            num_bytes += len(document.encode())


@pytest.fixture(scope="session")
def tiny_docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.jsonl`: the documents behind `tiny_data`."""
    path = tmp_path_factory.mktemp("docs") / "tiny.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_documents()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_data(tiny_docs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset directory: train and validation shards, a tokenizer of 512 pieces, a manifest. Read only."""
    out = tmp_path_factory.mktemp("data") / "tiny"
    build(corpus_from_files([tiny_docs]), out, vocab_size=512, val_fraction=0.2)
    return out


@pytest.fixture
def fineweb() -> Path:
    """The folder of real FineWeb samples, which not every machine has."""
    if not (SHARED / "data" / "docs").is_dir():
        pytest.skip(f"{SHARED}/data is not on this machine")
    return SHARED / "data"
