"""Ask and tell: the only file that talks to Optuna.

One Optuna study per rung (`NAME/proxy`, `NAME/full`) in one storage, so that optuna-dashboard and `load_study` work
on them as they are. The trial folders are the truth; `reconcile` brings the storage in line with them.
What is asked depends on the study's seed and on what is known, not on the process that asks: a killed driver's
successor gets the very point its predecessor would have got.
Facts about Optuna 5.0 that shape this file (automl O1-O25, checked by running it): constraints are set once, before
tell, with the same keys in the same order; a resumed sampler with the same seed replays its points; NaN told is a
failure; PRUNED with a constraint is how TPE learns from what never ran.
"""

from __future__ import annotations

import functools
import math
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from pgolf_model.errors import UserError
from search.sampler.storage import open_storage
from search.sampler.surrogate_sampler import Advice, SurrogateSampler
from search.study.config import Caps, StudyConfig
from search.study.ledger import TrialRecord
from search.surrogate.byte_model import Forecast
from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, Space

FOLDER_ATTR = "folder"  # of an Optuna study: the trial folders it mirrors
ORIGIN_ATTR = "origin"  # of an Optuna trial that the sampler did not choose: where it came from


P = ParamSpec("P")
R = TypeVar("R")


def _names_the_storage(method: Callable[Concatenate[Sampler, P], R]) -> Callable[Concatenate[Sampler, P], R]:
    """What goes wrong in the storage becomes one line with its cause; the trial folders lose nothing by it."""

    @functools.wraps(method)
    def wrapped(self: Sampler, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error, ImportError) as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(
                f"cannot use the storage {self._study.storage_url}: {cause}",
                hint=("if another program holds it, stop that one, then run the same command again"),
            ) from error

    return wrapped


