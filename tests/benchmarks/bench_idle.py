"""Idle GPUs in simulated clusters: who decides what starts where.

    python tests/benchmarks/bench_idle.py [--proxies 256] [--seeds 3] [--gpus 64] [--durations clock|steps]

A study of 1-GPU proxies and 8-GPU full runs, asked at random. Runs end by the clock, at 590 s give or take 1 %, as in
the challenge, or after steps: anything from 400 to 590 s, which nobody knows before. Compared are the rule of
search.engines.placement on nodes of eight, and first come, first served: on the same nodes, which is what Ray does
with a queue, and in one pool without nodes, which no machine has. Idle is the share of GPU time before the last start,
with that in which nothing waited: towards the end some starts hang on what still runs; and without.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import mean, median

import traces

import search.engines.dispatch
import search.simulation.engine
from search.engines.placement import Need, Node, Place, Stay, place
from search.simulation.engine import simulate, simulated_nodes
from search.simulation.trace import Trace
from search.study.config import StudyConfig
from space.params import FloatParam, Scalar
from trials.rungs import Rung

SPACE = (FloatParam(name="x", low=0.0, high=1.0, tag="scale_free"),)


DURATIONS: dict[str, Callable[[random.Random], float]] = {
    "clock": lambda rng: min(590 * (1 + rng.gauss(0, 0.01)), 640),
    "steps": lambda rng: rng.uniform(400, 590),
}


def evaluate(
    params: dict[str, Scalar], *, rung: str, fidelity: float, seed: int, durations: str = "steps"
) -> dict[str, float]:
    """A score, and a duration that nobody can know before."""
    rng = random.Random(repr((params["x"], rung, seed)))
    bpb = 1.2 + 0.3 * float(params["x"]) + 0.1 * (1 - fidelity) + rng.gauss(0, 0.01)
    return {"val_bpb": bpb, "artifact_bytes": 1e6, "train_seconds": DURATIONS[durations](rng)}


def study(proxies: int, gpus: int) -> StudyConfig:
    """Two rungs; a fifth or less of the proxies goes up."""
    rungs = (
        Rung(name="proxy", trials=proxies, seconds=590, gpus=1),
        Rung(name="full", keep=0.2, min_promote=2, seconds=590, gpus=8, processes=8),
    )
    return StudyConfig(name="idle", space="tiny", data=("none",), rungs=rungs, gpus=gpus, sampler="random")


def in_order(nodes: Sequence[Node], running: Sequence[Stay], waiting: Sequence[Need], now: float) -> Iterator[Place]:
    """First come, first served: what does not fit holds back all after it."""
    taken: list[Stay] = []
    for index, need in enumerate(waiting):
        found = next(place(nodes, [*running, *taken], [need], now), None)
        if found is None:
            return
        yield replace(found, index=index)
        end = now + 1e9
        taken.append(Stay(node=found.node, cpus=need.cpus, gpu_ids=found.gpu_ids, share=need.share, start=now, end=end))


def one_pool(config: StudyConfig) -> tuple[Node, ...]:
    """All GPUs in one machine."""
    return (Node(name="0", cpus=1e9, gpus=int(config.gpus)),)


@contextmanager
def decided_by(
    rule: Callable[..., Iterator[Place]], nodes: Callable[[StudyConfig], tuple[Node, ...]]
) -> Iterator[None]:
    """Put another rule in the place of the product's."""
    search.engines.dispatch.place, search.simulation.engine.simulated_nodes = rule, nodes
    try:
        yield
    finally:
        search.engines.dispatch.place, search.simulation.engine.simulated_nodes = place, simulated_nodes


def waits(trace: Trace) -> list[float]:
    """Seconds between asking for a full run and its start."""
    return [s.start - s.asked for s in trace.spans if s.trial_id.startswith("full/")]


def main() -> None:
    """Print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--durations", choices=tuple(DURATIONS), default="clock")
    options = parser.parse_args()
    rules = {
        "first come, one pool": (in_order, one_pool),
        "first come, nodes of 8": (in_order, simulated_nodes),
        "placement, nodes of 8": (place, simulated_nodes),
    }
    config = study(options.proxies, options.gpus)
    columns = ("idle %", "while queued %", "full runs", "mean wait s", "longest", "ends after s")
    print(f"{'rule':24} {'seed':>4} " + " ".join(f"{column:>14}" for column in columns))
    idle: dict[str, list[float]] = {name: [] for name in rules}
    queued: dict[str, list[float]] = {name: [] for name in rules}
    for name, (rule, nodes) in rules.items():
        for seed in range(options.seeds):
            with decided_by(rule, nodes):
                trace = simulate(config, partial(evaluate, durations=options.durations), SPACE, seed=seed)
            idle[name].append(round(100 * traces.idle(trace, options.gpus), 2))
            queued[name].append(round(100 * traces.idle_while_queued(trace, options.gpus), 2))
            mine = waits(trace)
            ends = max(s.end for s in trace.spans)
            row = (idle[name][-1], queued[name][-1], len(mine), round(mean(mine)), round(max(mine)), round(ends))
            print(f"{name:24} {seed:4} " + " ".join(f"{value:>14}" for value in row), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "idle",
                "proxies": options.proxies,
                "gpus": options.gpus,
                "durations": options.durations,
                "idle_percent": {name: {"median": median(found), "all": found} for name, found in idle.items()},
                "while_queued_percent": {
                    name: {"median": median(found), "all": found} for name, found in queued.items()
                },
                "hardware": platform.processor() or platform.machine(),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
