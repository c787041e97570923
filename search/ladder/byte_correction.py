"""Forecasts of bytes corrected by what the study's own runs came out at.

`space.forecast.sizing` knows trained weights in general. How a study's weights pack depends on its data, its schedules
and how long a rung trains (short runs pack smaller), so the misses of finished trials move the next forecast and its
interval.
A miss is log(packed / forecast), here in standard deviations that the interval of the forecast at hand stands for (in
those of their own forecasts, a demo's misses were less alike). The model:

    miss = common + rung + noise,   variances of the three before any result: COMMON, RUNG, NOISE, together 1

with the noise's variance learnt as well, so intervals are Student's t and wide while little is known. Rungs share what
is common and no more. Forecasts that the quantizer fills to a target miss by other reasons than those that it does not
and are kept apart. A function of finished results alone: a killed driver's successor forecasts the same.
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
NOISE_COUNT = 4  # residuals that the prior of the noise is worth
NEWEST = 60  # trials per rung that are looked at: the newest lie where the search is now
OUTLIER = 3.0  # robust deviations from the rung's median at which a miss is cut off
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
    """The forecast of a run at `rung` after what the study has measured; as it was while nothing is.

    Args:
        sizes: low, central and high artifact bytes of the general forecast.
        at: the study's records by rung, in order of their numbers.
        target_bytes: of the configuration's quantization; 0 without.
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
    if filled:  # the quantizer fills a target from below
        low, central, high = min(low, target_bytes), min(central, target_bytes), min(high, target_bytes)
    return low, central, high


def belief(found: Mapping[str, Sequence[float]], rung: str) -> Belief | None:
    """What the misses of every rung say about the next one at `rung`; None when there are none."""
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
    """Values without outliers: a run that went wrong packs to any size."""
    middle = median(values)
    reach = OUTLIER * max(1.4826 * median(abs(value - middle) for value in values), sqrt(NOISE))
    return [min(max(value, middle - reach), middle + reach) for value in values]
