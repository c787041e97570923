"""When a score is too good to believe."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from search.study.config import StudyConfig
from search.study.ledger import TrialRecord

MIN_GROUP = 5  # fewest other scores that one is compared with
MIN_GAP = 3.0  # how far below their best, in units of the distance from their best to their median


def too_good(study: StudyConfig, record: TrialRecord, records: Sequence[TrialRecord]) -> str:
    """Why a score cannot be believed before a person has looked at it; empty when it can.

    It cannot when there are at least MIN_GROUP other scores at its rung, it is below `anomaly_ratio` times the best of
    them, and it lies MIN_GAP times as far below that best as the best lies below their median. Such a score is a leak
    or a broken metric far more often than a discovery, because a search that optimises a wrong metric finds its hole.
    (The second condition is for short runs, whose honest scores lie far apart.)
    """
    if not study.anomaly_ratio or record.status != "complete" or record.result is None:
        return ""
    others = [
        r.result.val_bpb
        for r in records
        if r.spec.rung == record.spec.rung
        and r.spec.number != record.spec.number
        and r.status == "complete"
        and r.result
        and not r.suspicious
    ]
    if len(others) < MIN_GROUP:
        return ""
    score, best = record.result.val_bpb, min(others)
    gap, usual = best - score, max(median(others) - best, 1e-9)
    if score >= study.anomaly_ratio * best or gap <= MIN_GAP * usual:
        return ""
    return (
        f"val_bpb {score:.4f} is below {study.anomaly_ratio:g} of {best:.4f}, the best of the {len(others)} others at "
        f"{record.spec.rung}, and {gap / usual:.1f} times as far below it as that is below their median"
    )
