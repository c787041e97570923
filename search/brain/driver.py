"""The brain: `next()` says what to run, `finish()` hears how it ended. No loop, no engine, no clock of its own.

Any engine can drive it: local processes, Ray Tune, simulated time. Everything it knows is in the trial folders and
the Optuna storage, so a killed driver is replaced by starting another: finished results are told once, unfinished
trials are handed out again, and what is decided next depends on nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from pgolf_model.errors import UserError
from search.brain.maker import Made, Maker, script_maker
from search.brain.starting_points import starting_points
from search.ladder.anomaly import too_good
from search.ladder.budget import Account, account
from search.ladder.byte_correction import Sizes, refit
from search.ladder.promote import (
    Ask,
    ByRung,
    Decision,
    Done,
    Promote,
    Replicate,
    Wait,
    by_rung,
    decide_within,
    planned_trials,
)
from search.ladder.race import control_seeds, noise_floors
from search.ladder.retry import earlier_result, second_attempt
from search.ladder.trust import proxy_quality
from search.sampler.sampler import Sampler
from search.study.config import StudyConfig
from search.study.freeze import absolute, freeze, git_commit
from search.study.journal import DONE, note
from search.study.ledger import (
    CONTROL,
    VERDICT_FILE,
    TrialRecord,
    Verdict,
    Word,
    finished,
    give_verdict,
    read_record,
    read_records,
    trial_dir,
)
from search.study.next_steps import judge_command, search_command
from space.params import Scalar
from space.points import point_key
from trials.files import read_noun, refuse_full_disk, write_json
from trials.rungs import Rung
from trials.spec import RESULT_FILE, SCRIPT_FILE, SPEC_FILE, STOP_FILE, TrialResult, TrialSpec

DUPLICATES = 4  # points asked for in a row that are tried already, before a random new one is taken
RANDOM_DRAWS = 200  # that may be tried already before the space counts as exhausted and a point is run again


class Driver:
    """One study's brain. Use it from one thread; `lock.driver_lock` keeps a second process away."""

    def __init__(
        self, study: StudyConfig, maker: Maker | None = None, *, clock: Callable[[], float] | None = None
    ) -> None:
        """Open the study: freeze its settings, read its folders, bring the storage in line.

        Args:
            maker: what turns points into trials; by default into scripts that train on the study's data.
            clock: seconds since this launch began; by default the machine's.
        Raises:
            UserError: data, space or storage cannot be used, or the study was launched with other settings.
        """
        self.study = study = absolute(study)
        self._maker = maker or script_maker(study)
        self.space = self._maker.space
        freeze(study)
        self._maker.freeze(study.dir)
        self._starts = starting_points(study, self.space)
        self._records: dict[str, TrialRecord] = {r.spec.trial_id: r for r in read_records(study)}
        self._tried = {point_key(self.space, r.spec.params) for r in self.records}
        started = time.monotonic()
        self._clock = clock or (lambda: time.monotonic() - started)
        self._note = partial(note, study)
        self._in_flight: set[str] = set()
        self._git_commit = git_commit()
        self.why_done = ""  # what stopped a study before its ladder was climbed
        self._sampler = Sampler(study, self.space, forecast=self._maker.forecast)
        self._take_up()

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Everything known, in the order it was learnt."""
        return tuple(self._records.values())

    @property
    def has_unfinished(self) -> bool:
        """Whether `next` will hand out a trial of a killed driver."""
        return any(r.result is None and r.spec.trial_id not in self._in_flight for r in self.records)

    @property
    def is_halted(self) -> bool:
        """Whether somebody has to decide before anything more may start."""
        return bool(self._trouble())

    def next(self) -> TrialSpec | Wait | Done:
        """The next trial to start; its folder is written. An unfinished trial of a killed driver comes first.

        Raises:
            UserError: `max_infeasible` configurations in a row were forecast over a cap, or a score is too good to
                believe and nobody has said what to think of it.
        """
        while True:
            trouble = self._trouble()
            if trouble and self._in_flight:
                return Wait()  # let what runs end; its results may still change what is asked
            if trouble:
                raise trouble
            chosen = self._unfinished() or self._choose()
            if isinstance(chosen, Done):
                self._tell_races()
                self.why_done = chosen.reason
                self._note(DONE, at=self._clock(), trials=len(self._records), reason=chosen.reason)
            if not isinstance(chosen, TrialSpec):
                return chosen
            if chosen.predicted_bytes <= self.study.caps.artifact_bytes:
                self._in_flight.add(chosen.trial_id)
                for stale in (STOP_FILE, RESULT_FILE):  # a result is of the time before more seeds were added
                    (trial_dir(self.study, chosen.trial_id) / stale).unlink(missing_ok=True)
                return chosen
            self._refuse(chosen)

    def finish(self, spec: TrialSpec, failure: str = "", *, exit_code: int | None = None) -> TrialResult:
        """Take in how a trial ended: its folder's result, or a failure when the worker left none.

        After a fault the trial is unfinished again: `next` hands it out once more.

        Args:
            failure: what is known of a worker that left no result.
            exit_code: of the worker; None where it was lost.
        Raises:
            OSError: the worker left no result because the disk is full.
        """
        folder = trial_dir(self.study, spec.trial_id)
        if not (folder / RESULT_FILE).exists():
            refuse_full_disk(exit_code, folder)
            error = failure or "the worker left no result"
            write_json(folder / RESULT_FILE, TrialResult(status="failed", fault="lost", error=error))
        record = finished(folder, self._records[spec.trial_id].spec)
        assert record.result is not None
        self._in_flight.discard(spec.trial_id)
        if not self._retry(record):
            self._records[spec.trial_id] = record
            self._suspect(spec.rung)
            self._learn(self._records[spec.trial_id])
        return record.result

    def judge(self, trial_id: str, word: Word) -> None:
        """Take in what a person thinks of a score that was too good to believe.

        Raises:
            UserError: nobody suspects the trial.
        """
        give_verdict(self.study, trial_id, word)
        record = read_record(trial_dir(self.study, trial_id))
        self._learn(record)
        self._suspect(record.spec.rung)

    def call_off(self) -> None:
        """Ask the workers of all trials in flight to leave, wherever they run; their trials stay unfinished."""
        for trial_id in tuple(self._in_flight):
            (trial_dir(self.study, trial_id) / STOP_FILE).touch()

    def release(self, spec: TrialSpec) -> None:
        """Hand back a trial that an engine could not run to its end: it is unfinished and comes up again."""
        self._in_flight.discard(spec.trial_id)

    def _take_up(self) -> None:
        """Do what a killed driver was about to do with results it had not told, then bring the storage in line."""
        for record in self.records:
            if record.status in ("failed", "timeout") and not self._sampler.is_told(record):
                self._retry(record)
        for rung in self.study.rungs:
            self._suspect(rung.name)
        known = (r if self._may_tell(r) else replace(r, result=None) for r in self.records)
        self._sampler.reconcile(tuple(known))

    def _trouble(self) -> UserError | None:
        """Why nothing may be started now, where somebody has to decide first."""
        for record in self.records:
            if record.suspicious:
                trial_id = record.spec.trial_id
                reason = read_noun(Verdict, trial_dir(self.study, trial_id) / VERDICT_FILE).reason
                return UserError(
                    f"{trial_id} is suspicious: {reason}. A leak or a broken metric is more likely than a discovery",
                    hint=f"look at it, then say `{judge_command(self.study, trial_id, 'accept')}` or reject; "
                    f"go on with `{search_command(self.study)}`",
                )
        refused = self._refused_in_a_row()
        if refused < self.study.max_infeasible:
            return None
        return UserError(
            f"{refused} configurations in a row were forecast over the cap of {self.study.caps.artifact_bytes:,} bytes",
            hint="raise caps.artifact_bytes, search a smaller space by another name, or raise max_infeasible to go on",
        )

    def _refused_in_a_row(self) -> int:
        """Forecasts over a cap since anything was started at the first rung."""
        entered = [r for r in self.records if r.spec.rung == self.study.rungs[0].name]
        last = max((r.spec.number for r in entered if r.status != "infeasible"), default=-1)
        return sum(r.spec.number > last for r in entered)

    def _unfinished(self) -> TrialSpec | None:
        """A trial that nobody works on and that has no result: its driver or its worker was killed."""
        for record in self.records:
            if record.result is None and record.spec.trial_id not in self._in_flight:
                return self._with_resources_of_today(record.spec)
        return None

    def _with_resources_of_today(self, spec: TrialSpec) -> TrialSpec:
        """The spec with the cores, GPUs and time its rung has now: they may have changed since it was written."""
        rung = self.study.rung(spec.rung)
        return self._rewrite(spec, replace(spec, cpus=rung.cpus, gpus=rung.gpus, timeout_seconds=rung.timeout))

    def _rewrite(self, old: TrialSpec, new: TrialSpec) -> TrialSpec:
        """Put a changed spec in place of a trial's old one; the trial is unfinished then."""
        folder = trial_dir(self.study, new.trial_id)
        script = self._maker.script(new.config) if new.config != old.config else b""
        if script:
            (folder / SCRIPT_FILE).write_bytes(script)
        if new != old:
            write_json(folder / SPEC_FILE, new)
        self._records[new.trial_id] = TrialRecord(spec=new)
        return new

    def _choose(self) -> TrialSpec | Wait | Done:
        """A new trial, its folder written; or a finalist's with one more seed."""
        books = account(self.study, self.records, elapsed=self._clock())
        at = by_rung(self.study, self.records)
        match self._advised(decide_within(self.study, at, books, space=self.space), at, books):
            case Ask(rung=rung):
                return self._ask(rung, at)
            case Promote(rung=rung, parent=parent):
                number = self._sampler.add(rung.name, parent.spec.params, origin=parent.spec.trial_id)
                spec = self._spec(
                    rung, number, parent.spec.params, at, label=parent.spec.label, parent=parent.spec.number
                )
                self._note_promotion(spec, parent)
                return spec
            case Replicate(rung=rung, trial=trial):
                done = len(trial.spec.seeds)
                self._note("replicate", at=self._clock(), trial=trial.spec.trial_id, seed=rung.seeds[done])
                return self._rewrite(trial.spec, replace(trial.spec, seeds=rung.seeds[: done + 1], seeds_done=done))
            case nothing:
                return nothing

    def _advised(self, decision: Decision, at: ByRung, books: Account) -> Decision:
        """What the sampler's model would rather start, when something new may start and it has an opinion.

        The known points come first, and the control goes up from every rung, whatever it says; a rung gets no more
        trials than are planned.
        """
        first = self.study.rungs[0]
        control = isinstance(decision, Promote) and decision.parent.spec.label == CONTROL
        entered = {r.spec.label for r in at[first.name]}
        if not isinstance(decision, Ask | Promote) or control or any(p.label not in entered for p in self._starts):
            return decision
        counts = {name: sum(r.status != "infeasible" for r in mine) for name, mine in at.items()}
        room = [
            rung
            for rung, planned in zip(self.study.rungs, planned_trials(self.study), strict=True)
            if counts[rung.name] < planned
            and books.affords(rung, seeds=len(rung.first_seeds), top=rung == self.study.rungs[-1])
        ]
        advice = self._sampler.advise(
            starts=[rung.name for rung in room if rung == first],
            climbs=[rung.name for rung in room if rung != first],
            remaining=books.left_gpu_hours * 3600,
        )
        if advice is None:
            return decision
        if advice.parent is None:
            return Ask(rung=self.study.rung(advice.rung))
        parent = next(r for r in at[advice.parent[0]] if r.spec.number == advice.parent[1])
        return Promote(rung=self.study.rung(advice.rung), parent=parent)

    def _ask(self, rung: Rung, at: ByRung) -> TrialSpec:
        """The control first, then the known good points, then whatever the sampler wants to know."""
        entered = {r.spec.label for r in at[rung.name]}
        for label, params in ((point.label, point.params) for point in self._starts):
            if label not in entered:
                return self._spec(rung, self._sampler.add(rung.name, params, origin=label), params, at, label=label)
        entered_before = at[rung.name][-1].spec.number + 1 if at[rung.name] else 0
        while (number := self._sampler.next_number(rung.name)) < entered_before + DUPLICATES:  # also by a killed driver
            number, params = self._sampler.ask(rung.name)
            if point_key(self.space, params) not in self._tried:
                return self._spec(rung, number, params, at)
            self._sampler.forget(rung.name, number)
        params = self._random_point(number)
        return self._spec(rung, self._sampler.add(rung.name, params, origin="random"), params, at)

    def _random_point(self, number: int) -> dict[str, Scalar]:
        """A point that was not tried, unless the space has none left."""
        rng = np.random.default_rng((self.study.seed, number))
        params = self.space.sample(rng)
        for _ in range(RANDOM_DRAWS):
            if point_key(self.space, params) not in self._tried:
                break
            params = self.space.sample(rng)
        return params

    def _spec(
        self,
        rung: Rung,
        number: int,
        params: Mapping[str, Scalar],
        at: ByRung,
        *,
        label: str = "",
        parent: int | None = None,
    ) -> TrialSpec:
        seeds = rung.first_seeds
        if label == CONTROL and rung == self.study.rungs[0]:
            seeds = control_seeds(self.study, rung)
        made = self._maker.make(rung, params, seeds[0])
        general = (made.predicted_low, made.predicted_bytes, made.predicted_high)
        low, central, high = self._refit(general, rung, made, at, promoted=parent is not None)
        spec = TrialSpec(
            study=self.study.name,
            rung=rung.name,
            number=number,
            parent=parent,
            label=label,
            params=dict(params),
            config=made.config,
            seeds=seeds,
            data_dir=made.data_dir,
            tokenizer=made.tokenizer,
            cpus=rung.cpus,
            gpus=rung.gpus,
            processes=rung.processes,
            timeout_seconds=rung.timeout,
            git_commit=self._git_commit,
            predicted_bytes=central,
            predicted_low=low,
            predicted_high=high,
            general_forecast=() if general == (low, central, high) else general,
        )
        self._write(spec, made)
        return spec

    def _refit(self, general: Sizes, rung: Rung, made: Made, at: ByRung, *, promoted: bool) -> Sizes:
        """The forecast after what the study's runs came out at.

        It may refuse a promotion. A new point that the general forecast, which is the sampler's, lets in stays in: a
        sampler that is refused without learning why would propose its like again and again.
        """
        low, central, high = refit(general, at, rung=rung.name, target_bytes=made.config.quant.target_bytes)
        cap = self.study.caps.artifact_bytes
        if not promoted and general[1] <= cap:
            central = min(central, cap)
        return min(low, central), central, high

    def _write(self, spec: TrialSpec, made: Made) -> None:
        """The folder of a trial: the script first, the spec last, so that a spec means a whole folder."""
        folder = trial_dir(self.study, spec.trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        if made.script:
            (folder / SCRIPT_FILE).write_bytes(made.script)
        write_json(folder / SPEC_FILE, spec)
        self._records[spec.trial_id] = TrialRecord(spec=spec)
        self._tried.add(point_key(self.space, spec.params))

    def _refuse(self, spec: TrialSpec) -> None:
        """A forecast over the cap is a result without a run: the sampler learns the constraint, nobody pays."""
        cap = self.study.caps.artifact_bytes
        error = f"forecast {spec.predicted_bytes:,} bytes, the cap is {cap:,}"
        result = TrialResult(status="infeasible", error=error)
        write_json(trial_dir(self.study, spec.trial_id) / RESULT_FILE, result)
        self._learn(TrialRecord(spec=spec, result=result))

    def _retry(self, record: TrialRecord) -> bool:
        """Make a trial that suffered a fault unfinished again, if it may have a second attempt and can afford it."""
        assert record.result is not None
        again = second_attempt(record.spec, record.result)
        rung = self.study.rung(record.spec.rung)
        if again is None:
            return False
        self._records[record.spec.trial_id] = record
        books = account(self.study, self.records, elapsed=self._clock())
        seeds = len(again.seeds) - again.seeds_done
        if not books.affords(rung, seeds=seeds, top=rung == self.study.rungs[-1], new=False):
            return False
        folder = trial_dir(self.study, record.spec.trial_id)
        (folder / RESULT_FILE).rename(earlier_result(folder, record.spec.attempt))
        self._rewrite(record.spec, again)
        reason = record.result.error.strip().splitlines()[-1:]
        self._note(
            "retry", at=self._clock(), trial=record.spec.trial_id, why=record.result.status, error="".join(reason)
        )
        return True

    def _learn(self, record: TrialRecord) -> None:
        """Take a result in; the sampler hears of it unless it is suspicious or its race goes on."""
        assert record.result is not None
        self._records[record.spec.trial_id] = record
        if self._may_tell(record):
            self._sampler.tell(record)
        if len(record.spec.seeds) > 1 and record.status == "complete":
            for floor in noise_floors(self.study, self.records):
                self._note("noise", at=self._clock(), **asdict(floor))

    def _suspect(self, rung: str) -> None:
        """Mark the rung's best score when it is too good to believe, before anyone learns from it."""
        best = min(
            (r for r in self.records if r.spec.rung == rung and r.status == "complete" and r.verdict is None),
            key=lambda r: r.result.val_bpb if r.result else 0.0,
            default=None,
        )
        reason = too_good(self.study, best, self.records) if best else ""
        if best and reason:
            write_json(
                trial_dir(self.study, best.spec.trial_id) / VERDICT_FILE, Verdict(word="suspicious", reason=reason)
            )
            self._records[best.spec.trial_id] = replace(best, verdict="suspicious")
            self._note("suspicious", at=self._clock(), trial=best.spec.trial_id, reason=reason)

    def _may_tell(self, record: TrialRecord) -> bool:
        """Whether a result is final: no verdict is missing and its race cannot go on."""
        rung = self.study.rung(record.spec.rung)
        racing = rung.race_from and record.status == "complete" and len(record.spec.seeds) < len(rung.seeds)
        return record.result is not None and not record.suspicious and not racing

    def _tell_races(self) -> None:
        """Nothing more will be replicated: every score at the top is what it is."""
        for record in self.records:
            if record.result is not None and not record.suspicious and not self._may_tell(record):
                self._sampler.tell(record)

    def _note_promotion(self, spec: TrialSpec, parent: TrialRecord) -> None:
        """Who went up, and how far the rung it came from was trusted then."""
        lower, upper = self.study.rung(parent.spec.rung), self.study.rung(spec.rung)
        quality = proxy_quality(self.study, self.records, lower=lower, upper=upper)
        self._note("promote", at=self._clock(), trial=spec.trial_id, parent=parent.spec.trial_id, **asdict(quality))
