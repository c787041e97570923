"""What benchmarks and tests read off a simulated study: idle GPU time, and when the best trial was found."""

from __future__ import annotations

from itertools import pairwise

from search.simulation.trace import Trace
from search.study.ledger import TrialRecord


def idle(trace: Trace, gpus: float) -> float:
    """Share of GPU time that nobody used before the last trial was started."""
    last = max((s.start for s in trace.spans), default=0.0)
    mine = {r.spec.trial_id: r.spec.gpus for r in trace.records}
    used = sum((min(s.end, last) - s.start) * mine[s.trial_id] for s in trace.spans)
    return 1 - used / (gpus * last) if last else 0.0


def idle_while_queued(trace: Trace, gpus: float) -> float:
    """Share of all GPU time until the last trial was started in which a GPU was free although a trial waited."""
    mine = {r.spec.trial_id: r.spec.gpus for r in trace.records}
    moments = sorted({moment for s in trace.spans for moment in (s.asked, s.start, s.end)})
    free = 0.0
    for now, then in pairwise(moments):
        if any(s.asked <= now < s.start for s in trace.spans):
            free += (then - now) * (gpus - sum(mine[s.trial_id] for s in trace.spans if s.start <= now < s.end))
    last = max((s.start for s in trace.spans), default=0.0)
    return free / (gpus * last) if last else 0.0


def best_by_gpu_seconds(trace: Trace) -> tuple[tuple[float, TrialRecord], ...]:
    """(GPU-seconds spent by then, new best feasible trial of the top rung) in order of time."""
    name = trace.study.rungs[-1].name
    record = {r.spec.trial_id: r for r in trace.records}
    found: list[tuple[float, TrialRecord]] = []
    best = float("inf")
    for span in sorted(trace.spans, key=lambda s: (s.end, s.trial_id)):
        mine = record[span.trial_id]
        if mine.spec.rung == name and mine.result and mine.feasible(trace.study.caps) and mine.result.val_bpb < best:
            best = mine.result.val_bpb
            now = span.end
            spent = sum(
                (min(s.end, now) - s.start) * record[s.trial_id].spec.gpus for s in trace.spans if s.start < now
            )
            found.append((spent, mine))
    return tuple(found)
