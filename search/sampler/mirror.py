"""The Optuna studies of a search as a mirror of its trial folders: opened, brought in line, told how trials ended.

One Optuna study per rung (`NAME/proxy`, `NAME/full`) in one storage, so that optuna-dashboard and `load_study` work
on them as they are. The folders are the truth: a storage that was lost is written anew from them.

Optuna 5.0, as it behaves when run: a trial's constraints can be set once, before it is told, with the same keys in the
same order for all trials; NaN told as a value is a failure; TPE learns from a trial that never ran when it is told as
PRUNED with a constraint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from pgolf_model.errors import UserError
from search.sampler.storage import open_storage
from search.study.config import Caps, StudyConfig
from search.study.ledger import TrialRecord
from space.params import FloatParam, IntParam, Param, Scalar

FOLDER_ATTR = "folder"  # of an Optuna study: the trial folders it mirrors
ORIGIN_ATTR = "origin"  # of an Optuna trial that the sampler did not choose: where it came from


def open_studies(study: StudyConfig) -> dict[str, optuna.Study]:
    """The Optuna study of every rung, created where there is none.

    Raises:
        UserError: a study of that name has other objectives, or mirrors another folder.
    """
    directions = [StudyDirection.MINIMIZE] * (1 if study.question == "best" else 2)
    storage = open_storage(study.storage_url)
    studies: dict[str, optuna.Study] = {}
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
        studies[rung.name] = opened
    return studies


def reconcile(
    studies: Mapping[str, optuna.Study], params: Sequence[Param], caps: Caps, records: Sequence[TrialRecord]
) -> dict[str, int]:
    """Bring every rung's Optuna study in line with the folders after anything was killed.

    A folder that the storage does not know, as after the storage was lost, is entered again. A result that was not
    told yet is told, once.

    Returns:
        rung -> the number of a trial that was entered and whose folder was never written; at most one per rung.
    """
    unstarted: dict[str, int] = {}
    for rung, study in studies.items():
        mine = {r.spec.number: r for r in records if r.spec.rung == rung}
        for trial in study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.number not in mine:
                if rung in unstarted:
                    drop(study, unstarted[rung])
                unstarted[rung] = trial.number
        known = study.get_trials(deepcopy=False)
        for number in range(len(known), max(mine, default=-1) + 1):
            if number in mine:
                _enter_again(study, params, caps, mine[number])
            else:
                study.add_trial(create_trial(state=TrialState.FAIL))
        for number, record in mine.items():
            if record.result is not None and number < len(known) and not known[number].state.is_finished():
                tell(study, caps, record)
    return unstarted


def tell(study: optuna.Study, caps: Caps, record: TrialRecord) -> None:
    """Report how a trial of this rung ended; telling one that is already told changes nothing."""
    if record.result is None:
        raise UserError(f"trial {record.spec.trial_id} has no result to tell")
    frozen = study.get_trials(deepcopy=False)[record.spec.number]
    if frozen.state.is_finished():
        return
    trial = optuna.trial.Trial(study, frozen._trial_id)
    for key, excess in constraints(caps, record).items():
        if key not in frozen.constraints:
            trial.set_constraint(key, excess)
    for key, value in _summary(record).items():
        trial.set_user_attr(key, value)
    state, values = _ending(study, record)
    study.tell(record.spec.number, values, state=state)


def is_told(study: optuna.Study, record: TrialRecord) -> bool:
    """Whether the storage knows how the trial ended."""
    trials = study.get_trials(deepcopy=False)
    return record.spec.number < len(trials) and trials[record.spec.number].state.is_finished()


def drop(study: optuna.Study, number: int) -> None:
    """End a trial that will not run: nothing is learnt from it."""
    study.tell(number, state=TrialState.FAIL)


def constraints(caps: Caps, record: TrialRecord) -> dict[str, float]:
    """Relative excess over each cap: measured where a trial completed, forecast where it did not."""
    spec, result = record.spec, record.result
    if result is not None and result.status == "complete":
        return caps.measured(result)
    late = 2 * caps.train_seconds if result is not None and result.status == "timeout" else 0.0
    return caps.violations(artifact_bytes=spec.predicted_bytes, train_seconds=late, eval_seconds=0.0)


def distribution(param: Param) -> BaseDistribution:
    """Optuna's word for a parameter's values."""
    if isinstance(param, FloatParam):
        return FloatDistribution(param.low, param.high, log=param.log)
    if isinstance(param, IntParam):
        return IntDistribution(param.low, param.high, log=param.log, step=param.step)
    return CategoricalDistribution(param.options)


def distributions(params: Sequence[Param], point: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
    """The distributions of the parameters that a point has."""
    return {param.name: distribution(param) for param in params if param.name in point}


def _enter_again(study: optuna.Study, params: Sequence[Param], caps: Caps, record: TrialRecord) -> None:
    """Enter a trial that the storage has lost, with its result where there is one; one atomic write.

    Not first as running and then told: Optuna reads everything unfinished again at every call, so thousands of
    trials would take hours.
    """
    known = record.result is not None
    state, values = _ending(study, record)
    study.add_trial(
        create_trial(
            state=state,
            values=values,
            params=dict(record.spec.params),
            distributions=distributions(params, record.spec.params),
            user_attrs={ORIGIN_ATTR: "recovered"} | (_summary(record) if known else {}),
            constraints=constraints(caps, record) if known else None,
        )
    )


def _ending(study: optuna.Study, record: TrialRecord) -> tuple[TrialState, list[float] | None]:
    """Optuna's state for the end of a trial, and the values that it measured."""
    result = record.result
    if result is None:
        return TrialState.RUNNING, None
    if result.status == "complete":
        return TrialState.COMPLETE, [result.val_bpb, float(result.artifact_bytes)][: len(study.directions)]
    return (TrialState.FAIL if result.status == "failed" else TrialState.PRUNED), None


def _summary(record: TrialRecord) -> dict[str, Scalar]:
    """User attributes of a told trial: what optuna-dashboard shows beside the value, and what the surrogate reads."""
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
