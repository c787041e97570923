"""One-factor ablations: the control against one changed knob at a time, on paired seeds, at one rung.

A study like any other whose points are given: the same engines run it, a kill costs as little, the folder stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, stdev

from pgolf_model.errors import UserError
from search.ladder.race import SEEDS, paired_differences
from search.study.config import StartPoint, StudyConfig
from search.study.ledger import CONTROL, TrialRecord
from search.study.statistics import t_test_p
from space.params import Scalar, Space, look_up
from space.plain import to_plain
from space.points import complete_point, parse_value, point_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What one change does to val_bpb; below 0 is better. Statistics are over differences paired by seed."""

    change: str  # "matrix_lr=0.02"
    trial: str
    status: str
    mean: float | None = None
    sd: float | None = None  # of the differences
    seeds: int = 0
    p: float | None = None  # two-sided paired t-test
    artifact_bytes: int | None = None  # difference of the largest artifacts


def parse_knobs(space: Space, words: Sequence[str]) -> dict[str, tuple[Scalar, ...]]:
    """`("a=1,2", "b=x")` as values of the space's parameters.

    Raises:
        UserError: no such parameter, or a value it cannot have.
    """
    known = {param.name: param for param in space.params}
    found: dict[str, tuple[Scalar, ...]] = {}
    for word in words:
        name, _, texts = word.partition("=")
        param = look_up(f"parameter of space {space.name!r}", name, known)
        values = tuple(parse_value(param, text) for text in texts.split(",") if text)
        if not values:
            raise UserError(f"--knob {word!r} names no value", hint=f"write {name}=VALUE or {name}=VALUE,VALUE")
        for value in values:
            param.check(value)
        found[name] = (*found.get(name, ()), *values)
    return found


def ablation(
    study: StudyConfig, space: Space, knobs: dict[str, tuple[Scalar, ...]], *, rung: str = "", seeds: int = 3
) -> StudyConfig:
    """The study of the control and its changes at one rung of `study`; the same question gives the same study.

    Raises:
        UserError: no such rung, more seeds than the fixed list has, a knob that the control does not use, or nothing
            that differs from the control.
    """
    place = study.rung(rung) if rung else study.rungs[0]
    if seeds > len(SEEDS):
        raise UserError(f"there are {len(SEEDS)} fixed seeds, got --seeds {seeds}", hint="take fewer")
    points: dict[object, StartPoint] = {}
    control = dict(space.control)
    for name, values in knobs.items():
        if name not in control:
            raise UserError(
                f"{name} is not active in the control of space {space.name!r}", hint="change what it depends on"
            )
        for value in values:
            params = complete_point(space.params, {**control, name: value})
            points.setdefault(point_key(space, params), StartPoint(label=f"{name}={value}", params=params))
    points.pop(point_key(space, control), None)
    if not points:
        raise UserError(f"every value asked for is the control's own: {control}", hint="ask for others")
    given = tuple(points.values())
    question = json.dumps([to_plain(place), to_plain(given), seeds], sort_keys=True)
    mark = hashlib.sha256(question.encode()).hexdigest()[:8]
    trials = 1 + len(given)
    only = replace(
        place, trials=trials, seeds=SEEDS[:seeds], race_from=0, min_promote=1, keep=1.0, keep_min=0.0, keep_max=0.0
    )
    return replace(
        study,
        name=f"{study.name}-ablate-{mark}",
        folder="",
        rungs=(only,),
        control=True,
        control_seeds=1,
        warm_starts=False,
        warm_from=(),
        points=given,
        sample=False,
        anomaly_ratio=0.0,
    )


def effects(study: StudyConfig, records: Sequence[TrialRecord]) -> tuple[Effect, ...]:
    """Every change against the control, in the order they were asked for."""
    control = next((r for r in records if r.spec.label == CONTROL), None)
    found = []
    for record in sorted(records, key=lambda r: r.spec.number):
        if record is control:
            continue
        effect = Effect(change=record.spec.label, trial=record.spec.trial_id, status=record.status or "unfinished")
        if record.status == "complete" and control and control.status == "complete":
            assert record.result is not None
            assert control.result is not None
            d = paired_differences(record, control)
            mean, sd = fmean(d), stdev(d)
            effect = replace(
                effect,
                mean=mean,
                sd=sd,
                seeds=len(d),
                p=min(1.0, 2 * t_test_p(abs(mean), sd / sqrt(len(d)), len(d) - 1)),
                artifact_bytes=record.result.artifact_bytes - control.result.artifact_bytes,
            )
        found.append(effect)
    return tuple(found)


def effect_cells(found: Sequence[Effect]) -> list[list[str]]:
    """Titles and a row for each change; a change without a score has its trial's status."""
    rows = [["change", "delta bpb", "sd", "n", "p", "delta bytes"]]
    for e in found:
        if e.mean is None:
            rows.append([e.change, str(e.status), *"----"])
        else:
            rows.append(
                [e.change, f"{e.mean:+.5f}", f"{e.sd:.5f}", str(e.seeds), f"{e.p:.3f}", f"{e.artifact_bytes:+,}"]
            )
    return rows
