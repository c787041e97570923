"""The seam to Optuna: every sampler asks whole points, knows what was told at any rung, and goes on after a restart."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from pgolf_model.config import RunConfig
from search.sampler.mirror import distribution
from search.sampler.sampler import Sampler, modelled_rungs
from search.study.config import Caps, StudyConfig
from search.study.ledger import TrialRecord
from space.params import ChoiceParam, FloatParam, IntParam, Scalar, Space, When
from space.spaces import named_space
from trials.rungs import Rung
from trials.spec import SeedRun, TrialResult, TrialSpec

SPACE = Space(
    name="s",
    params=(
        FloatParam(name="lr", low=1e-4, high=1e-1, log=True, tag="step_dependent"),
        IntParam(name="width", low=64, high=512, step=64, tag="throughput_dependent"),
        ChoiceParam(name="ema", options=(False, True), tag="step_dependent"),
        FloatParam(name="gap", low=0.01, high=0.5, tag="step_dependent", when=When(parent="ema", values=(True,))),
    ),
    make_config=named_space("tiny").make_config,
    control={"lr": 0.01, "width": 256, "ema": False},
)
RUNGS = (
    Rung(name="proxy", trials=40, steps=10, batch_tokens=1024, gpus=1),
    Rung(name="full", steps=80, batch_tokens=1024, gpus=1),
    Rung(name="final", steps=80, batch_tokens=1024, gpus=1, seeds=(1, 2)),
)


def make_study(folder: Path, sampler: str, **changes) -> StudyConfig:
    study = StudyConfig(
        name="s", space="tiny", data=("d",), rungs=RUNGS, caps=Caps(artifact_bytes=300_000), folder=str(folder),
        storage="memory", sampler=sampler,  # type: ignore[arg-type]
    )  # fmt: skip
    return replace(study, **changes)


def size_of(params) -> float:
    return 1000.0 * float(params["width"])


def record(rung: str, number: int, params: dict[str, Scalar], *, status: str = "complete") -> TrialRecord:
    spec = TrialSpec(
        study="s", rung=rung, number=number, params=params, config=RunConfig(), seeds=(1,), data_dir="", tokenizer="",
        gpus=1.0, predicted_bytes=int(size_of(params)),
    )  # fmt: skip
    bpb = 1.2 + 0.05 * math.log10(float(params["lr"]) / 0.01) ** 2 - float(params["width"]) / 5120
    run = SeedRun(
        seed=1, val_bpb=bpb + (0.3 if rung == "proxy" else 0), val_loss=1, pre_quant_val_bpb=1,
        model_bytes=int(size_of(params)), code_bytes=0, steps=1, tokens_seen=1, num_params=1, train_seconds=1,
        eval_seconds=1, total_seconds=1, peak_memory_bytes=1, artifact_sha256="",
    )  # fmt: skip
    seconds = 10.0 if rung == "proxy" else 80.0
    runs = (run,) if status == "complete" else ()
    return TrialRecord(spec=spec, result=TrialResult(status=status, runs=runs, seconds=seconds))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["random", "tpe", "surrogate"])
def test_every_sampler_asks_whole_points_of_the_space(tmp_path: Path, name: str) -> None:
    sampler = Sampler(make_study(tmp_path, name), SPACE)
    for _ in range(14):
        number, params = sampler.ask("proxy")
        SPACE.validate(params)
        sampler.tell(record("proxy", number, params))


@pytest.mark.parametrize("name", ["random", "tpe", "surrogate"])
def test_a_resumed_study_asks_for_new_points(tmp_path: Path, name: str) -> None:
    study = make_study(tmp_path, name, storage=f"sqlite:///{tmp_path / 'x.db'}")

    def ask_three() -> list[dict[str, Scalar]]:
        sampler, points = Sampler(study, SPACE), []
        for _ in range(3):
            number, params = sampler.ask("proxy")
            sampler.tell(record("proxy", number, params))
            points.append(params)
        return points

    first, second = ask_three(), ask_three()
    assert not [p for p in second if p in first]


def test_with_a_forecast_nothing_over_the_cap_is_asked(tmp_path: Path) -> None:
    """Widths above 300 would be over the cap; four in seven random points are."""
    sampler = Sampler(make_study(tmp_path, "surrogate"), SPACE, predict_bytes=size_of)
    for _ in range(25):
        number, params = sampler.ask("proxy")
        assert size_of(params) <= 300_000
        sampler.tell(record("proxy", number, params))


def test_advice_climbs_with_what_both_rungs_have_shown(tmp_path: Path) -> None:
    """After a number of proxies a good one is to run at full; the advice names it by rung and number."""
    sampler = Sampler(make_study(tmp_path, "surrogate"), SPACE, predict_bytes=size_of)
    told: dict[int, dict[str, Scalar]] = {}
    for _ in range(14):
        number, params = sampler.ask("proxy")
        told[number] = params
        sampler.tell(record("proxy", number, params))
    advice = sampler.advise(starts=(), climbs=("full", "final"))
    assert advice is not None
    assert advice.rung == "full"  # final repeats with fresh seeds: the model has no say there
    assert advice.parent is not None
    assert told[advice.parent[1]] == advice.proposal.params
    number = sampler.add("full", advice.proposal.params, origin="test")
    again = sampler.advise(starts=("proxy",), climbs=())
    assert again is not None
    assert (again.rung, again.parent) == ("proxy", None)
    sampler.tell(record("full", number, dict(advice.proposal.params)))
    third = sampler.advise(starts=(), climbs=("full",))
    assert third is not None
    assert third.parent != advice.parent


def test_a_front_is_left_to_tpe(tmp_path: Path) -> None:
    """The model seeks one cap's best; two objectives are asked and told as ever."""
    sampler = Sampler(make_study(tmp_path, "surrogate", question="front"), SPACE, predict_bytes=size_of)
    for _ in range(12):
        number, params = sampler.ask("proxy")
        sampler.tell(record("proxy", number, params))
    assert sampler.advise(starts=("proxy",), climbs=()) is None


