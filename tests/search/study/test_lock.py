"""One driver per study, whatever happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from studies import make_study

from search.study.lock import driver_alive, driver_lock, driver_pid

HOLD = """
import sys, time
from search.study.lock import driver_lock
from search.study.config import load_study
with driver_lock(load_study(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    """kill -9 frees the study: the kernel holds the lock, no file has to be cleaned up."""
    study = make_study(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert driver_alive(study)
        assert driver_pid(study) == holder.pid
        message = f"study 'demo' is already being run by process {holder.pid}; wait for it or stop it"
        with pytest.raises(ValueError, match=message), driver_lock(study):
            pass
        holder.send_signal(signal.SIGKILL)
    assert not driver_alive(study)
    with driver_lock(study):
        assert driver_pid(study) == os.getpid()


def test_asking_does_not_take_the_lock_and_leaving_frees_it(tmp_path: Path) -> None:
    """`status` may look at any time, before the first launch too."""
    study = make_study(tmp_path)
    assert not driver_alive(study)
    assert list(tmp_path.glob("*.lock")) == []
    with driver_lock(study):
        assert driver_alive(study)
        assert driver_alive(study)
    assert not driver_alive(study)
    assert driver_pid(study) is None


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    """A driver that raises is gone."""
    study = make_study(tmp_path)
    with pytest.raises(RuntimeError, match="boom"), driver_lock(study):
        raise RuntimeError("boom")
    assert not driver_alive(study)
