"""A study's account: what it has cost, what its running trials can still cost, and whether one more is affordable.

A running trial is charged its worst case, every seed until its timeout; once it has ended, its real cost. So no limit
is ever crossed. In exchange, the last few trials of a study wait for the ones before them to end.
A run that was killed is counted until its last sign of life (trials.run), from the moment its trial ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from search.study.config import StudyConfig
from search.study.ledger import TrialRecord
from trials.rungs import Rung

GRACE_SECONDS = 5.0  # per seed: a worker stops a run within this time after its timeout


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A study's GPU-hours, trials and clock. A limit that nobody set is infinite."""

    gpu_hours_limit: float  # the tighter of GPU-hours and dollars
    wall_seconds_limit: float
    trials_limit: float
    reserve: float  # share of hours and time that only the top rung may use
    spent_gpu_hours: float
    committed_gpu_hours: float  # worst case of the trials that run now
    lower_gpu_hours: float  # the part of spent and committed that is below the top rung
    trials: int  # started, forecasts over a cap not counted
    elapsed_seconds: float  # of this launch
    dollars_per_gpu_hour: float

    @property
    def left_gpu_hours(self) -> float:
        """GPU-hours that may still be committed; infinite without a limit."""
        return self.gpu_hours_limit - self.spent_gpu_hours - self.committed_gpu_hours

    def affords(self, rung: Rung, *, seeds: int, top: bool, new: bool = True) -> bool:
        """Whether a trial of so many seeds at `rung` crosses no limit even if each run lasts until its timeout.

        Args:
            top: the rung is the study's last, which may use the reserve.
            new: it is a new trial, not another start of a known one.
        """
        if new and self.trials + 1 > self.trials_limit:
            return False
        open_share = 1.0 if top else 1.0 - self.reserve
        seconds = worst_seconds(rung, seeds)
        if self.elapsed_seconds + seconds > open_share * self.wall_seconds_limit:
            return False
        hours = seconds * rung.gpus / 3600
        if hours > self.left_gpu_hours:
            return False
        return top or self.lower_gpu_hours + hours <= open_share * self.gpu_hours_limit


def account(study: StudyConfig, records: Sequence[TrialRecord], *, elapsed: float = 0.0) -> Account:
    """The study's books, from its records alone."""
    limits, rate = study.budget, study.dollars_per_gpu_hour
    hours = limits.gpu_hours or inf
    if limits.dollars and rate:
        hours = min(hours, limits.dollars / rate)
    top = study.rungs[-1].name
    spent = committed = lower = 0.0
    trials = 0
    for record in records:
        spec, result = record.spec, record.result
        if result is not None and result.status == "infeasible":
            continue
        trials += 1
        if not spec.gpus:
            continue
        seconds = result.seconds if result is not None else (spec.timeout_seconds + GRACE_SECONDS) * len(spec.seeds)
        cost = (seconds + spec.earlier_seconds) * spec.gpus / 3600
        if result is not None:
            spent += cost
        else:
            committed += cost
        if spec.rung != top:
            lower += cost
    return Account(
        gpu_hours_limit=hours,
        wall_seconds_limit=limits.wall_seconds or inf,
        trials_limit=limits.trials or inf,
        reserve=limits.reserve if len(study.rungs) > 1 else 0.0,
        spent_gpu_hours=spent,
        committed_gpu_hours=committed,
        lower_gpu_hours=lower,
        trials=trials,
        elapsed_seconds=elapsed,
        dollars_per_gpu_hour=rate,
    )


def out_of_reach(study: StudyConfig) -> tuple[str, ...]:
    """A sentence for each rung at which the budget could not pay for a single trial, with what would help."""
    books, top = account(study, ()), study.rungs[-1]
    said = []
    for rung in study.rungs:
        seeds = len(rung.first_seeds)
        if books.affords(rung, seeds=seeds, top=rung is top):
            continue
        hours = worst_seconds(rung, seeds) * rung.gpus / 3600
        said.append(
            f"no trial at rung {rung.name!r} can ever start: each may run for {worst_seconds(rung, seeds):,.0f} s "
            f"({hours:.2f} GPU-hours), more than the budget leaves it; raise [budget] or lower timeout_seconds, now "
            f"{rung.timeout:,.0f} s a run"
        )
    return tuple(said)


def worst_seconds(rung: Rung, seeds: int) -> float:
    """Longest that so many runs at a rung can take, one after another."""
    return (rung.timeout + GRACE_SECONDS) * seeds


def describe_account(books: Account) -> str:
    """`12.3 of 100.0 GPU-hours ($30.75 of $250.00), 4.0 committed, 83.7 left`; without a limit only what was spent."""
    rate = books.dollars_per_gpu_hour
    spent = f"{books.spent_gpu_hours:.2f} GPU-hours (${books.spent_gpu_hours * rate:.2f})"
    if books.gpu_hours_limit == inf:
        return f"spent {spent}, {books.committed_gpu_hours:.2f} committed, no limit"
    limit = f"{books.gpu_hours_limit:.2f} (${books.gpu_hours_limit * rate:.2f})"
    return (
        f"spent {spent} of {limit}, {books.committed_gpu_hours:.2f} committed, {books.left_gpu_hours:.2f} left, "
        f"{books.reserve:.0%} kept for the top rung"
    )