def test_other_samplers_have_no_opinion_on_rungs(tmp_path: Path) -> None:
    assert Sampler(make_study(tmp_path, "tpe"), SPACE).advise(starts=("proxy",), climbs=()) is None


def test_costs_are_learnt_from_what_runs_took(tmp_path: Path) -> None:
    """By compute a full run is 8 proxies; once both have run, their GPU-seconds decide."""
    sampler = Sampler(make_study(tmp_path, "surrogate"), SPACE)
    surrogate = sampler._surrogate
    assert surrogate is not None
    costs = surrogate.read().costs
    assert [cost / costs[0] for cost in costs] == [1, 8]
    for rung, seconds in (("proxy", 10.0), ("full", 200.0)):
        number, params = sampler.ask(rung)
        known = record(rung, number, params)
        assert known.result is not None
        sampler.tell(replace(known, result=replace(known.result, seconds=seconds)))
    sampler.ask("proxy")
    assert surrogate.read().costs == (10, 200)


def test_failures_are_learnt_from_and_refusals_are_not(tmp_path: Path) -> None:
    sampler = Sampler(make_study(tmp_path, "surrogate"), SPACE)
    for status in ("complete", "diverged", "failed", "infeasible"):
        number, params = sampler.ask("proxy")
        sampler.tell(record("proxy", number, params, status=status))
    assert sampler._surrogate is not None
    runs = sampler._surrogate.read().runs
    assert [run.scored for run in runs] == [True, False, False]
    assert not any(run.running for run in runs)


def test_rungs_with_the_same_compute_are_one_to_the_model() -> None:
    study = make_study(Path("x"), "surrogate")
    assert list(modelled_rungs(study)) == ["proxy", "full"]


