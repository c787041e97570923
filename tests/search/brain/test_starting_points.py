"""Where a study starts: known points, the best of earlier studies and of tables; and no point twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from simulated import SPACE, evaluate
from simulated import STUDY as ON_DISK

from search.brain.starting_points import starting_points
from search.simulation.bare_space import bare_space
from search.simulation.engine import simulate
from search.study.config import StartPoint
from search.study.ledger import CONTROL
from space.params import ChoiceParam, IntParam
from space.points import point_key
from trials.rungs import Rung

STUDY = replace(ON_DISK, storage="memory")
PLAIN = bare_space(SPACE)


def test_an_earlier_studys_best_points_come_right_after_the_control(tmp_path: Path) -> None:
    old = simulate(STUDY, evaluate, SPACE, folder=tmp_path / "old")
    full = sorted((r for r in old.records if r.spec.rung == "full"), key=lambda r: r.result.val_bpb)
    study = replace(STUDY, warm_from=(str(tmp_path / "old"),), warm_top=3)
    new = simulate(study, evaluate, SPACE, seed=5, folder=tmp_path / "new")
    proxies = [r.spec for r in new.records if r.spec.rung == "proxy"][:4]
    assert proxies[0].label == CONTROL
    found = [r for r in full[:3] if r.spec.label != CONTROL]
    assert [(s.label, s.params) for s in proxies[1 : 1 + len(found)]] == [
        (f"s:{r.spec.trial_id}", r.spec.params) for r in found
    ]


def test_a_table_of_results_gives_its_best_valid_rows(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "lr,x,depth,val_bpb,host\n0.01,0.2,4,1.5,a\n0.02,0.4,5,1.2,b\n0.02,0.4,99,1.0,c\n0.02,,5,1.1,d\n0.03,0.5,6,,e\n"
    )
    study = replace(STUDY, warm_from=(str(table),), warm_top=2, folder=str(tmp_path / "s"))
    (tmp_path / "s").mkdir()
    points = starting_points(study, PLAIN)
    assert points[0] == StartPoint(label=CONTROL, params=dict(PLAIN.control))
    assert points[1:] == (
        StartPoint(label="t.csv:3", params={"x": 0.4, "lr": 0.02, "depth": 5}),
        StartPoint(label="t.csv:2", params={"x": 0.2, "lr": 0.01, "depth": 4}),
    )
    table.unlink()
    assert starting_points(study, PLAIN) == points, "the study remembers them"


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n")
    (tmp_path / "s").mkdir()
    study = replace(STUDY, warm_from=(str(table),), folder=str(tmp_path / "s"))
    with pytest.raises(ValueError, match="no complete point of space 'simulated'"):
        starting_points(study, PLAIN)


def test_points_a_500th_of_a_range_apart_are_one_point() -> None:
    here = {"x": 0.5, "lr": 0.01, "depth": 4}
    assert point_key(PLAIN, here) == point_key(PLAIN, {**here, "x": 0.5004, "lr": 0.01001})
    assert point_key(PLAIN, here) != point_key(PLAIN, {**here, "x": 0.51})
    assert point_key(PLAIN, here) != point_key(PLAIN, {**here, "depth": 5})


def test_a_small_space_is_not_sampled_twice_and_a_spent_one_does_not_hang() -> None:
    """Twelve points: the first twelve trials are all of them, and sixteen trials still end."""
    small = (
        IntParam(name="depth", low=2, high=7, tag="scale_free"),
        ChoiceParam(name="kind", options=("a", "b"), tag="scale_free"),
    )

    def score(params, *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        return {"val_bpb": 1.0 + 0.01 * params["depth"], "artifact_bytes": 1.0, "train_seconds": 1.0}

    study = replace(STUDY, rungs=(Rung(name="proxy", trials=16, seconds=5, gpus=1),))
    points = [tuple(sorted(r.spec.params.items())) for r in simulate(study, score, small).records]
    assert len(points) == 16
    assert len(set(points[:12])) == 12
