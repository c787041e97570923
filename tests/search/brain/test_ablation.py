"""One knob at a time against the control, on paired seeds."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from click.testing import CliRunner
from scipy import stats
from simulated import SPACE, STUDY

from search.brain.ablation import ablation, effect_cells, effects, parse_knobs
from search.commands.ablate import ablate
from search.ladder.race import SEEDS
from search.simulation.bare_space import bare_space
from search.simulation.engine import simulate
from space.params import ChoiceParam, FloatParam, When

KIND = ChoiceParam(name="kind", options=("a", "b"), tag="scale_free")
CHILD = FloatParam(name="y", low=0, high=2, tag="scale_free", when=When(parent="kind", values=("b",)))
PLAIN = bare_space([*SPACE, KIND, CHILD])


def score(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """x costs 0.1 a unit; a seed's luck is shared by all points, the rest of the noise is small."""
    luck = random.Random(seed).gauss(0, 0.05)
    own = random.Random(repr((sorted(params.items()), seed))).gauss(0, 0.001)
    return {"val_bpb": 1 + 0.1 * params["x"] + luck + own, "artifact_bytes": 1e6 * params["depth"], "train_seconds": 9}


def test_effects_are_paired_differences_with_a_paired_t_test() -> None:
    knobs = parse_knobs(PLAIN, ["x=0.7,0.5,0.9", "depth=8", "kind=b"])
    study = ablation(STUDY, PLAIN, knobs, seeds=4)
    trace = simulate(replace(study, storage="memory"), score, PLAIN)
    assert all(r.spec.seeds == SEEDS[:4] for r in trace.records)
    found = {e.change: e for e in effects(study, trace.records)}
    assert list(found) == ["x=0.7", "x=0.9", "depth=8", "kind=b"], "0.5 is the control's own"
    assert found["x=0.9"].mean == pytest.approx(0.04, abs=0.003)
    assert found["x=0.9"].sd < 0.005, "luck is shared, so pairs do not see it"
    assert found["depth=8"].artifact_bytes == 1_000_000
    one, control = (next(r for r in trace.records if r.spec.label == label) for label in ("x=0.7", "control"))
    mine, theirs = ([run.val_bpb for run in r.result.runs] for r in (one, control))
    assert found["x=0.7"].p == pytest.approx(stats.ttest_rel(mine, theirs).pvalue)
    assert next(r for r in trace.records if r.spec.label == "kind=b").spec.params["y"] == 1.0, "the middle"
    assert "x=0.7" in [row[0] for row in effect_cells(tuple(found.values()))]


def test_what_is_forecast_over_the_cap_is_shown_and_replaced_by_nothing() -> None:
    knobs = parse_knobs(PLAIN, ["depth=3,12"])
    study = ablation(STUDY, PLAIN, knobs)
    small = replace(study, storage="memory", caps=replace(STUDY.caps, artifact_bytes=9_000_000))
    trace = simulate(small, score, PLAIN, predict_bytes=lambda p: 1e6 * p["depth"])
    assert len(trace.records) == 3
    found = {e.change: e for e in effects(small, trace.records)}
    assert found["depth=12"].status == "infeasible"
    assert ["depth=12", "infeasible", *"----"] in effect_cells(tuple(found.values()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["xx=1"], "unknown parameter of space 'simulated': 'xx'"),
        (["depth=2.5"], "depth must be a whole number"),
        (["x="], "names no value"),
        (["x=0.5"], "the control's own"),
        (["y=1"], "y is not active in the control"),
    ],
)
def test_a_mistake_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ablation(STUDY, PLAIN, parse_knobs(PLAIN, words))


def test_the_command_runs_a_study_and_prints_the_table(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world.py").write_text(
        "from space.params import FloatParam\n"
        "SPACE = [FloatParam(name='x', low=0, high=1, tag='scale_free')]\n"
        "def evaluate(params, *, rung, fidelity, seed):\n"
        "    return {'val_bpb': 1 + params['x'] + seed % 7 / 100, 'artifact_bytes': 1, 'train_seconds': 5}\n"
    )
    (tmp_path / "s.toml").write_text(
        'name = "s"\nspace = "tiny"\ndata = "d"\n[[rungs]]\nname = "proxy"\ntrials = 4\nseconds = 10\ngpus = 1\n'
    )
    asked = ["s.toml", "--simulate", "world.py", "--knob", "x=0.75,0.25", "--json"]
    done = CliRunner().invoke(ablate, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["effects"]
    assert [(e["change"], round(e["mean"], 6), e["seeds"]) for e in found] == [
        ("x=0.75", 0.25, 3),
        ("x=0.25", -0.25, 3),
    ]
