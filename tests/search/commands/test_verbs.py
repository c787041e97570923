"""The small verbs: list, init, show, stop. Each on a real study's folder, as a shell would call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from processes import wait_for
from refusals import refused
from studies import add_trial, complete, make_study

from pgolf_model.shapes import num_params
from search.cli import cli
from search.look.trial import changes, view_trial
from search.study.config import StudyConfig, builtin_studies, load_study
from search.study.ledger import CONTROL, read_records, trial_dir
from search.study.lock import driver_alive
from space.presets import PRESETS, preset
from space.spaces import SPACES
from trials.spec import LOG_FILE, SPEC_FILE, TrialResult

Captured = pytest.CaptureFixture[str]
SLOW_WORLD = """
import time

SPACE = {"x": {"low": 0.0, "high": 1.0}}

def evaluate(params, *, rung, fidelity, seed):
    time.sleep(0.05)
    return {"val_bpb": 1 + params["x"], "artifact_bytes": 1000, "train_seconds": 60.0}
"""


def pgolf(*words: str) -> None:
    cli.main(list(words), standalone_mode=False)


def test_list_knows_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    pgolf("list", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["spaces"]] == list(SPACES)
    assert {row["name"]: row["parameters"] for row in found["presets"]} == {
        name: num_params(preset(name).model) for name in PRESETS
    }
    assert [row["name"] for row in found["studies"]] == [path.name for path in builtin_studies().values()]
    assert found["runs"] == []
    pgolf("list", "runs")
    assert capsys.readouterr().out == "no runs here\n"


def test_list_shows_where_runs_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    study = make_study(tmp_path / "runs" / "demo")
    add_trial(study, "proxy/0000", complete(1.25, 900_000))
    pgolf("list", "runs", "--json")
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["name"], row["state"], row["trials"]) == ("demo", "stopped", 1)
    assert (row["best"], row["val_bpb"]) == ("proxy/0000", 1.25)


@pytest.mark.parametrize("name", list(builtin_studies()))
def test_init_prints_a_study_that_loads_under_its_new_name(name: str, tmp_path: Path, capsys: Captured) -> None:
    """Everything but the name is the built-in study's, comments included."""
    pgolf("init", name, "--name", 'my "own"')
    text = capsys.readouterr().out
    (tmp_path / "mine.toml").write_text(text)
    original = builtin_studies()[name].read_text()
    assert tomllib.loads(text) == tomllib.loads(original) | {"name": 'my "own"'}
    assert text.count("#") == original.count("#")
    assert load_study(str(tmp_path / "mine.toml")).name == 'my "own"'


def test_init_of_an_unknown_study_names_the_nearest() -> None:
    with refused("unknown built-in study: '8xh10'", hint="did you mean '8xh100'"):
        pgolf("init", "8xh10")


def test_show_says_what_a_trial_has_that_the_control_has_not(study_with_log: StudyConfig, capsys: Captured) -> None:
    pgolf("show", str(study_with_log.dir), "proxy/0001", "--log-lines", "2")
    said = capsys.readouterr().out
    assert "against" in said
    assert "proxy/0000, the control" in said
    assert "failed, fault signal" in said
    assert "it died\nof something" in said
    assert said.endswith("ends with\nline 8\nline 9\n")


def test_show_as_json_is_the_whole_spec_and_result(study_with_log: StudyConfig, capsys: Captured) -> None:
    pgolf("show", str(study_with_log.dir), "proxy/0001", "--json")
    said = json.loads(capsys.readouterr().out)
    view = view_trial(study_with_log, read_records(study_with_log), "proxy/0001", log_lines=20)
    assert said["spec"] == json.loads((trial_dir(study_with_log, "proxy/0001") / SPEC_FILE).read_text())
    assert said["result"]["fault"] == "signal"
    assert [change["name"] for change in said["params"]] == [change.name for change in view.params]


def test_show_of_an_unknown_trial_names_the_last_ones(study_with_log: StudyConfig) -> None:
    with refused("has no trial 'proxy/0007'", hint="the last ones are: proxy/0000, proxy/0001"):
        pgolf("show", str(study_with_log.dir), "proxy/0007")


def test_changes_are_what_differs_and_nothing_else() -> None:
    found = changes({"a": 1, "b": 2, "c": 3}, {"d": 4, "a": 1, "b": 5})
    assert [(c.name, c.control, c.trial) for c in found] == [("d", None, 4), ("b", 2, 5), ("c", 3, None)]


def test_stop_ends_the_process_that_runs_a_study_and_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    """A real process under SIGTERM: exit code 130, finished trials kept, the lock free, and how to go on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world.py").write_text(SLOW_WORLD)
    rung = '[[rungs]]\nname = "full"\ntrials = 2000\nsteps = 100\ncpus = 1\n'
    (tmp_path / "s.toml").write_text(f'name = "s"\nspace = "tiny"\ndata = "d"\nsampler = "random"\n{rung}')
    command = [sys.executable, "-m", "search.cli", "search", "s.toml", "--simulate", "world.py", "--cpus", "1"]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    folder = tmp_path / "runs" / "s-simulated0"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:
        wait_for(lambda: len(list(folder.glob("full/*/result.json"))) > 2)
        pgolf("stop", "s-simulated0")
        assert "stopped; finished trials are kept" in running.communicate(timeout=30)[1]
    assert running.returncode == 130
    study = load_study(str(folder))
    assert not driver_alive(study)
    assert sum(record.result is not None for record in read_records(study)) > 2
    assert "go on with: pgolf search s-simulated0 --simulate" in capfd.readouterr().err
    with refused("nobody runs study s-simulated0", hint="pgolf status"):
        pgolf("stop", "s-simulated0")


@pytest.fixture
def study_with_log(tmp_path: Path) -> StudyConfig:
    """The control and a trial that failed, with a log of ten lines."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", complete(1.25, 900_000), label=CONTROL)
    add_trial(study, "proxy/0001", TrialResult(status="failed", fault="signal", error="it died\nof something"))
    (trial_dir(study, "proxy/0001") / "seed1337").mkdir(exist_ok=True)
    log = trial_dir(study, "proxy/0001") / "seed1337" / LOG_FILE
    log.write_text("".join(f"line {i}\n" for i in range(10)))
    return study
