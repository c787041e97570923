"""Engine 3: trials are calls of a Python function and seconds pass only on paper. The brain cannot tell.

What a trial measures is in a file of the user's, or any function: see `search.world`.
"""

from __future__ import annotations

import heapq
import json
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from functools import cache
from itertools import pairwise
from math import ceil
from pathlib import Path

from pgolf_model.config import RunConfig
from search.bare_space import bare_space
from search.bundle import bundle
from search.commands import WORLD_FILE
from search.dispatch import Dispatcher, Start
from search.driver import Driver
from search.events import Event, Finished, Started
from search.ledger import TrialRecord, read_records, trial_dir
from search.local import refuse_impossible
from search.maker import Made, study_space
from search.placement import Node
from search.promote import Done
from search.study import StudyConfig
from search.world import Evaluate, World, measure
from space.params import Param, Space
from space.quant_knobs import at_cap
from space.sizing import estimate_model_bytes
from trials.rungs import Rung
from trials.spec import RESULT_FILE, Scalar, TrialResult, TrialSpec, append_line, read_lines, write_json

LOG_FILE = "simulated.jsonl"  # in the study's folder: when each trial started and will end, in simulated seconds
UNLIMITED = 1e9  # cores or GPUs where nobody set a limit
GPUS_PER_NODE = 8  # of a simulated cluster, unless a rung wants more


_Key = tuple[str, int, int]  # trial, attempt, number of seeds: one stay on the cluster


