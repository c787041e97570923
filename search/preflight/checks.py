"""Checks before a study starts. Each is a function of facts that returns a finding and how to repair it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pgolf_model.config import RunConfig
from pgolf_model.data.bytecount import piece_bytes
from pgolf_model.errors import UserError
from search.brain.maker import study_space
from search.corpus.dataset import Dataset, open_dataset
from search.ladder.promote import planned_trials
from search.preflight.cost import rung_speed
from search.study.config import StudyConfig
from space.forecast.hardware import Hardware
from trials.rungs import Rung
from trials.spec import TrialResult

Severity = Literal["ok", "warn", "fail"]
SPACE_DRAWS = 200  # random points of a space, to find its largest trial; with 10 minutes a run nobody tries more
TRIAL_BYTES = 3_000_000  # folder of a trial besides its artifacts: script, logs, progress
SPARE_DISK_BYTES = 1_000_000_000  # below this a disk is nearly full, whatever the study needs
SPREAD_OF_SPEED = 1.5  # a calibration whose own error is above this factor says little


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding. A failure would stop a study or spoil its results, a warning may."""

    name: str
    severity: Severity
    found: str
    fix: str = ""  # how to repair it; empty for "ok"


def failed(checks: Sequence[Check]) -> bool:
    """Return whether a check failed."""
    return any(check.severity == "fail" for check in checks)


def check_python(version: tuple[int, int]) -> Check:
    """Fail below Python 3.11, the oldest version that the code runs on."""
    found = ".".join(map(str, version))
    if version < (3, 11):
        return Check(name="python", severity="fail", found=found, fix="install Python 3.11 or newer")
    return Check(name="python", severity="ok", found=found)


def check_packages(required: Iterable[str], installed: Mapping[str, str]) -> list[Check]:
    """Compare installed packages with the project's requirements: a missing package fails, another version warns.

    Args:
        required: such as "torch==2.13.0" or "numpy>=2.0"; those of extras are left out.
        installed: version by canonical name (`packaging.utils.canonicalize_name`).
    """
    checks = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        requirement.marker = None
        name, found = requirement.name, installed.get(canonicalize_name(requirement.name))
        if found is None:
            fix = f'pip install "{requirement}"'
            checks.append(Check(name=name, severity="fail", found="not installed", fix=fix))
        elif requirement.specifier.contains(Version(found), prereleases=True):
            checks.append(Check(name=name, severity="ok", found=found))
        else:
            fix = f'tested with {requirement.specifier}: pip install "{requirement}"'
            checks.append(Check(name=name, severity="warn", found=found, fix=fix))
    return checks


def check_cores(cores: int, rungs: Sequence[Rung]) -> Check:
    """Fail if the largest rung asks for more cores than the machine has."""
    most = max(rungs, key=lambda rung: rung.cpus, default=None)
    if most is not None and most.cpus > cores:
        fix = f"rung {most.name!r} asks for {most.cpus:g} a trial: lower its cpus or take a larger machine"
        return Check(name="cpu cores", severity="fail", found=str(cores), fix=fix)
    return Check(name="cpu cores", severity="ok", found=str(cores))


def check_gpus(gpus: int, rungs: Sequence[Rung]) -> Check:
    """Fail if the largest rung asks for more GPUs than there are; without a study, warn if there is none."""
    most = max(rungs, key=lambda rung: rung.gpus, default=None)
    if most is not None and most.gpus > gpus:
        fix = f"rung {most.name!r} asks for {most.gpus:g} a trial: run it where they are (--ray-address) or lower gpus"
        return Check(name="gpus", severity="fail", found=str(gpus), fix=fix)
    if not gpus and most is None:
        return Check(name="gpus", severity="warn", found="none", fix="only small studies are worth running on a CPU")
    return Check(name="gpus", severity="ok", found=str(gpus))


def check_disk(free_bytes: int, study: StudyConfig | None) -> Check:
    """Fail if the artifacts and logs of all trials do not fit on the disk."""
    needed = SPARE_DISK_BYTES
    if study is not None:
        runs = sum(n * len(rung.seeds) for rung, n in zip(study.rungs, planned_trials(study), strict=True))
        needed += runs * (study.caps.artifact_bytes + TRIAL_BYTES)
    found = f"{free_bytes / 1e9:,.1f} GB free, {needed / 1e9:,.1f} wanted"
    if free_bytes < needed:
        return Check(
            name="disk", severity="fail", found=found, fix="free some space or put the study's folder elsewhere"
        )
    return Check(name="disk", severity="ok", found=found)


def check_data(folder: str) -> tuple[Check, Dataset | None]:
    """Compare a dataset with its manifest: headers, sizes, tokenizer, vocabulary. The dataset is None if it failed."""
    name = f"data {folder}"
    try:
        dataset = open_dataset(folder)
        piece_bytes(str(dataset.tokenizer), dataset.manifest.vocab_size)
    except UserError as error:
        return Check(name=name, severity="fail", found=error.message, fix=error.hint or "see pgolf data --help"), None
    except OSError as error:
        return Check(name=name, severity="fail", found=str(error), fix="see pgolf data --help"), None
    tokens = {"train": dataset.manifest.train.tokens, "val": dataset.manifest.val.tokens}
    found = (
        f"{len(dataset.manifest.shards)} shards, {tokens['train']:,} train and {tokens['val']:,} val tokens, "
        f"vocabulary {dataset.manifest.vocab_size}"
    )
    for side, count in tokens.items():
        if not count:
            fix = "build or fetch the dataset again"
            return Check(name=name, severity="fail", found=f"no {side} tokens; {found}", fix=fix), None
    return Check(name=name, severity="ok", found=found), dataset


