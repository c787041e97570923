"""Search methods on stand-ins for the field, at equal simulated GPU-seconds.

    python tests/benchmarks/bench_search.py [--methods ours,tpe] [--problems smooth] [--seeds 20] [--units 64]

One node of eight GPUs in simulated time: a full run takes all of them for ten minutes, a proxy of 1/8 one of them, so
runs end out of order and a full run waits for the node to drain. Prints the true (noiseless) regret at full of each
method's incumbent, median and quartiles over seeds, at checkpoints of GPU-seconds in units of one full run; the
hypervolume of (bpb, bytes); and the share of GPU-seconds at which ours has what the best other method has at the end.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import heapq
import importlib
import json
import math
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from search_methods import METHODS, Job, Method, Problem
from surrogates.drawn import draw

from search.simulation.bare_space import bare_space
from search.simulation.engine import simulate as run_study
from search.study.config import Caps, Limits, StudyConfig
from search.surrogate.encoding import Encoder
from trials.rungs import Rung

CHECKPOINTS = (4, 6, 8, 12, 16, 21.4, 24, 32, 48, 64)  # full runs' worth of GPU-seconds
NUM_GPUS = 8
RUN_SECONDS = 600.0
DRIVER = "pgolf"  # the method that is no method here: the driver with its default sampler


def load_problem(name: str) -> Problem:
    """A module in surrogates/, the table of real runs among them, or `drawn_N`: number N of a family."""
    family, _, number = name.partition("drawn_")
    module: Any = importlib.import_module(f"surrogates.{family}") if family else draw(int(number))
    space = bare_space(module.SPACE, control=module.CONTROL)
    return Problem(
        name=name,
        space=space,
        evaluate=module.evaluate,
        truth=module.truth,
        predict_bytes=getattr(module, "predict_bytes", None),
        cap_bytes=module.CAP_BYTES,
        unit=module.FULL_GPU_SECONDS,
    )


def simulate(problem: Problem, method: Method, units: float, seed: int) -> list[tuple[float, float, float, float]]:
    """Every finished full run that fits, in order: (GPU-seconds / unit, measured bpb, true bpb, bytes)."""
    free, clock, spent, started, number = float(NUM_GPUS), 0.0, 0.0, 0.0, 0
    running: list[tuple[float, int, float, Job]] = []
    found: list[tuple[float, float, float, float]] = []
    waiting: Job | None = None
    while True:
        while True:
            if waiting is None:
                remaining = units - started
                if remaining < min(method.fidelities) - 1e-9:
                    break
                waiting = method.next(remaining * problem.unit)
                if waiting is None:
                    break
            fidelity = method.fidelities[waiting.level]
            if fidelity > units - started + 1e-9:
                if not running:
                    return found
                waiting, started = None, units
                break
            gpus = max(0.25, NUM_GPUS * fidelity)
            if gpus > free:
                break
            number += 1
            result = problem.evaluate(
                waiting.params, rung=f"r{waiting.level}", fidelity=fidelity, seed=1000 * seed + number
            )
            waiting.result = result
            started, free = started + fidelity, free - gpus
            heapq.heappush(running, (clock + RUN_SECONDS + 1e-3 * number, number, gpus, waiting))
            waiting = None
        if not running:
            return found
        clock, _, gpus, job = heapq.heappop(running)
        free += gpus
        spent += method.fidelities[job.level]
        assert job.result is not None
        if method.fidelities[job.level] == 1.0 and problem.is_good(job.result):
            found.append((spent, job.result["val_bpb"], problem.truth(job.params), job.result["artifact_bytes"]))
        method.finish(job)


def drive(problem: Problem, units: float, seed: int) -> list[tuple[float, float, float, float]]:
    """The same of the product itself: a study of two rungs with this budget, as `pgolf search --simulate` runs it."""
    study = StudyConfig(
        name="bench",
        space="tiny",  # the function's own takes its place
        data=("none",),
        engine="local",
        gpus=NUM_GPUS,
        cpus=1e6,
        warm_starts=False,
        caps=Caps(artifact_bytes=math.floor(problem.cap_bytes)),
        budget=Limits(gpu_hours=units * problem.unit / 3600),
        rungs=(
            Rung(name="proxy", trials=math.ceil(8 * units), seconds=RUN_SECONDS, gpus=1, timeout_seconds=RUN_SECONDS),
            Rung(name="full", seconds=RUN_SECONDS, gpus=8, processes=8, timeout_seconds=RUN_SECONDS),
        ),
    )
    trace = run_study(study, problem.evaluate, problem.space, seed=seed, predict_bytes=problem.predict_bytes)
    records = {record.spec.trial_id: record for record in trace.records}
    found, spent = [], 0.0
    for span in sorted(trace.spans, key=lambda s: (s.end, s.trial_id)):
        spec, result = records[span.trial_id].spec, records[span.trial_id].result
        assert result is not None
        spent += (span.end - span.start) * spec.gpus / problem.unit
        if spec.rung == "full" and records[span.trial_id].feasible(study.caps):
            found.append((spent, result.val_bpb, problem.truth(spec.params), float(result.artifact_bytes)))
    return found


def best_known(name: str, seed: int = 0, rounds: int = 60) -> float:
    """Nearly the lowest true score of a problem under its cap: an evolution strategy that sees the truth."""
    problem = load_problem(name)
    rng = np.random.default_rng(seed)
    encoder = Encoder(problem.space.params)

    def score(row: np.ndarray) -> float:
        params = encoder.values(row)
        result = problem.evaluate(params, rung="full", fidelity=1.0, seed=0)
        return problem.truth(params) if result["artifact_bytes"] <= problem.cap_bytes else math.inf

    rows = encoder.snap(rng.random((400, len(encoder.params))))
    scores = np.array([score(r) for r in rows])
    for i in range(rounds):
        keep = np.argsort(scores)[:30]
        rows, scores = rows[keep], scores[keep]
        picks = rng.integers(30, size=(300, 2))
        base = np.where(rng.random((300, rows.shape[1])) < 0.3, rows[picks[:, 0]], rows[picks[:, 1]])
        base = np.where(np.isnan(base), rng.random(base.shape), base)
        moved = rng.random(base.shape) < 3 / base.shape[1]
        step = 0.25 * 0.93**i * rng.standard_normal(base.shape)
        anew = rng.random(base.shape) < 0.02
        children = encoder.snap(np.where(anew, rng.random(base.shape), np.clip(base + moved * step, 0, 1)))
        rows, scores = np.concatenate([rows, children]), np.concatenate([scores, [score(r) for r in children]])
    return float(scores.min())


def run_one(job: tuple[str, str, int, float, float]) -> dict[str, object]:
    """One method on one problem with one seed: true regret and hypervolume at the checkpoints."""
    name, method_name, seed, units, optimum = job
    problem = load_problem(name)
    began = time.perf_counter()
    if method_name == DRIVER:
        found = drive(problem, units, seed)
    else:
        found = simulate(problem, METHODS[method_name](problem, seed, units), units, seed)
    seconds = time.perf_counter() - began
    curve, hyper = [], []
    for at in CHECKPOINTS:
        known = [f for f in found if f[0] <= at + 1e-9]
        curve.append(min(known, key=lambda f: f[1])[2] - optimum if known else math.nan)
        hyper.append(hypervolume([(f[2] - optimum, f[3] / problem.cap_bytes) for f in known]))
    best, trace = math.inf, []
    for spent, measured, true, _ in found:
        if measured < best:
            best = measured
            trace.append((spent, true - optimum))
    return {
        "problem": name, "method": method_name, "seed": seed, "regret": curve, "hypervolume": hyper,
        "trace": trace, "seconds": seconds, "full_runs": len(found),
    }  # fmt: skip


def hypervolume(points: list[tuple[float, float]], reference: tuple[float, float] = (0.1, 1.0)) -> float:
    """Area that the (regret, share of the cap) points dominate up to the reference, relative to the whole."""
    area, floor = 0.0, reference[1]
    for regret, size in sorted(points):
        if regret < reference[0] and size < floor:
            area += (reference[0] - regret) * (floor - size)
            floor = size
    return area / (reference[0] * reference[1])


def regret_at(runs: list[dict], spent: float) -> float:
    """Median over seeds of the incumbent's true regret after `spent` full runs' worth."""
    values = []
    for run in runs:
        known = [r for s, r in run["trace"] if s <= spent + 1e-9]
        values.append(known[-1] if known else math.inf)
    return float(median(values))


def _is_ours(method: str) -> bool:
    return method == DRIVER or method.startswith("ours")


def main() -> None:
    """Run, print a table, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join((*METHODS, DRIVER)))
    parser.add_argument("--problems", default="smooth,rugged")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--units", type=float, default=64.0, help="budget in full runs")
    parser.add_argument("--ours-units", type=float, default=0.0, help="stop ours earlier; 0 is the same budget")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", default="", help="append every run to this JSON-lines file")
    parser.add_argument("--load", default="", help="add the runs of such a file to the table")
    args = parser.parse_args()
    methods, problems = args.methods.split(",") if args.methods else [], args.problems.split(",")
    runs = [json.loads(line) for line in open(args.load)] if args.load else []  # noqa: SIM115
    runs = [r for r in runs if r["method"] not in methods and r["problem"] in problems]
    with ProcessPoolExecutor(args.workers) as pool:
        optima = dict(zip(problems, pool.map(best_known, problems), strict=True))
        todo = [
            (p, m, s, args.ours_units if _is_ours(m) and args.ours_units else args.units, optima[p])
            for p in problems for m in methods for s in range(args.first_seed, args.first_seed + args.seeds)
        ]  # fmt: skip
        for run in pool.map(run_one, todo):
            runs.append(run)
            if args.save:
                with open(args.save, "a") as file:
                    file.write(json.dumps(run) + "\n")
    summary: dict[str, object] = {"seeds": args.seeds, "units": args.units, "python": platform.python_version()}
    for problem in problems:
        print(f"\n{problem}: best known {optima[problem]:.4f}; median [quartiles] of 1000 x regret, by full-run units")
        print(f"{'method':<11}" + "".join(f"{c:>19g}" for c in CHECKPOINTS) + f"{'HV end':>9}{'s/seed':>8}{'n':>4}")
        names = sorted({r["method"] for r in runs if r["problem"] == problem}, key=[*METHODS, DRIVER].index)
        for name in names:
            mine = [r for r in runs if r["problem"] == problem and r["method"] == name]
            table = np.array([r["regret"] for r in mine], dtype=float) * 1000
            cells = []
            for column in table.T:
                known = np.nan_to_num(column, nan=999.0)
                q = np.percentile(known, [25, 50, 75])
                cells.append(f"{q[1]:>7.1f} [{q[0]:.1f},{q[2]:.1f}]".rjust(19))
            hv = float(median(r["hypervolume"][-1] for r in mine))
            print(
                f"{name:<11}" + "".join(cells) + f"{hv:>9.3f}{median(r['seconds'] for r in mine):>8.1f}{len(mine):>4}"
            )
        others = [n for n in names if not _is_ours(n)]
        by = {n: [r for r in runs if r["problem"] == problem and r["method"] == n] for n in names}
        if not others:
            continue
        target_name = min(others, key=lambda n: regret_at(by[n], args.units))
        target = regret_at(by[target_name], args.units)
        for name in names:
            if _is_ours(name):
                steps = np.arange(1, args.units + 0.125, 0.125)
                reached = next((float(s) for s in steps if regret_at(by[name], float(s)) <= target), math.nan)
                print(f"  {name} reaches {target_name}'s {1000 * target:.1f} at {reached:g} units: "
                      f"{reached / args.units:.2f} of its GPU-seconds")  # fmt: skip
                summary[f"{problem}/{name}"] = {
                    "target": target_name, "regret": target, "units": reached, "share": reached / args.units,
                }  # fmt: skip
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
