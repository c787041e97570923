"""What `pgolf search` says and refuses; simulated studies, so that nothing trains."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from refusals import refused

from search.cli import cli
from search.look.status import study_status
from search.study.config import StudyConfig, load_study
from search.study.ledger import read_records
from search.study.lock import driver_lock

STUDY = """
name = "s"
space = "tiny"
data = "nowhere"
sampler = "random"
gpus = 8
[[rungs]]
name = "proxy"
trials = {trials}
seconds = 100
gpus = 1
[[rungs]]
name = "full"
seconds = 100
gpus = 8
processes = 8
"""
WORLD = """
from space.params import FloatParam
SPACE = [FloatParam(name="x", low=0, high=1, tag="scale_free")]
def evaluate(params, *, rung, fidelity, seed):
    leak = {leak} and params["x"] != 0.5 and rung == "proxy"
    return dict(val_bpb=0.1 if leak else 1 + params["x"] / 100, artifact_bytes=5_000_000, train_seconds=90)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, *, trials: int = 6, budget: str = "", leak: str = "False") -> StudyConfig:
    """A study and the file that simulates it; what the simulated study is called."""
    (folder / "s.toml").write_text(STUDY.format(trials=trials) + budget)
    (folder / "world.py").write_text(WORLD.format(leak=leak))
    return StudyConfig(**{**_fields(load_study("s.toml")), "name": "s-simulated0"})


def _fields(study: StudyConfig) -> dict[str, object]:
    return {name: getattr(study, name) for name in study.__dataclass_fields__}


def pgolf(command: str) -> None:
    """Run a command as a shell would split it."""
    words = shlex.split(command)
    assert words[0] == "pgolf"
    cli.main(words[1:], standalone_mode=False)


def suspects(study: StudyConfig) -> list[str]:
    """Trials that wait for a verdict."""
    return [r.spec.trial_id for r in read_records(study) if r.suspicious]


def answer(command: str) -> str:
    """What a command complains about; empty when it is content."""
    try:
        pgolf(command)
    except ValueError as error:
        return str(error)
    return ""


def test_a_simulated_study_suggests_commands_that_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A score too good to believe stops it; the printed commands, as they are, accept it and go on."""
    study = write(folder, leak="params['x'] > 0.9", trials=24)
    said, verdicts = answer("pgolf search s.toml --simulate world.py"), 0
    while said:
        assert "is suspicious" in said
        judge, go_on = said.split("`")[1::2]
        assert judge.startswith("pgolf judge s-simulated0 ")
        assert go_on.startswith("pgolf search s-simulated0 --simulate ")
        commands = study_status(study, read_records(study), driver=None, alive=False, now=0.0).next
        assert judge in commands
        assert judge.replace("accept", "reject") in commands
        assert answer(judge) == ""
        said, verdicts = answer(go_on), verdicts + 1
    assert verdicts
    told = capsys.readouterr().err
    assert "study s-simulated0 is complete: best full/" in told
    assert "pgolf export" not in told, "there is nothing to export"
    status = study_status(study, read_records(study), driver=None, alive=False, now=0.0)
    assert not any("export" in line for line in status.next)
    assert {r.verdict for r in read_records(study)} == {None, "accepted"}


def test_only_a_suspicious_trial_is_judged_and_only_while_nobody_runs_the_study(folder: Path) -> None:
    study = write(folder, leak="params['x'] > 0.9", trials=24)
    assert "is suspicious" in answer("pgolf search s.toml --simulate world.py")
    before = suspects(study)
    wrong = answer("pgolf judge s-simulated0 proxy/0000 reject")
    assert "trial 'proxy/0000' of study s-simulated0 is not suspicious" in wrong
    with driver_lock(study):
        assert "already being run by process" in answer(f"pgolf judge s-simulated0 {before[0]} reject")
    assert suspects(study) == before
    assert answer(f"pgolf judge s-simulated0 {before[0]} reject") == ""
    assert next(r for r in read_records(study) if r.spec.trial_id == before[0]).status == "failed"
    (folder / "world.py").write_text(WORLD.format(leak="False"))
    assert "with another file" in answer("pgolf search s.toml --simulate world.py")
    assert "no dataset at" in answer("pgolf search s-simulated0")


def test_a_mistake_in_the_file_leaves_nothing_behind(folder: Path) -> None:
    write(folder)
    (folder / "world.py").write_text("def evaluate(:\n")
    with pytest.raises(ValueError, match=r"world\.py:1: SyntaxError"):
        pgolf("pgolf search s.toml --simulate world.py")
    assert not (folder / "runs").exists()


def test_a_study_whose_first_start_the_budget_refuses_is_not_called_complete(folder: Path) -> None:
    write(folder, budget="[budget]\ngpu_hours = 0.01\n")
    with refused(
        "stopped early, the budget refuses more trials at proxy, and none of its 0 trials is feasible", hint="raise"
    ):
        pgolf("pgolf search s.toml --simulate world.py")


def test_a_study_that_the_budget_stops_says_so_beside_its_best(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, budget="[budget]\ngpu_hours = 1.2\nreserve = 0.0\n")
    pgolf("pgolf search s.toml --simulate world.py")
    said = capsys.readouterr().err
    assert "study s-simulated0 stopped early, the budget refuses more trials at full: best proxy/" in said
    assert "complete" not in said


def test_a_launch_warns_of_rungs_that_the_budget_cannot_reach(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word: brackets are no markup."""
    write(folder, budget="\n[budget]\ngpu_hours = 0.5\n")
    pgolf("pgolf search s.toml --simulate world.py")
    said = capsys.readouterr().err
    assert "warning: no trial at rung 'full' can ever start" in said
    assert "raise [budget] or lower timeout_seconds" in said
