"""Each trial as values for the page: its card beside the main figure and its row in the table."""

from __future__ import annotations

from dataclasses import dataclass

from search.look.analysis import Analysis, Point
from search.report.figure_style import byte_unit
from search.report.texts import Swatch, minus_sign, short_text, swatch
from search.study.config import StudyConfig
from search.study.ledger import CONTROL
from search.study.next_steps import export_command

TABLE_COLUMNS = (  # (heading, what the reader sees when pointing at it)
    ("trial", "rung and number"),
    ("status", ""),
    ("val_bpb", "of the unpacked artifact, mean over seeds"),
    ("± sd", "standard deviation over seeds"),
    ("quant gap", "val_bpb minus that of the weights before quantization"),
    ("bytes", "code and compressed weights"),
    ("of cap", "artifact bytes as a share of the cap"),
    ("forecast", "packed bytes against the forecast"),
    ("params", "million parameters"),
    ("steps", ""),
    ("train s", "slowest seed"),
    ("eval s", "slowest seed"),
    ("seeds", "how many"),
    ("from", "trial it was promoted from"),
    ("export", "copy the command that makes the submission folder"),
    ("note", "label, or why there is no usable score"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One line of a trial's card; `strong` is in bold and comes first."""

    name: str
    text: str
    strong: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnobRow:
    """One parameter of a trial, beside the control's."""

    name: str
    value: str
    control: str
    changed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCard:
    """What the page says about one trial beside the main figure."""

    trial_id: str
    swatch: Swatch
    hidden: bool
    tags: tuple[str, ...]
    parent: str  # id of the trial that it was promoted from, or empty
    measurements: tuple[Measurement, ...]
    command: str  # that exports it; empty where it cannot be submitted
    reasons: tuple[str, ...]  # why it cannot be submitted, or has no score
    error: str  # all that it said, where that is more than the reason
    compared: bool  # whether the knobs have a column for the control's
    knobs: tuple[KnobRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A number in the table: the text, and the value to sort by. Both are empty where there is none."""

    text: str = ""
    value: str = ""
    strong: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One trial in the table."""

    trial_id: str
    swatch: Swatch
    order: int  # place in the ladder, then number
    status: str
    feasible: bool
    on_front: bool
    numbers: tuple[Cell, ...]
    parent: str  # trial id, or empty
    command: str  # that exports it, or empty
    note: str


def trial_cards(study: StudyConfig, analysis: Analysis) -> tuple[TrialCard, ...]:
    """One card per trial, of which one is not hidden: the best, else the first with a score, else the first."""
    if not analysis.points:
        return ()
    shown = analysis.best or next((p.trial_id for p in analysis.points if p.val_bpb is not None), None)
    shown = shown or analysis.points[0].trial_id
    return tuple(_card(study, analysis, point, hidden=point.trial_id != shown) for point in analysis.points)


def table_rows(study: StudyConfig, analysis: Analysis) -> tuple[TableRow, ...]:
    """One row per trial, in the order of the analysis."""
    return tuple(_row(study, analysis, point) for point in analysis.points)


def reason(point: Point) -> str:
    """Why a trial has no usable score, in a line: the last one of its error, as tracebacks end with the cause."""
    lines = [line.strip() for line in point.error.splitlines() if line.strip()]
    if lines:
        return lines[-1]
    return f"over the cap on {', '.join(point.over)}" if point.over else ""


def _card(study: StudyConfig, analysis: Analysis, point: Point, *, hidden: bool) -> TrialCard:
    control = next((p for p in analysis.points if p.rung == point.rung and p.label == CONTROL), None)
    control = control or next((p for p in analysis.points if p.label == CONTROL), None)
    compared = control is not None and control.params != point.params and bool(control.params)
    tags = (
        ("best", point.trial_id == analysis.best),
        (point.label, bool(point.label)),
        ("on the front", point.on_front and point.rung == analysis.front_rung),
        ("over a cap", bool(point.over)),
        (point.status, point.status != "complete"),
    )
    return TrialCard(
        trial_id=point.trial_id,
        swatch=swatch(study, point.rung),
        hidden=hidden,
        tags=tuple(word for word, holds in tags if holds),
        parent=_parent(study, point),
        measurements=(*_scores(study, point), *_byte_forecast(study, point)),
        command=export_command(study, point.trial_id) if point.feasible else "",
        reasons=_reasons(study, point),
        error=point.error if len(point.error.strip().splitlines()) > 1 else "",
        compared=compared,
        knobs=_knobs(point, control if compared else None),
    )


def _knobs(point: Point, control: Point | None) -> tuple[KnobRow, ...]:
    rows = []
    for name, value in point.params.items():
        other = control.params.get(name) if control else None
        rows.append(
            KnobRow(
                name=name,
                value=short_text(value),
                control="–" if other is None else short_text(other),
                changed=control is not None and other != value,
            )
        )
    return tuple(rows)


def _scores(study: StudyConfig, point: Point) -> tuple[Measurement, ...]:
    if point.val_bpb is None or point.artifact_bytes is None:
        return ()
    spread = f" ± {point.val_bpb_sd:.4f}" if point.val_bpb_sd is not None else ""
    share = point.artifact_bytes / study.caps.artifact_bytes
    seeds = ", ".join(f"{seed}: {bpb:.4f}" for seed, bpb in zip(point.seeds, point.val_bpb_seeds, strict=False))
    rows = (
        ("val_bpb", spread, f"{point.val_bpb:.4f}"),
        ("val_loss", f"{point.val_loss:.4f} nats per token", ""),
        ("before quantization", f"{point.pre_quant_val_bpb:.4f} (gap {point.quant_gap:+.4f})", ""),
        ("artifact", f" B ({share:.1%})", f"{point.artifact_bytes:,}"),
        ("model + code", f"{point.model_bytes:,} + {point.code_bytes:,} B", ""),
        ("parameters", f"{point.num_params:,}", ""),
        ("training", f"{point.steps:,} steps, {(point.tokens_seen or 0) / 1e6:,.1f} M tokens", ""),
        ("seconds", f"{point.train_seconds:,.1f} training, {point.eval_seconds:,.1f} scoring", ""),
        ("seeds", seeds, ""),
    )
    return tuple(Measurement(name=name, text=text, strong=strong) for name, text, strong in rows)


def _byte_forecast(study: StudyConfig, point: Point) -> tuple[Measurement, ...]:
    if not point.predicted_bytes:
        return ()
    scale, unit = byte_unit(study)
    interval = ""
    if point.predicted_low and point.predicted_high:
        interval = f" ({point.predicted_low / scale:,.2f} to {point.predicted_high / scale:,.2f})"
    return (Measurement(name="forecast", text=f"{point.predicted_bytes / scale:,.2f} {unit}{interval}"),)


def _reasons(study: StudyConfig, point: Point) -> tuple[str, ...]:
    found = []
    if point.over:
        excess = [f"{name} {getattr(point, name):,.0f} is over {getattr(study.caps, name):,.0f}" for name in point.over]
        found.append(f"Cannot be submitted: {'; '.join(excess)}.")
    if point.error:
        found.append(reason(point))
    return tuple(found)


def _row(study: StudyConfig, analysis: Analysis, point: Point) -> TableRow:
    size, forecast = point.artifact_bytes, point.predicted_bytes
    numbers = (
        _cell(point.val_bpb, ".4f", strong=point.trial_id == analysis.best),
        _cell(point.val_bpb_sd, ".4f"),
        _cell(point.quant_gap, "+.4f"),
        _cell(size, ",d"),
        _cell(size and size / study.caps.artifact_bytes, ".1%"),
        _cell(size / forecast - 1 if size and forecast else None, "+.2%"),
        _cell(point.num_params and point.num_params / 1e6, ",.2f"),
        _cell(point.steps, ",d"),
        _cell(point.train_seconds, ",.0f"),
        _cell(point.eval_seconds, ",.0f"),
        _cell(len(point.val_bpb_seeds) or None, "d"),
    )
    return TableRow(
        trial_id=point.trial_id,
        swatch=swatch(study, point.rung),
        order=[rung.name for rung in study.rungs].index(point.rung) * 10**6 + point.number,
        status="over a cap" if point.over else point.status,
        feasible=point.feasible,
        on_front=point.on_front and point.rung == analysis.front_rung,
        numbers=numbers,
        parent=_parent(study, point),
        command=export_command(study, point.trial_id) if point.feasible else "",
        note=" · ".join(text for text in (point.label, reason(point)) if text),
    )


def _cell(value: float | None, form: str, *, strong: bool = False) -> Cell:
    if value is None:
        return Cell()
    return Cell(text=minus_sign(format(value, form)), value=repr(value), strong=strong)


def _parent(study: StudyConfig, point: Point) -> str:
    """The id of the trial that this one was promoted from, or empty."""
    names = [rung.name for rung in study.rungs]
    below = names.index(point.rung) - 1
    return "" if point.parent is None or below < 0 else f"{names[below]}/{point.parent:04d}"
