"""Collect facts about this machine, measure its speed, and run the checks of `pgolf doctor` on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from search.corpus.dataset import Dataset
    from search.preflight.checks import Check
    from search.study.config import StudyConfig
    from space.forecast.hardware import Hardware


CALIBRATION_TIMEOUT = 900.0  # seconds; on a GPU five shapes are compiled


def examine(
    study: StudyConfig | None, folders: tuple[str, ...], *, calibrated: bool
) -> tuple[list[Check], Hardware | None]:
    """Return all checks, and the measured machine; None if it was not measured or its training steps failed.

    Args:
        folders: of datasets.
        calibrated: time training steps, and run two steps of the shipped script; writes hardware.json.
    """
    import os
    import shutil
    import sys

    from search.engines.machine import this_machine
    from search.preflight.checks import (
        check_calibration,
        check_cores,
        check_data,
        check_disk,
        check_gpus,
        check_packages,
        check_python,
        check_rungs,
    )
    from space.forecast.hardware import HARDWARE_FILE
    from trials.files import write_json

    machine = this_machine()
    rungs = study.rungs if study else ()
    home = study.dir if study else Path.cwd()
    existing = next(folder for folder in (home, *home.parents) if folder.is_dir())
    checks = [check_python(sys.version_info[:2]), *check_packages(*_packages())]
    checks += [check_cores(int(machine.cpus), rungs), check_gpus(machine.gpus, rungs)]
    checks.append(check_disk(shutil.disk_usage(existing).free, study))
    datasets = []
    for folder in folders:
        check, dataset = check_data(folder)
        checks.append(check)
        datasets += [dataset] if dataset else []
    if not calibrated:
        return checks, None
    _say("timing short training steps on this machine ...")
    threads = max(1, int(min(rungs[-1].cpus / rungs[-1].processes if rungs else machine.cpus, machine.cpus)))
    hardware, problem = _calibrate(threads)
    if hardware is None:
        return [*checks, problem], None
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / HARDWARE_FILE, hardware)
    _say(f"wrote {os.path.relpath(home / HARDWARE_FILE)}")
    checks.append(check_calibration(hardware))
    if datasets:
        _say("running two steps of the script that would ship ...")
        checks.append(_two_steps(study, datasets[0], machine.cpus, machine.gpus))
    if study and len(datasets) == len(folders):
        checks += check_rungs(study, hardware, datasets)
    return checks, hardware


def _packages() -> tuple[list[str], dict[str, str]]:
    """The requirements of this project, and the version of every installed package by its canonical name."""
    from importlib.metadata import PackageNotFoundError, distributions, requires

    from packaging.utils import canonicalize_name

    from search.engines.machine import PACKAGE_ROOT

    try:
        required = requires("pgolf") or []
    except PackageNotFoundError:  # run from a checkout
        import tomllib

        project = tomllib.loads((PACKAGE_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        required = list(project["dependencies"])
    return required, {canonicalize_name(d.metadata["Name"]): d.version for d in distributions() if d.metadata["Name"]}


def _calibrate(threads: int) -> tuple[Hardware | None, Check]:
    """Measure the machine in a process of its own; without a machine the check says why."""
    import subprocess
    import sys

    from search.engines.machine import worker_environment
    from search.preflight.checks import Check
    from space.forecast.hardware import Hardware
    from space.plain import from_plain

    command = [sys.executable, "-m", "trials.calibrate_machine", "--threads", str(threads)]
    environment = worker_environment() | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=CALIBRATION_TIMEOUT, check=True
        )
    except subprocess.TimeoutExpired:
        fix = "the device hangs or is busy: look at it with nvidia-smi or top"
        return None, Check(name="speed", severity="fail", found=f"no answer in {CALIBRATION_TIMEOUT:g} s", fix=fix)
    except subprocess.CalledProcessError as error:
        tail = "\n".join(error.stderr.splitlines()[-5:])
        return None, Check(name="speed", severity="fail", found="training steps do not run", fix=tail)
    found = from_plain(Hardware, json.loads(done.stdout.splitlines()[-1]), where="calibration")
    return found, Check(name="speed", severity="ok", found=found.name)


def _two_steps(study: StudyConfig | None, dataset: Dataset, cpus: float, gpus: int) -> Check:
    """Run the control (or the tiny preset) for two steps in a temporary folder."""
    import contextlib
    import io
    import tempfile

    from pgolf_model.config import Budget
    from search.brain.maker import study_space
    from search.engines.single import run_single
    from search.preflight.checks import check_trial_run
    from space.presets import preset
    from trials.rungs import Rung

    vocab_size = dataset.manifest.vocab_size
    if study:
        space = study_space(study)
        rung = replace(study.rungs[0], steps=2, seconds=0.0, seeds=(1337,), race_from=0)
        config = space.build(space.control, vocab_size=vocab_size)
    else:
        rung, config = Rung(name="doctor", steps=2, batch_tokens=2_048), preset("tiny")
        config = replace(config, model=replace(config.model, vocab_size=vocab_size))
    rung = replace(rung, processes=1, gpus=float(min(1, gpus)), val_tokens=min(rung.val_tokens or 65_536, 65_536))
    config = replace(rung.apply(config, 1337), budget=Budget(steps=2))
    with tempfile.TemporaryDirectory(prefix="pgolf-doctor-") as folder, contextlib.redirect_stderr(io.StringIO()):
        result = run_single(config, dataset=dataset, folder=Path(folder), seeds=(1337,), cpus=cpus, gpus=min(1, gpus))
    return check_trial_run(result)


def _say(line: str) -> None:
    click.echo(line, err=True)
