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

import psutil

from trials.environment import TRIAL_VARIABLE
from trials.spec import STOP_FILE

POLL_SECONDS = 0.1
KILL_SECONDS = 10.0  # that a killed process may take to be gone


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
    """Wait until the process ends; True when its time ran out first. CalledOff when nobody waits for its result."""
    deadline = time.monotonic() + timeout_seconds
    while process.poll() is None:
        refuse_unwanted_work(folder, parent)
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_SECONDS)
    return False


def become_subreaper() -> None:
    """Ask Linux to make orphans among our descendants our children, so that none of them leaves the family."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def end_leftovers(folder: Path) -> None:
    """Kill every process of the trial in `folder` but this one: daemons of its script, ranks of a killed worker.

    They carry TRIAL_VARIABLE in their environment, whoever their parent is by now. Processes of other users, and those
    that end meanwhile, are left alone.
    """
    mark = str(folder.absolute())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(TRIAL_VARIABLE) == mark:
                process.kill()
                process.wait(KILL_SECONDS)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End the script and everything it started: torchrun's ranks have sessions of their own, no group holds them."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
