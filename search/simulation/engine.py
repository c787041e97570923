"""Engine 3: trials are calls of a Python function, in simulated time. The brain is the same as for real trials.

The function is in a file of the user's, see `search.simulation.world`; `simulate` takes any function.
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

UNLIMITED = 1e9  # cores or GPUs where the study sets no limit
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

    GPUs come in nodes of eight, and trials are placed on them as under Ray (search.engines.placement). Trials that end
    at one moment end in the order of their ids. The log holds every start, so a simulation that was killed goes on as
    if nothing had happened.

    Raises:
        UserError: a rung asks for more than there is.
    """
    yield from _Simulation(driver, world, clock).run()


class _Simulation:
    """What goes on in simulated time: which trials stay on the cluster and when each leaves it."""

    def __init__(self, driver: Driver, world: World, clock: SimulatedClock) -> None:
        self._driver, self._world, self._clock = driver, world, clock
        study = driver.study
        nodes = simulated_nodes(study)
        refuse_impossible(study, cpus=nodes[0].cpus, gpus=nodes[0].gpus)
        self._dispatcher = Dispatcher(driver, nodes)
        self._log = study.dir / LOG_FILE
        self._spans, self._asked = read_log(study)
        self._height = {rung.name: i for i, rung in enumerate(study.rungs)}
        self._ends: list[tuple[float, int, int, TrialSpec, TrialResult]] = []  # a heap, the next end first

    def run(self) -> Generator[Event, None, None]:
        """Turn the clock from one end of a trial to the next until nothing runs."""
        yield from self._go_on()
        while True:
            while isinstance(said := self._dispatcher.next(self._clock.now), Launch):
                self._start(said)
                yield Started(spec=said.spec)
            self._log_held()
            if not self._ends:
                assert isinstance(said, Done), f"nothing runs and the brain says {said}"
                return
            self._clock.now, _, _, spec, result = heapq.heappop(self._ends)
            self._dispatcher.ended(spec)
            write_json(trial_dir(self._driver.study, spec.trial_id) / RESULT_FILE, result)
            yield Finished(spec=spec, result=self._driver.finish(spec))

    def _go_on(self) -> Generator[Event, None, None]:
        """Take up the trials that a killed driver left: those that had started go on where and since when they were."""
        for spec in _left_unfinished(self._driver):
            span = self._spans.get(stay_key(spec))
            if span is not None:
                result, _ = measure(self._driver.study, self._world, spec)
                self._push(spec, result)
                self._dispatcher.started(Launch(spec=spec, node=span.node, gpu_ids=span.gpu_ids, at=span.start))
                yield Started(spec=spec)
            elif stay_key(spec) in self._asked:
                self._dispatcher.hold(spec)
            else:
                self._driver.release(spec)

    def _start(self, launch: Launch) -> None:
        """A trial begins its stay now; the log says until when."""
        spec, key, now = launch.spec, stay_key(launch.spec), self._clock.now
        result, seconds = measure(self._driver.study, self._world, spec)
        self._spans[key] = Span(
            trial_id=spec.trial_id,
            attempt=spec.attempt,
            num_seeds=len(spec.seeds),
            start=now,
            end=now + seconds,
            asked=self._asked.pop(key, now),
            node=launch.node,
            gpu_ids=launch.gpu_ids,
        )
        append_line(self._log, astuple(self._spans[key]))
        self._push(spec, result)

    def _push(self, spec: TrialSpec, result: TrialResult) -> None:
        """The trial will end when its span says; of trials that end at one moment the lower rung's come first."""
        end = self._spans[stay_key(spec)].end
        heapq.heappush(self._ends, (end, self._height[spec.rung], spec.number, spec, result))

    def _log_held(self) -> None:
        """Log since when each trial waits that was asked for and found no place."""
        for spec in self._dispatcher.held:
            key = stay_key(spec)
            if key not in self._asked:
                self._asked[key] = self._clock.now
                append_line(self._log, [*key, self._clock.now])


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
    """Run a whole study on a function and return what happened when.

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
