"""Studies that are killed again and again, and what must hold of them."""

from __future__ import annotations

from pathlib import Path

import optuna

from search.study.config import load_study
from search.study.ledger import read_records
from space.params import ChoiceParam, FloatParam, IntParam

SPACE = (
    FloatParam(name="x", low=0.0, high=1.0, tag="scale_free"),
    FloatParam(name="lr", low=1e-3, high=1e-1, log=True, tag="step_dependent"),
    IntParam(name="depth", low=2, high=12, tag="throughput_dependent"),
    ChoiceParam(name="kind", options=("a", "b"), tag="scale_free"),
)


def assert_told_once(folder: Path) -> None:
    """Optuna holds every trial once, with the score of its folder."""
    study = load_study(str(folder))
    records = read_records(study)
    for rung in study.rungs:
        told = optuna.load_study(study_name=f"{study.name}/{rung.name}", storage=study.storage_url)
        mine = {r.spec.number: r for r in records if r.spec.rung == rung.name}
        assert all(t.state.is_finished() for t in told.trials)
        for trial in told.trials:
            if trial.number in mine and mine[trial.number].status == "complete":
                assert trial.values == [mine[trial.number].result.val_bpb]
            elif trial.number not in mine:
                assert trial.state == optuna.trial.TrialState.FAIL
        assert mine.keys() <= {t.number for t in told.trials}
