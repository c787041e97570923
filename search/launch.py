"""Run a study to its end: open it, choose the engine, show progress, stop cleanly."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from search.brain.driver import Driver
    from search.engines.events import Event
    from search.simulation.world import World
    from search.study.config import EngineName, StudyConfig

    Opened = tuple[Driver, Generator[Event, None, None]]

SIMULATED_LINE_SECONDS = 5.0  # a simulation has hundreds of events a second; it prints one line in so long
STOPPED = 130  # exit code after Ctrl-C or SIGTERM


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """How a study is run, where the command line says something else than the study."""

    engine: EngineName | None
    data: tuple[str, ...]
    cpus: float | None
    gpus: float | None
    ray_address: str
    simulate: Path | None

    def applied_to(self, study: StudyConfig) -> StudyConfig:
        """The study with what the command line says."""
        return replace(
            study,
            engine=self.engine or study.engine,
            data=self.data or study.data,
            cpus=study.cpus if self.cpus is None else self.cpus,
            gpus=study.gpus if self.gpus is None else self.gpus,
        )


def run_study(study: StudyConfig, running: Running) -> Driver:
    """Run the study to its end, talking on stderr; Ctrl-C and SIGTERM stop it cleanly.

    Returns:
        The driver, which knows every trial.
    Raises:
        UserError: the study, its data or its engine cannot be used.
        SystemExit: it was stopped.
    """
    from rich.console import Console

    from search.engines.follow import follow, outlook
    from search.ladder.budget import out_of_reach
    from search.study.lock import driver_lock

    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    engine = f"simulating {running.simulate}" if running.simulate else f"engine {study.engine}"
    console.print(f"study {study.name}: {engine}, trials in {study.dir}")
    world = _world(running)  # a mistake in its file leaves nothing behind
    for warning in out_of_reach(study):
        console.print(f"warning: {warning}")
    study.dir.mkdir(parents=True, exist_ok=True)
    with _stopping_cleanly(console), driver_lock(study):
        driver, events = _open_simulated(study, world) if world else _open(study, running)
        try:
            if driver.records:
                known = outlook(study, driver.records, {})
                console.print(f"going on with {len(driver.records)} known trials: {known}")
            follow(driver, events, console, every=SIMULATED_LINE_SECONDS if world else 0.0)
        except (KeyboardInterrupt, SystemExit):
            console.print("\nstopping ...")
            raise
        finally:
            events.close()
    return driver


def _world(running: Running) -> World | None:
    """The world that `--simulate` names."""
    if running.simulate is None:
        return None
    from search.simulation.world import load_world

    return load_world(running.simulate)


def _open_simulated(study: StudyConfig, world: World) -> Opened:
    from search.simulation.engine import run_simulated, simulated_driver

    driver, clock = simulated_driver(study, world)
    return driver, run_simulated(driver, world, clock)


def _open(study: StudyConfig, running: Running) -> Opened:
    from search.brain.driver import Driver
    from search.engines.machine import this_machine

    driver, machine = Driver(study), this_machine(study.cpus, study.gpus)
    if study.engine == "ray":
        from search.engines.ray_tune import run_ray

        return driver, run_ray(driver, machine, address=running.ray_address)
    from search.engines.local import run_local

    return driver, run_local(driver, machine)


@contextmanager
def _stopping_cleanly(console: Console) -> Iterator[None]:
    """Turn Ctrl-C, and the SIGTERM of `pgolf stop` or a batch system, into a clean end that says how to go on."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        console.print(
            "stopped; finished trials are kept, running ones will be run again. Go on with:\n"
            f"  pgolf {shlex.join(sys.argv[1:])}"
        )
        raise SystemExit(STOPPED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(signum: int, frame: FrameType | None) -> None:
    """Ray puts an equal handler in place of this one."""
    raise SystemExit(signum)
