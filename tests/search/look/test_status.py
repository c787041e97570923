"""What `pgolf status` says about studies in every state."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from studies import add_progress, add_trial, complete, make_run, make_study

from pgolf_model.files import METRICS_FILE
from search.commands.status import status
from search.look.status import StudyStatus, study_status
from search.study.config import STUDY_FILE, Limits, StudyConfig
from search.study.journal import DONE, note
from search.study.ledger import VERDICT_FILE, Verdict, read_records
from search.study.lock import driver_lock
from space.plain import to_plain
from trials.files import write_json
from trials.rungs import Rung
from trials.spec import TrialResult


def ask(study: StudyConfig, *, alive: bool = False) -> StudyStatus:
    """The status now."""
    return study_status(study, read_records(study), driver=7 if alive else None, alive=alive, now=time.time())


def test_a_running_trial_shows_step_pace_and_eta(tmp_path: Path) -> None:
    """A quarter of the first of two seeds took 30 s, so 90 s remain of it and 120 s of the other."""
    study = make_study(tmp_path)
    add_progress(add_trial(study, "proxy/0000", seeds=(1, 2)), step=125, progress=0.25, seconds=30.0, seed=1)
    add_trial(study, "proxy/0001")
    found = ask(study, alive=True)
    assert found.state == "running"
    assert (found.rungs[0].asked, found.rungs[0].running, found.rungs[0].waiting) == (2, 1, 1)
    (trial,) = found.live
    assert (trial.trial_id, trial.seed, trial.step, trial.seeds_done) == ("proxy/0000", 1, 125, 0)
    assert (trial.progress, trial.ms_per_step) == (0.25, 121.7)
    assert trial.eta_seconds == pytest.approx(210)
    assert found.gpu_seconds == pytest.approx(30)


def test_the_seed_that_runs_now_is_shown_and_finished_ones_are_counted(tmp_path: Path) -> None:
    """Seed 1 has its metrics; seed 2 is half through 40 s."""
    study = make_study(tmp_path)
    folder = add_trial(study, "proxy/0000", seeds=(1, 2))
    add_progress(folder, step=500, progress=1.0, seconds=40.0, seed=1)
    (folder / "seed1" / METRICS_FILE).write_text("{}")
    add_progress(folder, step=250, progress=0.5, seconds=20.0, seed=2)
    (trial,) = ask(study, alive=True).live
    assert (trial.seed, trial.seeds_done, trial.num_seeds) == (2, 1, 2)
    assert trial.eta_seconds == pytest.approx(20)
    assert trial.seconds == pytest.approx(60)


def test_an_unfinished_trial_without_a_driver_is_interrupted(tmp_path: Path) -> None:
    """The same folder, read after a crash: no ETA, and the command that resumes comes first."""
    study = make_study(tmp_path)
    add_progress(add_trial(study, "proxy/0000"), step=125, progress=0.25, seconds=30.0)
    found = ask(study)
    assert found.state == "interrupted"
    assert (found.rungs[0].running, found.rungs[0].interrupted) == (0, 1)
    assert found.live[0].interrupted
    assert found.live[0].eta_seconds is None
    assert found.next[0] == f"pgolf search {tmp_path}"


def test_a_finished_study_suggests_page_and_export(tmp_path: Path) -> None:
    """Counts by outcome, the best of the top rung, what it cost, and nothing to resume."""
    study = make_study(tmp_path, rungs=(Rung(name="proxy", steps=9, trials=4), Rung(name="full", steps=90)))
    add_trial(study, "proxy/0000", complete(1.4, 10**7))
    add_trial(study, "proxy/0001", TrialResult(status="diverged", error="nan", seconds=60.0))
    add_trial(study, "proxy/0002", TrialResult(status="failed", error="no", seconds=60.0))
    add_trial(study, "proxy/0003", TrialResult(status="timeout", error="slow", seconds=60.0))
    add_trial(study, "proxy/0004", TrialResult(status="infeasible", error="big"))
    add_trial(study, "full/0000", complete(1.2, 10**7), parent=0, gpus=8.0)
    found = ask(study)
    first, top = found.rungs
    assert found.state == "finished"
    assert (first.complete, first.diverged, first.failed, first.timeout, first.infeasible) == (1, 1, 1, 1, 1)
    assert (found.best, top.best_val_bpb) == ("full/0000", 1.2)
    assert found.gpu_seconds == pytest.approx(660 + 3 * 60 + 8 * 660)
    assert found.dollars == pytest.approx(found.gpu_seconds / 3600 * 2.5)
    assert [command.split()[1] for command in found.next] == ["pareto", "export"]


def test_a_study_that_stopped_early_is_resumed(tmp_path: Path) -> None:
    """Every trial ended, but fewer than asked for."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", complete(1.4, 10**7))
    found = ask(study)
    assert found.state == "stopped"
    assert found.next[0].startswith("pgolf search")


