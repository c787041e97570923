"""What promotion finds and what it costs, replayed on 347 real runs and on a synthetic rung that misjudges some knobs.

    python tests/benchmarks/bench_promote.py [--orders 20]

Real runs (`../shared/data/public_runs.csv`, where present): the cheap rung is val_bpb at step 1000 of a run, the upper
rung its round-trip bpb at the end; runs arrive in a random order on 8 slots. `recall` is the share of the final top
10 % that was promoted. "keep the top 25 % at step 1000" is the rule to beat.
Synthetic: the cheap rung prefers the wrong end of two knobs whose tag says that it cannot judge them.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import platform
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import fmean, stdev

from pgolf_model.config import RunConfig
from search.ladder.promote import Ask, Done, Promote, decide
from search.study.config import Caps, StudyConfig
from search.study.ledger import TrialRecord
from space.params import FloatParam, Space
from trials.rungs import Rung
from trials.spec import SeedRun, TrialResult, TrialSpec

RUNS = Path(__file__).resolve().parents[3] / "shared" / "data" / "public_runs.csv"
CHEAP_STEP = 1000
SLOTS = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trial with a known future."""

    cheap: float  # score at the cheap rung
    final: float  # score at the upper rung
    cheap_seconds: float
    final_seconds: float
    params: dict[str, float]


def real_runs() -> list[Run]:
    """Runs that have a score at CHEAP_STEP and a round-trip score at the end."""
    found = []
    with RUNS.open(newline="") as file:
        for row in csv.DictReader(file):
            curve = {
                int(step): (float(bpb), float(seconds))
                for step, bpb, seconds in (point.split(":") for point in row["curve_step:val_bpb:seconds"].split())
            }
            if row["roundtrip_bpb"] and CHEAP_STEP in curve and int(row["stop_step"]) > CHEAP_STEP:
                cheap, seconds = curve[CHEAP_STEP]
                found.append(
                    Run(
                        cheap=cheap,
                        final=float(row["roundtrip_bpb"]),
                        cheap_seconds=seconds,
                        final_seconds=float(row["stop_seconds"]),
                        params={},
                    )
                )
    return found


def synthetic_runs(rng: random.Random, count: int = 200) -> list[Run]:
    """Eight knobs; the cheap rung sees six as they are and reverses what two of them do at full length."""
    found = []
    for _ in range(count):
        x = [rng.random() for _ in range(8)]
        shared = sum((v - 0.4) ** 2 for v in x[:6])
        found.append(
            Run(
                cheap=shared + 0.5 * (x[6] + x[7]) + rng.gauss(0, 0.03),
                final=shared - 0.5 * (x[6] + x[7]) + rng.gauss(0, 0.01),
                cheap_seconds=1.0,
                final_seconds=8.0,
                params={f"x{i}": v for i, v in enumerate(x)},
            )
        )
    return found


SPACE = Space(
    name="synthetic",
    params=tuple(
        FloatParam(name=f"x{i}", low=0, high=1, tag="scale_free" if i < 6 else "step_dependent") for i in range(8)
    ),
    make_config=lambda values, vocab_size: RunConfig(),
    control={f"x{i}": 0.5 for i in range(8)},
)


def climb(runs: Sequence[Run], rung: Rung, *, space: Space | None = None) -> tuple[set[int], float]:
    """Indices of the runs that were promoted in an asynchronous study, and the seconds it cost."""
    rungs = (Rung(name="cheap", trials=len(runs), steps=1000), replace(rung, name="full", steps=7000))
    study = StudyConfig(
        name="s", space="tiny", data=("d",), rungs=rungs, control=False, anomaly_ratio=0.0,
        caps=Caps(artifact_bytes=10**9, train_seconds=1e9),
    )  # fmt: skip
    records: dict[tuple[str, int], TrialRecord] = {}
    queue: list[tuple[float, str, int]] = []
    now = spent = 0.0
    while True:
        said = decide(study, tuple(records.values()), space=space)
        if isinstance(said, (Ask, Promote)) and len(queue) < SLOTS:
            number = sum(key[0] == said.rung.name for key in records)
            parent = said.parent.spec.number if isinstance(said, Promote) else None
            run = runs[number if parent is None else parent]
            records[said.rung.name, number] = TrialRecord(spec=spec(said.rung.name, number, parent, run))
            seconds = run.cheap_seconds if parent is None else run.final_seconds
            spent += seconds
            heapq.heappush(queue, (now + seconds, said.rung.name, number))
            continue
        if isinstance(said, Done):
            return {r.spec.parent for r in records.values() if r.spec.parent is not None}, spent
        now, name, number = heapq.heappop(queue)
        mine = records[name, number].spec
        run = runs[number if mine.parent is None else mine.parent]
        records[name, number] = TrialRecord(spec=mine, result=result(run.cheap if mine.parent is None else run.final))


