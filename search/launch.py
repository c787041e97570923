"""Run a study to its end: open it, choose the engine, show progress, stop cleanly."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from search.brain.driver import Driver
    from search.engines.events import Event
    from search.study.config import StudyConfig
    from search.study.ledger import Word


def run_study(
    config: StudyConfig, *, ray_address: str, simulate: Path | None, verdicts: Mapping[str, Word] | None = None
) -> Driver:
    """Run the study to its end, talking on stderr.

    Args:
        verdicts: on suspicious trials, given once the study has opened.
    """
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, markup=False)
    engine = f"simulating {simulate}" if simulate else f"engine {config.engine}"
    console.print(f"study {config.name}: {engine}, trials in {config.dir}", highlight=False)
    from search.brain.driver import Driver
    from search.engines.local import run_local
    from search.engines.machine import this_machine
    from search.engines.progress import follow, outlook
    from search.ladder.budget import out_of_reach
    from search.study.lock import driver_lock

    if simulate:
        from search.simulation.engine import run_simulated, simulated_driver
        from search.simulation.world import load_world

        world = load_world(simulate)  # a mistake in it leaves nothing behind
    for warning in out_of_reach(config):
        console.print(f"warning: {warning}", highlight=False)
    config.dir.mkdir(parents=True, exist_ok=True)
    every = 0.0
    events: Generator[Event, None, None] | None = None
    try:
        with driver_lock(config):
            if simulate:
                driver, clock = simulated_driver(config, world)
            else:
                driver = Driver(config)
            for trial_id, word in (verdicts or {}).items():
                driver.judge(trial_id, word)
            if driver.records:
                known = f"going on with {len(driver.records)} known trials: {outlook(config, driver.records)}"
                console.print(known, highlight=False)
            if simulate:
                events, every = run_simulated(driver, world, clock), 5.0
            elif config.engine == "ray":
                from search.engines.ray_tune import run_ray

                events = run_ray(driver, this_machine(config.cpus, config.gpus), address=ray_address)
            else:
                events = run_local(driver, this_machine(config.cpus, config.gpus))
            follow(driver, events, console, every=every)
    except KeyboardInterrupt:
        if events is not None:
            console.print("\nstopping ...", highlight=False)
            events.close()
        console.print(
            "stopped; finished trials are kept, running ones will be run again. Go on with:\n"
            f"  pgolf {shlex.join(sys.argv[1:])}",
            highlight=False,
        )
        raise SystemExit(130) from None
    return driver
