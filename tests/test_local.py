"""The local engine gives every trial its own share of the machine and nothing of anybody else's."""

from __future__ import annotations

import pytest

from pgolf_model.config import RunConfig
from search.local import Machine, _fits, _free_gpus, _Running, this_machine, worker_environment
from trials.spec import TrialSpec


def spec(gpus: float, cpus: float = 1) -> TrialSpec:
    return TrialSpec(
        study="s", rung="r", number=0, params={}, config=RunConfig(), seeds=(1,), data_dir="", tokenizer="",
        gpus=gpus, cpus=cpus,
    )  # fmt: skip


def running(gpus: float, *gpu_ids: str, cpus: float = 1) -> _Running:
    return _Running(spec=spec(gpus, cpus), process=None, gpu_ids=gpu_ids)  # type: ignore[arg-type]


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
        chosen = _free_gpus(spec(1), [], machine)
        assert worker_environment(chosen)["CUDA_VISIBLE_DEVICES"] == ids[0]


def test_fractions_fill_a_gpu_before_they_open_the_next() -> None:
    """So that a gang finds whole ones."""
    machine = Machine(cpus=16, gpu_ids=("a", "b"))
    assert _free_gpus(spec(0.25), [running(0.25, "b")], machine) == ("b",)
    assert _free_gpus(spec(0.5), [running(0.75, "b")], machine) == ("a",)
    assert _free_gpus(spec(2), [running(0.25, "b")], machine) == ()
    assert _free_gpus(spec(2), [], machine) == ("a", "b")


def test_nothing_starts_beyond_the_cores() -> None:
    machine = Machine(cpus=2)
    assert _fits(spec(0), [running(0)], machine)
    assert not _fits(spec(0), [running(0), running(0)], machine)
    assert not _fits(spec(0, cpus=2), [running(0, cpus=0.5)], machine)
    assert not _fits(spec(1), [], machine), "no GPU, no GPU trial"
