"""A small simulated study: its space, its settings and its function."""

from __future__ import annotations

import math
import random

from search.study.config import StudyConfig
from space.params import FloatParam, IntParam
from trials.rungs import Rung

SPACE = (
    FloatParam(name="x", low=0.0, high=1.0, tag="scale_free"),
    FloatParam(name="lr", low=1e-3, high=1e-1, log=True, tag="step_dependent"),
    IntParam(name="depth", low=2, high=12, tag="throughput_dependent"),
)


STUDY = StudyConfig(
    name="s",
    space="tiny",
    data=("nowhere",),
    rungs=(
        Rung(name="proxy", trials=24, seconds=590, gpus=1),
        Rung(name="full", keep=0.2, min_promote=2, seconds=590, gpus=8, processes=8),
    ),
    gpus=16,
)


def evaluate(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """A bowl with noise that depends on nothing but the arguments."""
    rng = random.Random(repr((sorted(params.items()), rung, seed)))
    bpb = 1.2 + 0.3 * (params["x"] - 0.3) ** 2 + 0.01 * math.log(params["lr"] / 0.02) ** 2 + 0.1 * (1 - fidelity)
    return {
        "val_bpb": bpb + rng.gauss(0, 0.001),
        "artifact_bytes": 1e6 * params["depth"],
        "train_seconds": rng.uniform(400, 590),
    }
