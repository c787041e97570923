"""A simulated study is a real study whose seconds pass on paper: same brain, same folders, same ending after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from simulated import SPACE, STUDY, evaluate
from traces import best_by_gpu_seconds, idle, idle_while_queued

from search.look.status import study_status
from search.simulation.bare_space import bare_space
from search.simulation.engine import simulate
from search.simulation.trace import read_spans
from search.simulation.world import load_world
from search.study.config import Caps, load_study
from search.study.ledger import read_records
from space.params import ChoiceParam, FloatParam, When
from trials.rungs import Rung


def outcomes(records) -> set[tuple[str, str, float]]:
    return {(r.spec.trial_id, repr(sorted(r.spec.params.items())), r.result.val_bpb) for r in records}


def test_the_same_seed_simulates_the_same_study_and_another_seed_another() -> None:
    one, two, other = (simulate(STUDY, evaluate, SPACE, seed=seed) for seed in (1, 1, 2))
    assert outcomes(one.records) == outcomes(two.records) != outcomes(other.records)
    assert one.spans == two.spans


def test_fidelity_is_the_share_of_the_top_rungs_compute() -> None:
    seen: dict[str, set[float]] = {}

    def spy(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        seen.setdefault(rung, set()).add(fidelity)
        return evaluate(params, rung=rung, fidelity=fidelity, seed=seed)

    simulate(STUDY, spy, SPACE)
    assert seen == {"proxy": {1 / 8}, "full": {1.0}}
    steps = (Rung(name="a", trials=1, steps=50, batch_tokens=2048), Rung(name="b", steps=200, batch_tokens=4096))
    assert replace(STUDY, rungs=steps).fidelity(steps[0]) == 1 / 8


def test_no_moment_uses_more_than_the_cluster_has() -> None:
    trace = simulate(STUDY, evaluate, SPACE)
    gpus = {r.spec.trial_id: r.spec.gpus for r in trace.records}
    for moment in {s.start for s in trace.spans}:
        assert sum(gpus[s.trial_id] for s in trace.spans if s.start <= moment < s.end) <= 16
        for span in (s for s in trace.spans if s.start <= moment < s.end):
            assert len(set(span.gpu_ids)) == len(span.gpu_ids) == gpus[span.trial_id]
        held = [(s.node, gpu) for s in trace.spans if s.start <= moment < s.end for gpu in s.gpu_ids]
        assert len(set(held)) == len(held), "two trials on one GPU"
        assert set(held) <= {(node, gpu) for node in ("0", "1") for gpu in range(8)}
    assert 0 <= idle_while_queued(trace, 16) <= idle(trace, 16) + 1e-9 < 1
    assert all(s.asked <= s.start for s in trace.spans)
    assert trace.gpu_seconds == pytest.approx(sum(r.result.seconds * r.spec.gpus for r in trace.records))


def test_the_trace_knows_what_was_spent_when_the_best_was_found() -> None:
    trace = simulate(STUDY, evaluate, SPACE)
    found = best_by_gpu_seconds(trace)
    scores = [r.result.val_bpb for _, r in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == min(r.result.val_bpb for r in trace.records if r.spec.rung == "full")
    assert 0 < found[0][0] <= found[-1][0] <= trace.gpu_seconds


def test_a_score_that_is_no_number_and_an_exception_are_results() -> None:
    def shaky(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        if params["depth"] == 7:  # the control's
            return evaluate(params, rung=rung, fidelity=fidelity, seed=seed)
        if params["depth"] > 7:
            raise RuntimeError("shape mismatch")
        return {"val_bpb": math.nan, "artifact_bytes": 1.0, "train_seconds": 10.0}

    records = simulate(STUDY, shaky, SPACE).records
    assert {r.status for r in records} == {"complete", "failed", "diverged"}
    failed = next(r.result for r in records if r.status == "failed")
    assert "evaluate raised RuntimeError: shape mismatch" in failed.error
    assert {r.spec.params["depth"] for r in records if r.spec.rung == "full"} == {7}, "only what completed goes up"


def test_an_impossible_size_is_a_failed_trial_and_never_the_best() -> None:
    def negative(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        return {"val_bpb": 1.0, "artifact_bytes": -5.0, "train_seconds": 10.0}

    records = simulate(STUDY, negative, SPACE).records
    assert {r.status for r in records} == {"failed"}
    assert "artifact_bytes must be a positive number, got -5.0" in (
        records[0].result.error if records[0].result else ""
    )


def test_a_run_over_its_timeout_is_stopped_there() -> None:
    def slow(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        return {"val_bpb": 1.0, "artifact_bytes": 1.0, "train_seconds": 1e9}

    rungs = (replace(STUDY.rungs[0], trials=2, timeout_seconds=900),)
    records = simulate(replace(STUDY, rungs=rungs), slow, SPACE).records
    assert {(r.status, r.result.seconds) for r in records} == {("timeout", 900.0)}


def test_what_is_forecast_over_the_cap_costs_no_simulated_second() -> None:
    capped = replace(STUDY, caps=Caps(artifact_bytes=9_000_000), sampler="tpe")  # the surrogate would ask none
    trace = simulate(capped, evaluate, SPACE, predict_bytes=lambda params: 1e6 * params["depth"])
    refused = [r for r in trace.records if r.status == "infeasible"]
    assert refused
    assert all(r.spec.params["depth"] > 9 for r in refused)
    assert not {r.spec.trial_id for r in refused} & {s.trial_id for s in trace.spans}
    assert sum(r.spec.rung == "proxy" and r.status != "infeasible" for r in trace.records) == 24


def test_a_plain_list_of_parameters_is_a_space_whose_control_is_its_middle() -> None:
    kind = ChoiceParam(name="kind", options=("a", "b"), tag="scale_free")
    only_b = FloatParam(name="y", low=0, high=2, tag="scale_free", when=When(parent="kind", values=("b",)))
    space = bare_space([*SPACE, kind, only_b])
    assert space.control == {"x": 0.5, "lr": pytest.approx(1e-2), "depth": 7, "kind": "a"}
    with pytest.raises(ValueError, match="SPACE must be a Space, a list"):
        bare_space(["lr"])


def test_a_file_without_evaluate_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("SPACE = []\n")
    with pytest.raises(ValueError, match="defines no function evaluate"):
        load_world(tmp_path / "empty.py")
    with pytest.raises(ValueError, match="there is no file"):
        load_world(tmp_path / "nothing.py")


def test_a_simulation_in_a_folder_is_a_study_like_any_other(tmp_path: Path) -> None:
    in_memory = replace(STUDY, storage="memory")
    trace = simulate(in_memory, evaluate, SPACE, folder=tmp_path / "s")
    study = load_study(str(tmp_path / "s"))
    assert outcomes(read_records(study)) == outcomes(trace.records)
    assert read_spans(study) == trace.spans
    assert study_status(study, read_records(study), driver=None, alive=False, now=0.0).state == "finished"
    again = simulate(in_memory, evaluate, SPACE, folder=tmp_path / "s")
    assert outcomes(again.records) == outcomes(trace.records), "a finished study has nothing more to do"
    json.loads((study.dir / "proxy" / "0000" / "result.json").read_text())
