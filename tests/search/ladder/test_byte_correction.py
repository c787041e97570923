"""Forecasts of bytes learn from the study's own runs: centre, width, rungs apart, and never past what is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studies import add_trial, complete, make_spec, make_study

from pgolf_model.config import QuantConfig, RunConfig
from search.ladder.byte_correction import Z90, belief, corrected, deviation, misses
from search.ladder.promote import by_rung
from search.look.analysis import analyse
from search.simulation.engine import World, run_simulated, simulate, simulated_driver
from search.simulation.maker import code_bytes
from search.study.config import Caps, StartPoint, StudyConfig
from search.study.ledger import TrialRecord, read_records
from space.forecast.sizing import estimate_model_bytes
from space.knobs.quant import at_cap
from space.spaces import named_space
from trials.rungs import Rung

CODE = code_bytes()
GENERAL = (14_600_000, 15_000_000, 15_400_000)


def trial(study: StudyConfig, trial_id: str, size: float, general=GENERAL, **changes) -> TrialRecord:
    low, central, high = general
    spec = make_spec(
        study, trial_id, predicted_low=low, predicted_bytes=central, predicted_high=high, **changes
    )  # fmt: skip
    return TrialRecord(spec=spec, result=complete(1.3, round(size)))


def test_nothing_measured_changes_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    running = replace(trial(study, "proxy/0000", 1.0), result=None)
    assert corrected(GENERAL, by_rung(study, [running]), rung="proxy", target_bytes=0) == GENERAL
    exact = (15_000_000,) * 3
    done = [trial(study, "proxy/0000", 14e6)]
    assert corrected(exact, by_rung(study, done), rung="proxy", target_bytes=0) == exact


def test_runs_that_come_out_smaller_move_the_forecast_down_and_narrow_it(tmp_path: Path) -> None:
    """Twelve runs 2 % below their forecasts, give or take .2 %: the next is forecast there, in a third of the width."""
    study = make_study(tmp_path)
    done = [trial(study, f"proxy/{i:04d}", 15e6 * (0.98 + 0.002 * (-1) ** i)) for i in range(12)]
    low, central, high = corrected(GENERAL, by_rung(study, done), rung="proxy", target_bytes=0)
    assert central == pytest.approx(14.7e6, rel=1e-3)
    assert low < central < high
    assert (high - low) < 0.6 * (GENERAL[2] - GENERAL[0])
    widths = []
    for count in (1, 2, 4, 8, 12):
        low, _, high = corrected(GENERAL, by_rung(study, done[:count]), rung="proxy", target_bytes=0)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_rungs_are_corrected_apart(tmp_path: Path) -> None:
    """Short runs pack smaller: what they say of long ones is weak, and one long run outweighs them."""
    study = make_study(tmp_path)
    short = [trial(study, f"proxy/{i:04d}", 15e6 * 0.98) for i in range(12)]
    full = trial(study, "full/0000", 15e6 * 1.01)
    _, before, _ = corrected(GENERAL, by_rung(study, short), rung="full", target_bytes=0)
    _, after, _ = corrected(GENERAL, by_rung(study, [*short, full]), rung="full", target_bytes=0)
    assert 14.7e6 < before < 15e6
    assert 15e6 < after < 15.15e6
    _, proxy, _ = corrected(GENERAL, by_rung(study, [*short, full]), rung="proxy", target_bytes=0)
    assert proxy == pytest.approx(14.7e6, rel=2e-3)


def test_a_run_that_went_wrong_is_cut_off(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    sizes = [15e6 * 0.98] * 7 + [3e6]
    done = [trial(study, f"proxy/{i:04d}", size) for i, size in enumerate(sizes)]
    _, central, _ = corrected(GENERAL, by_rung(study, done), rung="proxy", target_bytes=0)
    assert central == pytest.approx(14.66e6, rel=5e-3)


def test_filled_targets_are_apart_and_never_exceeded(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    target = 16_000_000
    filled = (15_968_000, 15_999_990, target)
    config = replace(RunConfig(), quant=replace(QuantConfig(), target_bytes=target))
    done = [trial(study, f"proxy/{i:04d}", 15_983_000, filled, config=config) for i in range(5)]
    others = [trial(study, f"proxy/{i + 5:04d}", 15e6 * 0.98) for i in range(5)]
    at = by_rung(study, [*done, *others])
    low, central, high = corrected(filled, at, rung="proxy", target_bytes=target)
    assert central == pytest.approx(15_983_000, abs=2000)
    assert low < central <= high <= target
    assert corrected(GENERAL, by_rung(study, done), rung="proxy", target_bytes=0) == GENERAL


def test_a_corrected_forecast_is_judged_by_the_general_one(tmp_path: Path) -> None:
    """Else every correction would undo the one before."""
    study = make_study(tmp_path)
    corrected = trial(study, "proxy/0000", 14.7e6, (14_600_000, 14_690_000, 14_780_000), general_forecast=GENERAL)
    plain = trial(study, "proxy/0000", 14.7e6)
    assert misses([corrected], filled=False) == misses([plain], filled=False)
    assert misses([plain], filled=False)[0] == pytest.approx(math.log(0.98))


@pytest.mark.parametrize("count", [1, 3, 10, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(count: int) -> None:
    """2,000 studies drawn from the model itself, the next miss at a rung with `count` results; s.e. of a share .011."""
    rng = np.random.default_rng(count)
    inside = {0.5: 0, 0.9: 0}
    for _ in range(2000):
        common = rng.normal(0, math.sqrt(0.35))
        rungs = common + rng.normal(0, math.sqrt(0.45), 2)
        noise = math.sqrt(0.2)
        found = {"a": rng.normal(rungs[0], noise, 12).tolist(), "b": rng.normal(rungs[1], noise, count).tolist()}
        told = belief(found, "b")
        assert told is not None
        miss = rng.normal(rungs[1], noise)
        for share in inside:
            inside[share] += abs(miss - told.shift) <= told.half_width(share)
    assert inside[0.5] / 2000 == pytest.approx(0.5, abs=0.05)
    assert inside[0.9] / 2000 == pytest.approx(0.9, abs=0.03)


def test_the_interval_stands_for_its_deviation() -> None:
    assert math.exp(2 * Z90 * deviation(GENERAL)) == pytest.approx(GENERAL[2] / GENERAL[0])


SIMULATED = StudyConfig(
    name="s",
    space="tiny",
    data=("d",),
    rungs=(
        Rung(name="proxy", trials=16, steps=10, batch_tokens=1024, gpus=1),
        Rung(name="full", steps=80, batch_tokens=1024, gpus=1, min_promote=3),
    ),
    sampler="random",
    storage="memory",
    gpus=3.0,
    caps=Caps(artifact_bytes=10**9),
)


def packed(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """Weights that pack 2 % larger than the general forecast, give or take some tenths; 3 % at the full rung."""
    config = at_cap(named_space("tiny").build(params), params, SIMULATED.caps.artifact_bytes)
    forecast = estimate_model_bytes(config, code_bytes=CODE).model_bytes
    excess = (1.03 if rung == "full" else 1.02) + 0.004 * math.sin(1e6 * float(params["matrix_lr"]))
    lasts = 50 + 40 * math.sin(1e7 * float(params["matrix_lr"]))
    return {
        "val_bpb": 1.2 + float(params["matrix_lr"]),
        "artifact_bytes": excess * (forecast + CODE),
        "train_seconds": lasts,
    }  # fmt: skip


def forecasts(folder: Path) -> dict[str, tuple[int, ...]]:
    """What every trial was forecast."""
    return {
        r.spec.trial_id: (r.spec.predicted_low, r.spec.predicted_bytes, r.spec.predicted_high, *r.spec.general_forecast)
        for r in read_records(replace(SIMULATED, folder=str(folder)))
    }


def test_a_study_forecasts_better_as_it_runs(tmp_path: Path) -> None:
    """The driver puts the correction into new specs and keeps the general forecast beside it."""
    trace = simulate(SIMULATED, packed, folder=tmp_path)
    late = [r for r in trace.records[6:] if r.spec.general_forecast and r.spec.rung == "proxy"]
    assert len(late) >= 8
    for r in late:
        assert r.result is not None
        assert r.spec.predicted_low <= r.result.artifact_bytes <= r.spec.predicted_high
        general = r.result.artifact_bytes / r.spec.general_forecast[1] - 1
        assert abs(r.result.artifact_bytes / r.spec.predicted_bytes - 1) < 0.6 * abs(general)
    assert not trace.records[0].spec.general_forecast


def test_a_killed_driver_s_successors_forecast_the_same(tmp_path: Path) -> None:
    """A driver is dropped after every eighth event, of which three start again what was going on."""
    simulate(SIMULATED, packed, folder=tmp_path / "calm")
    world = World(evaluate=packed)
    study = replace(SIMULATED, folder=str(tmp_path / "killed"))
    while True:
        driver, clock = simulated_driver(study, world)
        events = run_simulated(driver, world, clock)
        seen = list(itertools.islice(events, 8))
        events.close()
        if len(seen) < 8:
            break
    calm = forecasts(tmp_path / "calm")
    assert sum(len(sizes) == 6 for sizes in calm.values()) > 10
    assert forecasts(tmp_path / "killed") == calm


def test_a_correction_refuses_promotions_and_no_new_points(tmp_path: Path) -> None:
    """Full runs pack 2 % more than proxies. One that ended over the cap refuses the next, which only would be alike.

    New points are let in by the general forecast as before: the sampler goes by that one.
    """
    space = named_space("tiny")
    general = estimate_model_bytes(space.build(space.control)).model_bytes + CODE

    def grown(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        size = general * (1.02 if rung == "full" else 1.004)
        return {"val_bpb": 1.2 + float(params["matrix_lr"]), "artifact_bytes": size, "train_seconds": 10.0}

    points = tuple(
        StartPoint(label=f"p{i}", params=dict(space.control) | {"matrix_lr": 0.01 + 0.001 * i}) for i in range(8)
    )
    first, full = SIMULATED.rungs
    study = replace(
        SIMULATED, caps=Caps(artifact_bytes=round(1.005 * general)), folder=str(tmp_path), warm_starts=False,
        points=points, sample=False, rungs=(replace(first, trials=9), full), gpus=1.0,
    )  # fmt: skip
    trace = simulate(study, grown, folder=tmp_path)
    below, above = ([r for r in trace.records if r.spec.rung == rung.name] for rung in study.rungs)
    assert [r.status for r in below] == ["complete"] * 9
    assert all(r.spec.predicted_bytes <= study.caps.artifact_bytes for r in below)
    assert above[0].status == "complete"
    assert {r.status for r in above[1:]} == {"infeasible"}
    assert all(general < r.spec.predicted_bytes < 1.03 * general for r in above[1:])


def test_the_share_inside_half_intervals_is_shown(tmp_path: Path) -> None:
    """41 % of the way from the centre to an end of the 90 % interval, in logarithms."""
    study = make_study(tmp_path)
    for i, size in enumerate((15_000_000, 15_150_000, 15_170_000, 14_600_000, 14_500_000)):
        low, central, high = GENERAL
        add_trial(
            study, f"proxy/{i:04d}", complete(1.3, size), predicted_low=low, predicted_bytes=central,
            predicted_high=high,
        )  # fmt: skip
    found = analyse(study, read_records(study)).forecast
    assert found is not None
    assert (found.num_intervals, found.num_inside, found.num_inside_half) == (5, 4, 2)
    assert "2 inside the 50 % interval" in found.note
