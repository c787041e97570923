"""Promotion is a pure function: it depends on what is known, not on the order in which it became known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladders import FULL, PROXY, STUDY, record

from pgolf_model.config import RunConfig
from search.ladder.budget import GRACE_SECONDS, account
from search.ladder.promote import Ask, Done, Promote, Wait, best_places, decide, promotable, ranking
from search.ladder.race import SEEDS
from search.preflight.cost import cost_cells, cost_notes, cost_of
from search.simulation.engine import simulate
from search.study.config import Limits, StudyConfig
from search.study.ledger import CONTROL, TrialRecord
from search.study.statistics import hypervolume
from space.params import FloatParam, Space
from trials.rungs import Rung


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


def test_a_trial_goes_up_as_soon_as_enough_results_are_known() -> None:
    """A third is kept, so the best of three is promoted while the rest have not even been asked for."""
    two = (record(0, 2.0), record(1, 3.0))
    assert decide(STUDY, two) == Ask(rung=PROXY)
    three = (*two, record(2, 1.0))
    assert decide(STUDY, three) == Promote(rung=FULL, parent=three[2])
    started = (*three, record(0, None, rung="full", parent=2))
    assert decide(STUDY, started) == Ask(rung=PROXY), "one of three is all that a third allows"
    better = (*started, record(3, 0.5), record(4, 0.6), record(5, None))
    assert decide(STUDY, better) == Wait()
    six = (*better[:-1], record(5, 0.7))
    assert decide(STUDY, six) == Promote(rung=FULL, parent=six[4]), "0.5 first"


def test_the_control_goes_up_at_once_and_takes_no_place() -> None:
    records = (record(0, 9.0, label=CONTROL), record(1, None))
    assert decide(STUDY, records) == Promote(rung=FULL, parent=records[0])
    records = (*records[:1], record(1, 2.0), record(2, 3.0), record(0, None, rung="full", parent=0))
    assert decide(STUDY, records) == Promote(rung=FULL, parent=records[1])


def settled(study: StudyConfig, records: tuple[TrialRecord, ...]) -> list[int]:
    up = promotable(study, records, (), lower=study.rungs[0], upper=study.rungs[1], settled=True)
    return [r.spec.number for r in up]


def test_of_a_settled_rung_the_best_feasible_go_up_and_the_control_with_them() -> None:
    records = (
        record(0, 9.0, label=CONTROL),
        record(1, 1.0, size=1001),  # the best, and one byte over the cap
        record(2, 3.0),
        record(3, 2.0),
        record(4, 4.0),
        record(5, 0.0, status="diverged"),
    )
    assert settled(STUDY, records) == [3, 2, 0]
    assert decide(STUDY, records) == Promote(rung=FULL, parent=records[3])


def test_a_study_without_a_feasible_trial_ends() -> None:
    assert decide(STUDY, tuple(record(i, 1.0, size=2000) for i in range(6))) == Done()


scores = st.lists(st.one_of(st.none(), st.floats(0.5, 9)), min_size=6, max_size=6)
sizes = st.lists(st.integers(500, 1500), min_size=6, max_size=6)


def fates(scores, sizes):
    """A trial's outcome, fixed by the point it started from."""

    def outcome(r: TrialRecord) -> TrialRecord:
        number = r.spec.number
        origin = number if r.spec.parent is None else r.spec.parent
        score = scores[origin]
        status = "complete" if score is not None else "failed"
        return record(
            number, score or 0.0, rung=r.spec.rung, size=sizes[origin], label=r.spec.label,
            parent=r.spec.parent, status=status,
        )  # fmt: skip

    return outcome


@given(scores=scores, sizes=sizes, seed=st.integers(), slots=st.integers(1, 6))
def test_whatever_order_results_come_in_the_ladder_is_climbed(scores, sizes, seed, slots) -> None:
    """Nobody goes up twice, the settled ranking's best are up at the end, early birds at most double them."""
    end = climb(STUDY, fates(scores, sizes), seed=seed, slots=slots)
    proxies = tuple(r for r in end if r.spec.rung == "proxy")
    parents = [r.spec.parent for r in end if r.spec.rung == "full"]
    assert len(proxies) == PROXY.trials
    assert len(parents) == len(set(parents))
    wanted = settled(STUDY, proxies)
    assert set(wanted) <= set(parents)
    assert len(parents) <= 2 * len(wanted)
    assert all(proxies[p].feasible(STUDY.caps) for p in parents)


