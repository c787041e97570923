"""The brain: `next()` says which trial to run, `finish()` hears how it ended. It has no loop, engine or clock.

Any engine can drive it: local processes, Ray Tune, simulated time. What it decides follows from the trial folders and
the Optuna storage alone. So a killed driver is replaced by starting another: that one tells the storage the results
that it has not heard, once, and hands out unfinished trials again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from pgolf_model.errors import UserError
from search.brain.known_trials import KnownTrials
from search.brain.maker import Maker, script_maker
from search.brain.specs import new_trial, with_next_seed, with_resources_of_today
from search.brain.starting_points import starting_points
from search.ladder.anomaly import too_good
from search.ladder.budget import Account, account
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
from search.ladder.race import noise_floors
from search.ladder.retry import second_attempt
from search.ladder.trust import proxy_quality
from search.sampler.sampler import Sampler
from search.study.config import StudyConfig
from search.study.freeze import absolute, freeze, git_commit
from search.study.journal import DONE, note
from search.study.ledger import CONTROL, TrialRecord
from search.study.next_steps import judge_command, search_command
from space.params import Scalar
from trials.rungs import Rung
from trials.spec import TrialResult, TrialSpec

DUPLICATES = 4  # points in a row that the sampler may propose although they were tried; then a random one is taken
RANDOM_DRAWS = 200  # random points in a row that were tried, after which the space counts as exhausted and one repeats


class Driver:
    """One study's brain. Use it from one thread; `search.study.lock` keeps a second process away."""

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
        self._starting_points = starting_points(study, self.space)
        self._known = KnownTrials(study, self.space)
        started = time.monotonic()
        self._clock = clock or (lambda: time.monotonic() - started)
        self._note = partial(note, study)
        self._git_commit = git_commit()
        self.why_done = ""  # what stopped a study before its ladder was climbed
        self._sampler = Sampler(study, self.space, predict_bytes=self._maker.predict_bytes)
        self._take_up()

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Everything known, in the order in which it was learnt."""
        return self._known.records

    @property
    def has_unfinished(self) -> bool:
        """Whether `next` will hand out a trial of a killed driver."""
        return bool(self._known.unfinished)

    @property
    def is_halted(self) -> bool:
        """Whether a person has to decide before anything more may start."""
        return bool(self._trouble())

    def next(self) -> TrialSpec | Wait | Done:
        """The next trial to start; its folder is written. An unfinished trial of a killed driver comes first.

        Raises:
            UserError: `max_infeasible` configurations in a row were forecast over a cap, or a score is too good to
                believe and nobody has said what to think of it.
        """
        while True:
            trouble = self._trouble()
            if trouble and self._known.in_flight:
                return Wait()  # for the trials that run: their results may still change what has to be decided
            if trouble:
                raise trouble
            chosen = self._unfinished() or self._choose()
            if isinstance(chosen, Done):
                self._tell_races()
                self.why_done = chosen.reason
                self._note(DONE, at=self._clock(), trials=len(self.records), reason=chosen.reason)
            if not isinstance(chosen, TrialSpec):
                return chosen
            if chosen.predicted_bytes <= self.study.caps.artifact_bytes:
                self._known.hand_out(chosen)
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
        record = self._known.read_end(spec.trial_id, failure or "the worker left no result", exit_code=exit_code)
        assert record.result is not None
        if not self._retry(record):
            self._known.learn(record)
            self._suspect(spec.rung)
            self._learn(self._known.record(spec.trial_id))
        return record.result

    def call_off(self) -> None:
        """Ask the workers of all trials in flight to leave, wherever they run; their trials stay unfinished."""
        self._known.call_off()

    def release(self, spec: TrialSpec) -> None:
        """Hand back a trial that an engine could not run to its end: it is unfinished and comes up again."""
        self._known.take_back(spec.trial_id)

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
        suspicion = self._known.suspicion
        if suspicion is not None:
            trial_id, reason = suspicion
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
        """How many forecasts were over a cap since a trial was last started at the first rung."""
        entered = [r for r in self.records if r.spec.rung == self.study.rungs[0].name]
        last = max((r.spec.number for r in entered if r.status != "infeasible"), default=-1)
        return sum(r.spec.number > last for r in entered)

    def _unfinished(self) -> TrialSpec | None:
        """The first unfinished trial, its spec brought up to date; None when there is none."""
        waiting = self._known.unfinished
        if not waiting:
            return None
        spec = waiting[0].spec
        return self._rewrite(with_resources_of_today(spec, self.study.rung(spec.rung)))

    def _rewrite(self, spec: TrialSpec) -> TrialSpec:
        """Replace a trial's spec, and its script when its configuration has changed; the trial is unfinished then."""
        changed = spec.config != self._known.record(spec.trial_id).spec.config
        self._known.rewrite(spec, self._maker.script(spec.config) if changed else b"")
        return spec

    def _choose(self) -> TrialSpec | Wait | Done:
        """A new trial, its folder written; or a finalist's with one more seed."""
        books = account(self.study, self.records, elapsed=self._clock())
        at = by_rung(self.study, self.records)
        match self._advised(decide_within(self.study, at, books, space=self.space), at, books):
            case Ask(rung=rung):
                return self._ask(rung, at)
            case Promote(rung=rung, parent=parent):
                return self._promote(rung, parent, at)
            case Replicate(rung=rung, trial=trial):
                again = with_next_seed(trial.spec, rung)
                self._note("replicate", at=self._clock(), trial=again.trial_id, seed=again.seeds[-1])
                return self._rewrite(again)
            case nothing:
                return nothing

    def _advised(self, decision: Decision, at: ByRung, books: Account) -> Decision:
        """What the sampler's model would rather start; the decision itself where the model has no say.

        It has a say once all starting points have entered, when a new point or a promotion may start. The control is
        promoted from every rung whatever the model says, and a rung gets no more trials than `planned_trials`.
        """
        first = self.study.rungs[0]
        control = isinstance(decision, Promote) and decision.parent.spec.label == CONTROL
        entered = {r.spec.label for r in at[first.name]}
        points_left = any(p.label not in entered for p in self._starting_points)
        if not isinstance(decision, Ask | Promote) or control or points_left:
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
        """A new point's trial: the starting points first, control foremost, then what the sampler proposes."""
        entered = {r.spec.label for r in at[rung.name]}
        for point in self._starting_points:
            if point.label not in entered:
                number = self._sampler.add(rung.name, point.params, origin=point.label)
                return self._enter(rung, number, point.params, at, label=point.label)
        entered_before = at[rung.name][-1].spec.number + 1 if at[rung.name] else 0
        while (number := self._sampler.next_number(rung.name)) < entered_before + DUPLICATES:  # also by a killed driver
            number, params = self._sampler.ask(rung.name)
            if not self._known.was_tried(params):
                return self._enter(rung, number, params, at)
            self._sampler.forget(rung.name, number)
        params = self._random_point(number)
        return self._enter(rung, self._sampler.add(rung.name, params, origin="random"), params, at)

    def _random_point(self, number: int) -> dict[str, Scalar]:
        """A random point that was not tried, unless the space has none left."""
        rng = np.random.default_rng((self.study.seed, number))
        params = self.space.sample(rng)
        for _ in range(RANDOM_DRAWS):
            if not self._known.was_tried(params):
                break
            params = self.space.sample(rng)
        return params

    def _promote(self, rung: Rung, parent: TrialRecord, at: ByRung) -> TrialSpec:
        """The trial that repeats `parent` at `rung`; the journal says how far the lower rung was trusted then."""
        params = parent.spec.params
        number = self._sampler.add(rung.name, params, origin=parent.spec.trial_id)
        spec = self._enter(rung, number, params, at, label=parent.spec.label, parent=parent.spec.number)
        quality = proxy_quality(self.study, self.records, lower=self.study.rung(parent.spec.rung), upper=rung)
        self._note("promote", at=self._clock(), trial=spec.trial_id, parent=parent.spec.trial_id, **asdict(quality))
        return spec

    def _enter(
        self,
        rung: Rung,
        number: int,
        params: Mapping[str, Scalar],
        at: ByRung,
        *,
        label: str = "",
        parent: int | None = None,
    ) -> TrialSpec:
        """A new trial, its folder written."""
        spec, script = new_trial(
            self.study,
            self._maker,
            at,
            rung=rung,
            number=number,
            params=params,
            label=label,
            parent=parent,
            git_commit=self._git_commit,
        )
        self._known.add(spec, script)
        return spec

    def _refuse(self, spec: TrialSpec) -> None:
        """End a trial whose forecast is over the cap: the sampler hears of a broken constraint, and nothing runs."""
        cap = self.study.caps.artifact_bytes
        error = f"forecast {spec.predicted_bytes:,} bytes, the cap is {cap:,}"
        self._learn(self._known.refuse(spec, TrialResult(status="infeasible", error=error)))

    def _retry(self, record: TrialRecord) -> bool:
        """Make a trial that suffered a fault unfinished again, if it may have a second attempt and can afford it."""
        assert record.result is not None
        again = second_attempt(record.spec, record.result)
        if again is None:
            return False
        self._known.learn(record)
        rung = self.study.rung(record.spec.rung)
        books = account(self.study, self.records, elapsed=self._clock())
        seeds = len(again.seeds) - again.seeds_done
        if not books.affords(rung, seeds=seeds, top=rung == self.study.rungs[-1], new=False):
            return False
        self._known.set_result_aside(record.spec)
        self._rewrite(again)
        reason = record.result.error.strip().splitlines()[-1:]
        self._note(
            "retry", at=self._clock(), trial=record.spec.trial_id, why=record.result.status, error="".join(reason)
        )
        return True

    def _learn(self, record: TrialRecord) -> None:
        """Take a result in; the sampler hears of it unless it is suspicious or its race goes on."""
        assert record.result is not None
        self._known.learn(record)
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
            self._known.suspect(best, reason)
            self._note("suspicious", at=self._clock(), trial=best.spec.trial_id, reason=reason)

    def _may_tell(self, record: TrialRecord) -> bool:
        """Whether a result is final: no verdict is missing and its race cannot go on."""
        rung = self.study.rung(record.spec.rung)
        racing = rung.race_from and record.status == "complete" and len(record.spec.seeds) < len(rung.seeds)
        return record.result is not None and not record.suspicious and not racing

    def _tell_races(self) -> None:
        """Tell the sampler the results of races that ended early: no finalist gets another seed."""
        for record in self.records:
            if record.result is not None and not record.suspicious and not self._may_tell(record):
                self._sampler.tell(record)
