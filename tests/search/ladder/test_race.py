"""Noise is measured, finalists race on paired seeds, and a score too good to be true stops the study."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
from racing import RACE, STUDY
from scipy import stats
from simulated import SPACE, evaluate

from search.ladder.anomaly import too_good
from search.ladder.race import SEEDS, control_seeds, decided_against, noise_floors, paired_differences
from search.simulation.engine import simulate
from search.simulation.trace import Trace, read_spans
from search.study.config import StudyConfig
from search.study.journal import read_journal
from search.study.ledger import CONTROL, TrialRecord, Word, give_verdict, read_records
from search.study.statistics import t_test_p
from trials.rungs import Rung


def test_the_control_runs_several_times_first_and_the_noise_floor_is_theirs() -> None:
    study = replace(STUDY, control_seeds=4)
    trace = simulate(study, evaluate, SPACE)
    first = next(r for r in trace.records if r.spec.trial_id == "proxy/0000")
    assert first.spec.label == CONTROL
    assert first.spec.seeds == control_seeds(study, study.rungs[0]) == SEEDS[:4]
    (floor,) = noise_floors(study, trace.records)
    assert (floor.rung, floor.degrees_of_freedom) == ("proxy", 3)
    assert floor.sd == pytest.approx(stdev(run.val_bpb for run in first.result.runs))
    assert all(len(r.spec.seeds) == 1 for r in trace.records if r is not first)


def test_a_race_ends_for_those_who_are_clearly_worse() -> None:
    """The leader and the control run all seeds, a trial far behind does not; a trial as good as the leader does."""

    def steps(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        rng = random.Random(repr((sorted(params.items()), rung, seed)))
        level = {True: 0.0, False: 0.2}[params["depth"] >= 7]
        return {"val_bpb": 1.0 + level + rng.gauss(0, 0.001), "artifact_bytes": 1.0, "train_seconds": 500.0}

    records = simulate(RACE, steps, SPACE, seed=3).records
    final = [r for r in records if r.spec.rung == "final"]
    behind = [r for r in final if r.result.val_bpb > 1.1]
    near = [r for r in final if r.result.val_bpb < 1.1]
    assert behind, "nothing to decide"
    assert all(len(r.result.runs) == len(r.spec.seeds) for r in final)
    assert all(len(r.spec.seeds) < 6 for r in behind)
    leader = min(near, key=lambda r: r.result.val_bpb)
    assert leader.spec.seeds == SEEDS[:6]
    assert next(r for r in final if r.spec.label == CONTROL).spec.seeds == SEEDS[:6]
    assert sum(len(r.spec.seeds) for r in final) < 6 * len(final)


def test_seeds_are_paired_and_from_the_fixed_list() -> None:
    for r in simulate(RACE, evaluate, SPACE).records:
        assert "seed" not in r.spec.params
        assert r.spec.seeds == SEEDS[: len(r.spec.seeds)]
        assert tuple(run.seed for run in r.result.runs) == r.spec.seeds


def test_the_race_is_a_paired_t_test_with_a_pooled_variance() -> None:
    """Against scipy with two finalists, where pooling changes nothing."""
    records = simulate(RACE, evaluate, SPACE).records
    final = sorted((r for r in records if r.spec.rung == "final"), key=lambda r: r.result.val_bpb)
    leader, other = final[0], next(r for r in final[1:] if len(r.result.runs) == len(final[0].result.runs))
    mine, theirs = ([run.val_bpb for run in r.result.runs] for r in (other, leader))
    expected = stats.ttest_rel(mine, theirs, alternative="greater").pvalue
    d = paired_differences(other, leader)
    assert t_test_p(sum(d) / len(d), stdev(d) / len(d) ** 0.5, len(d) - 1) == pytest.approx(expected)
    assert decided_against(leader, [leader, other])[other.spec.trial_id] == (expected < 0.05)


def leaky(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """An honest bowl, but whoever finds depth 12 has found the leak."""
    found = dict(evaluate(params, rung=rung, fidelity=fidelity, seed=seed))
    if params["depth"] == 12:
        found["val_bpb"] = 0.3
    return found


def simulate_past_leaks(study: StudyConfig, word: Word) -> Trace:
    """On to the end of a study that has stopped, with one verdict on all that is too good: others may find the leak."""
    for _ in range(10):
        for record in read_records(study):
            if record.suspicious:
                give_verdict(study, record.spec.trial_id, word)
        with suppress(ValueError):
            return simulate(study, leaky, SPACE, folder=Path(study.folder))
    raise AssertionError("the study stops again and again")


@pytest.mark.parametrize("word", ["accepted", "rejected"])
def test_a_score_too_good_to_believe_stops_the_study_until_somebody_says_so(tmp_path, word: str) -> None:
    study = replace(STUDY, sampler="tpe", rungs=(replace(STUDY.rungs[0], trials=24), STUDY.rungs[1]))
    with pytest.raises(
        ValueError, match=r"proxy/\d+ is suspicious: val_bpb 0\.3000 is below 0\.9 of .*pgolf judge .* proxy/\d+ accept"
    ):
        simulate(study, leaky, SPACE, folder=tmp_path)
    (stopped,) = [r for r in read_records(replace(study, folder=str(tmp_path))) if r.suspicious]
    trial_id = stopped.spec.trial_id
    assert not stopped.feasible(study.caps)
    began = {span.trial_id for span in read_spans(replace(study, folder=str(tmp_path)))}
    unfinished = {r.spec.trial_id for r in read_records(replace(study, folder=str(tmp_path))) if r.result is None}
    assert not began & unfinished, "what ran has ended"
    assert [e["trial"] for e in read_journal(replace(study, folder=str(tmp_path))) if e["event"] == "suspicious"] == [
        trial_id
    ]
    with pytest.raises(ValueError, match="is suspicious"):
        simulate(study, leaky, SPACE, folder=tmp_path)
    folder = replace(study, folder=str(tmp_path))
    with pytest.raises(ValueError, match="is not suspicious"):
        give_verdict(folder, "proxy/0000", "accepted")
    give_verdict(folder, trial_id, word)
    with pytest.raises(ValueError, match="is not suspicious"):  # a verdict stands
        give_verdict(folder, trial_id, "accepted")
    trace = simulate_past_leaks(folder, word)
    told = next(r for r in trace.records if r.spec.trial_id == trial_id)
    assert told.status == ("complete" if word == "accepted" else "failed")
    parents = {r.spec.parent for r in trace.records if r.spec.rung == "full"}
    assert (told.spec.number in parents) == (word == "accepted")


def test_a_gang_that_waits_when_a_score_is_too_good_does_not_start(tmp_path) -> None:
    """Gangs of eight GPUs wait for two nodes to empty while a proxy finds the leak."""
    rungs = (
        replace(STUDY.rungs[0], trials=40, gpus=1),
        Rung(name="full", keep=0.5, keep_max=0.5, seconds=600, gpus=8, processes=8),
    )
    study = replace(STUDY, sampler="random", rungs=rungs, gpus=16, folder=str(tmp_path))
    with pytest.raises(ValueError, match="is suspicious"):
        simulate(study, leaky, SPACE, folder=tmp_path)
    (when,) = [e["at"] for e in read_journal(study) if e["event"] == "suspicious"]
    spans = read_spans(study)
    assert all(span.start <= when for span in spans)
    waiting = [r.spec.trial_id for r in read_records(study) if r.result is None]
    assert any(trial_id.startswith("full/") for trial_id in waiting), "unfinished, as if never started"
    assert sum(r.suspicious for r in read_records(study)) == 1
    trace = simulate_past_leaks(study, "rejected")
    assert all(r.result is not None for r in trace.records)
    assert set(waiting) <= {span.trial_id for span in trace.spans}


def test_a_good_score_alone_or_among_few_is_no_anomaly() -> None:
    def wide(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        return {"val_bpb": 1.0 + 0.1 * params["x"], "artifact_bytes": 1.0, "train_seconds": 1.0}

    assert not any(r.verdict for r in simulate(STUDY, wide, SPACE).records)


@pytest.mark.parametrize(
    ("low", "high", "score", "stops"),
    [(1.10, 1.20, 0.90, True), (1.10, 1.20, 0.98, False), (2.0, 4.0, 1.6, False), (2.0, 4.0, 0.5, False)],
)
def test_too_good_is_measured_by_how_far_the_others_lie_apart(
    low: float, high: float, score: float, stops: bool
) -> None:
    """2.0 to 4.0 are honest first points of very short runs; there a leap is no leak."""
    done = [r for r in simulate(STUDY, evaluate, SPACE).records if r.spec.rung == "proxy" and r.status == "complete"][
        :9
    ]

    def scored(record: TrialRecord, val_bpb: float) -> TrialRecord:
        runs = tuple(replace(run, val_bpb=val_bpb) for run in record.result.runs)
        return replace(record, result=replace(record.result, runs=runs))

    group = [scored(r, low + (high - low) * i / 7) for i, r in enumerate(done[:8])]
    new = scored(done[8], score)
    assert bool(too_good(STUDY, new, [*group, new])) == stops
    assert not too_good(STUDY, new, [*group[:3], new]), "three others are too few to tell"
