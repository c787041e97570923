"""Processor seconds that a study's brain takes per trial when it has many: ask, tell, and a whole step of the driver.

    python tests/benchmarks/bench_overhead.py [--trials 5000] [--storage memory sqlite] [--profile]

A study on a space of 25 knobs (with a condition) and two rungs, one trial of ten at the upper one, is written as
folders, from which a driver fills an Optuna storage (`open`) and goes on: `step` is `Driver.next` and `Driver.finish`
of one trial, `ask` and `tell` are the parts of it that the sampler takes; `new` and `promoted` are steps by what they
started. Steps that fit the model's hyperparameters anew, one of hundreds, are left out: the `first` step does it.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import tempfile
import time
from collections.abc import Callable
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pgolf_model.config import RunConfig
from search.simulation.bare_space import bare_space
from search.simulation.engine import World, measure, simulated_driver
from search.study.config import Caps, StudyConfig
from search.study.ledger import trial_dir
from space.params import ChoiceParam, FloatParam, IntParam, Param, Space, When
from trials.files import write_json
from trials.rungs import Rung
from trials.spec import RESULT_FILE, SPEC_FILE, TrialSpec

TOP_SHARE = 10  # one trial of so many is at the upper rung
KNOBS: tuple[Param, ...] = (
    *(FloatParam(name=f"rate{i}", low=1e-4, high=1e-1, log=True, tag="step_dependent") for i in range(8)),
    *(FloatParam(name=f"share{i}", low=0.0, high=1.0, tag="scale_free") for i in range(6)),
    *(IntParam(name=f"size{i}", low=64, high=1024, step=64, tag="throughput_dependent") for i in range(5)),
    *(ChoiceParam(name=f"kind{i}", options=("a", "b", "c"), tag="scale_free") for i in range(4)),
    ChoiceParam(name="ema", options=(False, True), tag="step_dependent"),
    FloatParam(name="gap", low=0.01, high=0.5, tag="step_dependent", when=When(parent="ema", values=(True,))),
)


def evaluate(params: dict[str, Any], *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """A bowl with a bias of the cheap rung."""
    far = sum((params[f"share{i}"] - 0.4) ** 2 for i in range(6)) + sum(
        0.1 * (np.log10(params[f"rate{i}"]) + 2 + 0.2 * (1 - fidelity)) ** 2 for i in range(8)
    )
    return {
        "val_bpb": 1.2 + 0.02 * float(far) + 0.2 * (1 - fidelity) + 0.001 * np.sin(1e5 * far),
        "artifact_bytes": 10_000_000 + 1000 * sum(params[f"size{i}"] for i in range(5)),
        "train_seconds": 600 * fidelity,
    }


def make_study(folder: Path, trials: int, storage: str, sampler: str) -> StudyConfig:
    """Two rungs; the storage in the folder or in memory."""
    rungs = (
        Rung(name="proxy", trials=2 * trials, steps=1000, batch_tokens=65_536, gpus=1),
        Rung(name="full", steps=8000, batch_tokens=65_536, gpus=1, keep=0.2, keep_min=0.1, keep_max=0.2),
    )
    return StudyConfig(
        name="overhead", space="tiny", data=("d",), rungs=rungs, folder=str(folder), sampler=sampler,  # type: ignore[arg-type]
        storage="memory" if storage == "memory" else "", caps=Caps(artifact_bytes=15_000_000), warm_starts=False,
    )  # fmt: skip


def write_folders(study: StudyConfig, world: World, space: Space, count: int) -> None:
    """The folders of `count` finished trials."""
    rng = np.random.default_rng(0)
    proxies = count - count // TOP_SHARE
    points = [dict(space.control), *(space.sample(rng) for _ in range(proxies - 1))]
    for number in range(count):
        top = number >= proxies
        mine = number - proxies if top else number
        spec = TrialSpec(
            study=study.name, rung="full" if top else "proxy", number=mine, parent=mine if top else None,
            label="control" if not mine else "", params=points[mine], config=RunConfig(), seeds=(1337,), data_dir="",
            tokenizer="", gpus=1.0,
        )  # fmt: skip
        folder = trial_dir(study, spec.trial_id)
        folder.mkdir(parents=True)
        write_json(folder / SPEC_FILE, spec)
        write_json(folder / RESULT_FILE, measure(study, world, spec)[0])


def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """The function, with its processor seconds noted."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            into.append(time.process_time() - began)

    return wrapped