@dataclass(kw_only=True, slots=True)
class SimulatedClock:
    """Seconds since the study was launched; the engine turns it, the brain reads it."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedMaker:
    """Trials without scripts or data. The configuration is the space's own where it makes one."""

    world: World
    space: Space
    cap_bytes: int

    @property
    def forecast(self) -> Callable[[Mapping[str, Scalar]], float] | None:
        """`predict_bytes`, or the named space's estimate."""
        if self.world.predict_bytes is not None:
            return self.world.predicted
        if self.world.space is not None:
            return None

        def artifact_bytes(params: Mapping[str, Scalar]) -> float:
            config = at_cap(self.space.build(params), params, self.cap_bytes)
            return _code_bytes() + estimate_model_bytes(config, code_bytes=_code_bytes()).model_bytes

        return artifact_bytes

    def make(self, rung: Rung, params: Mapping[str, Scalar], seed: int) -> Made:
        """The trial; its forecast is `predict_bytes`, or that of a named space's configuration."""
        config = at_cap(rung.apply(self.space.build(params), seed), params, self.cap_bytes)
        if self.world.predict_bytes is not None:
            size = round(self.world.predicted(params))
            return Made(config=config, predicted_bytes=size, predicted_low=size, predicted_high=size)
        if self.world.space is None:
            sizes = estimate_model_bytes(config, code_bytes=_code_bytes())
            low, central, high = (_code_bytes() + x for x in (sizes.low, sizes.model_bytes, sizes.high))
            return Made(config=config, predicted_bytes=central, predicted_low=low, predicted_high=high)
        return Made(config=config)

    def script(self, config: RunConfig) -> bytes:
        """There is none."""
        return b""

    def freeze(self, folder: Path) -> None:
        """Remember which file simulates the study: results of two functions are not comparable."""
        if not self.world.sha256:
            return
        path = folder / WORLD_FILE
        now = {"sha256": self.world.sha256, "file": self.world.file}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        if known["sha256"] != now["sha256"]:
            if any(folder.glob(f"*/*/{RESULT_FILE}")):
                raise ValueError(
                    f"the study in {folder} was simulated with another file, or an older {self.world.file}; put the "
                    "old one back, take another --seed or remove that folder, or, where finished trials would end as "
                    f"they did, remove {path}"
                )
            (folder / LOG_FILE).unlink(missing_ok=True)  # nothing has ended: nothing is lost by a new beginning
        write_json(path, now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One stay of a trial on the cluster, in simulated seconds."""

    trial_id: str
    attempt: int
    num_seeds: int  # of the spec that was started
    start: float
    end: float
    asked: float = 0.0  # when the brain wanted it started
    node: str = ""
    gpu_ids: tuple[int, ...] = ()  # on that node


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What a simulated study did and when."""

    study: StudyConfig
    records: tuple[TrialRecord, ...]
    spans: tuple[Span, ...]  # in order of their starts
    seconds: float  # real time it took

    @property
    def gpu_seconds(self) -> float:
        """GPU time that trials held."""
        gpus = {r.spec.trial_id: r.spec.gpus for r in self.records}
        return sum((s.end - s.start) * gpus[s.trial_id] for s in self.spans)

    def idle(self, gpus: float) -> float:
        """Share of GPU time that nobody used before the last trial was started."""
        last = max((s.start for s in self.spans), default=0.0)
        mine = {r.spec.trial_id: r.spec.gpus for r in self.records}
        used = sum((min(s.end, last) - s.start) * mine[s.trial_id] for s in self.spans)
        return 1 - used / (gpus * last) if last else 0.0

    def idle_while_queued(self, gpus: float) -> float:
        """Share of all GPU time until the last trial was started in which a GPU was free although a trial waited."""
        mine = {r.spec.trial_id: r.spec.gpus for r in self.records}
        moments = sorted({moment for s in self.spans for moment in (s.asked, s.start, s.end)})
        free = 0.0
        for now, then in pairwise(moments):
            if any(s.asked <= now < s.start for s in self.spans):
                free += (then - now) * (gpus - sum(mine[s.trial_id] for s in self.spans if s.start <= now < s.end))
        last = max((s.start for s in self.spans), default=0.0)
        return free / (gpus * last) if last else 0.0

    def best_by_gpu_seconds(self, rung: str = "") -> tuple[tuple[float, TrialRecord], ...]:
        """(GPU-seconds spent by then, new best feasible trial) in order of time, at one rung (the top by default)."""
        name = rung or self.study.rungs[-1].name
        record = {r.spec.trial_id: r for r in self.records}
        found: list[tuple[float, TrialRecord]] = []
        best = float("inf")
        for span in sorted(self.spans, key=lambda s: (s.end, s.trial_id)):
            mine = record[span.trial_id]
            if mine.spec.rung == name and mine.result and mine.feasible(self.study.caps) and mine.result.val_bpb < best:
                best = mine.result.val_bpb
                now = span.end
                spent = sum(
                    (min(s.end, now) - s.start) * record[s.trial_id].spec.gpus for s in self.spans if s.start < now
                )
                found.append((spent, mine))
        return tuple(found)


def simulated_driver(study: StudyConfig, world: World) -> tuple[Driver, SimulatedClock]:
    """The brain of a study, over a world, and the clock by which it lives: it goes on from where a killed one was."""
    clock = SimulatedClock(now=_recovered(read_spans(study), read_records(study)))
    maker = SimulatedMaker(world=world, space=world.space or study_space(study), cap_bytes=study.caps.artifact_bytes)
    return Driver(study, maker, clock=clock), clock


def run_simulated(driver: Driver, world: World, clock: SimulatedClock) -> Generator[Event, None, None]:
    """Drive the study to its end in simulated time, on `study.gpus` GPUs and `study.cpus` cores (0: no limit).

    GPUs come in nodes of eight; what starts where is decided as under Ray (search.placement). Everything that happens
    at one moment happens in the order of trial ids, and what was going on when a simulation was killed is in its log:
    it goes on as if nothing had happened.

    Raises:
        ValueError: a rung asks for more than there is.
    """
    study = driver.study
    nodes = simulated_nodes(study)
    refuse_impossible(study, cpus=nodes[0].cpus, gpus=nodes[0].gpus)
    log = study.dir / LOG_FILE
    spans, asked = _read_log(study)
    order = {rung.name: i for i, rung in enumerate(study.rungs)}
    queue: list[tuple[float, int, int, TrialSpec, TrialResult]] = []
    dispatcher = Dispatcher(driver, nodes)

    def run(spec: TrialSpec, place: Start | None = None) -> None:
        result, seconds = measure(study, world, spec)
        key = _key(spec)
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
        span = spans.get(_key(left))
        if span is not None:
            run(left)
            dispatcher.started(Start(spec=left, node=span.node, gpu_ids=span.gpu_ids, at=span.start))
            yield Started(spec=left)
        elif _key(left) in asked:
            dispatcher.hold(left)
        else:
            driver.release(left)
    while True:
        while isinstance(said := dispatcher.next(clock.now), Start):
            run(said.spec, said)
            yield Started(spec=said.spec)
        for spec in dispatcher.held:
            if _key(spec) not in asked:
                asked[_key(spec)] = clock.now
                append_line(log, [*_key(spec), clock.now])
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


def read_spans(study: StudyConfig) -> tuple[Span, ...]:
    """What ran when and where, in order of starts."""
    return tuple(_read_log(study)[0].values())


def _read_log(study: StudyConfig) -> tuple[dict[_Key, Span], dict[_Key, float]]:
    """The simulation's log: what was started; and since when what was not started waits."""
    spans: dict[_Key, Span] = {}
    asked: dict[_Key, float] = {}
    for row in read_lines(study.dir / LOG_FILE):
        if not isinstance(row, list):
            continue
        key = (row[0], row[1], row[2])
        if len(row) == len(key) + 1:
            asked[key] = row[-1]
        else:
            spans[key] = Span(
                trial_id=row[0], attempt=row[1], num_seeds=row[2], start=row[3], end=row[4],
                asked=row[5], node=row[6], gpu_ids=tuple(row[7]),
            )  # fmt: skip
            asked.pop(key, None)
    return spans, asked


@cache
def _code_bytes() -> int:
    """Bytes of the script, which differs between configurations by a few dozen: one bundle stands for all."""
    return len(bundle(RunConfig()))


def _left_unfinished(driver: Driver) -> list[TrialSpec]:
    """What a killed driver left, all in flight again."""
    left: list[TrialSpec] = []
    while driver.has_unfinished and isinstance(said := driver.next(), TrialSpec):
        left.append(said)
    return left


def _key(spec: TrialSpec) -> _Key:
    return spec.trial_id, spec.attempt, len(spec.seeds)


def _recovered(spans: Sequence[Span], records: Sequence[TrialRecord]) -> float:
    """What the clock showed when the simulation was killed: the last thing that is known to have happened."""
    open_now = {_key(r.spec) for r in records if r.result is None}
    ran = ((s.trial_id, s.attempt, s.num_seeds) for s in spans)
    return max((s.start if key in open_now else s.end for key, s in zip(ran, spans, strict=True)), default=0.0)
