"""Engine 1: worker processes on this machine, as many at once as its cores and GPUs carry."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass

from search.brain.driver import Driver
from search.engines.dispatch import Dispatcher, Launch
from search.engines.events import Event, Finished, Started, Tick
from search.engines.machine import Machine, refuse_impossible, worker_command, worker_environment
from search.engines.placement import Node
from search.ladder.promote import Done
from search.study.ledger import trial_dir
from trials.spec import EXIT_UNFINISHED, RESULT_FILE, WORKER_LOG, TrialSpec

POLL_SECONDS = 0.1


@dataclass(kw_only=True, slots=True)
class _Running:
    spec: TrialSpec
    process: subprocess.Popen[bytes]


def run_local(driver: Driver, machine: Machine) -> Generator[Event, None, None]:
    """Drive the study to its end. Closing the generator stops the workers; their trials stay unfinished.

    Raises:
        UserError: a rung asks for more than the machine has.
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
                result = driver.finish(slot.spec, _how_it_ended(slot), exit_code=slot.process.returncode)
                yield Finished(spec=slot.spec, result=result)
            said = dispatcher.next(time.monotonic())
            if isinstance(said, Launch):
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
