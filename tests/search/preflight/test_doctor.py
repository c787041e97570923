"""`pgolf doctor`: each check on facts that are fine and facts that are not, and the command on a small dataset."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from studies import complete

from search.commands import doctor as doctor_cli
from search.preflight.checks import (
    Check,
    check_calibration,
    check_cores,
    check_data,
    check_disk,
    check_gpus,
    check_packages,
    check_python,
    check_rungs,
    check_trial_run,
    describe_checks,
    failed,
)
from search.preflight.cost import cost_of, known_hardware
from search.study.config import StudyConfig, load_study
from space.forecast.hardware import H100, HARDWARE_FILE, Hardware
from space.plain import from_plain
from trials.files import write_json
from trials.rungs import Rung
from trials.spec import TrialResult

LAPTOP = replace(
    H100,
    name="this machine",
    flops_per_second=4e10,
    attention_flops_per_second=3e10,
    bytes_per_second=1.5e10,
    link_bytes_per_second=0.0,
    memory_bytes=16e9,
    is_gpu=False,
    error=0.2,
)


def severities(checks: list[Check]) -> dict[str, str]:
    """Name -> severity."""
    return {check.name: check.severity for check in checks}


def test_packages_are_held_against_the_pins() -> None:
    """Exact where the project is exact, at least elsewhere; a local build tag is no difference; extras do not count."""
    required = ["torch==2.13.0", "numpy>=2.0", "ray[tune]==2.60.0", 'pytest>=8; extra == "dev"', "optuna==5.0.0"]
    found = check_packages(required, {"torch": "2.13.0+cpu", "numpy": "1.26.4", "ray": "2.9.0"})
    assert severities(found) == {"torch": "ok", "numpy": "warn", "ray": "warn", "optuna": "fail"}
    assert 'pip install "optuna==5.0.0"' in found[-1].fix
    assert check_packages(["numpy>=2.0"], {"numpy": "10.1"})[0].severity == "ok"
    assert check_packages(["numpy>=2.0"], {"numpy": "2.0rc1"})[0].severity == "warn"
    assert check_packages(["huggingface_hub>=1.0"], {"huggingface-hub": "1.2"})[0].severity == "ok"
    assert check_packages(["ray[tune]==2.60.0"], {})[0].fix == 'pip install "ray[tune]==2.60.0"'


def test_a_rung_that_the_machine_cannot_hold_fails() -> None:
    """Cores and GPUs of the largest rung; without a study a missing GPU is only worth knowing."""
    rungs = (Rung(name="small", steps=1, cpus=2), Rung(name="large", seconds=600, gpus=8, processes=8, cpus=64))
    assert (check_cores(64, rungs).severity, check_gpus(8, rungs).severity) == ("ok", "ok")
    assert (check_cores(63, rungs).severity, check_gpus(7, rungs).severity) == ("fail", "fail")
    assert "'large'" in check_cores(63, rungs).fix
    assert check_gpus(0, ()).severity == "warn"
    assert check_gpus(0, rungs[:1]).severity == "ok"
    assert [check_python(v).severity for v in ((3, 10), (3, 11), (4, 0))] == ["fail", "ok", "ok"]


def test_the_disk_must_hold_every_artifact_of_the_study() -> None:
    """64 + 25 + 6 + 15 runs of 16 MB and their logs are about 2 GB more than the spare gigabyte."""
    study = load_study("8xh100.toml")
    assert check_disk(10**12, study).severity == "ok"
    assert check_disk(2 * 10**9, study).severity == "fail"
    assert check_disk(2 * 10**9, None).severity == "ok"


def test_damaged_data_fails_with_the_reason(tiny_data: Path, tmp_path: Path) -> None:
    """Whole; without its tokenizer; with a shard cut short; not there."""
    check, dataset = check_data(str(tiny_data))
    assert (check.severity, dataset is not None) == ("ok", True)
    assert "vocabulary 512" in check.found
    broken = tmp_path / "broken"
    shutil.copytree(tiny_data, broken)
    shard = next(broken.glob("*train*.bin"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert check_data(str(broken))[0].severity == "fail"
    shutil.copy(tiny_data / shard.name, shard)
    assert check_data(str(broken))[0].severity == "ok"
    (broken / "tokenizer.model").unlink()
    check, dataset = check_data(str(broken))
    assert (check.severity, dataset) == ("fail", None)
    assert "tokenizer.model" in check.found
    assert check_data(str(tmp_path / "nowhere"))[0].severity == "fail"


def test_the_largest_trial_must_fit_in_memory(tiny_data: Path) -> None:
    """The same study on a machine with room, with too little, and with about as much as the forecast."""
    study, dataset = load_study("demo.toml"), check_data(str(tiny_data))[1]
    assert dataset is not None
    fine = severities(check_rungs(study, LAPTOP, [dataset]))
    assert (fine["memory of proxy"], fine["time of full"]) == ("ok", "ok")
    assert severities(check_rungs(study, replace(LAPTOP, memory_bytes=1e8), [dataset]))["memory of full"] == "fail"
    slow = check_rungs(study, LAPTOP.with_rates([rate * 100 for rate in LAPTOP.rates]), [dataset])
    assert severities(slow)["time of full"] == "warn"


def test_too_little_text_is_told(tiny_data: Path) -> None:
    """240 steps of 2,048 tokens pass several times over a dataset of some tens of thousands."""
    dataset = check_data(str(tiny_data))[1]
    assert dataset is not None
    checks = {check.name: check for check in check_rungs(load_study("demo.toml"), LAPTOP, [dataset])}
    tokens = sum(shard.tokens for shard in dataset.manifest.shards if shard.split == "train")
    assert checks["tokens of full"].found.startswith(f"{240 * 2048 / tokens:.1f} passes")


def test_a_run_that_fails_is_shown_with_its_reason() -> None:
    """Its error is what there is to do."""
    bad = check_trial_run(TrialResult(status="failed", error="seed 1: no kernel image for sm_120"))
    assert (bad.severity, "sm_120" in bad.fix) == ("fail", True)
    assert check_trial_run(complete(1.3, 100_000)).severity == "ok"
    assert check_calibration(replace(LAPTOP, error=0.9)).severity == "warn"
    assert check_calibration(LAPTOP).severity == "ok"


def test_the_table_says_what_to_do_and_counts() -> None:
    """Severities first, the fix on a line of its own."""
    checks = [
        Check(name="a", severity="ok", found="fine"),
        Check(name="b", severity="fail", found="bad", fix="mend it"),
    ]
    text = describe_checks(checks)
    assert text.splitlines()[0].split() == ["ok", "a", "fine"]
    assert "-> mend it" in text
    assert text.endswith("1 ok, 0 to look at, 1 to repair")
    assert (failed(checks), failed(checks[:1])) == (True, False)


def test_the_dry_run_shows_the_forecast_where_the_hardware_is_known(tmp_path: Path) -> None:
    """By name, or by the file that doctor left in the study's folder; without either nothing is made up."""
    study = replace(load_study("demo.toml"), folder=str(tmp_path))
    assert known_hardware(study, None) is None
    assert all(rung.control is None for rung in cost_of(study).rungs)
    write_json(tmp_path / HARDWARE_FILE, LAPTOP)
    assert known_hardware(study, None) == LAPTOP
    assert known_hardware(study, "h100") == H100
    controls = [rung.control for rung in cost_of(study, LAPTOP).rungs]
    assert [c.steps for c in controls if c] == [80, 240]


