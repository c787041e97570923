"""No limit is ever crossed, whatever runs turn out to cost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladders import record

from pgolf_model.config import RunConfig
from search.ladder.budget import GRACE_SECONDS, account, describe_account, out_of_reach, worst_seconds
from search.ladder.promote import Ask, Done, Promote, Replicate, Wait, decide
from search.preflight.cost import cost_notes, cost_of
from search.study.config import Limits, StudyConfig
from search.study.ledger import TrialRecord
from trials.rungs import Rung
from trials.spec import SeedRun, TrialResult, TrialSpec

RUNGS = (
    Rung(name="proxy", trials=30, seconds=100, gpus=1, timeout_seconds=300),
    Rung(name="full", keep=0.3, seconds=100, gpus=8, processes=8, timeout_seconds=400),
    Rung(
        name="final", keep=0.5, min_promote=2, seconds=100, gpus=8, processes=8, seeds=(1, 2, 3, 4), race_from=2,
        timeout_seconds=400,
    ),
)  # fmt: skip


def make_study(limits: Limits) -> StudyConfig:
    return StudyConfig(name="s", space="tiny", data=("d",), rungs=RUNGS, budget=limits, dollars_per_gpu_hour=2.0)


def start(study: StudyConfig, number: int, rung: Rung, seeds: tuple[int, ...], parent: int | None) -> TrialRecord:
    return TrialRecord(
        spec=TrialSpec(
            study="s", rung=rung.name, number=number, parent=parent, params={}, config=RunConfig(), seeds=seeds,
            data_dir="", tokenizer="", gpus=rung.gpus, timeout_seconds=rung.timeout,
        )
    )  # fmt: skip


def end(record: TrialRecord, rng: random.Random, seconds: float) -> TrialRecord:
    runs = tuple(
        SeedRun(
            seed=s, val_bpb=rng.uniform(1, 2), val_loss=1, pre_quant_val_bpb=1, model_bytes=1, code_bytes=0, steps=1,
            tokens_seen=1, num_params=1, train_seconds=1, eval_seconds=1, total_seconds=1, peak_memory_bytes=1,
            artifact_sha256="",
        )
        for s in record.spec.seeds
    )  # fmt: skip
    return TrialRecord(spec=record.spec, result=TrialResult(status="complete", runs=runs, seconds=seconds))


@settings(max_examples=60)
@given(
    seed=st.integers(),
    gpu_hours=st.floats(0.0, 12.0),
    dollars=st.floats(0.0, 20.0),
    wall=st.floats(0.0, 6000.0),
    trials=st.integers(0, 20),
    reserve=st.floats(0.0, 0.9),
    slots=st.integers(1, 12),
)
def test_no_limit_is_crossed_by_random_costs(seed, gpu_hours, dollars, wall, trials, reserve, slots) -> None:
    """A study simulated with every run taking anything up to its timeout: hours, dollars, clock and trials hold."""
    study = make_study(Limits(gpu_hours=gpu_hours, dollars=dollars, wall_seconds=wall, trials=trials, reserve=reserve))
    rng = random.Random(seed)
    records: dict[tuple[str, int], TrialRecord] = {}
    queue: list[tuple[float, tuple[str, int], float]] = []
    now = 0.0
    while True:
        said = decide(study, tuple(records.values()), elapsed=now)
        if isinstance(said, (Ask, Promote, Replicate)) and len(queue) < slots:
            rung = said.rung
            if isinstance(said, Replicate):
                old = said.trial.spec
                key = (rung.name, old.number)
                seeds, fresh = rung.seeds[: len(old.seeds) + 1], 1
                before = said.trial.result.seconds
                records[key] = start(study, old.number, rung, seeds, old.parent)
            else:
                key = (rung.name, sum(k[0] == rung.name for k in records))
                parent = said.parent.spec.number if isinstance(said, Promote) else None
                before, fresh = 0.0, len(rung.first_seeds)
                records[key] = start(study, key[1], rung, rung.first_seeds, parent)
            lasts = sum(rng.uniform(0, rung.timeout + GRACE_SECONDS) for _ in range(fresh))
            queue.append((now + lasts, key, before + lasts))
            continue
        if isinstance(said, Done):
            break
        queue.sort()
        now, key, seconds = queue.pop(0)
        records[key] = end(records[key], rng, seconds)
        books = account(study, tuple(records.values()), elapsed=now)
        assert books.spent_gpu_hours <= (gpu_hours or 1e9) + 1e-9
        assert books.spent_gpu_hours * 2.0 <= (dollars or 1e9) + 1e-9
        assert now <= (wall or 1e9) + 1e-9
        assert books.trials <= (trials or 10**9)
        assert books.lower_gpu_hours <= (1 - reserve) * books.gpu_hours_limit + 1e-9
    assert not queue


def test_the_books_count_what_ran_what_runs_and_earlier_attempts() -> None:
    study = make_study(Limits(gpu_hours=10, reserve=0.25))
    spec = start(study, 0, RUNGS[0], (1,), None).spec
    ended = end(TrialRecord(spec=spec), random.Random(0), 900.0)
    runs = start(study, 0, RUNGS[1], (1,), 0)
    books = account(study, (ended, runs, record(7, 0.0, status="infeasible")))
    assert books.spent_gpu_hours == 0.25
    assert books.committed_gpu_hours == pytest.approx(8 * (400 + GRACE_SECONDS) / 3600)
    assert books.left_gpu_hours == pytest.approx(10 - 0.25 - books.committed_gpu_hours)
    assert books.trials == 2
    assert "0.25 GPU-hours ($0.50) of 10.00 ($20.00)" in describe_account(books)
    assert worst_seconds(RUNGS[1], 2) == 2 * (400 + GRACE_SECONDS)


def test_the_reserve_is_for_the_top_rung_alone() -> None:
    """Half of an hour is reserved: proxies stop in time, a finalist may still start."""
    study = make_study(Limits(gpu_hours=4, reserve=0.5))
    spent = end(start(study, 0, RUNGS[0], (1,), None), random.Random(0), 2 * 3600.0)
    books = account(study, (spent,))
    assert not books.affords(RUNGS[0], seeds=1, top=False)
    assert books.affords(RUNGS[2], seeds=2, top=True)


def test_a_study_that_cannot_go_on_says_why() -> None:
    study = make_study(Limits(trials=1))
    spent = end(start(study, 0, RUNGS[0], (1,), None), random.Random(0), 10.0)
    said = decide(study, (spent,))
    assert isinstance(said, Done)
    assert "the budget refuses" in said.reason
    assert isinstance(decide(study, (start(study, 0, RUNGS[0], (1,), None),)), Wait)


def test_a_rung_that_the_budget_can_never_reach_is_named_before_anything_is_spent() -> None:
    """One run of the last rung may cost 8 GPUs x its timeout; the reserve is not for those below."""
    timeout = RUNGS[2].timeout + GRACE_SECONDS
    costs = timeout * RUNGS[2].gpus * len(RUNGS[2].first_seeds) / 3600
    assert out_of_reach(make_study(Limits(gpu_hours=costs + 0.01, reserve=0.0))) == ()
    (said,) = out_of_reach(make_study(Limits(gpu_hours=costs - 0.01, reserve=0.0)))
    assert f"rung '{RUNGS[2].name}'" in said
    assert f"({costs:.2f} GPU-hours)" in said
    assert f"warning: {said}" in cost_notes(cost_of(make_study(Limits(gpu_hours=costs - 0.01, reserve=0.0))))
    assert len(out_of_reach(make_study(Limits(wall_seconds=1.0)))) == len(RUNGS)
    assert out_of_reach(make_study(Limits())) == ()
