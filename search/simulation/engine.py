"""Engine 3: trials are calls of a Python function and seconds pass only on paper. The brain cannot tell.

What a trial measures is in a file of the user's, or any function: see `search.simulation.world`.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from math import ceil
from pathlib import Path

from search.brain.driver import Driver
from search.brain.maker import study_space
from search.engines.dispatch import Dispatcher, Launch
from search.engines.events import Event, Finished, Started
from search.engines.machine import refuse_impossible
from search.engines.placement import Node
from search.ladder.promote import Done
from search.simulation.bare_space import bare_space
from search.simulation.maker import SimulatedMaker
from search.simulation.trace import LOG_FILE, Span, Trace, read_log, read_spans, recovered, stay_key
from search.simulation.world import Evaluate, World, measure
from search.study.config import StudyConfig
from search.study.ledger import read_records, trial_dir
from space.params import Param, Scalar, Space
from trials.files import append_line, write_json
from trials.spec import RESULT_FILE, TrialResult, TrialSpec

UNLIMITED = 1e9  # cores or GPUs where nobody set a limit
GPUS_PER_NODE = 8  # of a simulated cluster, unless a rung wants more


@dataclass(kw_only=True, slots=True)
class SimulatedClock:
    """Seconds since the study was launched; the engine turns it, the brain reads it."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def simulated_driver(study: StudyConfig, world: World) -> tuple[Driver, SimulatedClock]:
    """The brain of a study, over a world, and the clock by which it lives: it goes on from where a killed one was."""
    clock = SimulatedClock(now=recovered(read_spans(study), read_records(study)))
    maker = SimulatedMaker(world=world, space=world.space or study_space(study), cap_bytes=study.caps.artifact_bytes)
    return Driver(study, maker, clock=clock), clock


def run_simulated(driver: Driver, world: World, clock: SimulatedClock) -> Generator[Event, None, None]:
    """Drive the study to its end in simulated time, on `study.gpus` GPUs and `study.cpus` cores (0: no limit).

    GPUs come in nodes of eight; what starts where is decided as under Ray (search.engines.placement). Everything that
    happens at one moment happens in the order of trial ids, and what was going on when a simulation was killed is in
    its log: it goes on as if nothing had happened.

    Raises:
        UserError: a rung asks for more than there is.
    """
    study = driver.study
    nodes = simulated_nodes(study)
    refuse_impossible(study, cpus=nodes[0].cpus, gpus=nodes[0].gpus)
    log = study.dir / LOG_FILE
    spans, asked = read_log(study)
    order = {rung.name: i for i, rung in enumerate(study.rungs)}
    queue: list[tuple[float, int, int, TrialSpec, TrialResult]] = []
    dispatcher = Dispatcher(driver, nodes)

    def run(spec: TrialSpec, place: Launch | None = None) -> None:
        result, seconds = measure(study, world, spec)
        key = stay_key(spec)
        if place is not None:
            spans[key] = Span(
                trial_id=spec.trial_id,
                attempt=spec.attempt,
                num_seeds=len(spec.seeds),
                start=clock.now,
                end=clock.now + seconds,
                asked=asked.pop(key, clock.now),
                node=place.node,
                gpu_ids=place.gpu_ids,
            )
            append_line(log, astuple(spans[key]))
        heapq.heappush(queue, (spans[key].end, order[spec.rung], spec.number, spec, result))

    for left in _left_unfinished(driver):  # by a driver that was killed: what had started goes on where it was
        span = spans.get(stay_key(left))
        if span is not None:
            run(left)
            dispatcher.started(Launch(spec=left, node=span.node, gpu_ids=span.gpu_ids, at=span.start))
            yield Started(spec=left)
        elif stay_key(left) in asked:
            dispatcher.hold(left)
        else:
            driver.release(left)
    while True:
        while isinstance(said := dispatcher.next(clock.now), Launch):
            run(said.spec, said)
            yield Started(spec=said.spec)
        for spec in dispatcher.held:
            if stay_key(spec) not in asked:
                asked[stay_key(spec)] = clock.now
                append_line(log, [*stay_key(spec), clock.now])
        if not queue:
            assert isinstance(said, Done), f"nothing runs and the brain says {said}"
            return
        clock.now, _, _, spec, result = heapq.heappop(queue)
        dispatcher.ended(spec)
        write_json(trial_dir(study, spec.trial_id) / RESULT_FILE, result)
        yield Finished(spec=spec, result=driver.finish(spec))


def simulated_nodes(study: StudyConfig) -> tuple[Node, ...]:
    """The study's GPUs in nodes of eight, or of as many as a rung wants; its cores go with them. Largest first."""
    if not study.gpus:
        return (Node(name="0", cpus=study.cpus or UNLIMITED, gpus=int(UNLIMITED)),)
    size = max(GPUS_PER_NODE, *(ceil(rung.gpus) for rung in study.rungs))
    sizes = [min(size, ceil(study.gpus) - first) for first in range(0, ceil(study.gpus), size)]
    cpus = (study.cpus or UNLIMITED) / ceil(study.gpus)
    return tuple(Node(name=str(i), cpus=cpus * gpus, gpus=gpus) for i, gpus in enumerate(sizes))


def simulate(
    study: StudyConfig,
    evaluate: Evaluate,
    space: Space | Sequence[Param] | None = None,
    *,
    seed: int = 0,
    predict_bytes: Callable[[Mapping[str, Scalar]], float] | None = None,
    folder: Path | None = None,
) -> Trace:
    """Run a whole study on a function and say what happened when.

    Args:
        seed: replaces the study's: of the sampler.
        folder: where the study is kept; nowhere by default, and then Optuna's side is in memory too. With
            `study.storage = "memory"` a folder holds everything but that: a hundred SQL statements a trial less.
    """
    searched = None if space is None else bare_space(space)
    world = World(evaluate=evaluate, space=searched, predict_bytes=predict_bytes)
    started = time.monotonic()
    with ExitStack() as stack:
        if folder is None:
            shared = Path("/dev/shm")  # memory, where there is such a thing: a write costs 7 ms on a slow disk
            place = shared if shared.is_dir() else None
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgolf_simulation_", dir=place)))
            study = replace(study, storage=study.storage or "memory")
        driver, clock = simulated_driver(replace(study, folder=str(folder), seed=seed), world)
        for _ in run_simulated(driver, world, clock):
            pass
        return Trace(
            study=driver.study,
            records=driver.records,
            spans=read_spans(driver.study),
            seconds=time.monotonic() - started,
        )


def _left_unfinished(driver: Driver) -> list[TrialSpec]:
    """What a killed driver left, all in flight again."""
    left: list[TrialSpec] = []
    while driver.has_unfinished and isinstance(said := driver.next(), TrialSpec):
        left.append(said)
    return left
