"""When each simulated trial started and ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from search.study.config import StudyConfig
from search.study.ledger import TrialRecord
from trials.files import read_lines
from trials.spec import TrialSpec

LOG_FILE = "simulated.jsonl"  # in the study's folder: when each trial started and will end, in simulated seconds


StayKey = tuple[str, int, int]  # trial, attempt, number of seeds: one stay on the cluster


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


def read_spans(study: StudyConfig) -> tuple[Span, ...]:
    """What ran when and where, in order of starts."""
    return tuple(read_log(study)[0].values())


def read_log(study: StudyConfig) -> tuple[dict[StayKey, Span], dict[StayKey, float]]:
    """The simulation's log: what was started; and since when what was not started waits."""
    spans: dict[StayKey, Span] = {}
    asked: dict[StayKey, float] = {}
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


def stay_key(spec: TrialSpec) -> StayKey:
    return spec.trial_id, spec.attempt, len(spec.seeds)


def recovered(spans: Sequence[Span], records: Sequence[TrialRecord]) -> float:
    """What the clock showed when the simulation was killed: the last thing that is known to have happened."""
    open_now = {stay_key(r.spec) for r in records if r.result is None}
    ran = ((s.trial_id, s.attempt, s.num_seeds) for s in spans)
    return max((s.start if key in open_now else s.end for key, s in zip(ran, spans, strict=True)), default=0.0)
