"""The process of a trial's run: wait for it, end it with everything that it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trials.spec import (
    STOP_FILE,
)

POLL_SECONDS = 0.1


class CalledOff(Exception):
    """The process that started this one is gone, or asked it to stop: nobody waits for the result."""


def end_with_parent() -> None:
    """Ask Linux to end the script when this supervisor dies, however it dies; elsewhere the poll has to do.

    SIGTERM, because torchrun passes that one on to its ranks.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def refuse_unwanted_work(folder: Path, parent: int) -> None:
    """Raise CalledOff when `parent` is not our parent process, or the trial's folder holds a stop file."""
    if os.getppid() != parent:
        raise CalledOff(f"process {parent} is gone")
    if (folder / STOP_FILE).exists():
        raise CalledOff("its driver is stopping")


def wait_for(process: subprocess.Popen[bytes], timeout_seconds: float, folder: Path, parent: int) -> bool:
    """Wait for the end; True when the time ran out first. Raises CalledOff when nobody wants the result any more."""
    deadline = time.monotonic() + timeout_seconds
    while process.poll() is None:
        refuse_unwanted_work(folder, parent)
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_SECONDS)
    return False


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End the script and everything it started: torchrun's ranks have sessions of their own, no group holds them."""
    family = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Children of `pid`, their children and so on, where /proc tells."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])  # after the name, which may hold anything
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        new = children.get(todo.pop(), [])
        found += new
        todo += new
    return found
