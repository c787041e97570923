"""Fault storms: the driver is killed with -9 again and again, and the study ends as if nothing had happened."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import optuna
import pytest
from storms import SPACE, assert_told_once

from search.ladder.race import SEEDS
from search.simulation.engine import simulate
from search.simulation.trace import read_spans
from search.study.config import Caps, Limits, StudyConfig, load_study
from search.study.ledger import read_records
from space.params import ChoiceParam, Param
from trials.rungs import Rung

FORK = multiprocessing.get_context("fork")  # the imports are paid once
FOUR_POINTS = (
    ChoiceParam(name="x", options=(0.1, 0.3), tag="scale_free"),
    ChoiceParam(name="lr", options=(0.01, 0.02), tag="step_dependent"),
    ChoiceParam(name="depth", options=(6,), tag="throughput_dependent"),
    ChoiceParam(name="kind", options=("a",), tag="scale_free"),
)
STUDY = StudyConfig(
    name="storm",
    space="tiny",
    data=("nowhere",),
    rungs=(
        Rung(name="proxy", trials=14, seconds=590, gpus=1),
        Rung(name="full", keep=0.25, min_promote=2, seconds=590, gpus=8, processes=8),
        Rung(name="final", keep=0.5, min_promote=2, seconds=590, gpus=8, processes=8, seeds=SEEDS[:4], race_from=2),
    ),
    caps=Caps(artifact_bytes=11_500_000),
    control_seeds=3,
    budget=Limits(gpu_hours=500),
    gpus=16,
)


def evaluate(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """A bowl with noise; some points run out of memory, some diverge, some never end."""
    rng = random.Random(repr((sorted(params.items()), rung, seed)))
    if params["kind"] == "b" and params["depth"] == 9:
        raise MemoryError("CUDA out of memory")
    bpb = 1.2 + 0.3 * (params["x"] - 0.3) ** 2 + 0.01 * math.log(params["lr"] / 0.02) ** 2 + 0.1 * (1 - fidelity)
    return {
        "val_bpb": math.nan if params["lr"] > 0.09 else bpb + rng.gauss(0, 0.001),
        "artifact_bytes": 1e6 * params["depth"],
        "train_seconds": 1e5 if params["depth"] == 2 else rng.uniform(400, 590),
    }


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to run the study."""

    sampler: Literal["random", "tpe", "surrogate"]
    forecast: bool = True  # whether bytes are known before a run
    storage: str = ""  # SQLite in the study's folder, or "memory"
    space: tuple[Param, ...] = SPACE
    trials: int = 14

    def run(self, folder: Path, seed: int) -> None:
        """The whole study, or what is left of it."""
        rungs = (replace(STUDY.rungs[0], trials=self.trials), *STUDY.rungs[1:])
        study = replace(STUDY, sampler=self.sampler, storage=self.storage, rungs=rungs)
        predict = (lambda p: 1e6 * p["depth"]) if self.forecast else None
        simulate(study, evaluate, self.space, seed=seed, predict_bytes=predict, folder=folder)


TPE, TPE_IN_MEMORY = Case(sampler="tpe"), Case(sampler="tpe", storage="memory")
MODEL, MODEL_IN_MEMORY = Case(sampler="surrogate"), Case(sampler="surrogate", storage="memory")
BLIND = Case(sampler="surrogate", forecast=False)
BLIND_IN_MEMORY = Case(sampler="surrogate", forecast=False, storage="memory")


def ending(folder: Path) -> tuple[set, set]:
    """Every trial with what it was and how it ended; and when each stayed where."""
    study = load_study(str(folder))
    records = {
        (
            r.spec.trial_id,
            repr(sorted(r.spec.params.items())),
            (r.spec.parent, r.spec.label, r.spec.attempt, r.spec.seeds),
            r.status,
            tuple(run.val_bpb for run in r.result.runs) if r.result else None,
        )
        for r in read_records(study)
    }
    return records, {(s.trial_id, s.attempt, s.num_seeds, s.start, s.end) for s in read_spans(study)}


def storm(case: Case, folder: Path, seed: int, kills: int, delay: float) -> int:
    """Run the study and kill -9 it at random times; how many drivers died. Afterwards one is left alone."""
    rng = random.Random(seed)

    def after_a_while(driver: BaseProcess) -> None:
        time.sleep(rng.uniform(0, delay))
        driver.kill()

    return outlive(kills, lambda _: FORK.Process(target=case.run, args=(folder, seed)), after_a_while)


