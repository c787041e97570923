"""`python -m trials.worker FOLDER`: run the trial in FOLDER and write its `result.json`."""

from __future__ import annotations

import fcntl
import logging
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO

from trials.run import Orphaned, run_trial
from trials.spec import RESULT_FILE, write_json

EXIT_ORPHANED = 75
LOCK_WAIT_SECONDS = 30.0


def main(argv: list[str]) -> int:
    """Exit 0 when the folder holds a result, whatever it says."""
    if len(argv) != 1:
        print("usage: python -m trials.worker FOLDER", file=sys.stderr)
        return 2
    folder = Path(argv[0])
    signal.signal(signal.SIGTERM, _stop)
    with (folder / ".worker.lock").open("w") as lock:
        _acquire(lock)
        if (folder / RESULT_FILE).exists():
            return 0
        try:
            write_json(folder / RESULT_FILE, run_trial(folder))
        except Orphaned as error:
            print(f"stopped: {error}", file=sys.stderr)
            return EXIT_ORPHANED
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    """Leave through `finally`, so that the script is killed and the trial stays unfinished."""
    sys.exit(128 + signum)


def _acquire(lock: IO[str]) -> None:
    """Two workers never share a folder: a predecessor whose driver was killed notices and leaves within a second."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
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