@given(scores=scores, sizes=sizes, seed=st.integers(), stop=st.integers(0, 20))
def test_the_order_of_the_records_changes_nothing(scores, sizes, seed, stop) -> None:
    """At any moment of a study, its records in another order lead to the same decision."""
    seen = []
    rng = random.Random(seed)

    def outcome(r: TrialRecord) -> TrialRecord:
        return fates(scores, sizes)(r)

    records: dict[tuple[str, int], TrialRecord] = {}
    for _ in range(stop):
        decision = decide(STUDY, tuple(records.values()))
        shuffled = rng.sample(list(records.values()), len(records))
        assert decide(STUDY, shuffled) == decision
        seen.append(decision)
        running = [k for k, r in records.items() if r.result is None]
        if isinstance(decision, Done):
            break
        if isinstance(decision, Wait) or (running and rng.random() < 0.5):
            key = rng.choice(running)
            records[key] = outcome(records[key])
            continue
        number = sum(k[0] == decision.rung.name for k in records)
        parent = decision.parent.spec.number if isinstance(decision, Promote) else None
        label = CONTROL if (number if parent is None else parent) == 0 else ""
        records[decision.rung.name, number] = record(number, None, rung=decision.rung.name, parent=parent, label=label)


KNOBS = Space(
    name="s",
    params=tuple(FloatParam(name=n, low=0, high=1, tag=t) for n, t in (("a", "scale_free"), ("b", "step_dependent"))),
    make_config=lambda values, vocab_size: RunConfig(),
    control={"a": 0.5, "b": 0.5},
)
points = st.lists(
    st.tuples(st.floats(1, 9), st.integers(100, 1000), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=14
)


@given(points=points, wanted=st.integers(1, 8), better=st.floats(0, 5), question=st.sampled_from(["best", "front"]))
def test_a_better_score_never_costs_a_trial_its_place(points, wanted, better, question) -> None:
    """Whoever goes up would also have gone up with a better score: by rank, by area, and by places for knobs."""
    study = replace(STUDY, question=question)
    trials = [record(i, bpb, size=size, params={"a": a, "b": b}) for i, (bpb, size, a, b) in enumerate(points)]
    for unjudged in ((), KNOBS.params[1:], KNOBS.params):
        chosen = {r.spec.number for r in best_places(study, trials, wanted, unjudged=unjudged)}
        assert len(chosen) == min(wanted, len(trials))
        for number in chosen:
            bpb, size, a, b = points[number]
            improved = list(trials)
            improved[number] = record(number, bpb - better, size=size, params={"a": a, "b": b})
            again = best_places(study, improved, wanted, unjudged=unjudged)
            assert number in {r.spec.number for r in again}


def test_places_for_knobs_that_the_rung_cannot_judge() -> None:
    """Every other place goes to a setting of `b` that nobody chosen has, among the best four for two places."""
    trials = [record(i, 1.0 + i, params={"a": 0.5, "b": b}) for i, b in enumerate((0.1, 0.1, 0.1, 0.9, 0.9, 0.9))]
    assert [r.spec.number for r in best_places(STUDY, trials, 2)] == [0, 1]
    assert [r.spec.number for r in best_places(STUDY, trials, 2, unjudged=KNOBS.params[1:])] == [0, 3]
    up = promotable(STUDY, trials, (), lower=PROXY, upper=FULL, settled=True, space=KNOBS)
    assert 3 in {r.spec.number for r in up}, "10 steps cannot judge a step-dependent knob for 100"


@given(points=points)
def test_the_front_question_takes_the_best_score_and_then_what_adds_area(points) -> None:
    """The first layer comes before everything it dominates, and its order is that of the area each alone adds."""
    study = replace(STUDY, question="front")
    trials = [record(i, bpb, size=size) for i, (bpb, size, _, _) in enumerate(points)]
    order = ranking(study, trials, len(trials))
    assert order[0].result.val_bpb == min(p[0] for p in points)
    assert sorted(r.spec.number for r in order) == list(range(len(points)))
    rest = order[1:]
    pairs = [(r.result.artifact_bytes, r.result.val_bpb) for r in rest]
    front = [
        not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs) for p in pairs
    ]  # brute force; equal points do not beat each other
    assert front == sorted(front, reverse=True)
    layer = pairs[: sum(front)]
    corner = (1000.0, max(p[0] for p in points))
    whole = hypervolume(layer, corner)
    added = [whole - hypervolume([q for j, q in enumerate(layer) if j != i], corner) for i in range(len(layer))]
    if len(set(layer)) == len(layer) and len(points) > 2:
        assert added == sorted(added, reverse=True) or added == pytest.approx(sorted(added, reverse=True), abs=1e-6)


