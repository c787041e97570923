"""Run the shipped script once per seed and turn what it leaves behind into a TrialResult.

This process never loads torch: it starts `train_gpt.py`, the very file that would be submitted, watches the clock,
and reads `metrics.json`. Whatever happens to the script, the answer is a result.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pgolf_model.files import ARTIFACT_FILE, FAULT_FILE, METRICS_FILE
from space.plain import from_plain
from trials.environment import trial_environment
from trials.files import read_lines, read_noun, refuse_full_disk
from trials.live import BEGAN_FILE
from trials.process import end_leftovers, end_with_parent, kill_tree, wait_for
from trials.spec import LOG_FILE, SCRIPT_FILE, SPEC_FILE, Fault, SeedRun, Status, TrialResult, TrialSpec

LOG_TAIL_LINES = 30
_SEED_RUN_KEYS = tuple(SeedRun.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedEnd:
    """How the run of one seed ended; by default as it should."""

    status: Status = "complete"
    fault: Fault = ""
    error: str = ""


def run_trial(folder: Path, *, parent: int | None = None) -> TrialResult:
    """All seeds of the trial in `folder`, one after another; a seed that already finished is not run again.

    Args:
        parent: the process that waits for the result; when it is not, or no longer, our parent, the work stops.
    Raises:
        CalledOff: the parent process died, or left a stop file. The trial stays unfinished, to be run again.
        OSError: the disk is full. The trial stays unfinished.
        UserError: there is no readable spec.
    """
    spec = read_noun(TrialSpec, folder / SPEC_FILE)
    runs: list[SeedRun] = []
    versions: dict[str, str] = {}
    end = SeedEnd()
    lost = 0.0  # seconds of the run that did not finish
    for seed in spec.seeds:
        started = time.monotonic()
        seed_dir = folder / f"seed{seed}"
        end = _run_seed(spec, folder / SCRIPT_FILE, seed_dir, seed, parent or os.getppid())
        lost = time.monotonic() - started
        if end.status != "complete":
            break
        try:
            metrics = json.loads((seed_dir / METRICS_FILE).read_text(encoding="utf-8"))
            versions = metrics["versions"]
            if metrics["status"] == "diverged":
                reason = metrics.get("error") or "the loss was not finite"
                error = f"seed {seed}: training diverged after {metrics['steps']} steps: {reason}"
                end = SeedEnd(status="diverged", error=error)
                break
            runs.append(
                from_plain(SeedRun, {key: metrics[key] for key in _SEED_RUN_KEYS if key in metrics}, where=METRICS_FILE)
            )
            lost = 0.0
        except (OSError, KeyError, ValueError) as problem:
            error = f"seed {seed}: the script ended without usable metrics: {problem!r}"
            end = SeedEnd(status="failed", fault="script", error=error)
            break
    marks = [folder / f"seed{seed}" / BEGAN_FILE for seed in spec.seeds]
    seconds = lost + sum(run.total_seconds for run in runs)  # also of seeds that finished before a restart
    seconds += sum(_read_mark(mark) for mark in marks)
    if end.status != "complete":  # a second attempt is charged for itself alone
        for mark in marks:
            mark.unlink(missing_ok=True)
    return TrialResult(
        status=end.status, runs=tuple(runs), fault=end.fault, error=end.error, seconds=seconds, versions=versions
    )


def _run_seed(spec: TrialSpec, script: Path, seed_dir: Path, seed: int, parent: int) -> SeedEnd:
    """Run the script in `seed_dir` unless it already finished there. Returns how the process ended."""
    if (seed_dir / METRICS_FILE).exists() and (seed_dir / ARTIFACT_FILE).exists():
        return SeedEnd()
    killed = _killed_seconds(seed_dir)
    shutil.rmtree(seed_dir, ignore_errors=True)
    seed_dir.mkdir(parents=True)
    (seed_dir / BEGAN_FILE).write_text(f"{killed:.3f}", encoding="utf-8")
    with (seed_dir / LOG_FILE).open("wb") as log:
        process = subprocess.Popen(
            _command(spec, script, seed),
            cwd=seed_dir,
            env=trial_environment(spec, script.parent, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            timed_out = wait_for(process, spec.timeout_seconds, script.parent, parent)
        finally:
            kill_tree(process)
            end_leftovers(script.parent)
    if timed_out:
        error = f"seed {seed}: still running after {spec.timeout_seconds:g} s; raise the rung's timeout_seconds"
        return SeedEnd(status="timeout", fault="timeout", error=error)
    finished = (seed_dir / METRICS_FILE).exists()  # the script's last act: what fails after it is only teardown
    if process.returncode and not finished:
        refuse_full_disk(process.returncode, seed_dir)
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        tail = _tail((seed_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace"))
        error = f"seed {seed}: {SCRIPT_FILE} ended with {how}; its log ends with\n{tail}"
        return SeedEnd(status="failed", fault=_fault(seed_dir, process.returncode), error=error)
    return SeedEnd()


def _fault(seed_dir: Path, exit_code: int) -> Fault:
    """What ended a script: what it or a rank of it left word of, or the signal, or its own exception."""
    said = next(iter(read_lines(seed_dir / FAULT_FILE)), None)
    if isinstance(said, dict) and said.get("fault") in ("oom", "signal"):
        return "oom" if said["fault"] == "oom" else "signal"
    return "signal" if exit_code < 0 else "script"


def _killed_seconds(seed_dir: Path) -> float:
    """What runs that were killed here have cost: until the last sign of life, since nobody saw them end."""
    mark = seed_dir / BEGAN_FILE
    if not mark.exists():
        return 0.0
    newest = max(path.stat().st_mtime for path in seed_dir.iterdir())
    return _read_mark(mark) + max(0.0, newest - mark.stat().st_mtime)


def _read_mark(mark: Path) -> float:
    """Seconds of killed runs before the one that left the mark; a torn mark says nothing."""
    try:
        return float(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


def _command(spec: TrialSpec, script: Path, seed: int) -> list[str]:
    launcher = [sys.executable, "-u"]
    if spec.processes > 1:
        launcher += ["-P", "-m", "trials.gang", str(spec.processes)]  # -P: a file of the folder is no module of ours
    options = {"--data": spec.data_dir, "--tokenizer": spec.tokenizer, "--out": ".", "--seed": str(seed)}
    flags = ["--keep-checkpoint"] if spec.keep_checkpoint else []
    return [*launcher, str(script.absolute()), *(word for pair in options.items() for word in pair), *flags]


def _tail(log: str) -> str:
    """The last words of the script itself: torchrun's report of a failed rank follows them, 40 lines about nothing."""
    lines = log.splitlines()
    launcher = next((i for i, line in enumerate(lines) if "torch.distributed.elastic" in line), len(lines))
    return "\n".join(lines[: launcher or len(lines)][-LOG_TAIL_LINES:])
