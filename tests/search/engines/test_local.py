"""The local engine gives every trial its own share of the machine and nothing of anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest
from quick_trials import QuickMaker

from search.brain.driver import Driver
from search.engines.events import Finished, Started
from search.engines.local import run_local
from search.engines.machine import Machine, this_machine, worker_environment
from search.study.config import StudyConfig
from search.study.ledger import trial_dir
from trials.rungs import Rung


@pytest.mark.parametrize(
    ("visible", "ids"),
    [("4,5", ("4", "5")), ("", ()), ("-1", ()), ("2,-1,3", ("2",)), (" GPU-ab , 1", ("GPU-ab", "1"))],
)
def test_only_visible_gpus_are_used_and_under_their_own_names(
    monkeypatch: pytest.MonkeyPatch, visible: str, ids: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = this_machine(cpus=4)
    assert machine.gpu_ids == ids
    assert this_machine(cpus=4, gpus=1).gpu_ids == ids[:1]
    if ids:
        assert worker_environment(machine.gpu_ids[:1])["CUDA_VISIBLE_DEVICES"] == ids[0]


def test_every_trial_sees_its_own_gpus_and_never_more_than_there_is(tmp_path: Path) -> None:
    """Halves of GPUs 7 and GPU-ab, then whole ones: read from the workers' own environment."""
    rungs = (Rung(name="half", trials=4, steps=1, gpus=0.5), Rung(name="whole", min_promote=2, steps=2, gpus=1))
    study = StudyConfig(
        name="gpus",
        space="tiny",
        data=("none",),
        rungs=rungs,
        sampler="random",
        anomaly_ratio=0.0,
        folder=str(tmp_path),
    )
    seen: dict[str, str] = {}
    at_once: set[str] = set()
    for event in run_local(Driver(study, QuickMaker()), Machine(cpus=16, gpu_ids=("7", "GPU-ab"))):
        if isinstance(event, Started):
            at_once.add(event.spec.trial_id)
            assert sum(0.5 if name.startswith("half") else 1 for name in at_once) <= 2
        if isinstance(event, Finished):
            at_once.discard(event.spec.trial_id)
            name = event.spec.trial_id
            seen[name] = (trial_dir(study, name) / "gpus.txt").read_text()
    assert len(seen) >= 6
    assert set(seen.values()) <= {"7", "GPU-ab"}, "one GPU each, whole or half"
