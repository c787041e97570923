"""From a point of the space and a rung to the trial that runs there: its seeds, its script, its forecast of bytes.

Pure functions: nothing is written here (`known_trials` does that), and the same arguments give the same trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from search.brain.maker import Made, Maker
from search.ladder.byte_correction import Sizes, corrected
from search.ladder.promote import ByRung
from search.ladder.race import control_seeds
from search.study.config import StudyConfig
from search.study.ledger import CONTROL
from space.params import Scalar
from trials.rungs import Rung
from trials.spec import TrialSpec


def new_trial(
    study: StudyConfig,
    maker: Maker,
    at: ByRung,
    *,
    rung: Rung,
    number: int,
    params: Mapping[str, Scalar],
    label: str = "",
    parent: int | None = None,
    git_commit: str = "",
) -> tuple[TrialSpec, bytes]:
    """The spec of a new trial and the script that it runs (empty where nothing is trained).

    Args:
        at: the study's records by rung; their measured bytes correct the forecast.
        label: the name of a point that the sampler did not choose.
        parent: the number of the trial at the rung below that this one repeats; None for a new point.
    """
    seeds = rung.first_seeds
    if label == CONTROL and rung == study.rungs[0]:
        seeds = control_seeds(study, rung)
    made = maker.make(rung, params, seeds[0])
    general = (made.predicted_low, made.predicted_bytes, made.predicted_high)
    low, central, high = _forecast(study, at, rung, made, promoted=parent is not None)
    spec = TrialSpec(
        study=study.name,
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
        git_commit=git_commit,
        predicted_bytes=central,
        predicted_low=low,
        predicted_high=high,
        general_forecast=() if general == (low, central, high) else general,
    )
    return spec, made.script


def with_resources_of_today(spec: TrialSpec, rung: Rung) -> TrialSpec:
    """The spec with the cores, GPUs and time that its rung has now: they may have changed since it was written."""
    return replace(spec, cpus=rung.cpus, gpus=rung.gpus, timeout_seconds=rung.timeout)


def with_next_seed(spec: TrialSpec, rung: Rung) -> TrialSpec:
    """The spec of a trial that has run all its seeds, with the rung's next one; finished seeds are kept."""
    done = len(spec.seeds)
    return replace(spec, seeds=rung.seeds[: done + 1], seeds_done=done)


def _forecast(study: StudyConfig, at: ByRung, rung: Rung, made: Made, *, promoted: bool) -> Sizes:
    """Low, central and high artifact bytes, corrected by what the study's finished runs came out at.

    The corrected forecast may refuse a promotion. It may not refuse a new point that the general forecast lets in:
    the sampler knows only the general one, so it would not learn why and would propose similar points again and again.
    """
    general = (made.predicted_low, made.predicted_bytes, made.predicted_high)
    low, central, high = corrected(general, at, rung=rung.name, target_bytes=made.config.quant.target_bytes)
    cap = study.caps.artifact_bytes
    if not promoted and general[1] <= cap:
        central = min(central, cap)
    return min(low, central), central, high