def check_calibration(hardware: Hardware) -> Check:
    """Show the measured speed; warn if it was too uneven to forecast with."""
    found = (
        f"{hardware.flops_per_second / 1e12:,.3g} TFLOP/s in products, {hardware.bytes_per_second / 1e9:,.3g} GB/s, "
        f"step seconds within {hardware.error:.0%}"
    )
    if 1 + hardware.error > SPREAD_OF_SPEED:
        fix = "the machine is busy or throttles: calibrate again when it is idle"
        return Check(name="speed", severity="warn", found=found, fix=fix)
    return Check(name="speed", severity="ok", found=found)


def check_trial_run(result: TrialResult) -> Check:
    """Fail if a two-step run of the shipped script failed anywhere from reading data to scoring the artifact."""
    if result.status != "complete":
        return Check(
            name="two-step run", severity="fail", found=result.status, fix=result.error.strip() or "see its log"
        )
    run = result.runs[0]
    found = f"packed to {run.model_bytes:,} bytes, read back, scored {run.val_bpb:.3f} bpb in {result.seconds:.0f} s"
    return Check(name="two-step run", severity="ok", found=found)


def check_rungs(study: StudyConfig, hardware: Hardware, datasets: Sequence[Dataset]) -> list[Check]:
    """Check each rung: memory of the largest trial, the control's time against the timeout, its tokens against data."""
    space = study_space(study)
    vocab_size = max((d.manifest.vocab_size for d in datasets), default=1024)
    rng = np.random.default_rng(0)
    points = [space.control, *(start.values for start in space.warm_starts)]
    points += [space.sample(rng) for _ in range(SPACE_DRAWS)]
    configs = [space.build(point, vocab_size=vocab_size) for point in points]
    fewest = min((d.manifest.train.tokens for d in datasets), default=0)
    most = max((d.manifest.val.tokens for d in datasets), default=0)
    return [
        check
        for rung in study.rungs
        for check in _check_rung(rung, configs, hardware, train_tokens=fewest, val_tokens=most)
    ]


def _check_rung(
    rung: Rung, configs: Sequence[RunConfig], hardware: Hardware, *, train_tokens: int, val_tokens: int
) -> list[Check]:
    """Check one rung; the first configuration is the control's."""
    speeds = [rung_speed(rung, config, hardware, val_tokens=val_tokens) for config in configs]
    control, largest = speeds[0], max(speeds, key=lambda speed: speed.peak_memory_bytes)
    memory = f"largest of {len(speeds)} points: {largest.peak_memory_bytes / 2**20:,.0f} MiB a rank of "
    memory += f"{largest.memory_bytes / 2**20:,.0f}"
    fix = "lower train.micro_batch_tokens or the space's upper ends, or give a trial more of the device"
    severities: dict[bool | None, Severity] = {True: "ok", None: "warn", False: "fail"}
    severity = severities[largest.fits_memory]
    fix = "" if severity == "ok" else fix
    checks = [Check(name=f"memory of {rung.name}", severity=severity, found=memory, fix=fix)]
    time = f"control: {control.steps:,} steps of {1e3 * control.step_seconds:.1f} ms, {control.total_seconds:,.0f} s"
    if control.total_seconds > rung.timeout:
        fix = f"its timeout is {rung.timeout:,.0f} s: raise timeout_seconds or lower the budget"
        checks.append(Check(name=f"time of {rung.name}", severity="warn", found=time, fix=fix))
    else:
        checks.append(Check(name=f"time of {rung.name}", severity="ok", found=time))
    if train_tokens and control.tokens > train_tokens:
        found = f"{control.tokens / train_tokens:.1f} passes over {train_tokens:,} training tokens"
        fix = "fetch more training shards, or accept repeated text"
        checks.append(Check(name=f"tokens of {rung.name}", severity="warn", found=found, fix=fix))
    return checks


def describe_checks(checks: Sequence[Check]) -> str:
    """Return a line for each check with its repair below it, and the counts."""
    lines = []
    for check in checks:
        lines.append(f"{check.severity:<5} {check.name:<24} {check.found}")
        if check.fix:
            lines += [f"{'':<5} {'':<24} -> {line}" for line in check.fix.splitlines()]
    count = Counter(check.severity for check in checks)
    return "\n".join([*lines, f"{count['ok']} ok, {count['warn']} to look at, {count['fail']} to repair"])


def plain_checks(checks: Sequence[Check]) -> list[dict[str, str]]:
    """Return the checks as `pgolf doctor --json` prints them: there the severity is called level."""
    return [{"name": c.name, "level": c.severity, "found": c.found, "fix": c.fix} for c in checks]
