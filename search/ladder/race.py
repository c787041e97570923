"""Noise between seeds: how large it is at each rung, and which finalist runs another seed (the *race*).

Seeds come from fixed lists and are never searched over; comparisons between finalists are paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from search.study.config import StudyConfig
from search.study.ledger import CONTROL, TrialRecord
from search.study.statistics import t_test_p
from trials.rungs import Rung

SEEDS = (1337, 42, 314, 999, 2025, 7, 271, 161, 577, 1729, 4104, 13)  # for more runs than a rung names seeds
RACE_P = 0.05  # a finalist worse than the leader at this level gets no further seed


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseFloor:
    """Standard deviation of val_bpb over seeds at one rung, pooled over the trials that ran several."""

    rung: str
    sd: float
    degrees_of_freedom: int


def noise_floors(study: StudyConfig, records: Sequence[TrialRecord]) -> tuple[NoiseFloor, ...]:
    """One per rung where some trial has several seeds."""
    found = []
    for rung in study.rungs:
        total, freedom = 0.0, 0
        for record in records:
            if record.spec.rung == rung.name and record.status == "complete" and record.result:
                scores = [run.val_bpb for run in record.result.runs]
                total += sum((score - fmean(scores)) ** 2 for score in scores)
                freedom += len(scores) - 1
        if freedom:
            found.append(NoiseFloor(rung=rung.name, sd=sqrt(total / freedom), degrees_of_freedom=freedom))
    return tuple(found)


def control_seeds(study: StudyConfig, rung: Rung) -> tuple[int, ...]:
    """The control's seeds at the first rung: the rung's own, then the fixed list's."""
    wanted = max(study.control_seeds, len(rung.first_seeds))
    fresh = tuple(seed for seed in SEEDS if seed not in rung.seeds)
    return (rung.seeds + fresh)[:wanted]


def deserves_seed(study: StudyConfig, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The finalist at the top rung that gets its next seed, or None.

    The leader and the control run every seed, because the study's claim is the difference between them. Any other
    finalist goes on until it is worse than the leader at RACE_P. Nobody gets another seed before the first runs of all
    finalists have ended; then the one with the fewest seeds comes first, among equals the best.
    """
    rung = study.rungs[-1]
    here = [r for r in records if r.spec.rung == rung.name]
    if not rung.race_from or any(r.result is None and r.spec.seeds_done < len(rung.first_seeds) for r in here):
        return None
    racing = [r for r in here if r.result is not None and r.feasible(study.caps)]
    if not racing:
        return None
    leader = min(racing, key=_place)
    out = decided_against(leader, racing)
    open_now = [
        r
        for r in racing
        if len(r.spec.seeds) < len(rung.seeds) and (r is leader or r.spec.label == CONTROL or not out[r.spec.trial_id])
    ]
    return min(open_now, key=lambda r: (len(r.spec.seeds), *_place(r)), default=None)


def decided_against(leader: TrialRecord, racing: Sequence[TrialRecord]) -> dict[str, bool]:
    """trial id -> whether it is worse than the leader at RACE_P.

    One-sided t-test on differences paired by seed; their variance is pooled over all finalists, because two or three
    differences alone say little about it.
    """
    differences = {r.spec.trial_id: paired_differences(r, leader) for r in racing if r is not leader}
    freedom = sum(max(0, len(d) - 1) for d in differences.values())
    squares = sum((x - fmean(d)) ** 2 for d in differences.values() for x in d)
    out = {leader.spec.trial_id: False}
    for trial_id, d in differences.items():
        out[trial_id] = bool(freedom) and t_test_p(fmean(d), sqrt(squares / freedom / len(d)), freedom) < RACE_P
    return out


def paired_differences(record: TrialRecord, other: TrialRecord) -> tuple[float, ...]:
    """val_bpb of `record` minus that of `other`, for every seed that both have run."""
    assert record.result is not None
    assert other.result is not None
    theirs = {run.seed: run.val_bpb for run in other.result.runs}
    return tuple(run.val_bpb - theirs[run.seed] for run in record.result.runs if run.seed in theirs)


def _place(record: TrialRecord) -> tuple[float, int]:
    assert record.result is not None
    return record.result.val_bpb, record.spec.number
