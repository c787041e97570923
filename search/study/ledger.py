"""What is known about a study, read from its folders: every trial's spec and, once it ended, its result.

The folders are written first and atomically, so they are the truth that displays, promotion and export read; the
Optuna storage is brought in line with them when a driver starts (DESIGN section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgolf_model.errors import UserError
from search.study.config import Caps, StudyConfig
from trials.files import read_noun, write_json
from trials.spec import RESULT_FILE, SPEC_FILE, Status, TrialResult, TrialSpec

CONTROL = "control"  # label of the point that everything is compared with
VERDICT_FILE = "verdict.json"  # in the folder of a trial whose score was too good to believe
Word = Literal["suspicious", "accepted", "rejected"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is to be thought of a score that was too good: nothing yet, or what a person said."""

    word: Word
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial as its folder tells it; `result` is None while it waits, runs, or after its driver was killed."""

    spec: TrialSpec
    result: TrialResult | None = None
    verdict: Word | None = None

    @property
    def suspicious(self) -> bool:
        """Too good to believe, and nobody has looked yet."""
        return self.verdict == "suspicious"

    @property
    def status(self) -> Status | None:
        """How it ended, or None when it has not."""
        return self.result.status if self.result else None

    def feasible(self, caps: Caps) -> bool:
        """Complete, within every cap, and not waiting for a verdict."""
        return self.result is not None and not self.suspicious and caps.allow(self.result)


def trial_dir(study: StudyConfig, trial_id: str) -> Path:
    """Folder of the trial `rung/0007`."""
    return study.dir / trial_id


def read_record(folder: Path) -> TrialRecord:
    """The record in one trial folder.

    Raises:
        UserError: a file is torn; names it and says what to do.
    """
    return finished(folder, read_noun(TrialSpec, folder / SPEC_FILE))


def finished(folder: Path, spec: TrialSpec) -> TrialRecord:
    """The record of a trial whose spec is known.

    A result with fewer seeds than the spec asks for is of the time before more were added: the trial is unfinished.
    """
    result = read_noun(TrialResult, folder / RESULT_FILE) if (folder / RESULT_FILE).exists() else None
    if result is not None and result.status == "complete" and len(result.runs) < len(spec.seeds):
        result = None
    said = read_noun(Verdict, folder / VERDICT_FILE) if (folder / VERDICT_FILE).exists() else None
    if said is not None and said.word == "rejected" and result is not None:
        result = TrialResult(status="failed", error=f"rejected: {said.reason}", seconds=result.seconds)
    return TrialRecord(spec=spec, result=result, verdict=said.word if said else None)


def give_verdict(study: StudyConfig, trial_id: str, word: Word) -> None:
    """Say what is to be thought of a suspicious trial.

    Raises:
        UserError: there is no such trial, nobody suspects it, or it has its verdict.
    """
    path = trial_dir(study, trial_id) / VERDICT_FILE
    if not path.exists() or read_noun(Verdict, path).word != "suspicious":
        raise UserError(
            f"trial {trial_id!r} of study {study.name} is not suspicious", hint=f"see pgolf status {study.dir}"
        )
    write_json(path, Verdict(word=word, reason=read_noun(Verdict, path).reason))


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
