"""Faults that are nobody's mistake get one more attempt, recorded; the rest stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from racing import RACE
from simulated import SPACE, STUDY, evaluate

from pgolf_model.config import RunConfig
from search.brain.driver import Driver
from search.brain.maker import script_maker
from search.ladder.budget import account
from search.ladder.race import SEEDS
from search.ladder.retry import earlier_result, second_attempt
from search.simulation.engine import simulate
from search.study.config import Caps, Limits, StudyConfig
from search.study.ledger import read_records, trial_dir
from trials.files import write_json
from trials.rungs import Rung
from trials.spec import RESULT_FILE, SCRIPT_FILE, TrialResult, TrialSpec

SPEC = TrialSpec(
    study="s", rung="proxy", number=0, params={}, config=RunConfig(), seeds=(1,), data_dir="", tokenizer=""
)


@pytest.mark.parametrize(
    ("status", "fault", "again"),
    [
        ("failed", "signal", True),
        ("failed", "lost", True),
        ("timeout", "timeout", True),
        ("failed", "script", False),
        ("failed", "", False),
        ("diverged", "", False),
        ("infeasible", "", False),
    ],
)
@pytest.mark.parametrize("error", ["", "ended with signal 9", "CUDA out of memory", "left no result"])
def test_the_fault_decides_what_is_tried_again_and_no_message_does(status, fault, error: str, again: bool) -> None:
    second = second_attempt(SPEC, TrialResult(status=status, fault=fault, error=error, seconds=50.0))
    assert (second is not None) == again
    if second:
        assert second == replace(SPEC, attempt=2, earlier_seconds=50.0)
        assert second_attempt(second, TrialResult(status=status, fault=fault, error=error)) is None, "once"


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_one() -> None:
    """65,536 tokens at once become 32,768; at one sequence there is nothing left to halve."""
    result = TrialResult(status="failed", fault="oom", error="torch.OutOfMemoryError: tried to allocate 2.50 GiB")
    second = second_attempt(SPEC, result)
    assert second.config.train.micro_batch_tokens == 32_768
    assert second.config.train.batch_tokens == SPEC.config.train.batch_tokens
    one = replace(SPEC, config=replace(SPEC.config, train=replace(SPEC.config.train, micro_batch_tokens=1024)))
    assert second_attempt(one, result) is None


def test_the_second_attempt_ships_the_script_it_runs(tmp_path: Path, tiny_data: Path) -> None:
    """The folder keeps the first result beside the second, and the script has the smaller micro batch."""
    study = StudyConfig(
        name="s", space="tiny", data=(str(tiny_data),), rungs=(Rung(name="proxy", trials=2, steps=5),),
        folder=str(tmp_path / "s"), caps=Caps(artifact_bytes=500_000),
    )  # fmt: skip
    driver = Driver(study)
    first = driver.next()
    assert isinstance(first, TrialSpec)
    folder = trial_dir(study, first.trial_id)
    write_json(folder / RESULT_FILE, TrialResult(status="failed", fault="oom", seconds=3.0))
    assert driver.finish(first).status == "failed"
    second = driver.next()
    assert isinstance(second, TrialSpec)
    assert (second.trial_id, second.attempt, second.earlier_seconds) == (first.trial_id, 2, 3.0)
    assert second.config.train.micro_batch_tokens == first.config.train.micro_batch_tokens // 2
    assert (folder / SCRIPT_FILE).read_bytes() == script_maker(study).script(second.config)
    assert earlier_result(folder, 1).exists()
    write_json(folder / RESULT_FILE, TrialResult(status="failed", fault="oom", seconds=3.0))
    driver.finish(second)
    assert driver.next().trial_id != first.trial_id, "recorded as failed"
    (record, _) = read_records(study)
    assert record.status == "failed"


def test_the_books_count_every_gpu_second_of_several_seeds_once() -> None:
    """Finalists run up to six seeds, some of which never end: what the books say is what the cluster was held for."""

    def flaky(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        slow = params["depth"] % 2 and seed in (SEEDS[1], SEEDS[3])
        return evaluate(params, rung=rung, fidelity=fidelity, seed=seed) | ({"train_seconds": 1e9} if slow else {})

    trace = simulate(RACE, flaky, SPACE)
    assert {(r.status, r.spec.attempt) for r in trace.records if r.spec.rung == "final"} >= {("timeout", 2)}
    assert any(r.spec.seeds_done for r in trace.records if r.status == "timeout")
    books = account(trace.study, trace.records)
    assert books.spent_gpu_hours == pytest.approx(trace.gpu_seconds / 3600)


def test_a_second_attempt_that_the_budget_cannot_pay_is_not_made() -> None:
    """Every run times out after 900 s: with money for three runs, three runs are made."""

    def slow(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        return {"val_bpb": 1.0, "artifact_bytes": 1.0, "train_seconds": 1e9}

    rungs = (replace(STUDY.rungs[0], trials=20, timeout_seconds=900),)
    rich = simulate(replace(STUDY, rungs=rungs), slow, SPACE)
    assert {r.spec.attempt for r in rich.records} == {2}
    poor = simulate(replace(STUDY, rungs=rungs, gpus=1, budget=Limits(gpu_hours=3.2 * 905 / 3600)), slow, SPACE)
    assert len(poor.spans) == 3
    assert poor.gpu_seconds <= 3.2 * 905