def spec(rung: str, number: int, parent: int | None, run: Run) -> TrialSpec:
    """A spec around what promotion reads."""
    return TrialSpec(
        study="s", rung=rung, number=number, parent=parent, params=dict(run.params), config=RunConfig(), seeds=(1,),
        data_dir="", tokenizer="",
    )  # fmt: skip


def result(bpb: float) -> TrialResult:
    """A complete result of that score."""
    run = SeedRun(
        seed=1, val_bpb=bpb, val_loss=bpb, pre_quant_val_bpb=bpb, model_bytes=1, code_bytes=0, steps=1, tokens_seen=1,
        num_params=1, train_seconds=1, eval_seconds=1, total_seconds=1, peak_memory_bytes=1, artifact_sha256="",
    )  # fmt: skip
    return TrialResult(status="complete", runs=(run,))


def at_once(runs: Sequence[Run], keep: float) -> tuple[set[int], float]:
    """The rule to beat: wait for every cheap run, promote the best share."""
    best = sorted(range(len(runs)), key=lambda i: runs[i].cheap)[: ceil(keep * len(runs))]
    return set(best), sum(r.cheap_seconds for r in runs) + sum(runs[i].final_seconds for i in best)


def score(runs: Sequence[Run], promoted: set[int]) -> tuple[float, float]:
    """(recall of the final top 10 %, best promoted final score minus the best of all)."""
    order = sorted(range(len(runs)), key=lambda i: runs[i].final)
    top = order[: ceil(0.1 * len(runs))]
    regret = min(runs[i].final for i in promoted) - runs[order[0]].final
    return sum(i in promoted for i in top) / len(top), regret


def table(name: str, worlds: Callable[[int], list[Run]], orders: int, rules: dict[str, Callable]) -> list[dict]:
    """Print one line per rule, over random orders."""
    print(
        f"\n{name}\n{'rule':<44}{'recall':>8}{'sd':>7}{'regret':>9}{'promoted':>10}{'GPU-h/run':>11}{'recall/GPU-h':>13}"
    )
    rows = []
    for label, rule in rules.items():
        recalls, regrets, shares, hours = [], [], [], []
        for order in range(orders):
            runs = worlds(order)
            promoted, seconds = rule(runs)
            recall, regret = score(runs, promoted)
            recalls.append(recall)
            regrets.append(regret)
            shares.append(len(promoted) / len(runs))
            hours.append(seconds * 8 / 3600 / len(runs))
        row = {
            "rule": label, "recall": fmean(recalls), "sd": stdev(recalls), "regret": fmean(regrets),
            "promoted": fmean(shares), "gpu_hours_per_run": fmean(hours),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{label:<44}{row['recall']:>8.3f}{row['sd']:>7.3f}{row['regret']:>9.4f}{row['promoted']:>10.3f}"
            f"{row['gpu_hours_per_run']:>11.3f}{row['recall'] / row['gpu_hours_per_run']:>13.3f}"
        )
    return rows


def main() -> None:
    """Replay, print, and end with one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=20)
    orders = parser.parse_args().orders
    report: dict[str, object] = {"orders": orders, "python": platform.python_version(), "machine": platform.machine()}
    rules: dict[str, Callable] = {
        f"at once, keep {k:.0%}": lambda runs, k=k: at_once(runs, k) for k in (0.15, 0.25, 0.4)
    }
    for low, high in ((0.25, 0.25), (0.15, 0.15), (0.1, 0.25), (0.15, 0.4), (0.25, 0.5)):
        rung = Rung(name="full", steps=1, keep=high, keep_min=low, keep_max=high)
        rules[f"asynchronous, keep {low:.0%} to {high:.0%}"] = lambda runs, rung=rung: climb(runs, rung)
    if RUNS.exists():
        known = real_runs()
        worlds = lambda order: random.Random(order).sample(known, len(known))  # noqa: E731
        report["real"] = table(f"{len(known)} real runs, step {CHEAP_STEP} to the end", worlds, orders, rules)
    else:
        print(f"no {RUNS}: the real runs are not replayed")
    rung = Rung(name="full", steps=1, keep=0.25, keep_min=0.25, keep_max=0.25)
    blind = {
        "at once, keep 25%": rules["at once, keep 25%"],
        "asynchronous, keep 25%, tags ignored": lambda runs: climb(runs, rung),
        "asynchronous, keep 25%, places by tag": lambda runs: climb(runs, rung, space=SPACE),
    }
    report["synthetic"] = table(
        "synthetic, two knobs misjudged", lambda o: synthetic_runs(random.Random(o)), orders, blind
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
