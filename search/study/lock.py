"""One driver per study, by an flock that the kernel releases when the driver's process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pgolf_model.errors import UserError
from search.study.config import StudyConfig

LOCK_FILE = "driver.lock"
PATIENCE_SECONDS = 0.5  # a starting driver tries for so long, since `driver_alive` holds a shared lock for microseconds


@contextmanager
def driver_lock(study: StudyConfig) -> Iterator[None]:
    """Be the study's only driver until the block ends.

    The empty file stays afterwards: without it two processes could lock two different files of that name.

    Raises:
        UserError: another process holds the lock; names the process.
    """
    study.dir.mkdir(parents=True, exist_ok=True)
    with (study.dir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        _acquire(study, file)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            file.flush()


def driver_alive(study: StudyConfig) -> bool:
    """Return whether some process drives the study now."""
    try:
        with (study.dir / LOCK_FILE).open(encoding="utf-8") as file:
            return not _try_lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def driver_pid(study: StudyConfig) -> int | None:
    """Return the process id of the live driver; None if there is none, or it has not written its id yet."""
    if not driver_alive(study):
        return None
    text = (study.dir / LOCK_FILE).read_text(encoding="utf-8").strip()
    return int(text) if text.isdecimal() else None


def _acquire(study: StudyConfig, file: IO[str]) -> None:
    """Lock the file, or raise UserError after PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _try_lock(file, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise UserError(
                f"study {study.name!r} is already being run by process {pid}", hint="wait for it or stop it"
            ) from None
        time.sleep(0.02)


def _try_lock(file: IO[str], kind: int) -> bool:
    """Return whether the file could be locked at once."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
