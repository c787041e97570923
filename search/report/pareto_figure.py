"""The main figure: bits per byte against bytes, with the cap, the fronts, and a line from each trial to its parent."""

from __future__ import annotations

from collections.abc import Sequence

from search.look.analysis import Analysis, Point
from search.report.figure_style import (
    CAP_COLOUR,
    GREY,
    UNSCORED_BAND,
    UNSCORED_SYMBOLS,
    Figure,
    Trace,
    base_layout,
    byte_unit,
    rung_style,
    vertical_line,
    view_range,
)
from search.report.texts import figure_text, hover_text
from search.study.config import StudyConfig


def pareto_figure(study: StudyConfig, analysis: Analysis) -> Figure:
    """The figure of val_bpb against artifact bytes: every trial, every rung's front, the cap."""
    scale, _ = byte_unit(study)
    scored = [p for p in analysis.points if p.val_bpb is not None]
    unscored = [p for p in analysis.points if p.val_bpb is None and p.predicted_bytes]
    x_range = _byte_view([p.artifact_bytes or 0 for p in scored], study.caps.artifact_bytes)
    scores = [p.val_bpb or 0.0 for p in scored] + [f.val_bpb for f in analysis.full_forecasts]
    y_range, _ = view_range(scores, margin=0.09)  # the best trial's name fits below it
    traces = [_promotions(scored, study, scale), *_curves(study, scored, scale)]
    for place, rung in enumerate(study.rungs):
        traces += _front(study, analysis, rung.name, scale, top=rung.name == analysis.front_rung)
        traces += _rung_markers(study, analysis, [p for p in scored if p.rung == rung.name], place, scale)
    traces += [_over_cap(study, scored, scale), _forecasts(study, analysis, scale)]
    traces += _rings(analysis, scale)
    traces += [_unscored(study, unscored, scale, x_range)]
    layout = _layout(study, x_range, y_range, has_band=bool(unscored))
    return {"data": [t for t in traces if t.get("x")], "layout": layout}


def _layout(
    study: StudyConfig, x_range: tuple[float, float], y_range: tuple[float, float], *, has_band: bool
) -> Figure:
    """The axes, the cap as a line with a shade behind it, and below all a band for trials without a score."""
    scale, unit = byte_unit(study)
    cap = study.caps.artifact_bytes / scale
    layout: Figure = {
        **base_layout(),
        "xaxis": {
            "title": {"text": f"artifact: code and compressed weights ({unit})"},
            "range": [x_range[0] / scale, x_range[1] / scale],
            "anchor": "y2" if has_band else "y",
        },
        "yaxis": {
            "title": {"text": "val_bpb, lower is better"},
            "range": list(y_range),
            "domain": [0.12 if has_band else 0.0, 1],
        },
        "shapes": [
            vertical_line(cap, CAP_COLOUR),
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": cap,
                "x1": cap + 1000 * scale,
                "y0": 0,
                "y1": 1,
                "fillcolor": CAP_COLOUR,
                "opacity": 0.06,
                "line": {"width": 0},
                "layer": "below",
            },
        ],
        "annotations": [_cap_label(study, cap, in_view=cap * scale <= x_range[1])],
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
        "hovermode": "closest",
    }
    if has_band:
        layout["yaxis2"] = {
            "domain": [0, UNSCORED_BAND],
            "range": [-1, 1],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
            "tickvals": [0],
            "ticktext": ["no score"],
        }
    return layout


def _rung_markers(
    study: StudyConfig, analysis: Analysis, rows: Sequence[Point], place: int, scale: float
) -> list[Trace]:
    """One rung's trials that fit under the caps, with the spread over their seeds."""
    feasible = [p for p in rows if p.feasible]
    if not feasible:
        return []
    name = feasible[0].rung
    colour, symbol = rung_style(study, name)
    top = name == analysis.front_rung
    return [
        {
            **_scatter(study, feasible, scale),
            "name": f"{figure_text(name)} ({len(feasible)})",
            "legendgroup": name,
            "legendrank": 100 - place,
            "marker": {"color": colour, "symbol": symbol, "size": 11 if top else 9, "opacity": 1 if top else 0.85},
            "error_y": {
                "type": "data",
                "array": [p.val_bpb_sd or 0 for p in feasible],
                "color": colour,
                "thickness": 1.2,
                "visible": any(p.val_bpb_sd for p in feasible),
            },
        }
    ]


