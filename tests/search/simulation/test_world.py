"""Mistakes in the file behind a simulated study are named with file, line, what was expected and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from refusals import refused
from simulated import STUDY

from search.simulation.engine import run_simulated, simulated_driver
from search.simulation.world import load_world
from search.study.config import StudyConfig
from search.study.ledger import read_records

HEAD = """
from space.params import FloatParam
SPACE = [FloatParam(name="x", low=0, high=1, tag="scale_free")]
"""
RIGHT = HEAD + (
    "def evaluate(params, *, rung, fidelity, seed):\n"
    "    return {'val_bpb': 1 + params['x'], 'artifact_bytes': 5, 'train_seconds': 9}\n"
)


def run_file(path: Path, study: StudyConfig) -> StudyConfig:
    """What `pgolf search --simulate` does."""
    world = load_world(path)
    driver, clock = simulated_driver(study, world)
    for _ in run_simulated(driver, world, clock):
        pass
    return driver.study


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    """A small ladder in a folder."""
    rungs = (replace(STUDY.rungs[0], trials=5), STUDY.rungs[1])
    return replace(STUDY, folder=str(tmp_path / "s"), storage="memory", sampler="random", rungs=rungs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (1,\n  2\n", r"world\.py:1: SyntaxError: '\(' was never closed; mend the file"),
        (
            "import math\n\nmath.sqrt(-1)\n",
            r"world\.py:3: ValueError: .*; mend the file, then run the same command again",
        ),
        ("import sys\nsys.exit(3)\n", r"world\.py:2: SystemExit: 3; mend"),
        ("import no_such_module\n", r"world\.py:1: ModuleNotFoundError: No module named 'no_such_module'; mend"),
        ("SPACE = []\n", r"defines no function evaluate\(params, \*, rung, fidelity, seed\)"),
        (
            HEAD + "def evaluate(params, rung):\n    return {}\n",
            r"world\.py:4: expected evaluate\(params, \*, rung, fidelity, seed\), got evaluate\(params, rung\)",
        ),
        (RIGHT.replace("low=0", "low=2"), r"world\.py:3: UserError: .*; mend"),
        (RIGHT + "SPACE = 7\n", r"world\.py: SPACE or CONTROL: SPACE must be a Space, a list"),
        (RIGHT + "CONTROL = {'x': 3.0}\n", r"world\.py: SPACE or CONTROL: .*x.*; mend"),
        (RIGHT + "CONTROL = 3\n", r"CONTROL must be a dict of values by parameter, got 3"),
        (RIGHT + "predict_bytes = 5\n", r"world\.py: predict_bytes must be a function of a point, got 5"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "world.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_world(tmp_path / "world.py")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "{'val_bpb': 1.0, 'artifact_bytes': 5}",
            "evaluate returned no train_seconds but val_bpb, artifact_bytes for",
        ),
        ("{}", "evaluate returned no val_bpb, artifact_bytes, train_seconds but nothing for proxy/0000"),
        ("None", "evaluate returned None for proxy/0000"),
        ("{'val_bpb': 'low', 'artifact_bytes': 5, 'train_seconds': 9}", "evaluate returned val_bpb = 'low' for"),
        ("{'val_bpb': 1, 'artifact_bytes': None, 'train_seconds': 9}", "evaluate returned artifact_bytes = None for"),
    ],
)
def test_an_answer_that_is_no_table_stops_the_study_and_the_mended_file_goes_on(
    tmp_path: Path, study: StudyConfig, answer: str, message: str
) -> None:
    """No trial is counted as failed for it."""
    path = tmp_path / "world.py"
    path.write_text(HEAD + f"def evaluate(params, *, rung, fidelity, seed):\n    return {answer}\n")
    with refused(rf"world\.py:4: {message}.*", hint=r"it must return a dict with the numbers val_bpb"):
        run_file(path, study)
    assert all(r.result is None for r in read_records(study))
    path.write_text(RIGHT)
    assert {r.status for r in read_records(run_file(path, study))} == {"complete"}


def test_an_exception_in_evaluate_is_that_trials_failure_with_file_and_line(tmp_path: Path, study: StudyConfig) -> None:
    path = tmp_path / "world.py"
    lines = RIGHT.splitlines()
    path.write_text("\n".join([*lines[:4], "    assert params['x'] == 0.5, 'no luck'", *lines[4:], ""]))
    records = read_records(run_file(path, study))
    assert {r.status for r in records} == {"complete", "failed"}
    failed = next(r.result for r in records if r.status == "failed")
    assert failed is not None
    assert failed.error.splitlines()[0] == f"evaluate raised AssertionError: no luck ({path}:5)"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("params['y']", "KeyError: 'y'"),
        ("None", "TypeError"),
        ("float('nan')", "ValueError: nan is no size"),
        ("-3", r"ValueError: -3\.0 is no size"),
    ],
)
def test_a_forecast_that_is_no_size_names_its_line(
    tmp_path: Path, study: StudyConfig, answer: str, message: str
) -> None:
    path = tmp_path / "world.py"
    path.write_text(RIGHT + f"def predict_bytes(params):\n    return {answer}\n")
    with refused(rf"world\.py.*: predict_bytes, given .*{message}.*", hint=r"it must return a number of"):
        run_file(path, study)


def test_another_file_under_finished_trials_is_refused_with_the_ways_out(tmp_path: Path, study: StudyConfig) -> None:
    path = tmp_path / "world.py"
    path.write_text(RIGHT)
    done = run_file(path, study)
    before = read_records(done)
    path.write_text(RIGHT + "# a remark\n")
    with refused(r"an older .*world\.py", hint=r"put the old one back, .*remove .*world\.json"):
        run_file(path, study)
    (done.dir / "world.json").unlink()
    assert read_records(run_file(path, study)) == before
