"""Forecasts of artifact bytes, corrected by the sizes of the study's finished trials.

`space.forecast.sizing` makes a general forecast: low, central and high bytes of a configuration. How well the weights
of one study pack also depends on its data, its schedules and how long a rung trains (short runs pack smaller). So the
misses of finished trials move the next forecast and change the width of its interval.

A miss is log(packed / general forecast), divided by the standard deviation that the interval of the forecast to be
corrected stands for. (Divided by the deviations of their own forecasts, the misses of a demo study were less alike.)
The model of a miss:

    miss = common + rung + noise,   variances of the three before any result: COMMON, RUNG, NOISE, together 1

The variance of the noise is learnt as well, so intervals follow Student's t and are wide while little is known. Rungs
share the common part only. Trials whose quantizer fills a target of bytes miss for other reasons than the others, so
the two kinds are kept apart. The result follows from finished trials alone: the driver that takes over from a killed
one makes the same forecasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, median

from search.study.ledger import TrialRecord
from search.study.statistics import Z90
from trials.spec import TrialSpec

COMMON, RUNG, NOISE = 0.35, 0.45, 0.2
NOISE_COUNT = 4  # the prior of the noise's variance weighs as much as so many residuals
NEWEST = 60  # trials per rung that are used: the newest configurations are most like the next one
OUTLIER = 3.0  # a miss counts as at most so many robust deviations from its rung's median
Sizes = tuple[int, ...]  # low, central, high


@dataclass(frozen=True, kw_only=True, slots=True)
class Belief:
    """What the next miss at a rung will be: Student's t, in deviations of the forecast."""

    shift: float
    deviation: float
    degrees_of_freedom: float

    def half_width(self, share: float) -> float:
        """Of the interval that holds such a share."""
        from scipy.special import stdtrit

        return self.deviation * float(stdtrit(self.degrees_of_freedom, (1 + share) / 2))


def corrected(sizes: Sizes, at: Mapping[str, Sequence[TrialRecord]], *, rung: str, target_bytes: int) -> Sizes:
    """Low, central and high bytes of a run at `rung`, after the study's results; `sizes` itself while there are none.

    Args:
        sizes: low, central and high artifact bytes of the general forecast.
        at: the study's records by rung, in order of their numbers.
        target_bytes: size that the configuration's quantizer aims at; 0 where it has no target.
    """
    if not 0 < sizes[0] < sizes[2]:
        return sizes
    filled = is_filled(sizes, target_bytes)
    unit = deviation(sizes)
    told = belief({name: [m / unit for m in misses(mine, filled=filled)] for name, mine in at.items()}, rung)
    if told is None:
        return sizes
    half = told.half_width(0.9)
    low, central, high = (round(sizes[1] * exp(unit * (told.shift + step))) for step in (-half, 0.0, half))
    if filled:  # the quantizer never exceeds its target
        low, central, high = min(low, target_bytes), min(central, target_bytes), min(high, target_bytes)
    return low, central, high


def belief(found: Mapping[str, Sequence[float]], rung: str) -> Belief | None:
    """The distribution of the next miss at `rung`, given the misses of every rung; None when there are none."""
    kept = {name: _cut(values) for name, values in found.items() if values}
    if not kept:
        return None
    squares = sum((value - fmean(values)) ** 2 for values in kept.values() for value in values)
    freedom = NOISE_COUNT + sum(len(values) - 1 for values in kept.values())
    noise = (NOISE_COUNT * NOISE + squares) / freedom
    weights = {name: 1 / (RUNG + noise / len(values)) for name, values in kept.items()}
    precision = 1 / COMMON + sum(weights.values())
    common = sum(weight * fmean(kept[name]) for name, weight in weights.items()) / precision
    if rung not in kept:
        return Belief(shift=common, deviation=sqrt(noise + RUNG + 1 / precision), degrees_of_freedom=freedom)
    error = noise / len(kept[rung])
    trust = RUNG / (RUNG + error)
    variance = trust * error + (1 - trust) ** 2 / precision
    return Belief(
        shift=common + trust * (fmean(kept[rung]) - common),
        deviation=sqrt(noise + variance),
        degrees_of_freedom=freedom,
    )


def misses(records: Sequence[TrialRecord], *, filled: bool) -> list[float]:
    """log(packed / forecast) of the newest finished trials, by the general forecast that they had."""
    found: list[float] = []
    for record in reversed(records):
        sizes = general_forecast(record.spec)
        known = record.result is not None and record.status == "complete" and 0 < sizes[0] < sizes[2]
        if known and is_filled(sizes, record.spec.config.quant.target_bytes) == filled:
            assert record.result is not None
            found.append(log(record.result.artifact_bytes / sizes[1]))
        if len(found) == NEWEST:
            break
    return found[::-1]


def general_forecast(spec: TrialSpec) -> Sizes:
    """Low, central and high bytes before the study's own runs corrected them."""
    return spec.general_forecast or (spec.predicted_low, spec.predicted_bytes, spec.predicted_high)


def is_filled(sizes: Sizes, target_bytes: int) -> bool:
    """Whether the quantizer is expected to reach the target, so that its solver decides the size."""
    return 0 < sizes[2] <= target_bytes


def deviation(sizes: Sizes) -> float:
    """Standard deviation of log(bytes) that a forecast's interval stands for."""
    return log(sizes[2] / sizes[0]) / (2 * Z90)


def _cut(values: Sequence[float]) -> list[float]:
    """The values with outliers moved to OUTLIER deviations: a run that went wrong packs to any size."""
    middle = median(values)
    reach = OUTLIER * max(1.4826 * median(abs(value - middle) for value in values), sqrt(NOISE))
    return [min(max(value, middle - reach), middle + reach) for value in values]
