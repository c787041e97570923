"""The results of a study: its trials as points, their Pareto fronts, and checks of how far the numbers can be trusted.

All functions are pure functions of the trial records. Trials of different rungs had different training budgets and are
never compared: each rung has its own front, and the study's front is that of the highest rung with a feasible trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import fmean, median, stdev
from typing import Literal

from search.look.score_forecast import BpbForecast, forecast_study
from search.study.config import StudyConfig
from search.study.ledger import CONTROL, TrialRecord
from search.study.statistics import hypervolume, non_dominated, spearman
from space.params import Scalar
from space.words import count
from trials.spec import Status, TrialResult

PointStatus = Status | Literal["running", "interrupted"]
HALF = 0.41  # width of a normal's 50 % interval relative to its 90 % interval
ENDED: tuple[Status, ...] = ("complete", "diverged", "failed", "timeout", "infeasible")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One trial in one row. Measurements are None unless the trial is complete."""

    trial_id: str
    rung: str
    number: int
    parent: int | None  # number in the rung below that this one was promoted from
    label: str  # "control", a warm start's name, or empty
    status: PointStatus
    val_bpb: float | None = None  # of the unpacked artifact, mean over seeds
    val_bpb_sd: float | None = None  # sample standard deviation over seeds; None for one seed
    val_bpb_seeds: tuple[float, ...] = ()  # the raw numbers behind the mean
    val_loss: float | None = None  # nats per token, mean over seeds
    pre_quant_val_bpb: float | None = None  # of the trained weights, mean over seeds
    quant_gap: float | None = None  # val_bpb - pre_quant_val_bpb: bpb lost by quantization
    artifact_bytes: int | None = None  # the largest seed's, with its model and code bytes
    model_bytes: int | None = None
    code_bytes: int | None = None
    num_params: int | None = None
    steps: int | None = None  # the fewest of the seeds
    tokens_seen: int | None = None
    train_seconds: float | None = None  # the slowest seed's
    eval_seconds: float | None = None
    seconds: float | None = None  # wall time of the whole trial, however it ended
    seeds: tuple[int, ...] = ()
    predicted_bytes: int | None = None  # forecast before training, with its 90 % interval
    predicted_low: int | None = None
    predicted_high: int | None = None
    feasible: bool = False  # complete and within every cap
    over: tuple[str, ...] = ()  # caps that the measurement broke
    curve: tuple[tuple[int, float], ...] = ()  # (artifact_bytes, val_bpb) of the same weights packed to other sizes
    on_front: bool = False  # not dominated by any feasible trial of its own rung
    params: dict[str, Scalar] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The best trial against the control at the same rung; negative delta is better."""

    best: str
    control: str
    delta_bpb: float
    standard_error: float | None  # of the delta, from both seed spreads; None unless both have several seeds
    best_seeds: int
    control_seeds: int

    @property
    def note(self) -> str:
        """How certain the delta is, in words, from the number and spread of the seeds."""
        if self.best == self.control:
            return "the control itself is the best so far"
        if self.standard_error is None:
            return (
                f"{count(self.best_seeds, 'seed')} against {count(self.control_seeds, 'seed')}: "
                "seed noise is not measured, so a small difference may be chance"
            )
        ratio = f"{abs(self.delta_bpb) / self.standard_error:.1f}" if self.standard_error else "many"
        return f"{ratio} standard errors, {self.best_seeds} against {self.control_seeds} seeds"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankAgreement:
    """Whether a rung ranks trials as the next one does, over the trials promoted from the one to the other."""

    lower: str
    upper: str
    pairs: tuple[tuple[str, str], ...]  # (trial at the lower rung, the same at the upper), both complete
    spearman: float | None  # None below three pairs, or when all are tied

    @property
    def note(self) -> str:
        """The correlation and the number of trials behind it, in words."""
        promoted = count(len(self.pairs), "promoted trial")
        if self.spearman is None:
            return f"{promoted} with a score at both rungs: rank agreement needs at least 3 that differ"
        caveat = " Few pairs: weak evidence." if len(self.pairs) < 8 else ""
        return (
            f"Spearman {self.spearman:+.2f} over {promoted}.{caveat} Only the best of {self.lower} are promoted, "
            "so agreement over all trials is likely higher than this."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastError:
    """Errors of the forecasts of artifact bytes, relative: actual / forecast - 1."""

    num_trials: int
    mean_relative: float  # above 0: artifacts come out larger than forecast
    median_absolute: float
    worst_absolute: float
    num_intervals: int  # trials whose forecast had an interval
    num_inside: int  # ... and whose artifact lay inside it; 90 % should
    num_inside_half: int = 0  # ... inside the 50 % interval that this one implies

    @property
    def note(self) -> str:
        """The errors in words."""
        text = (
            f"{count(self.num_trials, 'trial')}: mean error {self.mean_relative:+.1%}, median size of the error "
            f"{self.median_absolute:.1%}, worst {self.worst_absolute:.1%}."
        )
        if self.num_intervals:
            text += (
                f" {self.num_inside} of {self.num_intervals} inside the 90 % interval, {self.num_inside_half} inside "
                "the 50 % interval."
            )
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypervolume:
    """Area between the front and a reference point, in bpb x MB; two of them compare only under one reference."""

    value: float
    reference_bytes: int  # the cap
    reference_bpb: float  # the control's val_bpb; without one, the worst feasible of the rung


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """All facts about a study that the page and `pgolf pareto --json` show."""

    points: tuple[Point, ...]  # by rung in ladder order, then by number
    front_rung: str | None  # the highest rung with a feasible trial
    front: tuple[str, ...]  # its front, smallest artifact first
    fronts: dict[str, tuple[str, ...]]  # every rung's own front
    best: str | None  # lowest feasible val_bpb at the front rung
    control: str | None  # control trial at the front rung
    comparison: Comparison | None
    rank_agreement: tuple[RankAgreement, ...]  # one per pair of neighbouring rungs
    forecast: ForecastError | None
    hypervolume: Hypervolume | None
    full_forecasts: tuple[BpbForecast, ...] = ()  # at the top rung: of its running trials, then of the best below it

    def point(self, trial_id: str) -> Point:
        """Return the point with that id."""
        return next(point for point in self.points if point.trial_id == trial_id)


def points(study: StudyConfig, records: Sequence[TrialRecord], *, alive: bool = False) -> tuple[Point, ...]:
    """Return every trial as a point, also those without a score.

    Args:
        alive: whether a driver runs; without one, a trial that has not ended is interrupted.
    """
    rows = [_point(study, record, alive=alive) for record in records]
    on_front = {trial_id for ids in fronts(study, rows).values() for trial_id in ids}
    return tuple(replace(point, on_front=point.trial_id in on_front) for point in rows)


def fronts(study: StudyConfig, rows: Sequence[Point]) -> dict[str, tuple[str, ...]]:
    """Return each rung's front as trial ids, smallest artifact first; rungs in ladder order."""
    of_rung = {rung.name: [p for p in rows if p.rung == rung.name] for rung in study.rungs}
    return {name: tuple(rung[i].trial_id for i in pareto_front(rung)) for name, rung in of_rung.items()}


