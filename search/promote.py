"""Who runs next, at which rung: a pure function of the study and what is known about its trials.

The rule, until measured proxy quality takes over: a rung is settled when all its trials have ended; then the best
`keep` share of its feasible results (at least `min_promote`) goes up, best first, and the control goes with them, so
that every claim at the top is a comparison. Unsettled rungs promote nothing: results that arrive in another order
lead to the same promotions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from search.ledger import TrialRecord
from search.study import StudyConfig
from trials.rungs import Rung

CONTROL = "control"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Ask the sampler for a new configuration at the first rung."""

    rung: Rung


@dataclass(frozen=True, kw_only=True, slots=True)
class Promote:
    """Run `parent`'s configuration again at `rung`."""

    rung: Rung
    parent: TrialRecord


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start until something that runs has ended."""


@dataclass(frozen=True, slots=True)
class Done:
    """The ladder is climbed."""


Decision = Ask | Promote | Wait | Done


def decide(study: StudyConfig, records: tuple[TrialRecord, ...]) -> Decision:
    """What to start next. A record without a result counts as running."""
    first = study.rungs[0]
    asked = [r for r in records if r.spec.rung == first.name and r.status != "infeasible"]
    if len(asked) < first.trials:
        return Ask(rung=first)
    for below, rung in zip(study.rungs, study.rungs[1:], strict=False):
        if any(r.result is None for r in records if r.spec.rung == below.name):
            return Wait()
        started = {r.spec.parent for r in records if r.spec.rung == rung.name}
        for parent in promoted(study, records, below=below, rung=rung):
            if parent.spec.number not in started:
                return Promote(rung=rung, parent=parent)
    return Wait() if any(r.result is None for r in records) else Done()


def promoted(
    study: StudyConfig, records: tuple[TrialRecord, ...], *, below: Rung, rung: Rung
) -> tuple[TrialRecord, ...]:
    """The trials of a settled rung `below` that go up to `rung`, best first; ties go to the earlier trial."""
    complete = [r for r in records if r.spec.rung == below.name and r.status == "complete"]
    feasible = sorted((r for r in complete if r.feasible(study.caps)), key=_score)
    best = feasible[: max(rung.min_promote, ceil(rung.keep * len(complete)))]
    return tuple(best + [r for r in feasible if r.spec.label == CONTROL and r not in best])


def planned_trials(study: StudyConfig) -> tuple[int, ...]:
    """Most trials each rung can run, for budgets and plans."""
    counts = [study.rungs[0].trials]
    for rung in study.rungs[1:]:
        most = max(rung.min_promote, ceil(rung.keep * counts[-1])) + (1 if study.control else 0)
        counts.append(min(counts[-1], most))
    return tuple(counts)


def _score(record: TrialRecord) -> tuple[float, int]:
    return (record.result.val_bpb if record.result else float("inf"), record.spec.number)
