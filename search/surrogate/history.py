"""A study's measurements as the model sees them: observations, their features, and scores made comparable.

A *level* is the index of a rung among those that the model knows, lowest first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.surrogate.encoding import Array, Encoder, Ints
from space.params import Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One run: finished (with a score), failed (without one) or in flight."""

    params: Mapping[str, Scalar]
    level: int  # index of its rung, lowest first
    val_bpb: float | None = None  # None while it runs, and when it failed or diverged without a score
    artifact_bytes: float | None = None  # None where unknown
    running: bool = False
    feasible: bool = True  # within every cap, as far as known

    @property
    def scored(self) -> bool:
        """Whether it has a finite score."""
        return self.val_bpb is not None and math.isfinite(self.val_bpb)


@dataclass(frozen=True, slots=True)
class History:
    """Observations with their units and levels as arrays; equal configurations share a number."""

    runs: tuple[Observation, ...]
    units: Array  # (runs, parameters)
    keys: tuple[bytes, ...]  # `row_key` of each row of units
    configs: Ints  # (runs,)
    levels: Ints  # (runs,)
    scored: NDArray[np.bool_]  # (runs,)
    feasible: NDArray[np.bool_]  # (runs,)

    def __len__(self) -> int:
        return len(self.runs)


class Reader:
    """Turns observations into a History, translating each configuration once."""

    def __init__(self, encoder: Encoder) -> None:
        """Start with nothing known."""
        self._encoder = encoder
        self._known: dict[int, tuple[Mapping[str, Scalar], int]] = {}  # by id of params, which it keeps alive
        self._configs: dict[bytes, int] = {}
        self._rows: list[Array] = []  # units of each configuration
        self._keys: list[bytes] = []
        self._table = np.zeros((0, len(encoder.params)))  # the rows stacked, as many as there were

    def read(self, runs: Sequence[Observation]) -> History:
        """The history of these runs."""
        found = [self._known.get(id(run.params)) for run in runs]
        configs = np.array(
            [known[1] if known else self._config(run.params) for known, run in zip(found, runs, strict=True)],
            dtype=np.int64,
        )
        if len(self._table) < len(self._rows):
            self._table = np.concatenate([self._table, np.stack(self._rows[len(self._table) :])])
        return History(
            tuple(runs),
            self._table[configs],
            tuple([self._keys[config] for config in configs.tolist()]),
            configs,
            np.array([run.level for run in runs], dtype=np.int64),
            np.array([run.scored for run in runs], dtype=bool),
            np.array([run.feasible for run in runs], dtype=bool),
        )

    def _config(self, params: Mapping[str, Scalar]) -> int:
        """The number of a configuration that was not read under these params before."""
        row = self._encoder.units([params])[0]
        key = row_key(row)
        if key not in self._configs:
            self._configs[key] = len(self._rows)
            self._rows.append(row)
            self._keys.append(key)
        self._known[id(params)] = (params, self._configs[key])
        return self._configs[key]


def standardise(history: History, num_levels: int) -> Array:
    """Scores in robust standard deviations, level by level shifted to a common zero; NaN where there is none.

    Higher levels hold selected configurations, so a level's shift is the median difference of the configurations it
    shares with the levels below, or its own median where it shares none. The unit is the spread of the better half.
    Above one unit scores grow only like a logarithm, and a run that failed counts as the worst seen: the model must
    avoid points whose training exploded, but how far it exploded says nothing about other points.
    """
    raw = np.array([run.val_bpb if run.scored else math.nan for run in history.runs], dtype=float)
    shifted = raw.copy()
    reference: dict[int, float] = {}
    for level in range(num_levels):
        rows = np.flatnonzero((history.levels == level) & history.scored)
        if not len(rows):
            continue
        configs = history.configs[rows].tolist()
        pairs = [score - reference[c] for c, score in zip(configs, raw[rows].tolist(), strict=True) if c in reference]
        shifted[rows] = raw[rows] - (np.median(pairs) if pairs else np.median(raw[rows]))
        reference.update(zip(configs, shifted[rows].tolist(), strict=True))
    known = shifted[history.scored]
    if not len(known):
        return shifted
    centre = float(np.median(known))
    better = known[known <= centre]
    unit = 1.4826 * float(np.median(centre - better))
    if unit < 1e-9:  # half of the scores are equal
        unit = float(np.std(known)) or 1.0
    z = (shifted - centre) / unit
    with np.errstate(invalid="ignore"):
        z = np.where(z > 1, 1 + np.log(np.maximum(z, 1)), z)
    worst = max(float(np.nanmax(z)), 1.0)
    failed = np.array([not run.running and not run.scored for run in history.runs], dtype=bool)
    z[failed & history.feasible] = worst
    return np.asarray(z)


def most_telling(rows: Ints, scores: Array, levels: Ints, most: int, rng: np.random.Generator) -> Ints:
    """At most `most` of the rows: a third from the highest level, a third the best others, the rest at random."""
    if len(rows) <= most:
        return rows
    top = rows[levels[rows] == levels[rows].max()]
    top = top[np.argsort(scores[top], kind="stable")][: most // 3]
    rest = np.setdiff1d(rows, top)
    best = rest[np.argsort(scores[rest], kind="stable")][: most // 3]
    others = np.setdiff1d(rest, best)
    drawn = rng.choice(others, size=min(len(others), most - len(top) - len(best)), replace=False)
    return np.sort(np.concatenate([top, best, drawn]))


def row_key(row: Array) -> bytes:
    """Equal for rows of units that stand for the same point."""
    return np.round(np.where(np.isnan(row), -1.0, row), 9).tobytes()
