"""One trial as its folder tells it: its settings against the control's, how it ended, the end of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgolf_model.errors import UserError
from search.study.config import StudyConfig
from search.study.ledger import CONTROL, TrialRecord, trial_dir
from space.plain import to_plain
from trials.spec import LOG_FILE, WORKER_LOG, TrialResult, TrialSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A value that the trial has and its control has not."""

    name: str  # of a knob, or of a configuration's field with dots: train.matrix_lr
    control: object  # None where the control has no such value
    trial: object


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialView:
    """What `pgolf show` says."""

    trial_id: str
    state: str  # the result's status, "suspicious", or "unfinished"
    folder: str
    spec: TrialSpec
    control: str | None  # the trial that it is compared with; None for the control and where there is none
    params: tuple[Change, ...]  # knobs that differ from the control's
    config: tuple[Change, ...]  # fields that differ; seeds and budgets are the rung's and left out
    result: TrialResult | None
    log: str  # the last lines of the newest log
    log_file: str | None  # where they are from


def find_trial(study: StudyConfig, records: Sequence[TrialRecord], trial_id: str) -> TrialRecord:
    """The record of a trial.

    Raises:
        UserError: the study has no such trial; its hint names the last ones.
    """
    for record in records:
        if record.spec.trial_id == trial_id:
            return record
    known = ", ".join(record.spec.trial_id for record in records[-5:])
    hint = f"the last ones are: {known}" if known else f"it has none yet: pgolf search {study.dir}"
    raise UserError(f"study {study.name!r} has no trial {trial_id!r}", hint=hint)


def view_trial(study: StudyConfig, records: Sequence[TrialRecord], trial_id: str, *, log_lines: int) -> TrialView:
    """Everything about one trial.

    Raises:
        UserError: the study has no such trial.
    """
    record = find_trial(study, records, trial_id)
    folder = trial_dir(study, trial_id)
    control = _control(records, record)
    log_file = _newest_log(folder, record.spec)
    state = "suspicious" if record.suspicious else record.status or "unfinished"
    return TrialView(
        trial_id=trial_id,
        state=state,
        folder=str(folder),
        spec=record.spec,
        control=control.spec.trial_id if control else None,
        params=changes(control.spec.params, record.spec.params) if control else (),
        config=_config_changes(control.spec, record.spec) if control else (),
        result=record.result,
        log=_tail(log_file, log_lines) if log_file else "",
        log_file=str(log_file) if log_file else None,
    )


def changes(control: Mapping[str, object], trial: Mapping[str, object]) -> tuple[Change, ...]:
    """Names whose values differ, in the trial's order, then those that only the control has."""
    names = [*trial, *(name for name in control if name not in trial)]
    return tuple(
        Change(name=name, control=control.get(name), trial=trial.get(name))
        for name in names
        if control.get(name) != trial.get(name)
    )


def _config_changes(control: TrialSpec, trial: TrialSpec) -> tuple[Change, ...]:
    found = changes(_flat(to_plain(control.config)), _flat(to_plain(trial.config)))
    return tuple(change for change in found if change.name != "seed" and not change.name.startswith("budget."))


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as one, names with dots."""
    flat: dict[str, object] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _control(records: Sequence[TrialRecord], record: TrialRecord) -> TrialRecord | None:
    """The control at the trial's rung, or else at any; None for a control."""
    controls = [r for r in records if r.spec.label == CONTROL]
    if record.spec.label == CONTROL:
        return None
    return next((r for r in controls if r.spec.rung == record.spec.rung), next(iter(controls), None))


def _newest_log(folder: Path, spec: TrialSpec) -> Path | None:
    """The log of the last seed that began, or else what the worker said."""
    logs = [folder / f"seed{seed}" / LOG_FILE for seed in reversed(spec.seeds)]
    return next((path for path in (*logs, folder / WORKER_LOG) if path.is_file()), None)


def _tail(path: Path, lines: int) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:]) if lines else ""
