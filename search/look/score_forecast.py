"""Forecasts of a trial's score at the top rung, from its score at the rung below or from its unfinished learning curve.

The gain from a cheap score x to the final score y is a line in two predictors,

    log(y / x) = a + b * (log x - its mean) + c * (log seconds per step - its mean) + noise,

fitted to the trials that have both scores. While there are few such trials, the priors of a, b and c decide: longer
training helps by a power law of compute (val_bpb of public runs falls like compute ** -0.07), half of a lead in the
cheap score may be luck, and a slow step may cost some percent. The noise has Student's t distribution, so that one
failed run does not move the line. With ten trials or more the intervals are quantiles of the leave-one-out residuals
(conformal prediction); with fewer they are those of the fit, and wider.
All functions are pure. numpy and scipy are loaded when first needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, inf, log
from typing import TYPE_CHECKING, Literal

from search.study.config import StudyConfig
from search.study.ledger import CONTROL, TrialRecord
from trials.rungs import Rung

if TYPE_CHECKING:
    from search.surrogate.encoding import Array

POWER, POWER_SD = 0.07, 0.05  # power of compute by which a score falls from one rung to the next: the prior of a
REGRESSION_SD = 0.5  # prior of b: share of a proxy's lead or lag that is lost on the way up
SPEED_SD = 0.02  # prior of c, per unit of log(seconds per step)
NOISE, NOISE_COUNT = 0.016, 4  # prior scale of the noise in log(val_bpb), and how many residuals it is worth
NU = 4.0  # degrees of freedom of the noise
CONFORMAL = 10  # pairs from which on the residuals themselves give the intervals
FEW = 3  # pairs below which the priors decide the forecast, and displays call it a guess
ROUNDS = 12  # of reweighting
SHOWN = 5  # proxies whose forecast is shown, best first
LEARNING_GAIN = 0.12  # prior of a learning curve's gain until its end, per share of training that is left ...
LEARNING_SD = 0.08  # ... and how uncertain that is
WINDOW = 0.1  # training losses are averaged over the last so much of progress
SHARES = (0.5, 0.9)
LearningCurve = Sequence[tuple[float, float]]  # (progress in [0, 1], training loss) of one run, in order


@dataclass(frozen=True, kw_only=True, slots=True)
class BpbForecast:
    """Forecast of one trial's val_bpb at the top rung."""

    trial_id: str  # the proxy, or the running trial itself
    rung: str  # whose score is forecast
    source: Literal["proxy", "curve"]  # the trial's score at the rung below, or its learning curve
    val_bpb: float
    low50: float  # half of such forecasts should hold the truth between these
    high50: float
    low90: float
    high90: float
    num_pairs: int  # earlier trials with both scores behind it

    @property
    def few(self) -> bool:
        """Whether so few trials are behind it that the priors decide."""
        return self.num_pairs < FEW


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line, for `predict`."""

    coefficients: Array  # (features + 1,)
    covariance: Array  # of the coefficients
    scale: float  # of the noise
    centre: Array  # (features,) means of the features
    factors: tuple[float, float]  # half widths of the 50 % and 90 % intervals in predictive deviations


def fit_line(
    x: Array, y: Array, *, gain: float, gain_sd: float, slope_sds: Sequence[float], around: Array | None = None
) -> Line:
    """Return the most probable line of y on the columns of x under normal priors and Student's t noise.

    Args:
        x: (n, features) predictors, n may be 0.
        y: (n,) values to predict.
        around: (features,) centre of the features while n is 0.
        gain, gain_sd: prior of y at the mean of x.
        slope_sds: (features,) deviations of the slopes' priors, which are centred at 0.
    """
    import numpy as np
    from scipy.special import stdtrit

    n = len(y)
    centre = x.mean(0) if n else np.zeros(len(slope_sds)) if around is None else around
    design = np.concatenate([np.ones((n, 1)), x - centre], axis=1)
    prior = 1 / np.array([gain_sd, *slope_sds]) ** 2
    start = np.array([gain, *(0.0 for _ in slope_sds)])
    variance, weights = NOISE**2, np.ones(n)
    if n > 2:  # as if the residuals of a plain median were noise
        variance = max(variance, float(1.4826 * np.median(np.abs(y - np.median(y)))) ** 2)
    for _ in range(ROUNDS):
        covariance = np.linalg.inv(np.diag(prior) + design.T @ (weights[:, None] * design) / variance)
        coefficients = covariance @ (prior * start + design.T @ (weights * y) / variance)
        residuals = y - design @ coefficients
        variance = float((NOISE_COUNT * NOISE**2 + (weights * residuals**2).sum()) / (NOISE_COUNT + n))
        weights = (NU + 1) / (NU + residuals**2 / variance)
    half, most = (float(stdtrit(NU, (1 + share) / 2)) for share in SHARES)
    if n >= CONFORMAL:
        leverage = np.clip(weights * np.einsum("ni,ij,nj->n", design, covariance, design) / variance, 0.0, 0.9)
        left_out = np.sort(np.abs(residuals) / np.sqrt(variance) / np.sqrt(1 - leverage))
        half, most = (float(left_out[min(n, ceil((n + 1) * share)) - 1]) for share in SHARES)
        if (n + 1) * SHARES[1] > n:
            most = max(most, float(stdtrit(NU, (1 + SHARES[1]) / 2)))
    return Line(coefficients, covariance, variance**0.5, centre, (half, most))


def predict(line: Line, x: Array) -> tuple[Array, Array, Array]:
    """Return three arrays (n,): centres, and half widths of the 50 % and of the 90 % intervals, at the rows of x."""
    import numpy as np

    design = np.concatenate([np.ones((len(x), 1)), x - line.centre], axis=1)
    deviation = np.sqrt(line.scale**2 + np.einsum("ni,ij,nj->n", design, line.covariance, design))
    return design @ line.coefficients, line.factors[0] * deviation, line.factors[1] * deviation


def proxy_line(x: Array, gains: Array, *, ratio: float, around: Array) -> Line:
    """Return the line from scores at one rung to scores at the rung above.

    Args:
        x: (n, 2) log of score and of seconds per step, of the trials that have a score at both rungs.
        gains: (n,) log of the score above over that below.
        ratio: compute of a run above relative to one below.
    """
    more = max(0.0, log(ratio))
    prior = {"gain": -POWER * more, "gain_sd": max(POWER_SD * more, NOISE)}
    return fit_line(x, gains, **prior, slope_sds=(REGRESSION_SD, SPEED_SD), around=around)


def forecast_study(
    study: StudyConfig,
    records: Sequence[TrialRecord],
    learning_curves: Mapping[str, LearningCurve] | None = None,
) -> tuple[BpbForecast, ...]:
    """Forecasts at the top rung: of the trials that run there, then of the best trials of the rung below.

    Args:
        learning_curves: see `forecast_running`.
    """
    return (*forecast_running(study, records, learning_curves or {}), *forecast_proxies(study, records))


def forecast_proxies(study: StudyConfig, records: Sequence[TrialRecord]) -> tuple[BpbForecast, ...]:
    """Return forecasts at the top rung of the best unpromoted trials below it and of the control, best first."""
    if len(study.rungs) < 2:
        return ()
    lower, upper = study.rungs[-2:]
    below = {r.spec.number: r for r in records if r.spec.rung == lower.name and _scored(r)}
    above = [r for r in records if r.spec.rung == upper.name and r.spec.parent is not None]
    started = {r.spec.parent for r in above}
    waiting = [r for number, r in below.items() if number not in started and r.feasible(study.caps)]
    waiting.sort(key=lambda r: (_bpb(r), r.spec.number))
    shown = waiting[:SHOWN] + [r for r in waiting[SHOWN:] if r.spec.label == CONTROL]
    return forecast_records(shown, _pairs(below, above), lower=lower, upper=upper)


def forecast_records(
    records: Sequence[TrialRecord],
    pairs: Sequence[tuple[TrialRecord, TrialRecord]],
    *,
    lower: Rung,
    upper: Rung,
) -> tuple[BpbForecast, ...]:
    """Return forecasts at `upper` of trials that have a score at `lower`, from the pairs that have both scores."""
    import numpy as np

    if not records:
        return ()
    x = np.array([_features(low) for low, _ in pairs]).reshape(len(pairs), 2)
    gains = np.array([log(_bpb(high) / _bpb(low)) for low, high in pairs])
    here = np.array([_features(r) for r in records])
    line = proxy_line(x, gains, ratio=upper.compute / lower.compute, around=here.mean(0))
    found = zip(records, *(column.tolist() for column in predict(line, here)), strict=True)
    return tuple(
        _forecast(r.spec.trial_id, upper, "proxy", _bpb(r), gain, half, most, len(pairs))
        for r, gain, half, most in found
    )


def forecast_running(
    study: StudyConfig,
    records: Sequence[TrialRecord],
    learning_curves: Mapping[str, LearningCurve],
) -> tuple[BpbForecast, ...]:
    """Return forecasts of the top rung's unfinished trials.

    Each comes from the score at the rung below or from the learning curve, whichever gives the narrower interval.

    Args:
        learning_curves: of the first seed of every trial at the top rung that has one, finished or not.
    """
    upper = study.rungs[-1]
    at_top = [r for r in records if r.spec.rung == upper.name]
    running = [r for r in at_top if r.result is None]
    found: list[BpbForecast] = []
    lower = study.rungs[-2] if len(study.rungs) > 1 else None
    below = {r.spec.number: r for r in records if lower and r.spec.rung == lower.name and _scored(r)}
    done = [r for r in at_top if _scored(r)]
    for record in running:
        options = []
        parent = below.get(-1 if record.spec.parent is None else record.spec.parent)
        if lower and parent:
            proxy = forecast_records([parent], _pairs(below, done), lower=lower, upper=upper)[0]
            options.append((proxy.high90 - proxy.low90, replace(proxy, trial_id=record.spec.trial_id)))
        own = _from_learning_curve(record, upper, done, [*below.values(), *done], learning_curves)
        if own:
            options.append((own.high90 - own.low90, own))
        if options:
            found.append(min(options, key=lambda option: option[0])[1])
    return tuple(found)


def _from_learning_curve(
    record: TrialRecord,
    upper: Rung,
    done: Sequence[TrialRecord],
    scored: Sequence[TrialRecord],
    learning_curves: Mapping[str, LearningCurve],
) -> BpbForecast | None:
    """Return the forecast of the score at the end of a learning curve.

    It compares the curve with those of earlier trials of the rung at the same progress. None before WINDOW of the run
    is over, and while no trial of the study has a score.
    """
    import numpy as np

    mine = learning_curves.get(record.spec.trial_id, ())
    progress = mine[-1][0] if mine else 0.0
    rates = sorted(r.result.runs[0].val_bpb / r.result.runs[0].val_loss for r in scored if r.result)
    if progress <= WINDOW or not rates:
        return None
    rate = rates[len(rates) // 2]  # bpb per nat per token: nearly a constant of the tokenizer
    now = rate * loss_at(mine, progress)
    known = [(learning_curves.get(r.spec.trial_id, ()), r) for r in done]
    others = [(rate * loss_at(curve, progress), r) for curve, r in known if curve]
    x = np.array([[log(loss)] for loss, _ in others]).reshape(len(others), 1)
    gains = np.array([log(_bpb(r) / loss) for loss, r in others])
    left = 1 - progress
    here = np.array([[log(now)]])
    prior = {"gain": -LEARNING_GAIN * left, "gain_sd": LEARNING_SD * left + 2 * NOISE}
    line = fit_line(x, gains, **prior, slope_sds=(REGRESSION_SD,), around=here[0])
    gain, half, most = (float(column[0]) for column in predict(line, here))
    return _forecast(record.spec.trial_id, upper, "curve", now, gain, half, most, len(others))


def loss_at(curve: LearningCurve, progress: float) -> float:
    """Return the mean training loss over the window before `progress`; the nearest record's if the window is empty."""
    inside = [loss for at, loss in curve if progress - WINDOW < at <= progress + 1e-9]
    return sum(inside) / len(inside) if inside else min(curve, key=lambda point: abs(point[0] - progress))[1]


