"""The head of the page as values: what the study looks for, its cards of numbers, and its rungs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from search.look.analysis import Analysis, Point, PointStatus
from search.report.texts import Swatch, minus_sign, plural, swatch
from search.study.config import StudyConfig
from trials.rungs import Rung

QUESTIONS = {
    "best": "the lowest val_bpb that fits under the caps",
    "front": "the whole trade-off between val_bpb and bytes",
}
UNKNOWN = "–"
STATUS_COLUMNS: tuple[PointStatus, ...] = (
    "complete",
    "infeasible",
    "diverged",
    "failed",
    "timeout",
    "running",
    "interrupted",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One number with a title and a note; the note reads `before`, the button of `trial`, `after`."""

    title: str
    value: str
    before: str = ""
    trial: str = ""  # trial id, or empty
    after: str = ""
    meter: str = ""  # how much of a bar is filled, as CSS writes it: "66.90%"; empty for no bar


@dataclass(frozen=True, kw_only=True, slots=True)
class RungRow:
    """One rung: its budget, its trials by status, and its best trial."""

    swatch: Swatch
    name: str
    budget: str
    num_trials: int
    counts: tuple[int, ...]  # one per status of the table
    best_bpb: str
    best_trial: str  # trial id, or empty


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """What stands above the first figure."""

    title: str
    lead: str
    cards: tuple[Card, ...]
    statuses: tuple[str, ...]  # columns of the table of rungs
    rungs: tuple[RungRow, ...]


def headline(study: StudyConfig, analysis: Analysis) -> Headline:
    """The head of the page of a study."""
    caps = study.caps
    limits = (
        f"{caps.artifact_bytes:,} bytes, {caps.train_seconds:,.0f} s training, {caps.eval_seconds:,.0f} s evaluation"
    )
    statuses = [s for s in STATUS_COLUMNS if s == "complete" or any(p.status == s for p in analysis.points)]
    return Headline(
        title=study.name,
        lead=f"Looks for {QUESTIONS[study.question]}. Caps: {limits}. Space: {study.space}.",
        cards=tuple(_cards(study, analysis)),
        statuses=tuple(statuses),
        rungs=tuple(_rung_row(study, analysis, rung, statuses) for rung in study.rungs),
    )


def _cards(study: StudyConfig, analysis: Analysis) -> Iterator[Card]:
    if analysis.best is None:
        yield Card(title="Best feasible trial", value="none yet", before=_why_nothing(analysis))
        return
    best = analysis.point(analysis.best)
    size, cap = best.artifact_bytes or 0, study.caps.artifact_bytes
    seeds = len(best.val_bpb_seeds)
    spread = f", ± {best.val_bpb_sd:.4f} over {seeds} seeds" if best.val_bpb_sd is not None else ", one seed"
    yield Card(title="Best val_bpb", value=f"{best.val_bpb:.4f}", trial=best.trial_id, after=spread)
    yield Card(
        title="Artifact",
        value=f"{size / cap:.1%} of the cap",
        before=f"{size:,} bytes, {cap - size:,} to spare",
        meter=f"{min(1.0, size / cap):.2%}",
    )
    yield _control_card(analysis, best)
    agreement = next((a for a in reversed(analysis.rank_agreement) if a.pairs), None)
    if agreement:
        rho = "too few" if agreement.spearman is None else minus_sign(f"{agreement.spearman:+.2f}")
        pairs = plural(len(agreement.pairs), "pair")
        yield Card(
            title="Rank agreement", value=rho, before=f"Spearman, {agreement.lower} to {agreement.upper}, {pairs}"
        )


def _control_card(analysis: Analysis, best: Point) -> Card:
    title, delta = "Against the control", analysis.comparison
    if delta is None:
        return Card(title=title, value="unknown", before=f"no control has a score at {best.rung} yet")
    if delta.best == delta.control:
        return Card(title=title, value="none better", before=delta.note)
    value = minus_sign(f"{delta.delta_bpb:+.4f} bpb")
    return Card(title=title, value=value, before=f"{delta.note}; control is ", trial=delta.control)


def _why_nothing(analysis: Analysis) -> str:
    if not analysis.points:
        return "No trial has been asked for yet. Start the study with pgolf search, then make this page again."
    counts = Counter("over a cap" if p.status == "complete" else p.status for p in analysis.points)
    return "Trials so far: " + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) + "."


def _rung_row(study: StudyConfig, analysis: Analysis, rung: Rung, statuses: list[PointStatus]) -> RungRow:
    at = [p for p in analysis.points if p.rung == rung.name]
    best = min((p for p in at if p.feasible), key=lambda p: p.val_bpb or 0.0, default=None)
    counts = Counter(p.status for p in at)
    limits = [f"{rung.steps:,} steps"] * bool(rung.steps) + [f"{rung.seconds:,.0f} s"] * bool(rung.seconds)
    return RungRow(
        swatch=swatch(study, rung.name),
        name=rung.name,
        budget=" or ".join(limits),
        num_trials=len(at),
        counts=tuple(counts[status] for status in statuses),
        best_bpb=f"{best.val_bpb:.4f}" if best else UNKNOWN,
        best_trial=best.trial_id if best else "",
    )
