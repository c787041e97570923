"""What is known about a study, read from its folders: every trial's spec and, once it ended, its result.

The folders are written first and atomically, so they are the truth that displays, promotion and export read; the
Optuna storage is brought in line with them when a driver starts (DESIGN section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search.study import Caps, StudyConfig
from trials.spec import RESULT_FILE, SPEC_FILE, Status, TrialResult, TrialSpec, read_noun


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial as its folder tells it; `result` is None while it waits, runs, or after its driver was killed."""

    spec: TrialSpec
    result: TrialResult | None = None

    @property
    def status(self) -> Status | None:
        """How it ended, or None when it has not."""
        return self.result.status if self.result else None

    def feasible(self, caps: Caps) -> bool:
        """Complete and within every cap."""
        return self.result is not None and caps.allow(self.result)


def trial_dir(study: StudyConfig, trial_id: str) -> Path:
    """Folder of the trial `rung/0007`."""
    return study.dir / trial_id


def read_record(folder: Path) -> TrialRecord:
    """The record in one trial folder.

    Raises:
        ValueError: a file is torn; names it and says what to do.
    """
    result = read_noun(TrialResult, folder / RESULT_FILE) if (folder / RESULT_FILE).exists() else None
    return TrialRecord(spec=read_noun(TrialSpec, folder / SPEC_FILE), result=result)


def read_records(study: StudyConfig) -> tuple[TrialRecord, ...]:
    """All trials of a study, by rung in ladder order and then by number."""
    return tuple(
        read_record(path.parent)
        for rung in study.rungs
        for path in sorted((study.dir / rung.name).glob(f"[0-9]*/{SPEC_FILE}"))
    )


def best_record(study: StudyConfig, records: tuple[TrialRecord, ...]) -> TrialRecord | None:
    """The lowest feasible val_bpb at the highest rung that has one; None when nothing is feasible."""
    for rung in reversed(study.rungs):
        feasible = [r for r in records if r.spec.rung == rung.name and r.feasible(study.caps)]
        if feasible:
            return min(feasible, key=lambda r: (r.result.val_bpb if r.result else 0.0, r.spec.number))
    return None
