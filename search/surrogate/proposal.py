"""The compute-aware model of a study: it proposes the run, and its rung, that is worth most per GPU-second.

One Gaussian process holds the results of every rung (`gaussian_process`), predicts scores at the top rung, and prices
each possible run. A run of configuration x at rung r is worth the expected improvement of the best top-rung score
that its result would make us believe in, divided by what it costs, the later promotion included:

    value(x, r) = E[max(0, best - m)] / (cost_r + P(m < best) * cost_top),   m ~ N(mean, s_r^2)

s_r is how far a result at r would move the prediction at the top: small where a cheap rung tells little, so the
model decides by itself whether proxies pay. This is the problem of opening boxes at a price (Weitzman 1979;
https://arxiv.org/abs/2406.20062 uses it for Bayesian optimisation).

A point whose bytes are known to be over the cap is never proposed; one that is probably over it is worth less
(`byte_model`).
Pure numpy and scipy: no Optuna, no clock, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from search.surrogate.byte_model import ByteModel, FittedBytes, PredictBytes
from search.surrogate.candidates import farthest, mutate, pool, random_points
from search.surrogate.encoding import Array, Encoder
from search.surrogate.gaussian_process import Data, Layout, Posterior, fit, log_expected_improvement
from search.surrogate.history import History, Observation, Reader, most_telling, row_key, standardise
from space.params import Param, Scalar

MAX_POINTS = 360  # the model keeps the most telling results: exact inference is cubic in their number
MAX_FIT_POINTS = 240  # for hyperparameters, which need fewer
REFIT_GROWTH = 1.15  # hyperparameters are fitted again when there are so many times as many results
NUM_LEADERS = 8  # known configurations that candidates start from
NUM_ROUNDS, NUM_PARENTS, NUM_CHILDREN = 2, 10, 16  # a pool is followed by the neighbourhoods of its best
MAX_CLIMBERS = 120  # known configurations that are priced for a higher rung: the best of the highest rungs
MAX_CHECKS = 48  # predictions of bytes per proposal
SHARE = 0.4  # of the GPU-seconds spent at a rung and below, at least so many go to that rung: cheap runs can mislead


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What to run. `parent` is the index of the observation it repeats on a higher rung; None is a new point."""

    params: dict[str, Scalar]
    level: int
    parent: int | None = None
    log_value: float = 0.0  # log of the expected improvement, in the score's units, per cost of a top-rung run


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """Hyperparameters and how many results they were fitted to."""

    num_results: int
    theta: tuple[float, ...]  # logarithms, in the order of `gaussian_process.Hyper`


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """The newest fits, which depend on when they were made. Whoever keeps them resumes where it stopped."""

    scores: Fitted | None = None
    bytes: FittedBytes | None = None


