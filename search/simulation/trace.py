"""When each simulated trial started and ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def read_spans(study: StudyConfig) -> tuple[Span, ...]:
    """What ran when and where, in order of starts."""
    return tuple(read_log(study)[0].values())


def read_log(study: StudyConfig) -> tuple[dict[StayKey, Span], dict[StayKey, float]]:
    """The simulation's log: the stays that have started; and since when each trial waits that has not."""
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
    """The clock when the simulation was killed: the moment of the last event that is known."""
    open_now = {stay_key(r.spec) for r in records if r.result is None}
    ran = ((s.trial_id, s.attempt, s.num_seeds) for s in spans)
    return max((s.start if key in open_now else s.end for key, s in zip(ran, spans, strict=True)), default=0.0)