def storm_of_effects(case: Case, folder: Path, seed: int, kills: int, most: int) -> int:
    """Likewise, but each driver kills itself just before or just after one of its first `most` writes."""
    rng = random.Random(seed)

    def driver(deaths: int) -> BaseProcess:
        fuse = rng.randrange(1, most) if deaths < kills else 0
        return FORK.Process(target=run_with_a_fuse, args=(case, folder, seed, fuse, rng.random() < 0.5))

    return outlive(kills, driver, lambda _: None)


def outlive(kills: int, make: Callable[[int], BaseProcess], harm: Callable[[BaseProcess], None]) -> int:
    """Start drivers until one reaches the end; the first `kills` of them are harmed."""
    deaths = 0
    while True:
        driver = make(deaths)
        driver.start()
        if deaths < kills:
            harm(driver)
        driver.join()
        if driver.exitcode == 0:
            return deaths
        assert driver.exitcode == -signal.SIGKILL, "the driver failed by itself"
        deaths += 1


def run_with_a_fuse(case: Case, folder: Path, seed: int, fuse: int, after: bool) -> None:
    """Run the study in this process until write number `fuse`, to a file or to Optuna; 0 is never."""
    left = [fuse]

    def burning(write: Callable[..., object]) -> Callable[..., object]:
        def burnt(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            done = write(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return burnt

    os.replace = burning(os.replace)  # type: ignore[assignment]  # how every file of a study gets its name
    Path.rename = burning(Path.rename)  # type: ignore[assignment, method-assign]
    for storage in (optuna.storages.RDBStorage, optuna.storages.InMemoryStorage):
        for name in ("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"):
            setattr(storage, name, burning(getattr(storage, name)))
    case.run(folder, seed)


def assert_same(case: Case, tmp_path: Path) -> None:
    """The study under fire ended as the calm one."""
    calm, stormy = ending(tmp_path / "calm"), ending(tmp_path / "storm")
    assert stormy == calm
    assert {row[3] for row in calm[0]} >= {"complete"}
    if not case.storage:
        assert_told_once(tmp_path / "storm")


@pytest.mark.parametrize("case", [TPE, BLIND_IN_MEMORY], ids=["tpe", "model"])
def test_a_study_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path, case: Case) -> None:
    """Same trials, same parameters, same scores, same simulated times; nothing lost, nothing told twice."""
    started = time.monotonic()
    case.run(tmp_path / "calm", 1)
    took = time.monotonic() - started
    assert storm(case, tmp_path / "storm", seed=1, kills=5, delay=took / 2) > 0
    assert_same(case, tmp_path)


@pytest.mark.parametrize(
    "case", [TPE_IN_MEMORY, MODEL_IN_MEMORY, BLIND_IN_MEMORY, BLIND], ids=["tpe", "model", "blind", "blind-sqlite"]
)
def test_a_study_killed_at_its_writes_ends_as_an_undisturbed_one(tmp_path: Path, case: Case) -> None:
    """The same, with every death where it hurts: around a write to a file or to the storage."""
    case.run(tmp_path / "calm", 1)
    assert storm_of_effects(case, tmp_path / "storm", seed=1, kills=8, most=120) > 2
    assert_same(case, tmp_path)


def test_points_asked_for_in_vain_are_not_asked_for_again(tmp_path: Path) -> None:
    """In a space of four points most that the sampler draws are known; a killed driver's draws count."""
    case = Case(sampler="random", space=FOUR_POINTS, trials=7)
    case.run(tmp_path / "calm", 1)
    assert storm_of_effects(case, tmp_path / "storm", seed=1, kills=6, most=150) > 2
    assert_same(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [TPE, MODEL_IN_MEMORY, BLIND, BLIND_IN_MEMORY], ids=["tpe", "model", "blind", "fast"])
def test_fifty_kills_change_nothing(tmp_path: Path, case: Case) -> None:
    """Two studies of each kind: 25 kills at random times, 25 around writes."""
    started = time.monotonic()
    case.run(tmp_path / "calm", 2)
    took = time.monotonic() - started
    deaths = storm(case, tmp_path / "storm", seed=2, kills=25, delay=took / 4)
    assert_same(case, tmp_path)
    shutil.rmtree(tmp_path / "storm")
    deaths += storm_of_effects(case, tmp_path / "storm", seed=2, kills=25, most=60)
    assert_same(case, tmp_path)
    print(f"{deaths} drivers died")
    assert deaths > 10