def run(count: int, storage: str, sampler: str, steps: int, profile: bool, keep: Path) -> dict[str, Any]:
    """Median processor seconds per ask, per tell and per driver step."""
    space = bare_space(KNOBS)
    world = World(evaluate=evaluate, space=space)
    folder = keep / f"{sampler}-{storage}-{count}"
    study = make_study(folder, count, storage, sampler)
    if not folder.exists():
        folder.mkdir(parents=True)
        write_folders(study, world, space, count)
    began = time.process_time()
    driver, _ = simulated_driver(study, world)
    opened = time.process_time() - began
    asks: list[float] = []
    tells: list[float] = []
    for name, into in (("ask", asks), ("advise", asks), ("add", asks), ("tell", tells)):
        setattr(driver._sampler, name, timed(getattr(driver._sampler, name), into))
    told: list[list[float]] = []
    kinds: list[str] = []
    profiler = cProfile.Profile()
    for i in range(steps + 1):
        asks.clear()
        tells.clear()
        if profile and i:
            profiler.enable()
        began = time.process_time()
        spec = driver.next()
        middle = time.process_time()
        profiler.disable()
        assert isinstance(spec, TrialSpec)
        write_json(trial_dir(study, spec.trial_id) / RESULT_FILE, measure(study, world, spec)[0])
        if profile and i:
            profiler.enable()
        again = time.process_time()
        driver.finish(spec)
        done = time.process_time()
        profiler.disable()
        told.append([sum(asks), sum(tells), middle - began + done - again])
        kinds.append("new" if spec.parent is None else "promoted")
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
        pstats.Stats(profiler).sort_stats("cumtime").print_stats(45)
    ask, tell, step = (median(row[i] for row in told[1:]) for i in range(3))
    by_kind = {
        kind: median(row[2] for row, mine in zip(told[1:], kinds[1:], strict=True) if mine == kind)
        for kind in kinds[1:]
    }
    return {"trials": count, "storage": storage, "sampler": sampler, "open": opened, "first": told[0][2], "ask": ask,
            "tell": tell, "step": step, "new": by_kind.get("new", nan), "promoted": by_kind.get("promoted", nan),
            "worst": max(row[2] for row in told[1:])}  # fmt: skip


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--storage", nargs="+", default=["memory", "sqlite"])
    parser.add_argument("--sampler", nargs="+", default=["surrogate"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep", type=Path, default=None, help="folder to keep the studies in, for the next time")
    args = parser.parse_args()
    rows = []
    columns = ("open", "first", "ask", "tell", "step", "new", "promoted", "worst")
    print(f"{'trials':>7} {'storage':>8} {'sampler':>10} " + " ".join(f"{name:>8}" for name in columns))
    with tempfile.TemporaryDirectory(prefix="pgolf_overhead_") as scratch:
        for count in args.trials:
            for storage in args.storage:
                for sampler in args.sampler:
                    row = run(count, storage, sampler, args.steps, args.profile, args.keep or Path(scratch))
                    rows.append(row)
                    print(
                        f"{count:>7} {storage:>8} {sampler:>10} " + " ".join(f"{row[name]:>8.3f}" for name in columns)
                    )
    print(json.dumps({"rows": rows, "steps": args.steps, "cores": os.cpu_count(), "python": platform.python_version()}))


if __name__ == "__main__":
    main()
