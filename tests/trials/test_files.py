"""Files of trials are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgolf_model.files import write_atomically
from trials.files import write_json, write_text_atomically


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    """Bytes, text outside ASCII, and JSON that ends in a newline."""
    path = tmp_path / "file"
    write_atomically(path, b"\x00old")
    write_text_atomically(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    write_json(path, {"a": (1, 2)})
    assert path.read_text().endswith("\n")
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_dies_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new content gets the name only once it is on the disk."""
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def die(fd: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
