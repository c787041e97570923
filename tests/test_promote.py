"""Promotion is a pure function: it depends on what is known, not on the order in which it became known."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pgolf_model.config import RunConfig
from search.ledger import TrialRecord
from search.plan import describe, plan
from search.promote import CONTROL, Ask, Done, Promote, Wait, decide, planned_trials, promoted
from search.study import Caps, StudyConfig
from trials.rungs import Rung
from trials.spec import SeedRun, TrialResult, TrialSpec

PROXY = Rung(name="proxy", trials=6, steps=10)
FULL = Rung(name="full", keep=0.34, min_promote=2, steps=100)
STUDY = StudyConfig(name="s", space="tiny", data=("d",), rungs=(PROXY, FULL), caps=Caps(artifact_bytes=1000))


def record(
    number: int, bpb: float | None, *, rung: str = "proxy", size: int = 900, label: str = "", parent: int | None = None,
    status: str = "complete",
) -> TrialRecord:  # fmt: skip
    """A trial; `bpb` None is one that has not ended."""
    spec = TrialSpec(
        study="s", rung=rung, number=number, parent=parent, label=label, params={}, config=RunConfig(), seeds=(1,),
        data_dir="", tokenizer="",
    )  # fmt: skip
    if bpb is None:
        return TrialRecord(spec=spec)
    if status != "complete":
        return TrialRecord(spec=spec, result=TrialResult(status=status))  # type: ignore[arg-type]
    run = SeedRun(
        seed=1, val_bpb=bpb, val_loss=bpb, pre_quant_val_bpb=bpb, model_bytes=size, code_bytes=0, steps=1,
        tokens_seen=1, num_params=1, train_seconds=1, eval_seconds=1, total_seconds=1, peak_memory_bytes=1,
        artifact_sha256="",
    )  # fmt: skip
    return TrialRecord(spec=spec, result=TrialResult(status="complete", runs=(run,)))


def climb(study: StudyConfig, outcome, *, seed: int = 0, slots: int = 3) -> tuple[TrialRecord, ...]:
    """Run a whole study with results arriving in a random order."""
    rng, records, running = random.Random(seed), {}, []
    while True:
        decision = decide(study, tuple(records.values()))
        if isinstance(decision, Done):
            return tuple(records.values())
        if isinstance(decision, Wait) or len(running) == slots:
            key = running.pop(rng.randrange(len(running)))
            records[key] = outcome(records[key])
            continue
        match decision:
            case Ask(rung=rung):
                number = sum(k[0] == rung.name for k in records)
                new = record(number, None, rung=rung.name, label=CONTROL if number == 0 else "")
            case Promote(rung=rung, parent=parent):
                number = sum(k[0] == rung.name for k in records)
                new = record(number, None, rung=rung.name, parent=parent.spec.number, label=parent.spec.label)
        key = (new.spec.rung, new.spec.number)
        assert key not in records
        records[key] = new
        running.append(key)


def test_the_first_rung_is_asked_until_it_is_full() -> None:
    assert decide(STUDY, ()) == Ask(rung=PROXY)
    five = tuple(record(i, None) for i in range(5))
    assert decide(STUDY, five) == Ask(rung=PROXY)
    assert decide(STUDY, (*five, record(5, None))) == Wait()


def test_forecasts_over_the_cap_do_not_use_up_trials() -> None:
    refused = tuple(record(i, 0.0, status="infeasible") for i in range(6))
    assert decide(STUDY, refused) == Ask(rung=PROXY)


def test_nothing_is_promoted_from_an_unsettled_rung() -> None:
    records = (*(record(i, 2.0 + i) for i in range(5)), record(5, None))
    assert decide(STUDY, records) == Wait()


def test_the_best_feasible_go_up_and_the_control_with_them() -> None:
    records = (
        record(0, 9.0, label=CONTROL),
        record(1, 1.0, size=1001),  # the best, and one byte over the cap
        record(2, 3.0),
        record(3, 2.0),
        record(4, 4.0),
        record(5, 0.0, status="diverged"),
    )
    assert [r.spec.number for r in promoted(STUDY, records, below=PROXY, rung=FULL)] == [3, 2, 0]
    assert decide(STUDY, records) == Promote(rung=FULL, parent=records[3])


def test_a_study_without_a_feasible_trial_ends() -> None:
    assert decide(STUDY, tuple(record(i, 1.0, size=2000) for i in range(6))) == Done()


scores = st.lists(st.one_of(st.none(), st.floats(0.5, 9)), min_size=6, max_size=6)


@given(
    scores=scores,
    sizes=st.lists(st.integers(500, 1500), min_size=6, max_size=6),
    seeds=st.tuples(st.integers(), st.integers()),
)
def test_the_order_of_results_changes_nothing(scores, sizes, seeds) -> None:
    def outcome(r: TrialRecord) -> TrialRecord:
        number = r.spec.number
        origin = number if r.spec.parent is None else r.spec.parent
        score = scores[origin]
        status = "complete" if score is not None else "failed"
        return record(
            number, score or 0.0, rung=r.spec.rung, size=sizes[origin], label=r.spec.label,
            parent=r.spec.parent, status=status,
        )  # fmt: skip

    one, two = (climb(STUDY, outcome, seed=s) for s in seeds)
    assert {(r.spec.rung, r.spec.number, r.spec.parent) for r in one} == {
        (r.spec.rung, r.spec.number, r.spec.parent) for r in two
    }
    top = [r for r in one if r.spec.rung == "full"]
    assert len({r.spec.parent for r in top}) == len(top), "nobody is promoted twice"
    assert sum(r.spec.rung == "proxy" for r in one) == PROXY.trials
    assert len(top) <= planned_trials(STUDY)[1]


def test_the_plan_counts_every_seed_to_its_timeout() -> None:
    rungs = (
        Rung(name="proxy", trials=8, seconds=600, gpus=1),
        Rung(name="full", keep=0.25, seconds=600, gpus=8, processes=8, seeds=(1, 2), timeout_seconds=1800),
    )
    study = StudyConfig(name="s", space="tiny", data=("d",), rungs=rungs, dollars_per_gpu_hour=2.0)
    planned = plan(study)
    assert [r.runs for r in planned.rungs] == [8, 6]  # two promoted and the control, two seeds each
    assert planned.rungs[1].worst_gpu_hours == 6 * 8 * 0.5
    assert planned.worst_dollars == 2 * (8 * 2400 / 3600 + 24)
    assert "full" in describe(planned)
