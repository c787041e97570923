"""Which trial runs next, at which rung: a pure function of the study's settings and its trials' records.

To *promote* a trial is to run its configuration again at the next higher rung. Promotion does not wait for a rung to
be complete: with n results at a rung, the best `keep` x n of these trials belong at the rung above, and each of them
that has not started there starts at once, best first. When all trials of a rung have ended, its final ranking decides,
and at least `min_promote` trials go up. The control is promoted from every rung, so that every result at the top can
be compared with it. `keep` follows from how well the rung has ranked the trials promoted so far (search.ladder.trust).

The same set of records gives the same decision, in whatever order they were learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf

from search.ladder.budget import Account, account
from search.ladder.race import deserves_seed
from search.ladder.trust import judged_tags, keep_share, score_pairs
from search.study.config import StudyConfig
from search.study.ledger import CONTROL, TrialRecord
from search.study.statistics import non_dominated
from space.params import ChoiceParam, Param, Scalar, Space, share_of_range
from trials.rungs import Rung

POOL = 2  # half of the promotions may go to trials beyond the best n, but only to those among the best POOL x n


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Ask the sampler for a new configuration at the first rung."""

    rung: Rung


@dataclass(frozen=True, kw_only=True, slots=True)
class Promote:
    """Run `parent`'s configuration again at `rung`."""

    rung: Rung
    parent: TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicate:
    """Run a finalist with its next seed."""

    rung: Rung
    trial: TrialRecord


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start until something that runs has ended."""


@dataclass(frozen=True, slots=True)
class Done:
    """The ladder is climbed, or the rest cannot be afforded."""

    reason: str = ""


Action = Ask | Promote | Replicate  # each starts one run
Decision = Action | Wait | Done
ByRung = Mapping[str, list[TrialRecord]]  # by rung, each in order of numbers


def decide(
    study: StudyConfig, records: Sequence[TrialRecord], *, elapsed: float = 0.0, space: Space | None = None
) -> Decision:
    """What to start next. A record without a result counts as running.

    Args:
        elapsed: seconds since this launch began, for the budget.
        space: for the tags of its knobs; without it every rung judges everything.
    """
    books = account(study, records, elapsed=elapsed)
    return decide_within(study, by_rung(study, records), books, space=space)


def decide_within(study: StudyConfig, at: ByRung, books: Account, *, space: Space | None = None) -> Decision:
    """`decide`, for callers that have the account and the records of each rung already."""
    running = any(r.result is None for mine in at.values() for r in mine)
    refused = ""
    for action in wanted_actions(study, at, books, space=space):
        if affordable(study, books, action):
            return action
        if running:
            # Running trials may cost less than their worst case: the money for this action is kept, not spent on
            # cheaper ones.
            return Wait()
        refused = f"the budget refuses more trials at {action.rung.name}"
    return Wait() if running else Done(refused)


def wanted_actions(study: StudyConfig, at: ByRung, books: Account, *, space: Space | None = None) -> Iterator[Action]:
    """Every action that is worth its money now, most wanted first: the top rung before those below it."""
    finalist = deserves_seed(study, at[study.rungs[-1].name])
    if finalist is not None:
        yield Replicate(rung=study.rungs[-1], trial=finalist)
    first = study.rungs[0]
    ask = Ask(rung=first)
    asked = sum(r.status != "infeasible" or not study.sample for r in at[first.name])
    asking = asked < first.trials
    closed = not asking or not affordable(study, books, ask)
    steps: list[tuple[Rung, list[TrialRecord]]] = []
    for lower, upper in zip(study.rungs, study.rungs[1:], strict=False):
        closed = closed and not any(r.result is None for r in at[lower.name])
        wanted = promotable(
            study, at[lower.name], at[upper.name], lower=lower, upper=upper, settled=closed, space=space
        )
        steps.append((upper, wanted))
        closed = closed and not (wanted and affordable(study, books, Promote(rung=upper, parent=wanted[0])))
    for rung, parents in reversed(steps):
        for parent in parents:
            yield Promote(rung=rung, parent=parent)
    if asking:
        yield ask


def promotable(
    study: StudyConfig,
    below: Sequence[TrialRecord],
    above: Sequence[TrialRecord],
    *,
    lower: Rung,
    upper: Rung,
    settled: bool,
    space: Space | None = None,
) -> list[TrialRecord]:
    """Trials at `lower` that should start at `upper` now, most wanted first.

    Args:
        below, above: the records at the two rungs.
        settled: no more trials will start or end at `lower`.
    """
    started = {r.spec.parent for r in above}
    complete = [r for r in below if r.status == "complete" and not r.suspicious]
    feasible = [r for r in complete if r.feasible(study.caps)]
    control = [r for r in feasible if r.spec.label == CONTROL and r.spec.number not in started]
    if not feasible:
        return []
    share = keep_share(upper, score_pairs((*complete, *above), lower=lower.name, upper=upper.name))
    wanted = max(upper.min_promote, ceil(share * len(complete) - 1e-9)) if settled else floor(share * len(complete))
    controls = {r.spec.number for r in feasible if r.spec.label == CONTROL}
    free = wanted if settled else wanted - len(started - controls)
    if free <= 0:
        return control
    chosen = best_places(study, feasible, wanted, unjudged=unjudged_knobs(space, lower, upper))
    waiting = [r for r in chosen if r.spec.number not in started]
    if not settled:
        waiting = waiting[:free]
    most = dict(zip((rung.name for rung in study.rungs), most_trials(study), strict=True))[upper.name]
    expected = control or [r for r in below if r.spec.label == CONTROL and r.result is None]
    room = max(0, most - len(above) - len(expected))  # for others than the control, which always goes up
    others = [r for r in waiting if r.spec.label != CONTROL][room:]
    waiting = [r for r in waiting if r not in others]
    return waiting + [r for r in control if r not in waiting]


def best_places(
    study: StudyConfig, feasible: Sequence[TrialRecord], wanted: int, *, unjudged: Sequence[Param] = ()
) -> list[TrialRecord]:
    """The `wanted` trials that go up, most wanted first.

    Where the rung cannot judge some knobs, every second place goes by novelty: to the trial, among the best POOL x
    `wanted`, with the most settings of those knobs that no chosen trial has yet; ties go to the better score. The
    other places go by score.
    """
    pool = ranking(study, feasible, POOL * wanted)
    if not unjudged or wanted < 2:
        return pool[:wanted]
    settings = {
        r.spec.number: {setting(p, r.spec.params[p.name]) for p in unjudged if p.name in r.spec.params} for r in pool
    }
    chosen, seen = list[TrialRecord](), set[tuple[str, Scalar]]()
    while pool and len(chosen) < wanted:
        pick = pool[0]
        if len(chosen) % 2:
            news = [len(settings[r.spec.number] - seen) for r in pool]
            if not any(news):  # no trial brings a new setting: the rest goes by score
                return chosen + pool[: wanted - len(chosen)]
            pick = pool[news.index(max(news))]  # the first in the ranking among equals
        pool = [r for r in pool if r is not pick]
        chosen.append(pick)
        seen |= settings[pick.spec.number]
    return chosen


def ranking(study: StudyConfig, feasible: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """The first `most` of the trials within the caps, most wanted first; ties go to the earlier trial.

    For the best model: by score. For the front: the best score, then front after front, and within one by the area
    that only this trial adds.
    """
    ranked = sorted(feasible, key=_score)
    if study.question == "best" or len(ranked) < 3:
        return ranked[:most]
    order, worst = ranked[:1], _score(ranked[-1])[0]
    left = [(*_size_and_score(r), r) for r in ranked[1:]]
    while left and len(order) < most:
        front = non_dominated([(size, score) for size, score, _ in left])
        layer = [left[i] for i in front]
        places = []
        for i, (size, score, record) in enumerate(layer):
            right = layer[i + 1][0] if i + 1 < len(layer) else study.caps.artifact_bytes
            ceiling = layer[i - 1][1] if i else worst
            places.append((-(right - size) * (ceiling - score), score, record.spec.number, record))
        order += [place[-1] for place in sorted(places, key=lambda place: place[:3])]
        taken = set(front)
        left = [row for i, row in enumerate(left) if i not in taken]
    return order[:most]


def unjudged_knobs(space: Space | None, lower: Rung, upper: Rung) -> tuple[Param, ...]:
    """Knobs whose effect at `upper` no run at `lower` can show."""
    if space is None:
        return ()
    judged = judged_tags(lower, upper)
    return tuple(param for param in space.params if param.tag not in judged)


def setting(param: Param, value: Scalar) -> tuple[str, Scalar]:
    """The parameter's name with a choice's option, or with the third of the range that a number lies in."""
    if isinstance(param, ChoiceParam):
        return param.name, value
    return param.name, min(2, int(3 * share_of_range(param.low, param.high, float(value), log=param.log)))


def affordable(study: StudyConfig, books: Account, action: Action) -> bool:
    """Whether the budget allows an action."""
    top = action.rung.name == study.rungs[-1].name
    if isinstance(action, Replicate):
        return books.affords(action.rung, seeds=1, top=top, new=False)
    return books.affords(action.rung, seeds=len(action.rung.first_seeds), top=top)


def by_rung(study: StudyConfig, records: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The records of each rung, by number."""
    found: dict[str, list[TrialRecord]] = {rung.name: [] for rung in study.rungs}
    for record in records:
        found[record.spec.rung].append(record)
    for mine in found.values():
        mine.sort(key=lambda r: r.spec.number)
    return found


def planned_trials(study: StudyConfig) -> tuple[int, ...]:
    """Trials at each rung when `keep` stays at its largest, without those that were promoted early and then overtaken.

    This many are planned for; `most_trials` is the upper limit.
    """
    counts = [study.rungs[0].trials]
    for rung in study.rungs[1:]:
        most = max(rung.min_promote, ceil(rung.most_kept * counts[-1] - 1e-9)) + (1 if study.control else 0)
        counts.append(min(counts[-1], most))
    return tuple(counts)


def most_trials(study: StudyConfig) -> tuple[int, ...]:
    """Most trials that each rung can get: all that were promoted early were overtaken by later ones."""
    planned = planned_trials(study)
    counts = [planned[0]]
    for wanted in planned[1:]:
        counts.append(min(counts[-1], 2 * wanted - (1 if study.control else 0)))
    return tuple(counts)


def _score(record: TrialRecord) -> tuple[float, int]:
    return (record.result.val_bpb if record.result else inf, record.spec.number)


def _size_and_score(record: TrialRecord) -> tuple[float, float]:
    assert record.result is not None
    return float(record.result.artifact_bytes), record.result.val_bpb
