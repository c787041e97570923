"""Engine 1: worker processes on this machine, as many at once as its cores and GPUs carry."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from search.dispatch import Dispatcher, Start
from search.driver import Driver
from search.events import Event, Finished, Started, Tick
from search.ledger import trial_dir
from search.placement import Node
from search.promote import Done
from search.study import StudyConfig
from trials.spec import EXIT_UNFINISHED, RESULT_FILE, WORKER_LOG, TrialSpec

POLL_SECONDS = 0.1
PACKAGE_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What trials may use at the same time."""

    cpus: float
    gpu_ids: tuple[str, ...] = ()  # as CUDA_VISIBLE_DEVICES names them

    @property
    def gpus(self) -> int:
        """How many there are."""
        return len(self.gpu_ids)


@dataclass(kw_only=True, slots=True)
class _Running:
    spec: TrialSpec
    process: subprocess.Popen[bytes]


def run_local(driver: Driver, machine: Machine) -> Generator[Event, None, None]:
    """Drive the study to its end. Closing the generator stops the workers; their trials stay unfinished.

    Raises:
        ValueError: a rung asks for more than the machine has.
    """
    refuse_impossible(driver.study, cpus=machine.cpus, gpus=machine.gpus)
    dispatcher = Dispatcher(driver, (Node(name="local", cpus=machine.cpus, gpus=machine.gpus),))
    running: list[_Running] = []
    try:
        while True:
            for slot in [r for r in running if r.process.poll() is not None]:
                running.remove(slot)
                dispatcher.ended(slot.spec)
                if slot.process.returncode == EXIT_UNFINISHED:
                    driver.release(slot.spec)
                    continue
                yield Finished(spec=slot.spec, result=driver.finish(slot.spec, failure=_how_it_ended(slot)))
            said = dispatcher.next(time.monotonic())
            if isinstance(said, Start):
                running.append(_start(said.spec, driver, tuple(machine.gpu_ids[i] for i in said.gpu_ids)))
                yield Started(spec=said.spec)
                continue
            if isinstance(said, Done) and not running:
                return
            yield Tick()
            time.sleep(POLL_SECONDS)
    finally:
        for slot in running:
            slot.process.terminate()
        for slot in running:
            slot.process.wait()
            driver.release(slot.spec)


def this_machine(cpus: float = 0, gpus: float = 0) -> Machine:
    """The machine's own cores and GPUs, where they are not given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    visible = _visible_gpus()
    return Machine(cpus=cpus or float(cores), gpu_ids=visible[: int(gpus)] if gpus else visible)


def refuse_impossible(study: StudyConfig, *, cpus: float, gpus: float) -> None:
    """Say before anything runs that a rung can never run on a machine of so many cores and GPUs."""
    for rung in study.rungs:
        if rung.cpus > cpus or rung.gpus > gpus:
            raise ValueError(
                f"rung {rung.name!r} needs {rung.cpus:g} cpus and {rung.gpus:g} gpus per trial, the largest machine "
                f"has {cpus:g} and {gpus:g}; lower the rung's cpus and gpus or run on a larger machine"
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


def _start(spec: TrialSpec, driver: Driver, gpu_ids: tuple[str, ...]) -> _Running:
    folder = trial_dir(driver.study, spec.trial_id)
    with (folder / WORKER_LOG).open("wb") as log:
        process = subprocess.Popen(
            worker_command(folder),
            env=worker_environment(gpu_ids),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C reaches the driver only
        )
    return _Running(spec=spec, process=process)


def _how_it_ended(slot: _Running) -> str:
    return f"the worker ended with exit code {slot.process.returncode} and left no {RESULT_FILE}; see its {WORKER_LOG}"


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
