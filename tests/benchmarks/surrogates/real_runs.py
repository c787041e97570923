"""The table of real small trainings (`make_real_runs.py`) as a function of any point of the tiny space.

A search method asks for points that are in no table. Restricting it to the rows would make a lottery of 25
dimensions, so each budget's scores are continued: a ridge regression on all first- and second-order terms of the
encoded configuration (penalty by leave-one-out), plus the measured residual of the nearest row in the regression's own
metric. What the regression cannot say - noise and ruggedness of real runs - is so kept at its measured size and
differs between budgets. log(bytes) is continued in the same way. The model is none that `search` uses.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from make_real_runs import PARAMS

from search.surrogate.encoding import Array, Encoder
from space.params import Scalar
from space.spaces import named_space

NAME = "real_runs"
TABLE = Path(__file__).parent.parent / "real_runs.csv"
SPACE = PARAMS
CONTROL = dict(named_space("tiny").control)
FULL_GPU_SECONDS = 4800.0  # as if a full budget were a full run, so that tables of all problems look alike
ENCODER = Encoder(SPACE)
PENALTIES = 10.0 ** np.arange(0, 5.5, 0.5)


class Continued:
    """One budget's column of the table, continued to every point."""

    def __init__(self, features: Array, y: Array) -> None:
        """Fit; the penalty is the one with the smallest leave-one-out error."""
        self.features, self.centre = features, float(np.median(y))
        terms = expand(features)
        self.mean, self.scale = terms.mean(0), np.maximum(terms.std(0), 1e-9)
        z = (terms - self.mean) / self.scale
        left, values, right = np.linalg.svd(z, full_matrices=False)
        target = y - y.mean()
        best = math.inf
        for penalty in PENALTIES:
            shrink = values**2 / (values**2 + penalty)
            fitted = left @ (shrink * (left.T @ target))
            leverage = left**2 @ shrink + 1 / len(y)  # the mean is fitted too
            error = float(np.mean(((target - fitted) / np.maximum(1 - leverage, 1e-9)) ** 2))
            if error < best:
                best = error
                self.weights = right.T @ (values / (values**2 + penalty) * (left.T @ target))
                self.residual = target - fitted
        self.offset = float(y.mean())
        self.loo_r2 = 1 - best / max(float(target.var()), 1e-12)
        linear = np.abs(self.weights[: features.shape[1]] / self.scale[: features.shape[1]])
        self.metric = linear + 0.1 * linear.mean()

    def __call__(self, features: Array) -> float:
        """The value at one point."""
        smooth = self.offset + float((expand(features[None])[0] - self.mean) / self.scale @ self.weights)
        near = int(np.argmin((((self.features - features) * self.metric) ** 2).sum(1)))
        return smooth + float(self.residual[near])


def expand(x: Array) -> Array:
    """(points, terms): features, their squares and products."""
    i, j = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, i] * x[:, j]], axis=1)


@functools.cache
def table() -> tuple[dict[float, Continued], Continued, float]:
    """(scores by fidelity, log(bytes), cap). The cap is the median of the bytes, so that half of the points fit."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    full = max(int(r["steps"]) for r in rows)
    scores = {}
    for steps in sorted({int(r["steps"]) for r in rows}):
        mine = [r for r in rows if int(r["steps"]) == steps]
        y = np.array([float(r["val_bpb"]) for r in mine])
        median = float(np.nanmedian(y))
        worst = median + 4 * 1.4826 * float(np.nanmedian(abs(y - median)))  # how badly a run failed is not continued
        y = np.minimum(np.where(np.isnan(y), np.inf, y), worst)
        units = ENCODER.units([json.loads(r["params"]) for r in mine])
        scores[steps / full] = Continued(ENCODER.features(units), y)
    mine = [r for r in rows if int(r["steps"]) == full and r["artifact_bytes"] != "nan"]
    sizes = np.array([float(r["artifact_bytes"]) for r in mine])
    units = ENCODER.units([json.loads(r["params"]) for r in mine])
    return scores, Continued(ENCODER.features(units), np.log(sizes)), float(np.median(sizes))


def features_of(params: Mapping[str, Scalar]) -> Array:
    """One point's features."""
    return np.asarray(ENCODER.features(ENCODER.snap(ENCODER.units([params])))[0])


def predict_bytes(params: Mapping[str, Scalar]) -> float:
    """Bytes at the full budget."""
    return math.floor(math.exp(table()[1](features_of(params))))


def truth(params: Mapping[str, Scalar]) -> float:
    """The full budget's score."""
    return table()[0][1.0](features_of(params))


def evaluate(params: Mapping[str, Scalar], *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """The score at a fidelity, log-interpolated between the table's budgets."""
    scores, x = table()[0], features_of(params)
    known = sorted(scores)
    values = [scores[f](x) for f in known]
    return {
        "val_bpb": float(np.interp(math.log(fidelity), np.log(known), values)),
        "artifact_bytes": predict_bytes(params),
        "train_seconds": 600.0,
        "gpu_seconds": FULL_GPU_SECONDS * fidelity,
    }


def __getattr__(name: str) -> float:
    """CAP_BYTES is the table's, which is read when somebody asks."""
    if name == "CAP_BYTES":
        return table()[2]
    raise AttributeError(name)
