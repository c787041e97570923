"""Fault storms: the driver is killed with -9 again and again, and the study ends as if nothing had happened."""

from __future__ import annotations

import math
import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import optuna
import pytest

from search.ledger import read_records
from search.race import SEEDS
from search.simulate import read_spans, simulate
from search.study import Caps, Limits, StudyConfig, load_study
from space.params import ChoiceParam, FloatParam, IntParam
from trials.rungs import Rung

SPACE = (
    FloatParam(name="x", low=0.0, high=1.0, tag="scale_free"),
    FloatParam(name="lr", low=1e-3, high=1e-1, log=True, tag="step_dependent"),
    IntParam(name="depth", low=2, high=12, tag="throughput_dependent"),
    ChoiceParam(name="kind", options=("a", "b"), tag="scale_free"),
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


def run(folder: Path, seed: int, sampler: Literal["tpe", "surrogate"] = "tpe") -> None:
    study = replace(STUDY, sampler=sampler)
    simulate(study, evaluate, SPACE, seed=seed, predict_bytes=lambda p: 1e6 * p["depth"], folder=folder)


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


def assert_told_once(folder: Path) -> None:
    """Optuna holds every trial once, with the score of its folder."""
    study = load_study(str(folder))
    records = read_records(study)
    for rung in study.rungs:
        told = optuna.load_study(study_name=f"{study.name}/{rung.name}", storage=study.storage_url)
        mine = {r.spec.number: r for r in records if r.spec.rung == rung.name}
        assert all(t.state.is_finished() for t in told.trials)
        for trial in told.trials:
            if trial.number in mine and mine[trial.number].status == "complete":
                assert trial.values == [mine[trial.number].result.val_bpb]
            elif trial.number not in mine:
                assert trial.state == optuna.trial.TrialState.FAIL
        assert mine.keys() <= {t.number for t in told.trials}


def storm(folder: Path, seed: int, kills: int, delay: float, sampler: Literal["tpe", "surrogate"] = "tpe") -> int:
    """Run the study under fire; how many drivers died. Afterwards one is left alone."""
    rng, deaths = random.Random(seed), 0
    fork = multiprocessing.get_context("fork")  # the imports are paid once
    while True:
        driver = fork.Process(target=run, args=(folder, seed, sampler))
        driver.start()
        if deaths < kills:
            time.sleep(rng.uniform(0, delay))
            driver.kill()
        driver.join()
        if driver.exitcode == 0:
            return deaths
        assert driver.exitcode == -9, "the driver failed by itself"
        deaths += 1


def check(tmp_path: Path, seed: int, kills: int) -> int:
    started = time.monotonic()
    run(tmp_path / "calm", seed)
    took = time.monotonic() - started
    deaths = storm(tmp_path / "storm", seed, kills, delay=took / kills * 2)
    calm, stormy = ending(tmp_path / "calm"), ending(tmp_path / "storm")
    assert stormy == calm
    assert_told_once(tmp_path / "storm")
    assert {"complete", "failed", "timeout", "infeasible"} & {row[3] for row in calm[0]} >= {"complete"}
    return deaths


def test_a_study_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Same trials, same parameters, same scores, same simulated times; nothing lost, nothing told twice."""
    assert check(tmp_path, seed=1, kills=5) > 0


def test_the_model_sampler_loses_nothing_either(tmp_path: Path) -> None:
    """After a kill it may ask for other points (fits remember when they were made); every trial ends, and once."""
    storm(tmp_path / "storm", seed=1, kills=4, delay=2.0, sampler="surrogate")
    records = read_records(load_study(str(tmp_path / "storm")))
    assert all(r.result is not None for r in records)
    for r in records:
        for done in r.result.runs if r.result else ():
            fidelity = r.spec.config.budget.seconds / 590
            again = evaluate(r.spec.params, rung=r.spec.rung, fidelity=fidelity, seed=done.seed)
            assert again["artifact_bytes"] == done.model_bytes
    assert_told_once(tmp_path / "storm")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_fifty_kills_change_nothing(tmp_path: Path, seed: int) -> None:
    """Five studies, ten kills each."""
    assert check(tmp_path, seed=seed, kills=10) > 3
