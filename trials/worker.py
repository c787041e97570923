"""`python -m trials.worker FOLDER PARENT`: run the trial in FOLDER for process PARENT and write its `result.json`."""

from __future__ import annotations

import errno
import fcntl
import logging
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO

from pgolf_model.errors import EXIT_DISK_FULL
from trials.files import write_json
from trials.process import CalledOff, become_subreaper, end_leftovers, refuse_unwanted_work
from trials.run import run_trial
from trials.spec import EXIT_UNFINISHED, RESULT_FILE

LOCK_WAIT_SECONDS = 30.0


def main(argv: list[str]) -> int:
    """Run the trial of the folder.

    Returns:
        The exit code: 0 when the folder holds a result, whatever it says; EXIT_UNFINISHED or EXIT_DISK_FULL when it
        holds none and the trial is to be run again.
    """
    if len(argv) != 2 or not argv[1].isdigit():
        print("usage: python -m trials.worker FOLDER PARENT_PID", file=sys.stderr)
        return 2
    folder, parent = Path(argv[0]), int(argv[1])
    signal.signal(signal.SIGTERM, _stop)
    become_subreaper()
    with (folder / ".worker.lock").open("w") as lock:
        try:
            _acquire(lock, folder, parent)
            end_leftovers(folder)  # of a worker that was killed
            if not (folder / RESULT_FILE).exists():
                write_json(folder / RESULT_FILE, run_trial(folder, parent=parent))
        except (CalledOff, BlockingIOError) as error:
            print(f"stopped: {error}", file=sys.stderr)
            return EXIT_UNFINISHED
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            print(f"stopped: {error}", file=sys.stderr)
            return EXIT_DISK_FULL
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    """Leave through `finally`, so that the script is killed and the trial stays unfinished."""
    sys.exit(128 + signum)


def _acquire(lock: IO[str], folder: Path, parent: int) -> None:
    """Two workers never share a folder: a predecessor whose driver was killed notices and leaves within a second."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        refuse_unwanted_work(folder, parent)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    raise SystemExit(main(sys.argv[1:]))