def test_the_plan_counts_every_seed_to_its_timeout() -> None:
    rungs = (
        Rung(name="proxy", trials=8, seconds=600, gpus=1),
        Rung(name="full", keep=0.25, seconds=600, gpus=8, processes=8, seeds=(1, 2), timeout_seconds=1800),
    )
    study = StudyConfig(name="s", space="tiny", data=("d",), rungs=rungs, dollars_per_gpu_hour=2.0)
    cost = cost_of(study)
    assert [r.runs for r in cost.rungs] == [8, 6]  # two promoted and the control, two seeds each
    assert [r.most_trials for r in cost.rungs] == [8, 5]  # two promoted early and both overtaken, and the control
    assert cost.rungs[1].worst_gpu_hours == pytest.approx(5 * (2 + 1) * 8 * 1805 / 3600)
    assert cost.worst_dollars == pytest.approx(2 * (8 * 2 * 2405 + 5 * 3 * 8 * 1805) / 3600)
    assert cost_of(replace(study, budget=Limits(gpu_hours=30))).worst_gpu_hours == 30
    assert [row[0] for row in cost_cells(cost)] == ["rung", "proxy", "full"]
    assert cost_notes(cost_of(replace(study, budget=Limits(gpu_hours=30))))[0].endswith(
        "; the budget allows 30.0, $60.00"
    )


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    trials=st.integers(1, 9),
    keep=st.sampled_from((0.1, 0.34, 0.5, 1.0)),
    min_promote=st.integers(0, 3),
    num_seeds=st.integers(1, 4),
    race=st.booleans(),
    control=st.booleans(),
    control_seeds=st.integers(1, 3),
    sampler=st.sampled_from(("random", "surrogate")),
    trouble=st.floats(0, 1),
    gpu_hours=st.sampled_from((0.0, 20.0, 100.0)),
)
def test_no_study_costs_more_than_its_dry_run_says(
    seed, trials, keep, min_promote, num_seeds, race, control, control_seeds, sampler, trouble, gpu_hours
) -> None:
    """Whatever fails, times out or is overtaken: neither the books nor the simulated cluster show more, on any rung."""
    upper = {"keep": keep, "min_promote": min_promote, "seconds": 590, "timeout_seconds": 700}
    rungs = (
        Rung(name="proxy", trials=trials, seconds=590, gpus=1, timeout_seconds=700),
        Rung(name="full", gpus=4, processes=4, **upper),
        Rung(name="top", gpus=8, processes=8, seeds=SEEDS[:num_seeds], race_from=min(2, num_seeds) * race, **upper),
    )
    study = StudyConfig(
        name="s", space="tiny", data=("d",), rungs=rungs, control=control, control_seeds=control_seeds,
        sampler=sampler, anomaly_ratio=0.0, gpus=24, budget=Limits(gpu_hours=gpu_hours),
    )  # fmt: skip

    def evaluate(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        rng = random.Random(repr((sorted(params.items()), rung, seed)))
        if rng.random() < trouble / 4:
            raise MemoryError("out of memory")
        late = rng.random() < trouble
        return {
            "val_bpb": rng.random() + 1,
            "artifact_bytes": 1.0,
            "train_seconds": 1e9 if late else 700 * rng.random(),
        }

    trace = simulate(study, evaluate, KNOBS.params, seed=seed)
    cost = cost_of(trace.study)
    assert trace.gpu_seconds / 3600 <= cost.worst_gpu_hours + 1e-9
    assert account(trace.study, trace.records).spent_gpu_hours == pytest.approx(trace.gpu_seconds / 3600)
    for rung in cost.rungs:
        mine = [r for r in trace.records if r.spec.rung == rung.name]
        assert len(mine) <= rung.most_trials
        assert account(trace.study, mine).spent_gpu_hours <= rung.worst_gpu_hours + 1e-9


def test_a_study_of_nothing_but_timeouts_costs_what_its_dry_run_says() -> None:
    """The bound is reached, but for the seconds that a worker may take to stop a run."""
    rungs = (Rung(name="a", trials=5, seconds=9, gpus=2, processes=2),)
    study = StudyConfig(name="s", space="tiny", data=("d",), rungs=rungs)
    late = {"val_bpb": 1.0, "artifact_bytes": 1.0, "train_seconds": 1e9}
    trace = simulate(study, lambda params, *, rung, fidelity, seed: late, KNOBS.params)
    (rung,) = study.rungs
    share = rung.timeout / (rung.timeout + GRACE_SECONDS)
    assert trace.gpu_seconds / 3600 == pytest.approx(cost_of(study).worst_gpu_hours * share)