def test_a_study_that_ran_out_of_money_is_not_called_finished(tmp_path: Path) -> None:
    """By the rule, where nothing was written down; by the driver's word, where the clock ended it."""
    study = replace(make_study(tmp_path), budget=Limits(trials=1))
    add_trial(study, "proxy/0000", complete(1.4, 10**7))
    found = ask(study)
    assert found.state == "out of budget"
    assert found.next[0].startswith("pgolf search")
    richer = replace(study, budget=Limits())
    assert ask(richer).state == "stopped"
    note(richer, DONE, at=1.0, trials=1, reason="its hours are over")
    assert ask(richer).state == "out of budget"
    note(richer, DONE, at=2.0, trials=1, reason="")
    assert ask(richer).state == "finished"


def test_elapsed_ends_with_the_last_result(tmp_path: Path) -> None:
    """A study that ended yesterday did not run until today."""
    study = make_study(tmp_path)
    folder = add_trial(study, "proxy/0000", complete(1.4, 10**7))
    os.utime(tmp_path / STUDY_FILE, (1000, 1000))
    os.utime(folder / "result.json", (1600, 1600))
    assert ask(study).elapsed_seconds == pytest.approx(600)


def test_the_command_prints_plain_text_or_one_document(tmp_path: Path) -> None:
    """No escape codes where there is no terminal; the lock is looked at for real."""
    study = make_study(tmp_path)
    add_progress(add_trial(study, "proxy/0000"), step=125, progress=0.25, seconds=30.0)
    with driver_lock(study):
        text = CliRunner().invoke(status, [str(tmp_path)], catch_exceptions=False).stdout
        data = json.loads(CliRunner().invoke(status, [str(tmp_path), "--json"], catch_exceptions=False).stdout)
    assert f"demo: running (driver is process {os.getpid()})" in text
    assert "121.7" in text
    assert "\x1b" not in text
    assert (data["state"], data["driver"]) == ("running", os.getpid())
    assert data["live"][0]["step"] == 125
    assert "demo: interrupted" in CliRunner().invoke(status, [str(tmp_path)], catch_exceptions=False).stdout


def test_a_study_that_never_ran_says_how_to_start_it(tmp_path: Path) -> None:
    """No trials, no numbers, one command."""
    make_study(tmp_path)
    result = CliRunner().invoke(status, [str(tmp_path)], catch_exceptions=False)
    assert "demo: not started" in result.stdout
    assert f"pgolf search {tmp_path}" in result.stdout


def test_a_suspicious_score_is_a_state_of_its_own_with_the_commands_that_end_it(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    folder = add_trial(study, "proxy/0000", complete(0.2, 10_000_000))
    write_json(folder / VERDICT_FILE, Verdict(word="suspicious", reason="too good"))
    found = ask(study)
    assert found.state == "suspicious"
    assert found.best is None, "nothing is claimed before somebody has looked"
    assert any("proxy/0000 accept" in command for command in found.next)
    assert any("proxy/0000 reject" in command for command in found.next)


def test_the_noise_floor_and_the_budget_are_shown(tmp_path: Path) -> None:
    """Two seeds 0.002 apart: a standard deviation of 0.0014; 660 s on a GPU are 0.18 hours."""
    study = make_study(tmp_path)
    runs = tuple(make_run(bpb, 10_000_000, seed=seed) for seed, bpb in ((1, 1.3), (2, 1.302)))
    add_trial(study, "proxy/0000", TrialResult(status="complete", runs=runs, seconds=660.0), seeds=(1, 2))
    found = ask(study)
    assert [(n.rung, n.degrees_of_freedom) for n in found.noise] == [("proxy", 1)]
    assert found.noise[0].sd == pytest.approx(0.002 / 2**0.5)
    assert found.budget.startswith("spent 0.18 GPU-hours ($0.46)")
    assert found.gpu_hours_limit is None
    assert ask(replace(study, budget=Limits(gpu_hours=4.0, dollars=5.0))).gpu_hours_limit == 2.0
    assert found.proxies[0].num_pairs == 0
    json.dumps(to_plain(found), allow_nan=False)


def test_a_rung_on_two_kinds_of_device_is_warned_about(tmp_path: Path) -> None:
    """Seconds buy different numbers of steps on them; one kind, and runs from before it was noted, are fine."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", complete(1.3, 15_000_000))
    add_trial(study, "proxy/0001", complete(1.3, 15_000_000, device="NVIDIA H100 80GB HBM3"))
    assert ask(study).rungs[0].devices == ("NVIDIA H100 80GB HBM3",)
    calm = CliRunner().invoke(status, [str(study.dir)])
    assert "do not compare" not in calm.stdout + calm.stderr
    add_trial(study, "proxy/0002", complete(1.3, 15_000_000, device="NVIDIA H100 PCIe"))
    found = CliRunner().invoke(status, [str(study.dir)])
    assert "do not compare" in found.stdout + found.stderr
    assert "NVIDIA H100 PCIe" in found.stdout + found.stderr
