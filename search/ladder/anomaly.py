"""Which score is too good to believe."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from search.study.config import StudyConfig
from search.study.ledger import TrialRecord

MIN_GROUP = 5  # others that a score can be too good for


MIN_GAP = 3.0  # times what lies between their best and their median


def too_good(study: StudyConfig, record: TrialRecord, records: Sequence[TrialRecord]) -> str:
    """Why a score cannot be believed without a look, or nothing.

    A val_bpb below `anomaly_ratio` of the best of at least MIN_GROUP others at the rung, and MIN_GAP times as far below
    that best as the best is below their median, is a leak or a broken metric far more often than a discovery: a search
    that optimises a wrong metric finds the hole. In runs so short that honest scores lie far apart the gap decides.
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
