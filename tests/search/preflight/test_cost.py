"""A dry run says what a study may cost in what it will be paid with: GPU-hours, or core-hours and time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.engines.machine import this_machine
from search.ladder.budget import GRACE_SECONDS
from search.preflight.cost import StudyCost, cost_cells, cost_notes, cost_of
from search.study.config import Limits, StudyConfig, load_study
from trials.rungs import Rung

RUNGS = (
    Rung(name="proxy", trials=5, steps=10, cpus=2.0, timeout_seconds=300.0 - GRACE_SECONDS),
    Rung(name="full", keep=0.5, steps=30, cpus=4.0, timeout_seconds=900.0 - GRACE_SECONDS),
)
STUDY = StudyConfig(name="s", space="tiny", data=("d",), rungs=RUNGS, cpus=4.0)


def told(cost: StudyCost) -> str:
    """All that a dry run says."""
    return "\n".join([*map(" ".join, cost_cells(cost)), *cost_notes(cost)])


def test_a_study_on_cpus_is_told_in_core_hours_and_minutes() -> None:
    """Five trials of two runs of 300 s, two at a time: three rounds. Above it one at a time, two runs of 900 s each."""
    cost = cost_of(STUDY)
    proxy, full = cost.rungs
    assert proxy.worst_core_hours == pytest.approx(5 * 2 * 300 * 2 / 3600)
    assert proxy.worst_wall_seconds == pytest.approx(3 * 2 * 300)
    assert full.worst_wall_seconds == pytest.approx(full.most_trials * 2 * 900)
    assert cost.worst_wall_seconds == proxy.worst_wall_seconds + full.worst_wall_seconds
    text = told(cost)
    assert "GPU" not in text
    assert "$" not in text
    assert cost_cells(cost)[1][-2:] == ["1.67", "30 min"]
    assert f"{cost.worst_core_hours:.1f} core-hours, " in text
    assert " on 4 cores\nbudget: no limit" in text


def test_a_study_that_names_no_cores_is_told_for_this_machine() -> None:
    """More cores never take longer."""
    here, four, eight = (cost_of(replace(STUDY, cpus=cores)) for cores in (0.0, 4.0, 8.0))
    assert here.cores == this_machine().cpus
    assert eight.worst_wall_seconds < four.worst_wall_seconds
    assert eight.worst_core_hours == four.worst_core_hours


def test_a_study_with_a_gpu_at_any_rung_is_told_in_gpu_hours_and_dollars() -> None:
    """Also where proxies run on CPUs."""
    mixed = replace(STUDY, rungs=(RUNGS[0], replace(RUNGS[1], gpus=1.0)))
    for study in (load_study("8xh100.toml"), mixed):
        text = told(cost_of(study))
        assert cost_cells(cost_of(study))[0][-2:] == ["worst GPU-h", "worst $"]
        assert "core-h" not in text


def test_the_limits_are_named() -> None:
    """In the order of the file."""
    limits = Limits(gpu_hours=3.0, dollars=9.0, wall_seconds=7200.0, trials=5, reserve=0.25)
    said = cost_notes(cost_of(replace(STUDY, budget=limits)))[-1]
    assert said == "budget: 3 GPU-hours, $9.00, 2 hours a launch, 5 trials; 25% only for the top rung"