def _over_cap(study: StudyConfig, scored: Sequence[Point], scale: float) -> Trace:
    """Trials that were measured to break a cap: grey and hollow, in the symbol of their rung."""
    rows = [p for p in scored if not p.feasible]
    symbols = [f"{rung_style(study, p.rung)[1]}-open" for p in rows]
    return {
        **_scatter(study, rows, scale),
        "name": f"over a cap ({len(rows)})",
        "legendrank": 300,
        "marker": {"color": GREY, "symbol": symbols, "size": 9, "line": {"width": 1.5}},
    }


def _forecasts(study: StudyConfig, analysis: Analysis, scale: float) -> Trace:
    """Forecast scores at the top rung: hollow, with 90 % intervals, at the measured or else the forecast size."""
    place = {p.trial_id: p for p in analysis.points}
    rows = [(f, place[f.trial_id]) for f in analysis.full_forecasts]
    colour, symbol = rung_style(study, study.rungs[-1].name)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [(p.artifact_bytes or p.predicted_bytes or 0) / scale for _, p in rows],
        "y": [f.val_bpb for f, _ in rows],
        "name": f"forecast at {figure_text(study.rungs[-1].name)} ({len(rows)})",
        "legendrank": 250,
        "marker": {"color": colour, "symbol": f"{symbol}-open-dot", "size": 9},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [f.high90 - f.val_bpb for f, _ in rows],
            "arrayminus": [f.val_bpb - f.low90 for f, _ in rows],
            "color": colour,
            "thickness": 1,
            "width": 3,
        },
        "customdata": [p.trial_id for _, p in rows],
        "hovertext": [
            f"<b>{figure_text(p.trial_id)}</b>, forecast at {figure_text(f.rung)} from its {f.source}<br>"
            f"<b>{f.val_bpb:.4f}</b> bpb, 50 % {f.low50:.4f} to {f.high50:.4f}, "
            f"90 % {f.low90:.4f} to {f.high90:.4f}<br>from {f.num_pairs} earlier trials"
            for f, p in rows
        ],
        "hoverinfo": "text",
    }


def _unscored(study: StudyConfig, rows: Sequence[Point], scale: float, view: tuple[float, float]) -> Trace:
    """Trials without a score, at their forecast size; a trial beyond the view is an arrow at its edge."""
    edge = view[1] - 0.012 * (view[1] - view[0])
    return {
        "type": "scatter",
        "mode": "markers",
        "yaxis": "y2",
        "name": f"no score ({len(rows)})",
        "legendrank": 400,
        "x": [min(p.predicted_bytes or 0, edge) / scale for p in rows],
        "y": [0.0] * len(rows),
        "marker": {
            "color": GREY,
            "size": 9,
            "line": {"width": 1.5},
            "symbol": [
                "triangle-right-open"
                if (p.predicted_bytes or 0) > edge
                else UNSCORED_SYMBOLS.get(p.status, "circle-open")
                for p in rows
            ],
        },
        "customdata": [p.trial_id for p in rows],
        "hovertext": [hover_text(study, p) for p in rows],
        "hoverinfo": "text",
    }


def _front(study: StudyConfig, analysis: Analysis, rung: str, scale: float, *, top: bool) -> list[Trace]:
    """A rung's front as a step line, the lowest val_bpb known at each size, drawn on to the cap."""
    rows = [analysis.point(trial_id) for trial_id in analysis.fronts[rung]]
    if not rows:
        return []
    xs = [(p.artifact_bytes or 0) / scale for p in rows] + [study.caps.artifact_bytes / scale]
    ys = [p.val_bpb for p in rows] + [rows[-1].val_bpb]
    line = {"color": rung_style(study, rung)[0], "shape": "hv", "width": 2.5 if top else 1.2}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": xs,
            "y": ys,
            "hoverinfo": "skip",
            "line": line if top else line | {"dash": "dot"},
            "name": f"front at {figure_text(rung)}",
            "legendgroup": rung,
            "showlegend": top,
            "opacity": 1 if top else 0.7,
            "legendrank": 200,
        }
    ]


