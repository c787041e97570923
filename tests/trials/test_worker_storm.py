"""Real processes under fire: workers and drivers of a study with quick scripts are killed with -9, and nothing is lost.

A stormy study equals a calm one where trials run one after another, as on a machine with room for one; with several in
flight a trial whose worker died ends later than it would have, and other points may be asked.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from quick_trials import QuickMaker
from storms import assert_told_once

from search.brain.driver import Driver
from search.engines.local import run_local
from search.engines.machine import Machine
from search.study.config import StudyConfig, load_study
from search.study.ledger import read_records
from trials.files import read_noun
from trials.rungs import Rung
from trials.spec import SPEC_FILE, TrialSpec


def make_study(folder: Path, trials: int) -> StudyConfig:
    """A ladder whose finalists run two seeds."""
    rungs = (
        Rung(name="proxy", trials=trials, steps=1),
        Rung(name="full", keep=0.3, min_promote=1, steps=2, seeds=(1, 2)),
    )
    return StudyConfig(
        name="w", space="tiny", data=("nowhere",), rungs=rungs, sampler="tpe", anomaly_ratio=0.0, folder=str(folder)
    )


def drive(study: StudyConfig) -> None:
    """A driver's process, with room for one trial at a time."""
    for _ in run_local(Driver(study, QuickMaker()), Machine(cpus=1)):
        pass


def ending(folder: Path) -> set[tuple[object, ...]]:
    """Every trial with what it was and how it ended, but for times and attempts."""
    records = read_records(load_study(str(folder)))
    return {
        (
            r.spec.trial_id,
            repr(sorted(r.spec.params.items())),
            (r.spec.parent, r.spec.label, r.spec.seeds),
            r.status,
            tuple(run.val_bpb for run in r.result.runs) if r.result else None,
        )
        for r in records
    }


def workers(study: StudyConfig) -> list[tuple[int, Path]]:
    """Worker processes of the study on this machine and their trials' folders."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "trials.worker" in words:
                mine = Path(words[words.index("trials.worker") + 1])
                if mine.is_relative_to(study.dir):
                    found.append((int(folder.name), mine))
    return found


def storm(
    drive: Callable[[StudyConfig], None], study: StudyConfig, *, kills: int, seed: int, pause: float
) -> dict[str, int]:
    """Kill drivers and workers at random times; a trial's second attempt is left alone, for it is its last."""
    rng, died = random.Random(seed), {"driver": 0, "worker": 0}
    fork = multiprocessing.get_context("fork")
    while True:
        driver = fork.Process(target=drive, args=(study,))
        driver.start()
        while driver.is_alive():
            driver.join(timeout=rng.uniform(0, pause))
            if sum(died.values()) >= kills or not driver.is_alive():
                driver.join()
            elif rng.random() < 0.3:
                driver.kill()
                driver.join()
                died["driver"] += 1
            else:
                for pid, folder in workers(study):
                    if read_noun(TrialSpec, folder / SPEC_FILE).attempt == 1:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                            died["worker"] += 1
        if driver.exitcode == 0:
            return died
        assert driver.exitcode == -signal.SIGKILL, "the driver failed by itself"


def check(
    drive: Callable[[StudyConfig], None], tmp_path: Path, *, trials: int, kills: int, seed: int
) -> tuple[StudyConfig, dict[str, int]]:
    """A stormy study in which everything ended well, each once; and who died."""
    study = make_study(tmp_path / "storm", trials)
    died = storm(drive, study, kills=kills, seed=seed, pause=1.0)
    assert {row[3] for row in ending(study.dir)} == {"complete"}
    assert_told_once(study.dir)
    ran = sum(path.read_text().count("ran") for path in study.dir.glob("*/*/runs.txt"))
    assert ran <= sum(len(r.spec.seeds) for r in read_records(study)) + kills, "a finished seed was run again"
    assert not workers(study)
    return study, died


def test_killed_workers_and_drivers_lose_nothing(tmp_path: Path) -> None:
    """Every trial ends complete, with the scores of an undisturbed study."""
    study, died = check(drive, tmp_path, trials=3, kills=3, seed=1)
    assert died["driver"] + died["worker"] == 3
    calm = make_study(tmp_path / "calm", 3)
    drive(calm)
    assert ending(study.dir) == ending(calm.dir)


def test_a_worker_killed_twice_is_a_failed_trial_and_the_study_goes_on(tmp_path: Path) -> None:
    """The first trial's worker never lives; the others are run."""
    study = replace(make_study(tmp_path / "s", 2), rungs=make_study(tmp_path, 2).rungs[:1])
    fork = multiprocessing.get_context("fork")
    driver = fork.Process(target=drive, args=(study,))
    driver.start()
    while driver.is_alive():
        for pid, folder in workers(study):
            if folder.name == "0000":
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        driver.join(timeout=0.05)
    assert driver.exitcode == 0
    first, second = read_records(study)
    assert (first.status, first.spec.attempt, second.status) == ("failed", 2, "complete")
    assert first.result is not None
    assert "exit code -9" in first.result.error
    assert_told_once(study.dir)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_workers(tmp_path: Path, seed: int) -> None:
    """Ten trials, ten kills, and a study that ends as a calm one."""
    study, died = check(drive, tmp_path, trials=10, kills=10, seed=seed)
    calm = make_study(tmp_path / "calm", 10)
    drive(calm)
    assert ending(study.dir) == ending(calm.dir)
    print(died)
    assert sum(died.values()) >= 5


@pytest.mark.slow
def test_a_storm_under_the_local_engine(tmp_path: Path) -> None:
    """Other points may be asked, and nothing is lost."""
    study, died = check(drive, tmp_path, trials=10, kills=10, seed=1)
    print(died)
    records = read_records(study)
    assert sum(r.spec.rung == "proxy" for r in records) == 10
    assert {r.spec.parent for r in records if r.spec.rung == "full"} <= {r.spec.number for r in records}
