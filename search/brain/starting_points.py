"""Points that are tried before the sampler's: the control, known good ones, the best of earlier studies and tables.

They are looked up when a study is launched and then kept in its folder, so that it goes on with the same ones.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from pgolf_model.errors import UserError
from search.study.config import StartPoint, StudyConfig, load_study
from search.study.ledger import CONTROL, read_records
from space.params import Scalar, Space
from space.plain import from_plain, to_plain
from space.points import parse_value, point_key
from trials.files import write_json

STARTS_FILE = "starts.json"
SCORE_COLUMNS = ("roundtrip_bpb", "val_bpb")  # columns by which a table's rows are sorted: the first one that it has

log = logging.getLogger(__name__)


def starting_points(study: StudyConfig, space: Space) -> tuple[StartPoint, ...]:
    """The points a study starts from, each once: as its folder remembers them, else looked up and written there."""
    path = study.dir / STARTS_FILE
    if path.exists():
        return tuple(from_plain(StartPoint, p, where=str(path)) for p in json.loads(path.read_text(encoding="utf-8")))
    found: dict[tuple[tuple[str, Scalar], ...], StartPoint] = {}
    for point in _all_points(study, space):
        found.setdefault(point_key(space, point.params), point)
    starts = tuple(found.values())
    write_json(path, [to_plain(point) for point in starts])
    return starts


def _all_points(study: StudyConfig, space: Space) -> Iterator[StartPoint]:
    if study.control:
        yield StartPoint(label=CONTROL, params=dict(space.control))
    for point in study.points:
        space.validate(point.params)
        yield point
    if study.warm_starts:
        yield from (StartPoint(label=start.label, params=dict(start.values)) for start in space.warm_starts)
    for source in study.warm_from:
        rows = _table(Path(source), space) if source.endswith(".csv") else _study(source)
        known = [point for point in rows if _valid(space, point, source)]
        if not known:
            raise UserError(f"warm_from {source!r} has no complete point of space {space.name!r}", hint="leave it out")
        yield from known[: study.warm_top]


def _study(source: str) -> list[StartPoint]:
    """The feasible points of an earlier study, best first, those of higher rungs before those of lower ones."""
    study = load_study(source)
    height = {rung.name: i for i, rung in enumerate(study.rungs)}
    good = [
        (-height[r.spec.rung], r.result.val_bpb, r) for r in read_records(study) if r.result and r.feasible(study.caps)
    ]
    good.sort(key=lambda row: (*row[:2], row[2].spec.number))
    return [StartPoint(label=f"{study.name}:{r.spec.trial_id}", params=dict(r.spec.params)) for _, _, r in good]


def _table(path: Path, space: Space) -> list[StartPoint]:
    """The rows of a CSV with a column per parameter, best score first where it has a column of scores."""
    if not path.is_file():
        raise UserError(f"warm_from: there is no file {path}")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = next((c for c in SCORE_COLUMNS if rows and c in rows[0]), None)
    numbered = [
        (float(row[column]) if column and row[column] else float("inf"), i, row) for i, row in enumerate(rows, 2)
    ]
    numbered.sort(key=lambda row: row[:2])
    points = []
    for _, line, row in numbered:
        params: dict[str, Scalar] = {}
        for param in space.params:
            text = row.get(param.name)
            if text and param.active(params):
                params[param.name] = parse_value(param, text)
        points.append(StartPoint(label=f"{path.name}:{line}", params=params))
    return points


def _valid(space: Space, point: StartPoint, source: str) -> bool:
    try:
        space.validate(point.params)
    except UserError as problem:
        log.info("%s: %s is no point of space %s: %s", source, point.label, space.name, problem)
        return False
    return True