class Surrogate:
    """The model of one study. It decides from the history it is given, its seed and `memory`; the rest is caches."""

    def __init__(
        self,
        params: Sequence[Param],
        computes: Sequence[float],
        *,
        cap_bytes: float,
        predict_bytes: PredictBytes | None = None,
        seed: int = 0,
        num_initial: int = 0,
    ) -> None:
        """Set the question.

        Args:
            params: of the space, in the order they are asked.
            computes: training compute of a run at each rung, lowest rung first; the last rung's score is minimised.
            cap_bytes: the largest artifact allowed; inf where there is no limit.
            predict_bytes: exact bytes of a configuration, where they can be known without a run.
            num_initial: results to have before the model is trusted; 0 picks one from the number of parameters.
        """
        self.encoder = Encoder(params)
        self.computes = tuple(computes)
        self._top = len(self.computes) - 1
        self.num_initial = num_initial or max(6, min(16, len(self.encoder.params) // 2))
        self._cap = cap_bytes
        self._seed = seed
        self._rng = np.random.default_rng([seed, 0])
        self._reader = Reader(self.encoder)
        self._layout = _layout(self.encoder, self.computes)
        self._bytes = ByteModel(self.encoder, self._layout, cap_bytes=cap_bytes, predict_bytes=predict_bytes, seed=seed)
        self._guess: Array | None = None
        self.fitted: Fitted | None = None

    @property
    def memory(self) -> Memory:
        """The fits that the history does not determine."""
        return Memory(scores=self.fitted, bytes=self._bytes.memory)

    def recall(self, memory: Memory) -> None:
        """Take up a predecessor's memory; fits of a model of another shape are made anew."""
        shape = len(self._layout.prior()[0])
        if memory.scores is not None and len(memory.scores.theta) == shape:
            self.fitted = memory.scores
        self._bytes.recall(memory.bytes)

    def propose(
        self,
        runs: Sequence[Observation],
        *,
        costs: Sequence[float] | None = None,
        starts: Sequence[int] = (0,),
        climbs: Sequence[int] | None = None,
        remaining: float = math.inf,
    ) -> Proposal | None:
        """The most valuable run per GPU-second; None when only climbs are allowed and there is none.

        Args:
            runs: every run so far; new ones may come anywhere.
            costs: GPU-seconds of one run at each rung; in proportion to compute by default.
            starts: rungs at which a new configuration may start; may be empty.
            climbs: rungs to which a known configuration may go up; all by default.
            remaining: GPU-seconds left; a cheap run that leaves too little for a top-rung run is not worth starting.
        """
        costs, top = tuple(costs or self.computes), self._top
        history = self._reader.read(runs)
        self._rng = np.random.default_rng([self._seed, len(history)])
        targets = range(1, top + 1) if climbs is None else climbs
        options = [(i, level) for i, level in _options(history, top) if level in targets]
        if starts and history.scored.sum() < self.num_initial and len(history) < 2 * self.num_initial:
            return self._first_design(history, level=min(starts))
        if not history.scored.any():
            return self._first_design(history, level=min(starts)) if starts else None
        model = self._model(history, costs)
        due = self._due(history, options, costs, remaining)
        if due is not None:
            options = [o for o in options if o[1] == due]
            guess = row_key(self._first_guess())
            options = [o for o in options if history.keys[o[0]] == guess] or options
        up = self._best_option(model, history, options)
        if not starts or (due is not None and up is not None):
            return up
        new = self._best_new(model, history, starts)
        return up if up is not None and up.log_value >= new.log_value else new

    def _first_design(self, history: History, *, level: int) -> Proposal:
        """The middle of every range, or a point near it that fits; then points far from everything so far.

        Of every three of the latter, one is random, one shares about half its values with the first known point (the
        control) and one with the first guess: ranges are usually set around values that work.
        """
        guess = self._first_guess()
        size = self._bytes.exact(guess)
        if row_key(guess) not in history.keys and (size is None or size <= self._cap):
            return Proposal(params=self.encoder.values(guess), level=level)
        draws = random_points(self.encoder, 64, self._rng)
        partner = (None, history.units[:1], guess[None])[len(history) % 3]
        if partner is not None and len(partner):
            keep = (self._rng.random(draws.shape) < 0.5) & ~np.isnan(partner)
            draws = self.encoder.snap(np.where(keep, partner, draws))
        score = np.log(farthest(self.encoder, draws, history.units) + 1e-9)
        score += self._bytes.log_fits(draws, history)
        return Proposal(params=self.encoder.values(self._first_that_fits(draws, score)), level=level)

    def _first_guess(self) -> Array:
        """Units of the middle of every range, or of a point near it that fits: likely good, so the first to go up."""
        if self._guess is None:
            middle = np.full(len(self.encoder.params), 0.5)
            rng = np.random.default_rng([self._seed, 2])
            width = np.repeat([0.0, 0.08, 0.16], [1, MAX_CHECKS, MAX_CHECKS])[:, None]
            near = self.encoder.snap(middle + width * rng.standard_normal((len(width), len(middle))))
            sizes = (self._bytes.exact(row) for row in near)
            fits = (row for row, size in zip(near, sizes, strict=True) if size is None or size <= self._cap)
            self._guess = next(fits, near[0])
        return self._guess

    def _due(
        self, history: History, options: Sequence[tuple[int, int]], costs: Sequence[float], remaining: float
    ) -> int | None:
        """The highest rung that has had less than its share; None when all have had theirs.

        It is this rung's turn, whatever the values of runs say.
        """
        top = self._top
        counts = np.bincount(history.levels, minlength=top + 1)
        spent = [count * cost for count, cost in zip(counts, costs, strict=True)]
        reachable = {level for _, level in options}
        if top in reachable and remaining < costs[top] + costs[0]:
            return top
        for level in sorted(reachable, reverse=True):
            if spent[level] + 0.5 * costs[level] < SHARE * sum(spent[: level + 1]):
                return level
        return None

    def _best_option(self, model: Model, history: History, options: Sequence[tuple[int, int]]) -> Proposal | None:
        """The most valuable way up for a known configuration."""
        if not options:
            return None
        levels = tuple(sorted({level for _, level in options}))
        parents = sorted({i for i, _ in options}, key=lambda i: (-int(history.levels[i]), model.scores[i]))[
            :MAX_CLIMBERS
        ]
        place = {parent: row for row, parent in enumerate(parents)}
        options = [o for o in options if o[0] in place]
        units = history.units[parents]
        values = model.log_values(self.encoder.features(units), levels)
        values += self._bytes.log_fits(units, history)[:, None]
        value = {o: float(values[place[o[0]], levels.index(o[1])]) for o in options}
        for parent, level in sorted(options, key=lambda o: -value[o]):
            size = self._bytes.exact(history.units[parent])
            if size is None or size <= self._cap:
                params = dict(history.runs[parent].params)
                return Proposal(params=params, level=level, parent=parent, log_value=value[parent, level])
        return None

    def _best_new(self, model: Model, history: History, starts: Sequence[int]) -> Proposal:
        """The most valuable new configuration: the best of a broad pool and of the neighbourhoods of its best."""
        points = pool(self.encoder, self._leaders(model, history), self._rng)
        scores = self._score(model, points, history)
        for _ in range(NUM_ROUNDS):
            parents = points[np.argsort(-scores, kind="stable")[:NUM_PARENTS]]
            children = mutate(self.encoder, np.repeat(parents, NUM_CHILDREN, axis=0), self._rng)
            points = np.concatenate([points, children])
            scores = np.concatenate([scores, self._score(model, children, history)])
        seen = set(history.keys)
        order = [i for i in np.argsort(-scores, kind="stable")[: 4 * MAX_CHECKS] if row_key(points[i]) not in seen]
        points = points[order] if order else random_points(self.encoder, 16, self._rng)
        values = model.log_values(self.encoder.features(points), tuple(starts))
        values += self._bytes.log_fits(points, history)[:, None]
        chosen = self._first_that_fits(points, values.max(1))
        row = next((i for i in range(len(points)) if row_key(points[i]) == row_key(chosen)), None)
        level = min(starts) if row is None else starts[int(np.argmax(values[row]))]
        value = -math.inf if row is None else float(values[row].max())
        return Proposal(params=self.encoder.values(chosen), level=level, log_value=value)

    def _leaders(self, model: Model, history: History) -> Array:
        """Units of the known configurations with the best expected score at the top, those that fit first."""
        rows = np.flatnonzero(history.scored)
        _, first = np.unique(history.configs[rows], return_index=True)
        rows = most_telling(rows[np.sort(first)], model.scores, history.levels, MAX_POINTS, self._rng)
        expected = model.top_mean(self.encoder.features(history.units[rows]))
        expected += self._bytes.log_fits(history.units[rows], history) * -0.5 + 10.0 * ~history.feasible[rows]
        return np.asarray(history.units[rows[np.argsort(expected, kind="stable")[:NUM_LEADERS]]])

    def _score(self, model: Model, units: Array, history: History) -> Array:
        values = model.log_values(self.encoder.features(units), (self._top,))[:, 0]
        return np.asarray(values + self._bytes.log_fits(units, history))

    def _first_that_fits(self, points: Array, scores: Array) -> Array:
        """The best-scored point whose predicted bytes are under the cap; without predictions, the best-scored one.

        When none of the best fits, random points are drawn until one does; the smallest seen if that fails too.
        """
        order = np.argsort(-scores, kind="stable")
        smallest, fewest = points[order[0]], math.inf
        for i in range(5 * MAX_CHECKS):
            few = i < min(MAX_CHECKS, len(points))
            row = points[order[i]] if few else random_points(self.encoder, 1, self._rng)[0]
            size = self._bytes.exact(row)
            if size is None or size <= self._cap:
                return np.asarray(row)
            if size < fewest:
                smallest, fewest = row, size
        return np.asarray(smallest)

    def _model(self, history: History, costs: tuple[float, ...]) -> Model:
        """The posterior, with runs in flight believed to end as expected."""
        scores = standardise(history, len(self.computes))
        told = np.flatnonzero(~np.isnan(scores))
        kept = most_telling(told, scores, history.levels, MAX_POINTS, self._rng)
        if self.fitted is None or len(told) >= REFIT_GROWTH * self.fitted.num_results:
            few = most_telling(kept, scores, history.levels, MAX_FIT_POINTS, self._rng)
            data = Data(self.encoder.features(history.units[few]), history.levels[few], scores[few])
            start = None if self.fitted is None else np.array(self.fitted.theta)
            theta = fit(data, self._layout, start=start, max_iterations=50 if start is None else 25)
            self.fitted = Fitted(num_results=len(told), theta=tuple(float(t) for t in theta))
        data = Data(self.encoder.features(history.units[kept]), history.levels[kept], scores[kept])
        posterior = Posterior(data, np.array(self.fitted.theta), self._layout)
        best = self._best(posterior, history, scores)
        flying = np.array([run.running for run in history.runs], dtype=bool)
        posterior = posterior.believing(self.encoder.features(history.units[flying]), history.levels[flying])
        return Model(posterior, costs, best, scores)

    def _best(self, posterior: Posterior, history: History, scores: Array) -> float:
        """The lowest expected score at the top rung, of runs there that fit; before there are any, of all that fit."""
        top = self._top
        done = np.flatnonzero(history.scored & history.feasible)
        there = done[history.levels[done] == top]
        rows = there if len(there) else done
        if not len(rows):
            return float(np.nanmax(scores))
        rows = rows[np.argsort(scores[rows], kind="stable")][:50]
        return float(posterior.mean(self.encoder.features(history.units[rows]), top).min())


@dataclass(frozen=True, slots=True)
class Model:
    """A posterior with prices on it."""

    posterior: Posterior
    costs: tuple[float, ...]  # of one run at each rung
    best: float
    scores: Array  # standardised, of every run; NaN where there is none

    def top_mean(self, features: Array) -> Array:
        """Expected standardised score at the top rung."""
        return self.posterior.mean(features, len(self.costs) - 1)

    def log_values(self, features: Array, levels: tuple[int, ...]) -> Array:
        """(points, levels) log of the value of a run, per cost of a top-rung run (see the top of this file)."""
        top = len(self.costs) - 1
        rungs = tuple(dict.fromkeys((*levels, top)))
        means, cov = self.posterior.joint(features, rungs)
        at_top = rungs.index(top)
        improvement = self.best - means[:, at_top]
        columns = []
        for level in levels:
            i = rungs.index(level)
            variance = np.maximum(cov[:, i, i], 1e-12) + self.posterior.kernel.hyper.noise[level] ** 2
            moved = np.abs(cov[:, at_top, i]) / np.sqrt(variance)
            cost = np.full(len(features), self.costs[level] / self.costs[top])
            if level != top:
                cost += ndtr(improvement / np.maximum(moved, 1e-12))
            columns.append(log_expected_improvement(improvement, moved) - np.log(cost))
        return np.stack(columns, axis=1)


def _layout(encoder: Encoder, computes: Sequence[float]) -> Layout:
    """Distances between rungs in log compute; knobs that a proxy can decide get a nearly constant bias."""
    away = [abs(math.log(computes[-1] / compute)) for compute in computes]
    farthest_away = max(max(away), 1e-9)
    return Layout(
        groups=tuple(int(g) for g in encoder.groups),
        distances=tuple(a / farthest_away for a in away),
        bias_shift=tuple(0.7 if tag == "scale_free" else 0.0 for tag in encoder.tags),
    )


def _options(history: History, top: int) -> list[tuple[int, int]]:
    """(observation, next level) of every way up: from a configuration's highest run, when that has ended well."""
    highest: dict[int, int] = {}
    levels = history.levels.tolist()
    for i, config in enumerate(history.configs.tolist()):
        if config not in highest or levels[i] > levels[highest[config]]:
            highest[config] = i
    ended_well = (history.scored & history.feasible).tolist()
    return [(i, levels[i] + 1) for i in highest.values() if ended_well[i] and levels[i] < top]
