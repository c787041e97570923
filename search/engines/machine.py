"""What this machine lets trials use, and how a worker process is started on it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pgolf_model.errors import UserError
from search.study.config import StudyConfig

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What trials may use at the same time."""

    cpus: float
    gpu_ids: tuple[str, ...] = ()  # as CUDA_VISIBLE_DEVICES names them

    @property
    def gpus(self) -> int:
        """How many there are."""
        return len(self.gpu_ids)


def this_machine(cpus: float = 0, gpus: float = 0) -> Machine:
    """The machine's own cores and GPUs, where they are not given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    visible = _visible_gpus()
    return Machine(cpus=cpus or float(cores), gpu_ids=visible[: int(gpus)] if gpus else visible)


def refuse_impossible(study: StudyConfig, *, cpus: float, gpus: float) -> None:
    """Say before anything runs that a rung can never run on a machine of so many cores and GPUs."""
    for rung in study.rungs:
        if rung.cpus > cpus or rung.gpus > gpus:
            raise UserError(
                f"rung {rung.name!r} needs {rung.cpus:g} cpus and {rung.gpus:g} gpus per trial, the largest machine "
                f"has {cpus:g} and {gpus:g}",
                hint="lower the rung's cpus and gpus or run on a larger machine",
            )


def worker_command(folder: Path) -> list[str]:
    """The process that runs one trial for this one."""
    return [sys.executable, "-m", "trials.worker", str(folder), str(os.getpid())]


def worker_environment(gpu_ids: tuple[str, ...] | None = None) -> dict[str, str]:
    """The parent's environment, with our packages importable from anywhere and only the trial's GPUs visible."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), environment.get("PYTHONPATH"))))
    if gpu_ids is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
    return environment


def _visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES leaves visible, else every GPU that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [word.strip() for word in visible.split(",")]
        return tuple(ids[: ids.index("-1")] if "-1" in ids else filter(None, ids))
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(str(i) for i, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU "))