def test_doctor_without_measuring_checks_and_exits_one_on_failure(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written; a missing dataset is a failure."""
    monkeypatch.chdir(tmp_path)
    fine = CliRunner().invoke(doctor_cli.doctor, ["--data", str(tiny_data), "--no-calibration", "--json"])
    assert fine.exit_code == 0, fine.output
    document = json.loads(fine.stdout)
    assert document["hardware"] is None
    assert {check["level"] for check in document["checks"]} <= {"ok", "warn"}
    assert {"python", "torch", "disk"} <= {check["name"] for check in document["checks"]}
    bad = CliRunner().invoke(doctor_cli.doctor, ["--data", "nowhere", "--no-calibration"])
    assert bad.exit_code == 1
    assert "no dataset at nowhere" in bad.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_doctor_measures_this_machine_and_runs_two_steps(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it: calibration, a run of the real script, hardware.json for others to read."""
    monkeypatch.chdir(tmp_path)
    study = from_plain(
        StudyConfig,
        {
            "name": "s",
            "space": "tiny",
            "data": [str(tiny_data)],
            "rungs": [{"name": "p", "steps": 20, "trials": 1, "batch_tokens": 2048}],
        },
    )
    write_json(tmp_path / "study.json", study)
    answer = CliRunner().invoke(doctor_cli.doctor, ["--study", str(tmp_path / "study.json"), "--json"])
    assert answer.exit_code == 0, answer.output
    document = json.loads(answer.stdout)
    hardware = from_plain(Hardware, document["hardware"])
    assert known_hardware(replace(study, folder=str(tmp_path)), None) == hardware
    assert 1e9 < hardware.flops_per_second < 1e13
    assert next(check for check in document["checks"] if check["name"] == "two-step run")["level"] == "ok"
