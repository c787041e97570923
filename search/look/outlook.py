"""When a trial and a study will end, from how long finished runs took and how far the running ones are.

A run of one seed has two parts: training, whose pace it reports itself, and the rest (start, calibrating, packing,
scoring), whose length is the mean of finished runs at the same rung or else at the nearest one below.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from search.ladder.promote import planned_trials
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord, trial_dir
from trials.live import STARTING, TRAINING, LiveRun, read_live
from trials.rungs import Rung
from trials.spec import TrialSpec

OVERDUE = 0.1  # a part that has taken longer than it should is expected to take this share of its length more


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How long one seed's run takes at a rung; None while nobody knows."""

    whole: float | None  # seconds of the whole run
    rest: float | None  # of these, outside of training


@dataclass(frozen=True, kw_only=True, slots=True)
class InUse:
    """What trials use at the same time."""

    cpus: float = 0.0
    gpus: float = 0.0

    def at_least(self, other: InUse) -> InUse:
        """The larger of both, kind by kind."""
        return InUse(cpus=max(self.cpus, other.cpus), gpus=max(self.gpus, other.gpus))

    def side_by_side(self, rung: Rung) -> float:
        """How many trials of a rung would use as much; at least one."""
        return max(1.0, self.gpus / rung.gpus if rung.gpus else self.cpus / (rung.cpus or 1))


def in_use(running: Collection[TrialSpec]) -> InUse:
    """What these trials use."""
    return InUse(cpus=sum(spec.cpus for spec in running), gpus=sum(spec.gpus for spec in running))


def read_lives(study: StudyConfig, records: Sequence[TrialRecord], *, now: float | None) -> dict[str, LiveRun]:
    """What every unfinished trial last said, by trial; those that have not begun are missing."""
    lives = {
        r.spec.trial_id: read_live(trial_dir(study, r.spec.trial_id), r.spec.seeds, now=now)
        for r in records
        if r.result is None
    }
    return {trial_id: live for trial_id, live in lives.items() if live is not None}


def paces(study: StudyConfig, records: Sequence[TrialRecord], lives: Mapping[str, LiveRun]) -> dict[str, Pace]:
    """The pace of every rung, from its finished runs; before the first of them from its running ones.

    A rung that nobody has climbed yet is guessed from the one below by the ratio of their budgets.
    """
    found: dict[str, Pace] = {}
    below: tuple[Rung, Pace] | None = None
    for rung in study.rungs:
        pace = _measured(records, rung) or _promised(records, rung, lives, below)
        found[rung.name] = pace
        below = (rung, pace)
    return found


def trial_seconds_left(live: LiveRun, num_seeds: int, pace: Pace) -> float | None:
    """Seconds until a running trial ends; None while nobody knows.

    Args:
        num_seeds: of the trial.
        pace: of its rung.
    """
    rest = pace.rest or 0.0
    if live.phase == STARTING or (live.phase == TRAINING and not live.progress):
        if pace.whole is None:
            return None
        left, whole = _not_overdue(pace.whole, live.seed_seconds), pace.whole
    elif live.phase == TRAINING:
        training = live.train_seconds / live.progress
        left = training - live.train_seconds + max(0.0, rest - live.other_seconds)
        whole = training + rest
    elif pace.rest is None:
        return None
    else:
        left, whole = _not_overdue(rest, live.other_seconds), live.train_seconds + rest
    return left + max(0, num_seeds - live.seeds_done - 1) * whole


def study_seconds_left(
    study: StudyConfig, records: Sequence[TrialRecord], lives: Mapping[str, LiveRun], room: InUse | None = None
) -> float | None:
    """Seconds until the ladder is climbed; None while nobody knows how long some rung takes.

    The work that is left is shared by as many trials as find room side by side; nothing ends before the longest of
    those that run.

    Args:
        room: what trials are known to have used at the same time; by default what they use now, which is too little
            for the moment between the end of one trial and the start of the next.
    """
    pace = paces(study, records, lives)
    room = room or in_use([r.spec for r in records if r.result is None])
    total, longest = 0.0, 0.0
    for rung, planned in zip(study.rungs, planned_trials(study), strict=True):
        whole = pace[rung.name].whole
        entered = [r for r in records if r.spec.rung == rung.name and r.status != "infeasible"]
        left = [
            _left(record, lives.get(record.spec.trial_id), pace[rung.name]) for record in entered if not record.result
        ]
        waiting = max(0, planned - len(entered))
        if None in left or (waiting and whole is None):
            return None
        known = [seconds for seconds in left if seconds is not None]
        work = sum(known) + waiting * (whole or 0.0) * len(rung.first_seeds)
        total += work / room.side_by_side(rung)
        longest = max([longest, *known])
    return max(total, longest)


def _left(record: TrialRecord, live: LiveRun | None, pace: Pace) -> float | None:
    """Of an unfinished trial, begun or not."""
    num_seeds = len(record.spec.seeds)
    if live is not None:
        return trial_seconds_left(live, num_seeds, pace)
    return None if pace.whole is None else pace.whole * max(1, num_seeds - record.spec.seeds_done)


def _not_overdue(expected: float, spent: float) -> float:
    """What is left of a part: never nothing while it still runs."""
    return max(expected - spent, OVERDUE * expected)


def _measured(records: Sequence[TrialRecord], rung: Rung) -> Pace | None:
    """From the finished runs of a rung, or else from trials that ended without a score."""
    mine = [r.result for r in records if r.spec.rung == rung.name and r.result and r.result.status != "infeasible"]
    runs = [run for result in mine for run in result.runs]
    if runs:
        rest = fmean(max(0.0, run.total_seconds - run.train_seconds) for run in runs)
        return Pace(whole=fmean(run.total_seconds for run in runs), rest=rest)
    return Pace(whole=fmean(result.seconds for result in mine), rest=None) if mine else None


def _promised(
    records: Sequence[TrialRecord], rung: Rung, lives: Mapping[str, LiveRun], below: tuple[Rung, Pace] | None
) -> Pace:
    """From the running trials of a rung by their own pace, or else from the rung below by the ratio of budgets."""
    rest = below[1].rest if below else None
    training = [
        live.train_seconds / live.progress
        for record in records
        if record.spec.rung == rung.name and (live := lives.get(record.spec.trial_id)) and live.progress > 0
    ]
    if training and rest is not None:
        return Pace(whole=fmean(training) + rest, rest=rest)
    if below is None or below[1].whole is None:
        return Pace(whole=None, rest=rest)
    lower, known = below[0], below[1].whole
    longer = rung.seconds / lower.seconds if rung.seconds and lower.seconds else rung.steps / (lower.steps or 1)
    if rung.batch_tokens and lower.batch_tokens and not rung.seconds:
        longer *= rung.batch_tokens / lower.batch_tokens
    return Pace(whole=max(known * max(1.0, longer), rung.seconds), rest=rest)