class Sampler:
    """The Optuna studies of one search: an effect with a small surface, driven by the brain alone."""

    @_names_the_storage
    def __init__(self, study: StudyConfig, space: Space, *, forecast: Forecast | None = None) -> None:
        """Open or create the storage.

        Args:
            forecast: artifact bytes of a configuration, where they can be known without a run.
        Raises:
            UserError: the storage cannot be opened, is locked (any method can find that), or holds a study with
                other objectives.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._study = study
        directions = [StudyDirection.MINIMIZE] * (1 if study.question == "best" else 2)
        self._studies: dict[str, optuna.Study] = {}
        storage = open_storage(study.storage_url)
        for rung in study.rungs:
            name = f"{study.name}/{rung.name}"
            opened = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
            if len(opened.directions) != len(directions):
                raise UserError(
                    f"Optuna study {name!r} has {len(opened.directions)} objectives, question = {study.question!r} "
                    f"needs {len(directions)}",
                    hint="use another study name or storage",
                )
            owner = opened.user_attrs.get(FOLDER_ATTR, str(study.dir))
            if study.storage and owner != str(study.dir):
                raise UserError(
                    f"{name!r} in {study.storage} belongs to the study in {owner}", hint="use another study name"
                )
            opened.set_user_attr(FOLDER_ATTR, str(study.dir))
            self._studies[rung.name] = opened
        self._ghosts: dict[str, int] = {}  # rung -> a trial that was entered and whose folder was never written
        self._surrogate = self._open_surrogate(forecast)

    def _open_surrogate(self, forecast: Forecast | None) -> SurrogateSampler | None:
        """One model for all rungs, where the study wants it. It seeks the best score under one cap, so no front."""
        if self._study.sampler != "surrogate" or self._study.question == "front":
            return None
        rungs = modelled_rungs(self._study)
        surrogate = SurrogateSampler(
            self._space.params,
            {param.name: _distribution(param) for param in self._space.params},
            rungs,
            cap_bytes=self._study.caps.artifact_bytes,
            forecast=forecast,
            seed=self._study.seed,
            folder=self._study.dir,
            ghosts=self._ghosts,
        )
        for rung in rungs:
            surrogate.watch(rung, self._studies[rung])
        return surrogate

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """What draws trial `number`: the same for a killed driver's successor, different from trial to trial (O18)."""
        seed = (self._study.seed * 1_000_003 + number) % 2**32
        if self._surrogate is not None:
            return self._surrogate
        if self._study.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return _tpe(seed=seed, trials=self._study.rungs[0].trials)

    @_names_the_storage
    def advise(self, *, starts: Sequence[str], climbs: Sequence[str], remaining: float = math.inf) -> Advice | None:
        """What the model would start next, for a study whose sampler has one; see `SurrogateSampler.advise`.

        Other samplers have no opinion on rungs and answer None.
        """
        if self._surrogate is None:
            return None
        return self._surrogate.advise(starts=starts, climbs=climbs, remaining=remaining)

    @_names_the_storage
    def next_number(self, rung: str) -> int:
        """Of the trial that is asked for or added next."""
        return self._ghosts.get(rung, len(self._studies[rung].get_trials(deepcopy=False)))

    @_names_the_storage
    def ask(self, rung: str) -> tuple[int, dict[str, Scalar]]:
        """A new point: its trial number and every active parameter of the space.

        The values are drawn in one go, whatever a killed predecessor had already entered of them, so that the same
        trial gets the same point. (Optuna's `Trial.suggest_*` would skip the draws of entered ones.)
        """
        study = self._studies[rung]
        ghost = self._ghosts.pop(rung, None)
        if ghost is not None and ORIGIN_ATTR in study.get_trials(deepcopy=False)[ghost].user_attrs:
            study.tell(ghost, state=TrialState.FAIL)
            ghost = None
        if ghost is None:
            study.add_trial(create_trial(state=TrialState.RUNNING))
        trial = study.get_trials(deepcopy=False)[-1 if ghost is None else ghost]
        sampler = self._sampler(trial.number)
        relative = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
        values: dict[str, Scalar] = {}
        for param in self._space.params:
            if param.active(values):
                kind = _distribution(param)
                value = relative.get(param.name)
                if value is None or not kind._contains(kind.to_internal_repr(value)):
                    value = sampler.sample_independent(study, trial, param.name, kind)
                study._storage.set_trial_param(trial._trial_id, param.name, kind.to_internal_repr(value), kind)
                values[param.name] = cast(Scalar, value)
        return trial.number, values

    @_names_the_storage
    def add(self, rung: str, params: Mapping[str, Scalar], *, origin: str) -> int:
        """Enter a point the sampler did not choose (a promotion, the control); one atomic write. Returns its number."""
        study = self._studies[rung]
        ghost = self._ghosts.pop(rung, None)
        if ghost is not None:
            entered = study.get_trials(deepcopy=False)[ghost]
            if entered.user_attrs.get(ORIGIN_ATTR) == origin:
                return ghost
            study.tell(ghost, state=TrialState.FAIL)
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(params),
                distributions=self._distributions_of(params),
                user_attrs={ORIGIN_ATTR: origin},
            )
        )
        return study.get_trials(deepcopy=False)[-1].number

    @_names_the_storage
    def forget(self, rung: str, number: int) -> None:
        """Drop a point that was asked for and will not be tried: nothing ran, nothing is learnt."""
        self._studies[rung].tell(number, state=TrialState.FAIL)

    @_names_the_storage
    def is_told(self, record: TrialRecord) -> bool:
        """Whether the storage knows how the trial ended."""
        trials = self._studies[record.spec.rung].get_trials(deepcopy=False)
        return record.spec.number < len(trials) and trials[record.spec.number].state.is_finished()

    @_names_the_storage
    def tell(self, record: TrialRecord) -> None:
        """Report how a trial ended; telling one that is already told changes nothing."""
        study, spec, result = self._studies[record.spec.rung], record.spec, record.result
        if result is None:
            raise UserError(f"trial {spec.trial_id} has no result to tell")
        frozen = study.get_trials(deepcopy=False)[spec.number]
        if frozen.state.is_finished():
            return
        trial = optuna.trial.Trial(study, frozen._trial_id)
        for key, excess in constraints(self._study.caps, record).items():
            if key not in frozen.constraints:
                trial.set_constraint(key, excess)
        for key, value in _summary(record).items():
            trial.set_user_attr(key, value)
        state, values = self._ending(record)
        study.tell(spec.number, values, state=state)

    def _ending(self, record: TrialRecord) -> tuple[TrialState, list[float] | None]:
        """How Optuna calls the end of a trial: its state, and what it measured."""
        result = record.result
        if result is None:
            return TrialState.RUNNING, None
        if result.status == "complete":
            directions = self._studies[record.spec.rung].directions
            return TrialState.COMPLETE, [result.val_bpb, float(result.artifact_bytes)][: len(directions)]
        return (TrialState.FAIL if result.status == "failed" else TrialState.PRUNED), None

    def _recover(self, record: TrialRecord) -> None:
        """Enter a trial that the storage has lost, with its result where there is one; one atomic write.

        Not first running and then told: Optuna reads everything unfinished again at every call, so thousands of
        trials would take hours.
        """
        known = record.result is not None
        state, values = self._ending(record)
        self._studies[record.spec.rung].add_trial(
            create_trial(
                state=state,
                values=values,
                params=dict(record.spec.params),
                distributions=self._distributions_of(record.spec.params),
                user_attrs={ORIGIN_ATTR: "recovered"} | (_summary(record) if known else {}),
                constraints=constraints(self._study.caps, record) if known else None,
            )
        )

    def _distributions_of(self, params: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
        return {param.name: _distribution(param) for param in self._space.params if param.name in params}

    @_names_the_storage
    def reconcile(self, records: tuple[TrialRecord, ...]) -> None:
        """Bring the storage in line with the folders after anything was killed.

        A point asked for but never written to a folder is taken up by the next ask or add. A folder the storage does
        not know, as after the storage was lost, is entered again. A result not yet told is told, once.
        """
        for rung, study in self._studies.items():
            mine = {r.spec.number: r for r in records if r.spec.rung == rung}
            for trial in study.get_trials(deepcopy=False):
                if not trial.state.is_finished() and trial.number not in mine:
                    if rung in self._ghosts:
                        study.tell(self._ghosts[rung], state=TrialState.FAIL)
                    self._ghosts[rung] = trial.number
            known = study.get_trials(deepcopy=False)
            for number in range(len(known), max(mine, default=-1) + 1):
                if number in mine:
                    self._recover(mine[number])
                else:
                    study.add_trial(create_trial(state=TrialState.FAIL))
            for number, record in mine.items():
                if record.result is not None and number < len(known) and not known[number].state.is_finished():
                    self.tell(record)


def constraints(caps: Caps, record: TrialRecord) -> dict[str, float]:
    """Relative excess over each cap: measured where a trial completed, forecast where it did not."""
    spec, result = record.spec, record.result
    if result is not None and result.status == "complete":
        return caps.measured(result)
    late = 2 * caps.train_seconds if result is not None and result.status == "timeout" else 0.0
    return caps.violations(artifact_bytes=spec.predicted_bytes, train_seconds=late, eval_seconds=0.0)


def _summary(record: TrialRecord) -> dict[str, Scalar]:
    """What a user of optuna-dashboard wants to see beside the value."""
    result = record.result
    summary: dict[str, Scalar] = {"status": result.status if result else "", "label": record.spec.label}
    if record.spec.parent is not None:
        summary["parent"] = record.spec.parent
    summary["predicted_bytes"] = record.spec.predicted_bytes
    if result is not None and result.status == "complete":
        summary["val_bpb"] = result.val_bpb
        summary["artifact_bytes"] = result.artifact_bytes
        summary["train_seconds"] = result.train_seconds
        summary["eval_seconds"] = result.eval_seconds
    if result is not None and result.status != "infeasible":
        summary["gpu_seconds"] = result.seconds * (record.spec.gpus or record.spec.cpus)
    return summary


def modelled_rungs(study: StudyConfig) -> dict[str, float]:
    """Compute of the rungs the surrogate models: up to the first with the most. Later ones repeat with fresh seeds."""
    computes = {rung.name: rung.compute for rung in study.rungs}
    most = max(computes.values())
    names = list(computes)
    first = next(i for i, name in enumerate(names) if computes[name] >= most)
    return {name: computes[name] for name in names[: first + 1]}


def _tpe(*, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """Multivariate TPE over the conditional space."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=max(4, min(10, trials // 3)),
            seed=seed,
        )


def _distribution(param: Param) -> BaseDistribution:
    match param:
        case FloatParam():
            return FloatDistribution(param.low, param.high, log=param.log)
        case IntParam():
            return IntDistribution(param.low, param.high, log=param.log, step=param.step)
        case ChoiceParam():
            return CategoricalDistribution(param.options)
    raise UserError(f"unknown parameter kind: {param!r}")
