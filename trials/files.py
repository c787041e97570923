"""Files of trials: JSON written atomically, lines appended and read, a full disk named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pgolf_model.errors import EXIT_DISK_FULL, UserError
from pgolf_model.files import write_atomically
from space.plain import from_plain, to_plain
from trials.spec import T

FULL_BYTES = 1_000_000  # a disk with less free space than this is full


def write_text_atomically(path: Path, text: str) -> None:
    """The same of a text, in UTF-8."""
    write_atomically(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write a noun or plain value as JSON, atomically; UTF-8, one key a line."""
    write_text_atomically(path, json.dumps(to_plain(value), indent=1, allow_nan=False) + "\n")


def refuse_full_disk(exit_code: int | None, folder: Path) -> None:
    """Raise OSError when a process ended for want of disk space: its trial has not failed, it is to be run again.

    Scripts of ours and workers say so by their exit code. Others, and ranks under torchrun, cannot: there the free
    space of the folder's file system decides.
    """
    if exit_code == EXIT_DISK_FULL or shutil.disk_usage(folder).free < FULL_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def read_noun(cls: type[T], path: Path) -> T:
    """Read a noun back.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is torn or holds something else; names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not whole JSON ({error})", hint="delete the file to run this trial again") from None
    return from_plain(cls, data, where=str(path))


def read_progress(path: Path) -> Iterator[dict[str, float]]:
    """Yield the records of a `progress.jsonl`, without values that were not finite."""
    for record in read_lines(path):
        if isinstance(record, dict):
            yield {key: value for key, value in record.items() if value is not None}


def read_lines(path: Path) -> Iterator[object]:
    """The JSON values of a file that has one on each line; a torn line, as a kill leaves it, is skipped."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def append_line(path: Path, value: object) -> None:
    """Add a JSON value as a line of its own, also after a torn one."""
    with path.open("a+b") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(value).encode() + b"\n")
