"""The brain: `next()` says what to run, `finish()` hears how it ended. No loop, no engine, no clock of its own.

Any engine can drive it: local processes, Ray Tune, simulated time. Everything it knows is in the trial folders and
the Optuna storage, so a killed driver is replaced by starting another: finished results are told once, unfinished
trials are handed out again.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from search.ledger import TrialRecord, read_record, read_records, trial_dir
from search.maker import Made, Maker, script_maker
from search.promote import CONTROL, Ask, Done, Promote, Wait, decide
from search.sampler import Sampler
from search.study import STUDY_FILE, StudyConfig
from space.params import Space
from space.plain import to_plain
from trials.rungs import Rung
from trials.spec import (
    RESULT_FILE,
    SCRIPT_FILE,
    SPEC_FILE,
    STOP_FILE,
    WORKER_LOG,
    Scalar,
    TrialResult,
    TrialSpec,
    read_noun,
    refuse_full_disk,
    write_json,
)

FREE_TO_CHANGE = frozenset(
    {
        "engine",
        "folder",
        "trials",
        "keep",
        "min_promote",
        "max_infeasible",
        "timeout_seconds",
        "cpus",
        "gpus",
        "dollars_per_gpu_hour",
    }
)


class Driver:
    """One study's brain. Use it from one thread; `lock.driver_lock` keeps a second process away."""

    def __init__(self, study: StudyConfig, maker: Maker | None = None) -> None:
        """Open the study: freeze its settings, read its folders, bring the storage in line.

        Args:
            maker: what turns points into trials; by default into scripts that train on the study's data.
        Raises:
            ValueError: data, space or storage cannot be used, or the study was launched with other settings.
        """
        self.study = study = absolute(study)
        self._maker = maker or script_maker(study)
        self.space = self._maker.space
        self._starts = starting_points(study, self.space)
        freeze(study)
        self._maker.freeze(study.dir)
        self._records: dict[str, TrialRecord] = {r.spec.trial_id: r for r in read_records(study)}
        self._sampler = Sampler(study, self.space)
        self._sampler.reconcile(self.records)
        self._in_flight: set[str] = set()
        self._git_commit = git_commit()
        self._infeasible_in_a_row = 0

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Everything known, in the order it was learnt."""
        return tuple(self._records.values())

    @property
    def has_unfinished(self) -> bool:
        """Whether `next` will hand out a trial of a killed driver."""
        return any(r.result is None and r.spec.trial_id not in self._in_flight for r in self.records)

    def next(self) -> TrialSpec | Wait | Done:
        """The next trial to start; its folder is written. An unfinished trial of a killed driver comes first.

        Raises:
            ValueError: `max_infeasible` configurations in a row were forecast over a cap.
        """
        while True:
            too_many = self._infeasible_in_a_row >= self.study.max_infeasible
            if too_many and self._in_flight:
                return Wait()  # let what runs end; its results may still change what is asked
            if too_many:
                raise ValueError(
                    f"{self._infeasible_in_a_row} configurations in a row were forecast over the cap of "
                    f"{self.study.caps.artifact_bytes:,} bytes; raise caps.artifact_bytes or search a smaller space"
                )
            chosen = self._unfinished() or self._choose()
            if not isinstance(chosen, TrialSpec):
                return chosen
            if chosen.predicted_bytes <= self.study.caps.artifact_bytes:
                self._infeasible_in_a_row = 0
                self._in_flight.add(chosen.trial_id)
                (trial_dir(self.study, chosen.trial_id) / STOP_FILE).unlink(missing_ok=True)
                return chosen
            self._refuse(chosen)

    def finish(self, spec: TrialSpec, failure: str = "") -> TrialResult:
        """Take in how a trial ended: its folder's result, or a failure when the worker left none."""
        folder = trial_dir(self.study, spec.trial_id)
        if not (folder / RESULT_FILE).exists():
            log = folder / WORKER_LOG
            refuse_full_disk(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "", folder)
            write_json(folder / RESULT_FILE, TrialResult(status="failed", error=failure or "the worker left no result"))
        return self._learn(read_record(folder))

    def call_off(self) -> None:
        """Ask the workers of all trials in flight to leave, wherever they run; their trials stay unfinished."""
        for trial_id in tuple(self._in_flight):
            (trial_dir(self.study, trial_id) / STOP_FILE).touch()

    def release(self, spec: TrialSpec) -> None:
        """Hand back a trial that an engine could not run to its end: it is unfinished and comes up again."""
        self._in_flight.discard(spec.trial_id)

    def _unfinished(self) -> TrialSpec | None:
        """A trial that nobody works on and that has no result: its driver or its worker was killed."""
        for record in self.records:
            if record.result is None and record.spec.trial_id not in self._in_flight:
                return self._with_resources_of_today(record.spec)
        return None

    def _with_resources_of_today(self, spec: TrialSpec) -> TrialSpec:
        """The spec with the cores, GPUs and time its rung has now: they may have changed since it was written."""
        rung = next(rung for rung in self.study.rungs if rung.name == spec.rung)
        now = replace(spec, cpus=rung.cpus, gpus=rung.gpus, timeout_seconds=rung.timeout)
        if now != spec:
            write_json(trial_dir(self.study, spec.trial_id) / SPEC_FILE, now)
            self._records[spec.trial_id] = TrialRecord(spec=now)
        return now

    def _choose(self) -> TrialSpec | Wait | Done:
        """A new trial, its folder written."""
        match decide(self.study, self.records):
            case Ask(rung=rung):
                spec = self._ask(rung)
            case Promote(rung=rung, parent=parent):
                number = self._sampler.add(rung.name, parent.spec.params, origin=parent.spec.trial_id)
                spec = self._spec(rung, number, parent.spec.params, label=parent.spec.label, parent=parent.spec.number)
            case nothing:
                return nothing
        return spec

    def _ask(self, rung: Rung) -> TrialSpec:
        """The control first, then the space's warm starts, then whatever the sampler wants to know."""
        entered = {r.spec.label for r in self.records if r.spec.rung == rung.name}
        for label, params in self._starts:
            if label not in entered:
                return self._spec(rung, self._sampler.add(rung.name, params, origin=label), params, label=label)
        number, params = self._sampler.ask(rung.name)
        return self._spec(rung, number, params)

    def _spec(
        self, rung: Rung, number: int, params: dict[str, Scalar], *, label: str = "", parent: int | None = None
    ) -> TrialSpec:
        made = self._maker.make(rung, params, rung.seeds[0])
        spec = TrialSpec(
            study=self.study.name,
            rung=rung.name,
            number=number,
            parent=parent,
            label=label,
            params=params,
            config=made.config,
            seeds=rung.seeds,
            data_dir=made.data_dir,
            tokenizer=made.tokenizer,
            cpus=rung.cpus,
            gpus=rung.gpus,
            processes=rung.processes,
            timeout_seconds=rung.timeout,
            git_commit=self._git_commit,
            predicted_bytes=made.predicted_bytes,
            predicted_low=made.predicted_low,
            predicted_high=made.predicted_high,
        )
        self._write(spec, made)
        return spec

    def _write(self, spec: TrialSpec, made: Made) -> None:
        """The folder of a trial: the script first, the spec last, so that a spec means a whole folder."""
        folder = trial_dir(self.study, spec.trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        if made.script:
            (folder / SCRIPT_FILE).write_bytes(made.script)
        write_json(folder / SPEC_FILE, spec)
        self._records[spec.trial_id] = TrialRecord(spec=spec)

    def _refuse(self, spec: TrialSpec) -> None:
        """A forecast over the cap is a result without a run: the sampler learns the constraint, nobody pays."""
        cap = self.study.caps.artifact_bytes
        error = f"forecast {spec.predicted_bytes:,} bytes, the cap is {cap:,}"
        result = TrialResult(status="infeasible", error=error)
        write_json(trial_dir(self.study, spec.trial_id) / RESULT_FILE, result)
        self._learn(TrialRecord(spec=spec, result=result))
        self._infeasible_in_a_row += 1

    def _learn(self, record: TrialRecord) -> TrialResult:
        assert record.result is not None
        self._sampler.tell(record)
        self._records[record.spec.trial_id] = record
        if record.status == "complete":
            self._infeasible_in_a_row = 0
        self._in_flight.discard(record.spec.trial_id)
        return record.result


def starting_points(study: StudyConfig, space: Space) -> tuple[tuple[str, dict[str, Scalar]], ...]:
    """(label, parameters) of the trials that come before the sampler's: the control and the warm starts, if wanted."""
    control = ((CONTROL, dict(space.control)),) if study.control else ()
    known = tuple((start.label, dict(start.values)) for start in space.warm_starts) if study.warm_starts else ()
    return control + known


def absolute(study: StudyConfig) -> StudyConfig:
    """The study with absolute paths: the same study from whichever folder, and however, it is named."""
    return replace(study, data=tuple(str(Path(name).absolute()) for name in study.data), folder=str(study.dir))


def git_commit() -> str:
    """The commit of the checkout this code runs from; empty outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def freeze(study: StudyConfig) -> None:
    """Write the study's settings into its folder, or refuse when it was launched with others.

    What may change between launches: the engine, how many trials are run and promoted, timeouts, resources.
    """
    study.dir.mkdir(parents=True, exist_ok=True)
    path = study.dir / STUDY_FILE
    known = read_noun(StudyConfig, path) if path.exists() else study
    changed = differences(to_plain(known), to_plain(study))
    if changed:
        raise ValueError(
            f"study {study.name!r} in {study.dir} was launched with other settings: {'; '.join(changed)}; "
            "use another name or folder, or put the old settings back"
        )
    if known != study or not path.exists():
        write_json(path, study)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Settings that differ, as `caps.artifact_bytes 16000000 -> 15000000`; those free to change are left out."""
    if path.rpartition(".")[2] in FREE_TO_CHANGE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line for key in new for line in differences(old.get(key), new[key], f"{path}.{key}" if path else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in differences(*pair, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path} {old!r} -> {new!r}"]
