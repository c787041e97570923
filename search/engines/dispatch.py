"""The queue between the brain and the nodes, for any engine: it asks for trials while there is room and places them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from search.brain.driver import Driver
from search.engines.placement import Need, Node, Stay, place
from search.ladder.promote import Done, Wait
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord
from trials.spec import TrialSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A trial that starts, and where."""

    spec: TrialSpec
    node: str
    gpu_ids: tuple[int, ...]  # on that node
    at: float  # seconds, on the engine's clock


class Dispatcher:
    """Trials that wait for a place and trials that run. `nodes` may change at any time; the engine ends the trials of
    a node that is lost."""

    def __init__(self, driver: Driver, nodes: Sequence[Node]) -> None:
        """Nothing waits and nothing runs."""
        self._driver = driver
        self.nodes = tuple(nodes)
        self._held: list[TrialSpec] = []
        self._running: dict[str, Launch] = {}
        self._order = {rung.name: i for i, rung in enumerate(driver.study.rungs)}
        self._seconds: Mapping[str, float] = {}

    @property
    def held(self) -> tuple[TrialSpec, ...]:
        """Trials that the brain wants started and that found no place yet, most wanted first."""
        return tuple(self._held)

    def hold(self, spec: TrialSpec) -> None:
        """Queue a trial. Trials of higher rungs come first, within a rung those with lower numbers."""
        self._held.append(spec)
        self._held.sort(key=lambda s: (-self._order[s.rung], s.number))

    def next(self, now: float) -> Launch | Wait | Done:
        """A trial that starts now. The brain is asked for more only while a trial of some rung would find a place.

        Raises:
            UserError: as `Driver.next` does; the trials that were held are unfinished then.
        """
        if self._held and self._driver.is_halted:
            for spec in self._held:
                self._driver.release(spec)
            self._held.clear()
        while True:
            needs = [self._need(spec) for spec in self._held]
            found = next(place(self.nodes, self._stays(), [*needs, *self._might_come()], now), None)
            if found is None:
                return Wait()
            if found.index < len(needs):
                start = Launch(spec=self._held.pop(found.index), node=found.node, gpu_ids=found.gpu_ids, at=now)
                self.started(start)
                return start
            said = self._driver.next()
            if not isinstance(said, TrialSpec):
                return said
            self.hold(said)

    def started(self, start: Launch) -> None:
        """Note that a trial runs and where, also when a killed driver has started it."""
        self._running[start.spec.trial_id] = start

    def ended(self, spec: TrialSpec) -> None:
        """Its place is free."""
        self._running.pop(spec.trial_id, None)
        self._seconds = {}

    def _might_come(self) -> list[Need]:
        """Needs of the trials that the brain may answer with next, one per rung, lowest first.

        Empty while a trial of the lowest rung waits: the brain gives those last, so it has nothing more urgent.
        """
        rungs = self._driver.study.rungs
        if any(spec.rung == rungs[0].name for spec in self._held):
            return []
        return [Need(cpus=r.cpus, gpus=r.gpus, seconds=self._expected()[r.name]) for r in rungs]

    def _stays(self) -> tuple[Stay, ...]:
        """The running trials, with the ends that are expected now: a driver that takes over expects the same ones."""
        needs = ((start, self._need(start.spec)) for start in self._running.values())
        return tuple(
            Stay(
                node=start.node,
                cpus=need.cpus,
                gpu_ids=start.gpu_ids,
                share=need.share,
                start=start.at,
                end=start.at + need.seconds,
            )
            for start, need in needs
        )

    def _need(self, spec: TrialSpec) -> Need:
        seeds = len(spec.seeds) - spec.seeds_done
        return Need(cpus=spec.cpus, gpus=spec.gpus, seconds=seeds * self._expected()[spec.rung])

    def _expected(self) -> Mapping[str, float]:
        """`expected_seconds`, worked out again when a trial has ended."""
        if not self._seconds:
            self._seconds = expected_seconds(self._driver.study, self._driver.records)
        return self._seconds


def expected_seconds(study: StudyConfig, records: Sequence[TrialRecord]) -> dict[str, float]:
    """How long one seed takes at each rung: the median of those that ran, else its budget, else its timeout."""
    took: dict[str, list[float]] = {rung.name: [] for rung in study.rungs}
    for record in records:
        if record.result is not None and record.result.runs:
            took[record.spec.rung].append(record.result.seconds / len(record.result.runs))
    return {r.name: median(took[r.name]) if took[r.name] else r.seconds or r.timeout for r in study.rungs}