def pareto_front(rows: Sequence[Point]) -> tuple[int, ...]:
    """Return the indices of the feasible points that no other dominates in bytes and bpb, smallest artifact first.

    The points must be of one rung.
    """
    kept = [(i, _xy(p)) for i, p in enumerate(rows) if p.feasible]
    return tuple(kept[j][0] for j in non_dominated([xy for _, xy in kept]))


def rank_agreement(study: StudyConfig, rows: Sequence[Point]) -> tuple[RankAgreement, ...]:
    """Return the agreement of each rung with the next, over promoted trials that have a score at both."""
    scored = {p.trial_id: p for p in rows if p.val_bpb is not None}
    by_place = {(p.rung, p.number): p for p in scored.values()}
    found = []
    for lower, upper in zip(study.rungs, study.rungs[1:], strict=False):
        pairs = [
            (by_place[lower.name, p.parent], p)
            for p in scored.values()
            if p.rung == upper.name and p.parent is not None and (lower.name, p.parent) in by_place
        ]
        rho = spearman([a.val_bpb or 0.0 for a, _ in pairs], [b.val_bpb or 0.0 for _, b in pairs])
        ids = tuple((a.trial_id, b.trial_id) for a, b in pairs)
        found.append(RankAgreement(lower=lower.name, upper=upper.name, pairs=ids, spearman=rho))
    return tuple(found)


def forecast_error(rows: Sequence[Point]) -> ForecastError | None:
    """Return the errors of the forecasts of artifact bytes; None if no complete trial had a forecast."""
    pairs = [(p, p.artifact_bytes, p.predicted_bytes) for p in rows if p.artifact_bytes and p.predicted_bytes]
    if not pairs:
        return None
    relative = [actual / predicted - 1 for _, actual, predicted in pairs]
    intervals = [
        (p.predicted_low, predicted, p.predicted_high, actual)
        for p, actual, predicted in pairs
        if p.predicted_low and p.predicted_high
    ]
    half = [  # the middle half of a normal whose middle 90 % the interval is
        predicted * (low / predicted) ** HALF <= actual <= predicted * (high / predicted) ** HALF
        for low, predicted, high, actual in intervals
    ]
    return ForecastError(
        num_trials=len(relative),
        mean_relative=fmean(relative),
        median_absolute=median(map(abs, relative)),
        worst_absolute=max(map(abs, relative)),
        num_intervals=len(intervals),
        num_inside=sum(low <= actual <= high for low, _, high, actual in intervals),
        num_inside_half=sum(half),
    )