def _forecast(
    trial_id: str,
    upper: Rung,
    source: Literal["proxy", "curve"],
    score: float,
    gain: float,
    half: float,
    most: float,
    num_pairs: int,
) -> BpbForecast:
    """Return the forecast for a score now, a log gain and the half widths of its 50 % and 90 % intervals."""
    low90, low50, middle, high50, high90 = (score * exp(gain + step) for step in (-most, -half, 0.0, half, most))
    return BpbForecast(
        trial_id=trial_id,
        rung=upper.name,
        source=source,
        val_bpb=middle,
        low50=low50,
        high50=high50,
        low90=low90,
        high90=high90,
        num_pairs=num_pairs,
    )


def _pairs(below: Mapping[int, TrialRecord], above: Sequence[TrialRecord]) -> list[tuple[TrialRecord, TrialRecord]]:
    """Return (record at the lower rung, record at the upper) of every trial that has a score at both."""
    return [(below[r.spec.parent], r) for r in above if r.spec.parent in below and _scored(r)]  # type: ignore[index]


def _scored(record: TrialRecord) -> bool:
    """Return whether the trial has a score that nobody doubts."""
    return record.status == "complete" and not record.suspicious


def _bpb(record: TrialRecord) -> float:
    """Return the score; inf without one."""
    return record.result.val_bpb if record.result else inf


def _features(record: TrialRecord) -> tuple[float, float]:
    """Return the logarithms of the score and of the seconds per step."""
    assert record.result is not None
    steps = sum(run.steps for run in record.result.runs)
    seconds = sum(run.train_seconds for run in record.result.runs)
    return log(_bpb(record)), log(max(seconds, 1e-3) / max(steps, 1))