WIDE = replace(
    SPACE,
    params=(
        *SPACE.params,
        *(FloatParam(name=f"rate{i}", low=1e-4, high=1e-1, log=True, tag="step_dependent") for i in range(13)),
        *(ChoiceParam(name=f"kind{i}", options=("a", "b", "c"), tag="scale_free") for i in range(8)),
    ),
)


def test_ask_and_tell_stay_quick_with_5000_trials_of_25_knobs(tmp_path: Path) -> None:
    """Processor seconds, Optuna's bookkeeping included; bench_overhead.py saw 0.11 to 0.15 s on busy cores."""
    sampler = Sampler(make_study(tmp_path, "surrogate"), WIDE)
    study = sampler._studies["proxy"]
    rng = np.random.default_rng(0)
    distributions = {param.name: distribution(param) for param in WIDE.params}
    assert len(distributions) == 25
    for _ in range(5000):
        params = WIDE.sample(rng)
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={name: distributions[name] for name in params},
                value=float(rng.random()),
                user_attrs={"status": "complete", "artifact_bytes": size_of(params), "gpu_seconds": 10.0},
            )
        )
    sampler.tell(record("proxy", *sampler.ask("proxy")))  # fits the model's hyperparameters
    seconds = []
    for _ in range(3):
        began = time.process_time()
        number, params = sampler.ask("proxy")
        sampler.tell(record("proxy", number, params))
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.3


def test_a_point_that_was_advised_is_asked_without_a_second_thought(tmp_path: Path) -> None:
    """The point is the one that the model would choose anew, and is forgotten once anything has changed."""
    asked = []
    for forgets in (False, True):
        folder = tmp_path / str(forgets)
        folder.mkdir()
        sampler = Sampler(make_study(folder, "surrogate"), SPACE)
        mine = []
        for number in range(24):
            advice = sampler.advise(starts=["proxy"], climbs=["full"] if number % 2 else [])
            assert advice is not None
            if advice.parent is not None:
                params = dict(advice.proposal.params)
                sampler.tell(record("full", sampler.add("full", params, origin="proxy"), params))
                continue
            if forgets:
                assert sampler._surrogate is not None
                sampler._surrogate._new = None
            number, params = sampler.ask("proxy")
            mine.append(params)
            if number % 3:  # every third runs on
                sampler.tell(record("proxy", number, params))
        asked.append(mine)
        again = sampler.ask("proxy")[1]
        assert again != mine[-1]
    assert asked[0] == asked[1]
    assert len(asked[0]) > 15


@pytest.mark.parametrize("name", ["tpe", "surrogate"])
def test_a_lost_storage_is_written_again_in_one_go(tmp_path: Path, name: str) -> None:
    """State, score, constraints and attributes are those of a storage that heard trial by trial."""
    kept = Sampler(make_study(tmp_path, name, storage=""), SPACE)
    records = []
    for i, status in enumerate(("complete", "diverged", "failed", "infeasible", "timeout", "complete")):
        number, params = kept.ask("proxy")
        records.append(record("proxy", number, params, status=status))
        if i < 5:
            kept.tell(records[-1])
    records[5] = replace(records[5], result=None)
    (tmp_path / "fresh").mkdir()
    fresh = Sampler(make_study(tmp_path / "fresh", name, storage=""), SPACE)
    fresh.reconcile(tuple(records))
    before, after = (sampler._studies["proxy"].get_trials(deepcopy=False) for sampler in (kept, fresh))
    for a, b in zip(before, after, strict=True):
        assert (a.state, a.values, a.constraints, a.params) == (b.state, b.values, b.constraints, b.params)
        assert {**a.user_attrs, "origin": "recovered"} == dict(b.user_attrs)
    fresh.tell(replace(record("proxy", 5, records[5].spec.params)))
    assert all(trial.state.is_finished() for trial in fresh._studies["proxy"].get_trials(deepcopy=False))