def compare(best: Point, control: Point) -> Comparison:
    """Return the comparison of two complete trials of one rung."""
    assert best.val_bpb is not None
    assert control.val_bpb is not None
    error = None
    if best.val_bpb_sd is not None and control.val_bpb_sd is not None and best is not control:
        error = sqrt(best.val_bpb_sd**2 / len(best.val_bpb_seeds) + control.val_bpb_sd**2 / len(control.val_bpb_seeds))
    return Comparison(
        best=best.trial_id,
        control=control.trial_id,
        delta_bpb=best.val_bpb - control.val_bpb,
        standard_error=error,
        best_seeds=len(best.val_bpb_seeds),
        control_seeds=len(control.val_bpb_seeds),
    )


def analyse(study: StudyConfig, records: Sequence[TrialRecord], *, alive: bool = False) -> Analysis:
    """Return the whole analysis of a study; `alive` as in `points`."""
    rows = points(study, records, alive=alive)
    by_rung = fronts(study, rows)
    front_rung = next((rung.name for rung in reversed(study.rungs) if by_rung[rung.name]), None)
    scored = [p for p in rows if p.rung == front_rung and p.val_bpb is not None]
    best = min((p for p in scored if p.feasible), key=lambda p: (p.val_bpb or 0.0, p.number), default=None)
    control = next((p for p in scored if p.label == CONTROL), None)
    return Analysis(
        points=rows,
        front_rung=front_rung,
        front=by_rung[front_rung] if front_rung else (),
        fronts=by_rung,
        best=best.trial_id if best else None,
        control=control.trial_id if control else None,
        comparison=compare(best, control) if best and control else None,
        rank_agreement=rank_agreement(study, rows),
        forecast=forecast_error(rows),
        hypervolume=_hypervolume(study, [p for p in scored if p.feasible], control),
        full_forecasts=forecast_study(study, records),
    )


def _hypervolume(study: StudyConfig, feasible: Sequence[Point], control: Point | None) -> Hypervolume | None:
    """Return the hypervolume up to the cap and the control's score; None without a feasible trial."""
    if not feasible:
        return None
    cap = study.caps.artifact_bytes
    bpb = control.val_bpb if control and control.val_bpb is not None else max(p.val_bpb or 0.0 for p in feasible)
    area = hypervolume([_xy(p) for p in feasible], (cap, bpb)) / 1e6
    return Hypervolume(value=area, reference_bytes=cap, reference_bpb=bpb)


def _point(study: StudyConfig, record: TrialRecord, *, alive: bool) -> Point:
    """Return a trial as a point; whether it is on a front is not known yet."""
    spec, result = record.spec, record.result
    measured = _measured(result) if result and result.status == "complete" else {}
    broken = study.caps.measured(result) if result and result.status == "complete" else {}
    return Point(
        trial_id=spec.trial_id,
        rung=spec.rung,
        number=spec.number,
        parent=spec.parent,
        label=spec.label,
        status=result.status if result else "running" if alive else "interrupted",
        seconds=result.seconds if result else None,
        seeds=spec.seeds,
        predicted_bytes=spec.predicted_bytes or None,
        predicted_low=spec.predicted_low or None,
        predicted_high=spec.predicted_high or None,
        feasible=record.feasible(study.caps),
        over=tuple(name for name, excess in broken.items() if excess > 0),
        params=dict(spec.params),
        error=result.error if result else "",
        **measured,  # type: ignore[arg-type]
    )


def _measured(result: TrialResult) -> dict[str, object]:
    """Return the measurements of a complete result, by Point's field names."""
    runs = result.runs
    largest = max(runs, key=lambda run: run.artifact_bytes)
    scores = tuple(run.val_bpb for run in runs)
    pre_quant = fmean(run.pre_quant_val_bpb for run in runs)
    return {
        "val_bpb": result.val_bpb,
        "val_bpb_sd": stdev(scores) if len(scores) > 1 else None,
        "val_bpb_seeds": scores,
        "val_loss": fmean(run.val_loss for run in runs),
        "pre_quant_val_bpb": pre_quant,
        "quant_gap": result.val_bpb - pre_quant,
        "artifact_bytes": largest.artifact_bytes,
        "model_bytes": largest.model_bytes,
        "code_bytes": largest.code_bytes,
        "num_params": largest.num_params,
        "steps": min(run.steps for run in runs),
        "tokens_seen": min(run.tokens_seen for run in runs),
        "train_seconds": result.train_seconds,
        "eval_seconds": result.eval_seconds,
        "curve": result.curve,
    }


def _xy(point: Point) -> tuple[float, float]:
    """Return (artifact_bytes, val_bpb)."""
    assert point.artifact_bytes is not None
    assert point.val_bpb is not None
    return float(point.artifact_bytes), point.val_bpb
