"""The probability that a configuration's artifact fits, from forecasts where there are any, else from finished runs.

log(bytes) is modelled by a Gaussian process: bytes are products of sizes and bitwidths, so their logarithm is nearly a
sum. Where bytes can be predicted without a run, the prediction counts as exact. The process then only ranks candidates,
because a prediction for a real configuration takes about 2.5 ms and a pool has a thousand candidates. Without
predictions, bytes are known after the first run of a configuration. A cheap run may pack worse or better than a full
one, so the process relates rungs for bytes as the other one does for scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_ndtr

from search.surrogate.encoding import Array, Encoder, Ints
from search.surrogate.gaussian_process import Data, Layout, Posterior, fit
from search.surrogate.history import History, row_key
from space.params import Scalar

PredictBytes = Callable[[Mapping[str, Scalar]], float]  # artifact bytes of a configuration, before any run of it
NUM_PREDICTED = 160  # of random points, once
NUM_RECENT = 160  # of the history's configurations, which lie where the search is
MAX_RUNS = 320
MIN_RUNS = 4  # measured artifacts before anything is predicted from them
REFIT_GROWTH = 1.3  # hyperparameters are fitted to runs again when there are so many times as many
NOISE = 0.02  # prior median of the part that the process does not explain, in standard deviations of log(bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedBytes:
    """Hyperparameters of log(bytes), its centre and spread, and how many results they were taken from."""

    num_results: int
    theta: tuple[float, ...]  # logarithms, in the order of `gaussian_process.Hyper`
    centre: float
    spread: float


class ByteModel:
    """The knowledge of bytes: a function of the history, the seed and `fitted`; the other fields are caches."""

    def __init__(
        self, encoder: Encoder, layout: Layout, *, cap_bytes: float, predict_bytes: PredictBytes | None, seed: int
    ) -> None:
        """Nothing is predicted until it is needed."""
        self._encoder, self._cap, self._seed = encoder, cap_bytes, seed
        self._predict_bytes = predict_bytes
        one_level = replace(layout, distances=(0.0,))
        self._layout = replace(one_level if predict_bytes else layout, noise=NOISE)
        self._known: dict[bytes, float] = {}
        self._num_built = -1  # results, or rows of the history, behind the posterior
        self._posterior: Posterior | None = None
        self._random: Array | None = None
        self.fitted: FittedBytes | None = None

    @property
    def memory(self) -> FittedBytes | None:
        """Hyperparameters that were fitted to runs: they depend on when. (A fit to predictions can be repeated.)"""
        return self.fitted if self._predict_bytes is None else None

    def recall(self, fitted: FittedBytes | None) -> None:
        """Take up a predecessor's memory."""
        if fitted is not None and self._predict_bytes is None and len(fitted.theta) == len(self._layout.prior()[0]):
            self.fitted = fitted

    def exact(self, row: Array) -> float | None:
        """Predicted bytes of one snapped row of units; None where only a run can tell."""
        if self._predict_bytes is None:
            return None
        key = row_key(row)
        if key not in self._known:
            self._known[key] = max(float(self._predict_bytes(self._encoder.values(row))), 1.0)
        return self._known[key]

    def log_fits(self, units: Array, history: History) -> Array:
        """log P(bytes <= cap) at the top rung, per row; 0 while nothing is known."""
        if not math.isfinite(self._cap):
            return np.zeros(len(units))
        if self._predict_bytes is not None:
            self._learn_predictions(history)
        else:
            self._learn_runs(history)
        if self._posterior is None or self.fitted is None:
            return np.zeros(len(units))
        top = self._layout.num_rungs - 1
        means, cov = self._posterior.joint(self._encoder.features(units), (top,))
        variance = np.maximum(cov[:, 0, 0], 0) + self._posterior.kernel.hyper.noise[top] ** 2
        limit = (math.log(self._cap) - self.fitted.centre) / self.fitted.spread
        return np.asarray(log_ndtr((limit - means[:, 0]) / np.sqrt(variance)))

    def _learn_predictions(self, history: History) -> None:
        """From random points, which hyperparameters are fitted to, and the newest configurations.

        Those are counted at the first rung, where configurations enter: the rows of one rung only ever grow at their
        end, so that the first sixteen, thirty-two and so on are the same ones whenever they are looked at.
        """
        if self._random is None:
            rng = np.random.default_rng([self._seed, 1])
            self._random = self._encoder.snap(rng.random((NUM_PREDICTED, len(self._encoder.params))))
            self.fitted = self._fit(self._random, self._predicted_logs(self._random), np.zeros(NUM_PREDICTED, np.int64))
        entered = np.flatnonzero(history.levels == 0)
        count = len(entered) // 16 * 16
        if count == self._num_built:
            return
        self._num_built = count
        units = np.concatenate([self._random, history.units[entered[:count][-NUM_RECENT:]]])
        self._build(units, self._predicted_logs(units), np.zeros(len(units), dtype=np.int64))

    def _predicted_logs(self, units: Array) -> Array:
        return np.log([self.exact(row) or 1.0 for row in units])

    def _learn_runs(self, history: History) -> None:
        """From measured artifacts; hyperparameters again and again while these are few."""
        told = [i for i, run in enumerate(history.runs) if run.artifact_bytes]
        if len(told) < MIN_RUNS or len(told) == self._num_built:
            return
        self._num_built = len(told)
        kept = np.array(told[-MAX_RUNS:])
        logs = np.log([max(history.runs[i].artifact_bytes or 1.0, 1.0) for i in kept])
        units, levels = history.units[kept], history.levels[kept]
        if self.fitted is None or len(kept) >= REFIT_GROWTH * self.fitted.num_results:
            self.fitted = self._fit(units, logs, levels)
        self._build(units, logs, levels)

    def _fit(self, units: Array, logs: Array, levels: Ints) -> FittedBytes:
        """Hyperparameters, searched from those before; centre and spread."""
        centre, spread = float(np.median(logs)), max(float(np.std(logs)), 1e-3)
        data = Data(self._encoder.features(units), levels, (logs - centre) / spread)
        start = None if self.fitted is None else np.array(self.fitted.theta)
        theta = fit(data, self._layout, start=start, max_iterations=40)
        return FittedBytes(num_results=len(logs), theta=tuple(float(t) for t in theta), centre=centre, spread=spread)

    def _build(self, units: Array, logs: Array, levels: Ints) -> None:
        assert self.fitted is not None  # every caller fits first
        data = Data(self._encoder.features(units), levels, (logs - self.fitted.centre) / self.fitted.spread)
        self._posterior = Posterior(data, np.array(self.fitted.theta), self._layout)
