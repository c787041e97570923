"""The sections of the page below its head as values: figures with their captions, forecasts, knobs."""

from __future__ import annotations

from dataclasses import dataclass

from search.look.analysis import Analysis
from search.report.evidence_figures import forecast_figure, history_figure, knob_figures, rank_figure
from search.report.figure_style import Figure, view_range
from search.report.pareto_figure import pareto_figure
from search.report.plot import checked
from search.report.texts import minus_sign, plural
from search.study.config import StudyConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A figure in its place on the page."""

    name: str  # its element is `plot-NAME`
    label: str  # for readers who do not see it
    figure: Figure
    small: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """A part of a caption: `strong` in bold, then `text`."""

    text: str = ""
    strong: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MainSection:
    """The figure of bits per byte against bytes with its notes, or the sentence that stands in for it."""

    empty: str = ""
    plot: Plot | None = None
    notes: tuple[Sentence, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One question about the search: the figure that answers it with its captions, or why there is none yet."""

    section: str  # id of the element
    title: str
    empty: str = ""
    plot: Plot | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class KnobTile:
    """One knob's small figure."""

    name: str
    correlation: str  # "ρ = +0.44", or empty
    plot: Plot


@dataclass(frozen=True, kw_only=True, slots=True)
class KnobSection:
    """val_bpb at the first rung against every knob that varied."""

    rung: str
    caption: str
    tiles: tuple[KnobTile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastRow:
    """One trial's forecast score at the top rung."""

    trial_id: str
    source: str
    val_bpb: str
    half: str  # the interval that half of such forecasts should hit
    nine_tenths: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastSection:
    """The scores that trials would have at the top rung."""

    rung: str
    caption: tuple[Sentence, ...]
    rows: tuple[ForecastRow, ...]


def main_section(study: StudyConfig, analysis: Analysis) -> MainSection:
    """The main figure of a study, or why there is none."""
    if not analysis.points:
        return MainSection(empty="Nothing to draw: the study has no trials yet.")
    if all(p.val_bpb is None for p in analysis.points):
        return MainSection(empty="Nothing to draw: no trial has a score yet. The table below says how each one ended.")
    label = "val_bpb against artifact bytes for every trial"
    plot = Plot(name="main", label=label, figure=checked(pareto_figure(study, analysis)))
    return MainSection(plot=plot, notes=_main_notes(study, analysis))


def _main_notes(study: StudyConfig, analysis: Analysis) -> tuple[Sentence, ...]:
    """What the reader must know to read the main figure."""
    notes = [Sentence(text="Point at a trial for its configuration, click it to keep it at the side.")]
    if len([r for r in study.rungs if any(p.rung == r.name and p.feasible for p in analysis.points)]) > 1:
        text = (
            f"Rungs had different training budgets and are not comparable: the front is that of {analysis.front_rung}, "
            "dotted lines are the fronts of the rungs below."
        )
        notes.append(Sentence(text=text))
    _, above = view_range([p.val_bpb for p in analysis.points if p.val_bpb is not None])
    if above:
        strong = f"{plural(above, 'trial')} with a much higher val_bpb {'are' if above > 1 else 'is'} above the view"
        notes.append(Sentence(strong=strong, text="; double-click the figure to see everything."))
    if any(p.predicted_bytes for p in analysis.points if p.val_bpb is None):
        text = (
            "Trials without a score stand in the strip below at their forecast size: | forecast to be over a cap and "
            "never trained, × diverged or failed, ○ not ended, ▷ forecast beyond the right edge."
        )
        notes.append(Sentence(text=text))
    return tuple(notes)


def evidence_sections(study: StudyConfig, analysis: Analysis) -> tuple[Evidence, ...]:
    """Whether proxies can be trusted, whether forecasts can, and whether the search still improves."""
    if not analysis.points:
        return ()
    byte_note = analysis.forecast.note if analysis.forecast else ""
    ranks = _evidence(
        "agreement",
        "Do proxies rank as full runs do?",
        _plot("rank", "scores at one rung against the next", rank_figure(study, analysis)),
        tuple(a.note for a in analysis.rank_agreement if a.pairs),
        otherwise="No promoted trial has a score at both rungs yet.",
    )
    bytes_ = _evidence(
        "forecast",
        "Were bytes forecast well?",
        _plot("forecast", "forecast bytes against packed bytes", forecast_figure(study, analysis)),
        (byte_note,),
        otherwise="No complete trial had a forecast yet.",
    )
    history = _evidence(
        "history",
        "Is the search still improving?",
        _plot("history", "val_bpb in trial order and the best so far", history_figure(study, analysis)),
        ("The line is the best feasible score so far at its rung; grey trials broke a cap.",),
        otherwise="No trial has a score yet.",
    )
    return (ranks, bytes_, history) if len(study.rungs) > 1 else (bytes_, history)


def _evidence(section: str, title: str, plot: Plot | None, captions: tuple[str, ...], *, otherwise: str) -> Evidence:
    """The section with its figure and captions; where there is no figure, with the sentence `otherwise`."""
    if plot is None:
        return Evidence(section=section, title=title, empty=otherwise)
    return Evidence(section=section, title=title, plot=plot, captions=captions)


def _plot(name: str, label: str, figure: Figure | None) -> Plot | None:
    return Plot(name=name, label=label, figure=checked(figure)) if figure else None


def knob_section(study: StudyConfig, analysis: Analysis) -> KnobSection | None:
    """A small figure per knob; None where no knob took two values."""
    knobs = knob_figures(study, analysis)
    if not knobs:
        return None
    first = study.rungs[0].name
    scored = sum(p.val_bpb is not None for p in analysis.points if p.rung == first)
    caption = (
        f"val_bpb (up) against the knob (across) over {scored} trials, strongest rank correlation ρ first. Knobs were "
        "moved together and not at random, so a correlation is a hint and no cause. Filled trials were promoted, grey "
        "ones broke a cap."
    )
    tiles = tuple(
        KnobTile(
            name=name,
            correlation="" if rho is None else minus_sign(f"ρ = {rho:+.2f}"),
            plot=Plot(name=f"knob{i}", label=f"val_bpb against {name}", figure=checked(figure), small=True),
        )
        for i, (name, rho, figure) in enumerate(knobs)
    )
    return KnobSection(rung=first, caption=caption, tiles=tiles)


def forecast_section(analysis: Analysis) -> ForecastSection | None:
    """What trials that have not ended at the top rung would score there; None without a forecast."""
    forecasts = analysis.full_forecasts
    if not forecasts:
        return None
    rung = forecasts[0].rung
    known = max(f.num_pairs for f in forecasts)
    have = "has" if known == 1 else "have"
    caption = [Sentence(text=f"From how {plural(known, 'trial')} that {have} a score at {rung} came out there.")]
    if any(f.few for f in forecasts):
        few = "So few say little: the forecast is mostly a guess, and its intervals are wide."
        caption.append(Sentence(strong=few))
    promise = "Half of such forecasts should come true within the first interval, nine of ten within the second."
    rows = tuple(
        ForecastRow(
            trial_id=f.trial_id,
            source=f.source,
            val_bpb=f"{f.val_bpb:.4f}",
            half=f"{f.low50:.4f} to {f.high50:.4f}",
            nine_tenths=f"{f.low90:.4f} to {f.high90:.4f}",
        )
        for f in forecasts
    )
    return ForecastSection(rung=rung, caption=(*caption, Sentence(text=promise)), rows=rows)
