"""Ask and tell: which point comes next, at which rung. With its neighbours `mirror` and `storage`, all of Optuna.

What is asked depends on the study's seed and on what is known, not on the process that asks: the successor of a killed
driver gets the very point that its predecessor would have got.
"""

from __future__ import annotations

import functools
import math
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar, cast

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from pgolf_model.errors import UserError
from search.sampler import mirror
from search.sampler.mirror import ORIGIN_ATTR, distribution, distributions
from search.sampler.surrogate_sampler import Advice, SurrogateSampler
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord
from search.surrogate.byte_model import PredictBytes
from space.params import Scalar, Space

P = ParamSpec("P")
R = TypeVar("R")


def _names_the_storage(method: Callable[Concatenate[Sampler, P], R]) -> Callable[Concatenate[Sampler, P], R]:
    """The method, whose storage errors become one line with the cause; the trial folders lose nothing by them."""

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
    """The Optuna studies of one search, asked for points and told results by the brain alone.

    An *unstarted* trial is one that was entered in the storage and whose folder was never written, because the driver
    was killed in between. The next ask or add at its rung takes it up; until then the model ignores it.
    """

    @_names_the_storage
    def __init__(self, study: StudyConfig, space: Space, *, predict_bytes: PredictBytes | None = None) -> None:
        """Open or create the storage.

        Args:
            predict_bytes: artifact bytes of a configuration, where they can be known without a run.
        Raises:
            UserError: the storage cannot be opened, is locked (any method can find that), holds a study with other
                objectives, or one that belongs to another folder.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._study = study
        self._studies = mirror.open_studies(study)
        self._unstarted: dict[str, int] = {}  # rung -> number
        self._surrogate = self._open_surrogate(predict_bytes)

    def _open_surrogate(self, predict_bytes: PredictBytes | None) -> SurrogateSampler | None:
        """One model for all rungs, where the study wants it. It seeks the best score under one cap, so no front."""
        if self._study.sampler != "surrogate" or self._study.question == "front":
            return None
        computes = modelled_rungs(self._study)
        return SurrogateSampler(
            self._space.params,
            {rung: self._studies[rung] for rung in computes},
            computes,
            cap_bytes=self._study.caps.artifact_bytes,
            predict_bytes=predict_bytes,
            seed=self._study.seed,
            folder=self._study.dir,
        )

    @_names_the_storage
    def advise(self, *, starts: Sequence[str], climbs: Sequence[str], remaining: float = math.inf) -> Advice | None:
        """What the model would start next, for a study whose sampler has one; see `SurrogateSampler.advise`.

        Other samplers have no opinion on rungs and answer None.
        """
        if self._surrogate is None:
            return None
        return self._surrogate.advise(
            starts=starts, climbs=climbs, remaining=remaining, hidden=frozenset(self._unstarted.items())
        )

    @_names_the_storage
    def next_number(self, rung: str) -> int:
        """The number of the trial that is asked for or added next."""
        return self._unstarted.get(rung, len(self._studies[rung].get_trials(deepcopy=False)))

    @_names_the_storage
    def ask(self, rung: str) -> tuple[int, dict[str, Scalar]]:
        """A new point: its trial number and every active parameter of the space.

        All values are drawn in one go, whatever a killed predecessor had already entered of them, so that the same
        trial gets the same point. (Optuna's `Trial.suggest_*` would skip the draws of entered ones.)
        """
        study = self._studies[rung]
        number = self._unstarted.pop(rung, None)
        if number is not None and ORIGIN_ATTR in study.get_trials(deepcopy=False)[number].user_attrs:
            mirror.drop(study, number)
            number = None
        if number is None:
            study.add_trial(create_trial(state=TrialState.RUNNING))
        trial = study.get_trials(deepcopy=False)[-1 if number is None else number]
        sampler = self._optuna_sampler(trial.number)
        proposed = self._propose(rung, study, trial, sampler)
        values: dict[str, Scalar] = {}
        for param in self._space.params:
            if param.active(values):
                kind = distribution(param)
                value = proposed.get(param.name)
                if value is None or not kind._contains(kind.to_internal_repr(value)):
                    value = sampler.sample_independent(study, trial, param.name, kind)
                study._storage.set_trial_param(trial._trial_id, param.name, kind.to_internal_repr(value), kind)
                values[param.name] = cast(Scalar, value)
        return trial.number, values

    def _propose(
        self, rung: str, study: optuna.Study, trial: FrozenTrial, sampler: optuna.samplers.BaseSampler
    ) -> Mapping[str, Scalar]:
        """The values that are chosen together; what is missing is drawn parameter by parameter."""
        if self._surrogate is not None:
            hidden = frozenset({*self._unstarted.items(), (rung, trial.number)})
            return self._surrogate.new_point(rung, hidden=hidden)
        return sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))

    def _optuna_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """What draws trial `number`: the same for a killed driver's successor, another seed from trial to trial.

        (A resumed Optuna sampler with one seed for all trials would repeat its points.)
        """
        seed = (self._study.seed * 1_000_003 + number) % 2**32
        if self._study.sampler == "random" or self._surrogate is not None:
            return optuna.samplers.RandomSampler(seed=seed)
        return _tpe(seed=seed, trials=self._study.rungs[0].trials)

    @_names_the_storage
    def add(self, rung: str, params: Mapping[str, Scalar], *, origin: str) -> int:
        """Enter a point the sampler did not choose (a promotion, the control); one atomic write. Returns its number."""
        study = self._studies[rung]
        number = self._unstarted.pop(rung, None)
        if number is not None:
            if study.get_trials(deepcopy=False)[number].user_attrs.get(ORIGIN_ATTR) == origin:
                return number
            mirror.drop(study, number)
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(params),
                distributions=distributions(self._space.params, params),
                user_attrs={ORIGIN_ATTR: origin},
            )
        )
        return study.get_trials(deepcopy=False)[-1].number

    @_names_the_storage
    def forget(self, rung: str, number: int) -> None:
        """Drop a point that was asked for and will not be tried: nothing ran, nothing is learnt."""
        mirror.drop(self._studies[rung], number)

    @_names_the_storage
    def is_told(self, record: TrialRecord) -> bool:
        """Whether the storage knows how the trial ended."""
        return mirror.is_told(self._studies[record.spec.rung], record)

    @_names_the_storage
    def tell(self, record: TrialRecord) -> None:
        """Report how a trial ended; telling one that is already told changes nothing."""
        mirror.tell(self._studies[record.spec.rung], self._study.caps, record)

    @_names_the_storage
    def reconcile(self, records: tuple[TrialRecord, ...]) -> None:
        """Bring the storage in line with the folders after anything was killed; see `mirror.reconcile`."""
        self._unstarted = mirror.reconcile(self._studies, self._space.params, self._study.caps, records)


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
