"""Every trial of a study, in memory as in its folder. While a study runs, only this file writes into trial folders.

(A worker writes its own result and log; see `trials`.) Every write is atomic and comes before the matching change in
memory, so a driver that is killed here leaves folders that say what happened, and the next driver reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from search.ladder.retry import earlier_result
from search.study.config import StudyConfig
from search.study.ledger import (
    VERDICT_FILE,
    TrialRecord,
    Verdict,
    finished,
    read_records,
    trial_dir,
)
from space.params import Scalar, Space
from space.points import point_key
from trials.files import read_noun, refuse_full_disk, write_json
from trials.spec import RESULT_FILE, SCRIPT_FILE, SPEC_FILE, STOP_FILE, TrialResult, TrialSpec


class KnownTrials:
    """The records of a study, which of them are in flight, and which points were tried."""

    def __init__(self, study: StudyConfig, space: Space) -> None:
        """Read the study's folders; nothing is in flight yet."""
        self._study, self._space = study, space
        self._records: dict[str, TrialRecord] = {r.spec.trial_id: r for r in read_records(study)}
        self._tried = {point_key(space, r.spec.params) for r in self.records}
        self._in_flight: set[str] = set()

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Every trial, in the order in which it was learnt of."""
        return tuple(self._records.values())

    @property
    def in_flight(self) -> bool:
        """Whether any trial was handed out and has neither ended nor come back."""
        return bool(self._in_flight)

    @property
    def unfinished(self) -> tuple[TrialRecord, ...]:
        """The trials that have no result and that nobody works on: their driver or their worker was killed."""
        return tuple(r for r in self.records if r.result is None and r.spec.trial_id not in self._in_flight)

    @property
    def suspicion(self) -> tuple[str, str] | None:
        """A trial whose score is too good to believe, and why; None when there is none that waits for a verdict."""
        for record in self.records:
            if record.suspicious:
                trial_id = record.spec.trial_id
                return trial_id, read_noun(Verdict, trial_dir(self._study, trial_id) / VERDICT_FILE).reason
        return None

    def record(self, trial_id: str) -> TrialRecord:
        """What is known of one trial."""
        return self._records[trial_id]

    def was_tried(self, params: Mapping[str, Scalar]) -> bool:
        """Whether some trial had this point, or one that is too near to it to be worth a run (`point_key`)."""
        return point_key(self._space, params) in self._tried

    def add(self, spec: TrialSpec, script: bytes) -> None:
        """Write the folder of a new trial: the script first, the spec last, so that a spec means a whole folder."""
        folder = trial_dir(self._study, spec.trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        if script:
            (folder / SCRIPT_FILE).write_bytes(script)
        write_json(folder / SPEC_FILE, spec)
        self._records[spec.trial_id] = TrialRecord(spec=spec)
        self._tried.add(point_key(self._space, spec.params))

    def rewrite(self, spec: TrialSpec, script: bytes = b"") -> None:
        """Replace a trial's spec, and its script where one is given; the trial is unfinished then."""
        folder = trial_dir(self._study, spec.trial_id)
        if script:
            (folder / SCRIPT_FILE).write_bytes(script)
        if spec != self._records[spec.trial_id].spec:
            write_json(folder / SPEC_FILE, spec)
        self._records[spec.trial_id] = TrialRecord(spec=spec)

    def hand_out(self, spec: TrialSpec) -> None:
        """The trial is in flight: what an earlier start left in its folder goes, a stop file or a result.

        (A result can be of the time before more seeds were added to the spec.)
        """
        self._in_flight.add(spec.trial_id)
        for stale in (STOP_FILE, RESULT_FILE):
            (trial_dir(self._study, spec.trial_id) / stale).unlink(missing_ok=True)

    def take_back(self, trial_id: str) -> None:
        """The trial is no longer in flight; without a result it is unfinished."""
        self._in_flight.discard(trial_id)

    def call_off(self) -> None:
        """Ask the workers of all trials in flight to leave, wherever they run; their trials stay unfinished."""
        for trial_id in tuple(self._in_flight):
            (trial_dir(self._study, trial_id) / STOP_FILE).touch()

    def read_end(self, trial_id: str, failure: str, *, exit_code: int | None) -> TrialRecord:
        """The record of a trial that is no longer in flight; it is not learnt yet.

        Args:
            failure: the error of the result that is written where the worker left none.
            exit_code: of the worker; None where it was lost.
        Raises:
            OSError: the worker left no result because the disk is full.
        """
        folder = trial_dir(self._study, trial_id)
        if not (folder / RESULT_FILE).exists():
            refuse_full_disk(exit_code, folder)
            write_json(folder / RESULT_FILE, TrialResult(status="failed", fault="lost", error=failure))
        record = finished(folder, self._records[trial_id].spec)
        self.take_back(trial_id)
        return record

    def refuse(self, spec: TrialSpec, result: TrialResult) -> TrialRecord:
        """Write the result of a trial that will never run, and return its record."""
        write_json(trial_dir(self._study, spec.trial_id) / RESULT_FILE, result)
        return TrialRecord(spec=spec, result=result)

    def learn(self, record: TrialRecord) -> None:
        """Take in what is known of a trial now."""
        self._records[record.spec.trial_id] = record

    def set_result_aside(self, spec: TrialSpec) -> None:
        """Keep the result of an attempt under another name: the trial is about to run again."""
        folder = trial_dir(self._study, spec.trial_id)
        (folder / RESULT_FILE).rename(earlier_result(folder, spec.attempt))

    def suspect(self, record: TrialRecord, reason: str) -> None:
        """Mark a score as too good to believe, until a person says what to think of it."""
        verdict = Verdict(word="suspicious", reason=reason)
        write_json(trial_dir(self._study, record.spec.trial_id) / VERDICT_FILE, verdict)
        self.learn(replace(record, verdict="suspicious"))