def _promotions(scored: Sequence[Point], study: StudyConfig, scale: float) -> Trace:
    """One thin line from every promoted trial to the trial it was promoted from; the legend switches them off."""
    below = dict(zip((r.name for r in study.rungs[1:]), (r.name for r in study.rungs), strict=False))
    place = {(p.rung, p.number): p for p in scored}
    xs: list[float | None] = []
    ys: list[float | None] = []
    for p in scored:
        parent = place.get((below.get(p.rung, ""), -1 if p.parent is None else p.parent))
        if parent:
            xs += [(parent.artifact_bytes or 0) / scale, (p.artifact_bytes or 0) / scale, None]
            ys += [parent.val_bpb, p.val_bpb, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": ys,
        "name": "promotion",
        "hoverinfo": "skip",
        "line": {"color": GREY, "width": 1},
        "opacity": 0.55,
        "legendrank": 500,
    }


def _curves(study: StudyConfig, scored: Sequence[Point], scale: float) -> list[Trace]:
    """A thin line through each trial that was packed to several sizes: the scores of its weights at those sizes."""
    traces: list[Trace] = []
    for rung in study.rungs:
        xs: list[float | None] = []
        ys: list[float | None] = []
        texts: list[str] = []
        trials: list[str] = []
        for p in (p for p in scored if p.rung == rung.name and p.curve):
            points = sorted({*p.curve, (p.artifact_bytes or 0, p.val_bpb or 0.0)})
            xs += [*(size / scale for size, _ in points), None]
            ys += [*(bpb for _, bpb in points), None]
            texts += [
                f"<b>{figure_text(p.trial_id)}</b> packed to {size:,} B<br><b>{bpb:.4f}</b> bpb" for size, bpb in points
            ]
            texts.append("")
            trials += [p.trial_id] * (len(points) + 1)
        colour = rung_style(study, rung.name)[0]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": xs,
                "y": ys,
                "name": f"other sizes of {figure_text(rung.name)}",
                "customdata": trials,
                "hovertext": texts,
                "hoverinfo": "text",
                "line": {"color": colour, "width": 1},
                "marker": {"color": colour, "size": 4},
                "opacity": 0.7,
                "legendrank": 600,
            }
        )
    return traces


def _rings(analysis: Analysis, scale: float) -> list[Trace]:
    """Rings around the best trial and the control, with their names."""
    names: dict[str, list[str]] = {}
    for name, trial_id in (("best", analysis.best), ("control", analysis.control)):
        if trial_id:
            names.setdefault(trial_id, []).append(name)
    rows = [(analysis.point(trial_id), " = ".join(called)) for trial_id, called in names.items()]
    return [
        {
            "type": "scatter",
            "mode": "markers+text",
            "hoverinfo": "skip",
            "showlegend": False,
            "x": [(p.artifact_bytes or 0) / scale for p, _ in rows],
            "y": [p.val_bpb for p, _ in rows],
            "text": [f"<b>{called}</b>" for _, called in rows],
            "textposition": ["bottom center" if "best" in called else "top center" for _, called in rows],
            "marker": {"symbol": "circle-open", "size": 20, "color": GREY, "line": {"width": 2}},
            "cliponaxis": False,
        }
    ]


def _scatter(study: StudyConfig, rows: Sequence[Point], scale: float) -> Trace:
    """Trials with a score as marks that show their configuration when pointed at."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [(p.artifact_bytes or 0) / scale for p in rows],
        "y": [p.val_bpb for p in rows],
        "customdata": [p.trial_id for p in rows],
        "hovertext": [hover_text(study, p) for p in rows],
        "hoverinfo": "text",
    }


def _byte_view(sizes: Sequence[int], cap: int) -> tuple[float, float]:
    """The range of sizes in view: all trials, and the cap unless the trials would then fill less than a fifth of it."""
    (low, high), _ = view_range(sizes)
    if not sizes:
        return 0.0, cap * 1.1
    spread = max(high - low, 0.02 * cap)
    if cap > high and (cap - low) <= 5 * spread:
        high = cap + 0.08 * (cap - low)
    return low, max(high, low + spread)


def _cap_label(study: StudyConfig, cap: float, *, in_view: bool) -> Figure:
    """The cap in words: beside its line, or at the right edge with an arrow where the line is out of view."""
    label: Figure = {"yref": "paper", "y": 1, "yanchor": "top", "showarrow": False, "font": {"color": CAP_COLOUR}}
    text = f"cap {study.caps.artifact_bytes:,} B"
    if in_view:
        return label | {"text": text, "xref": "x", "x": cap, "xanchor": "left", "xshift": 2, "textangle": -90}
    return label | {"text": f"{text} is further right →", "xref": "paper", "x": 1, "xanchor": "right"}
