"""A study's trials as its folders hold them: each with its spec and, once it has ended, its result.

The folders are written before anything else, and atomically. Displays, promotion and export read them, and a driver
that starts corrects the Optuna storage by them.
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
    """A score that was too good to believe: suspicious at first, then accepted or rejected by a person."""

    word: Word
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial as its folder holds it; `result` is None until it has ended, also after its driver was killed."""

    spec: TrialSpec
    result: TrialResult | None = None
    verdict: Word | None = None

    @property
    def suspicious(self) -> bool:
        """Whether its score was too good to believe and nobody has judged it yet."""
        return self.verdict == "suspicious"

    @property
    def status(self) -> Status | None:
        """How it ended; None if it has not."""
        return self.result.status if self.result else None

    def feasible(self, caps: Caps) -> bool:
        """Return whether it is complete, within every cap, and not waiting for a verdict."""
        return self.result is not None and not self.suspicious and caps.allow(self.result)


def trial_dir(study: StudyConfig, trial_id: str) -> Path:
    """Return the folder of the trial `rung/0007`."""
    return study.dir / trial_id


def read_record(folder: Path) -> TrialRecord:
    """Return the record in one trial folder.

    Raises:
        UserError: a file is torn; names it, with a hint.
    """
    return finished(folder, read_noun(TrialSpec, folder / SPEC_FILE))


def finished(folder: Path, spec: TrialSpec) -> TrialRecord:
    """Return the record of a trial whose spec is known.

    A complete result with fewer seeds than the spec asks for was written before seeds were added, so that trial is
    unfinished. A rejected trial has failed.
    """
    result = read_noun(TrialResult, folder / RESULT_FILE) if (folder / RESULT_FILE).exists() else None
    if result is not None and result.status == "complete" and len(result.runs) < len(spec.seeds):
        result = None
    said = read_noun(Verdict, folder / VERDICT_FILE) if (folder / VERDICT_FILE).exists() else None
    if said is not None and said.word == "rejected" and result is not None:
        result = TrialResult(status="failed", error=f"rejected: {said.reason}", seconds=result.seconds)
    return TrialRecord(spec=spec, result=result, verdict=said.word if said else None)


def give_verdict(study: StudyConfig, trial_id: str, word: Word) -> None:
    """Accept or reject a suspicious trial.

    Raises:
        UserError: there is no such trial, or it is not waiting for a verdict.
    """
    path = trial_dir(study, trial_id) / VERDICT_FILE
    if not path.exists() or read_noun(Verdict, path).word != "suspicious":
        raise UserError(
            f"trial {trial_id!r} of study {study.name} is not suspicious", hint=f"see pgolf status {study.dir}"
        )
    write_json(path, Verdict(word=word, reason=read_noun(Verdict, path).reason))


def read_records(study: StudyConfig) -> tuple[TrialRecord, ...]:
    """Return all trials of a study, by rung in ladder order and then by number."""
    return tuple(
        read_record(path.parent)
        for rung in study.rungs
        for path in sorted((study.dir / rung.name).glob(f"[0-9]*/{SPEC_FILE}"))
    )


def best_record(study: StudyConfig, records: tuple[TrialRecord, ...]) -> TrialRecord | None:
    """Return the feasible trial of lowest val_bpb at the highest rung that has one; None if no trial is feasible."""
    for rung in reversed(study.rungs):
        feasible = [r for r in records if r.spec.rung == rung.name and r.feasible(study.caps)]
        if feasible:
            return min(feasible, key=lambda r: (r.result.val_bpb if r.result else 0.0, r.spec.number))
    return None
