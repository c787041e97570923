"""The probability that a configuration's artifact fits, from forecasts where there are any, else from finished runs.

log(bytes) is a Gaussian process too: bytes are products of sizes and bitwidths, so it is nearly additive. Where a
forecast exists it is the truth and the process only steers candidates, because a forecast of a real configuration
costs about 2.5 ms and a candidate pool has a thousand. Without one, bytes are known after the first run of a
configuration, and a cheap run may pack worse or better than a full one: rungs are related as scores are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from scipy.special import log_ndtr

from search.encode import Array, Encoder
from search.gaussian_process import Data, Layout, Posterior, fit
from search.history import History, Ints, row_key
from space.params import Scalar

Forecast = Callable[[Mapping[str, Scalar]], float]
NUM_FORECASTS = 160  # of random points, once
NUM_RECENT = 160  # of the history's configurations, which lie where the search is
MAX_RUNS = 320
MIN_RUNS = 4  # measured artifacts before anything is predicted from them
NOISE = 0.02  # prior median of what the process does not explain, in standard deviations of log(bytes)


class ByteModel:
    """What is known about bytes. Keeps forecasts between calls."""

    def __init__(
        self, encoder: Encoder, layout: Layout, *, cap_bytes: float, forecast: Forecast | None, seed: int
    ) -> None:
        """Nothing is forecast until it is needed."""
        self._encoder, self._cap, self._seed = encoder, cap_bytes, seed
        self._forecast = forecast
        one_level = replace(layout, distances=(0.0,))
        self._layout = replace(one_level if forecast else layout, noise=NOISE)
        self._known: dict[bytes, float] = {}
        self._theta: Array | None = None
        self._num_fitted = 0
        self._num_built = 0
        self._posterior: Posterior | None = None
        self._random: Array | None = None
        self._centre, self._spread = 0.0, 1.0

    def exact(self, row: Array) -> float | None:
        """Forecast bytes of one snapped row of units; None where nobody can say."""
        if self._forecast is None:
            return None
        key = row_key(row)
        if key not in self._known:
            self._known[key] = max(float(self._forecast(self._encoder.values(row))), 1.0)
        return self._known[key]

    def log_fits(self, units: Array, history: History) -> Array:
        """log P(bytes <= cap) at the top rung, per row; 0 while nothing is known."""
        if not math.isfinite(self._cap):
            return np.zeros(len(units))
        if self._forecast is not None:
            self._learn_forecasts(history)
        else:
            self._learn_runs(history)
        if self._posterior is None:
            return np.zeros(len(units))
        top = self._layout.num_rungs - 1
        means, cov = self._posterior.joint(self._encoder.features(units), (top,))
        variance = np.maximum(cov[:, 0, 0], 0) + self._posterior.kernel.hyper.noise[top] ** 2
        limit = (math.log(self._cap) - self._centre) / self._spread
        return np.asarray(log_ndtr((limit - means[:, 0]) / np.sqrt(variance)))

    def _learn_forecasts(self, history: History) -> None:
        """From random points and the newest configurations of the history."""
        if self._random is None:
            rng = np.random.default_rng([self._seed, 1])
            self._random = self._encoder.snap(rng.random((NUM_FORECASTS, len(self._encoder.params))))
        if self._posterior is not None and len(history) < self._num_built + 16:
            return
        self._num_built = len(history) // 16 * 16
        units = np.concatenate([self._random, history.units[: self._num_built][-NUM_RECENT:]])
        logs = np.log([self.exact(row) or 1.0 for row in units])
        self._build(units, logs, np.zeros(len(units), dtype=np.int64))

    def _learn_runs(self, history: History) -> None:
        told = [i for i, run in enumerate(history.runs) if run.artifact_bytes]
        if len(told) < MIN_RUNS or (self._posterior is not None and len(told) == self._num_built):
            return
        kept = np.array(told[-MAX_RUNS:])
        logs = np.log([max(history.runs[i].artifact_bytes or 1.0, 1.0) for i in kept])
        self._build(history.units[kept], logs, history.levels[kept])
        self._num_built = len(told)

    def _build(self, units: Array, logs: Array, levels: Ints) -> None:
        if self._is_due(len(logs)):
            self._centre = float(np.median(logs))
            self._spread = max(float(np.std(logs)), 1e-3)
        data = Data(self._encoder.features(units), levels, (logs - self._centre) / self._spread)
        if self._is_due(len(logs)):
            self._theta = fit(data, self._layout, start=self._theta, max_iterations=40)
            self._num_fitted = len(logs)
        assert self._theta is not None  # the first time it is due
        self._posterior = Posterior(data, self._theta, self._layout)

    def _is_due(self, count: int) -> bool:
        """Whether hyperparameters are fitted: once to forecasts, again and again to the few and growing runs."""
        if self._theta is None or self._forecast is not None:
            return self._theta is None
        return count >= 1.3 * self._num_fitted
