"""The figures of the report page, each as the JSON that plotly.js draws. The only file that imports plotly.

Colours are Okabe and Ito's, told apart by people with any colour vision; every rung has its own symbol besides.
Text, grid and background colours are left to the page, which follows the reader's light or dark setting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any

from search.analysis import Analysis, Point, spearman
from search.study import StudyConfig
from trials.spec import Scalar

RUNG_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # top rung first
RUNG_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "pentagon")
CAP_COLOUR = "#D55E00"
GREY = "#8a8f98"
UNSCORED_SYMBOLS = {"infeasible": "line-ns-open", "diverged": "x-thin-open", "failed": "x-thin-open"}
UNSCORED_BAND = 0.09  # share of the main figure's height for trials without a score

Trace = dict[str, Any]
Figure = dict[str, Any]


def plotly_script() -> str:
    """The text of plotly.js, to be embedded in a page (4.8 MB)."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def figure_json(figure: Figure) -> str:
    """A figure checked by plotly and written so that it can stand inside a `<script>` element."""
    import plotly.graph_objects as go

    return str(json.dumps(go.Figure(figure).to_plotly_json(), allow_nan=False)).replace("<", "\\u003c")


def view_range(values: Sequence[float], *, margin: float = 0.06) -> tuple[tuple[float, float], int]:
    """Where to look by default, and how many values lie above that.

    Everything up to three times the distance from the lowest to the median is in view, so a few trials that came out
    at 8 bpb do not squash the others; nothing is ever cut off below.
    """
    if not values:
        return (0.0, 1.0), 0
    ordered = sorted(values)
    low, middle = ordered[0], ordered[(len(ordered) - 1) // 2]
    fence = middle + 3 * max(middle - low, 0.1 * abs(low))
    high = max(v for v in ordered if v <= fence)
    pad = margin * ((high - low) or abs(high) or 1.0)
    return (low - pad, high + pad), sum(v > fence for v in ordered)


def rung_style(study: StudyConfig, rung: str) -> tuple[str, str]:
    """Colour and symbol of a rung, counted from the top of the ladder."""
    names = [r.name for r in reversed(study.rungs)]
    place = names.index(rung) % len(RUNG_COLOURS)
    return RUNG_COLOURS[place], RUNG_SYMBOLS[place]


def byte_unit(study: StudyConfig) -> tuple[float, str]:
    """What bytes are divided by on axes, and its name; decimal, as the cap is."""
    return (1e6, "MB") if study.caps.artifact_bytes >= 2e6 else (1e3, "kB")


def pareto_figure(study: StudyConfig, analysis: Analysis) -> Figure:
    """val_bpb against artifact bytes: every trial, every rung's front, the cap."""
    scale, unit = byte_unit(study)
    cap = study.caps.artifact_bytes / scale
    scored = [p for p in analysis.points if p.val_bpb is not None]
    unscored = [p for p in analysis.points if p.val_bpb is None]
    y_range, _ = view_range([p.val_bpb or 0.0 for p in scored])
    x_range = _byte_view([p.artifact_bytes or 0 for p in scored], study.caps.artifact_bytes)
    traces = [_promotions(scored, study, scale)]
    for place, rung in enumerate(study.rungs):
        traces += _front(study, analysis, rung.name, scale, top=rung.name == analysis.front_rung)
        traces += _rung_markers(study, analysis, [p for p in scored if p.rung == rung.name], place, scale)
    traces += [_over_cap(study, scored, scale)]
    traces += _rings(analysis, scale)
    traces += [_unscored(study, [p for p in unscored if p.predicted_bytes], scale, x_range)]
    has_band = any(p.predicted_bytes for p in unscored)
    band = UNSCORED_BAND if has_band else 0.0
    layout: Figure = {
        **_layout(),
        "xaxis": {
            "title": {"text": f"artifact: code and compressed weights ({unit})"},
            "range": [x_range[0] / scale, x_range[1] / scale],
            "anchor": "y2" if has_band else "y",
        },
        "yaxis": {"title": {"text": "val_bpb, lower is better"}, "range": list(y_range), "domain": [band and 0.12, 1]},
        "shapes": [
            _line(cap, CAP_COLOUR),
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
        "annotations": [_cap_label(study, cap, unit, in_view=cap * scale <= x_range[1])],
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
        "hovermode": "closest",
    }
    if has_band:
        layout["yaxis2"] = {
            "domain": [0, band],
            "range": [-1, 1],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
            "tickvals": [0],
            "ticktext": ["no score"],
        }
    return {"data": [t for t in traces if t.get("x")], "layout": layout}


def rank_figure(study: StudyConfig, analysis: Analysis) -> Figure | None:
    """Scores at a rung against the scores of the same configurations at the next; None without any pair."""
    traces: list[Trace] = []
    for agreement in analysis.rank_agreement:
        if not agreement.pairs:
            continue
        colour, symbol = rung_style(study, agreement.upper)
        both = [(analysis.point(a), analysis.point(b)) for a, b in agreement.pairs]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": f"{agreement.lower} to {agreement.upper}",
                "x": [a.val_bpb for a, _ in both],
                "y": [b.val_bpb for _, b in both],
                "text": [b.label or f"{b.number:04d}" for _, b in both],
                "textposition": _alternating([a.val_bpb or 0.0 for a, _ in both]),
                "textfont": {"size": 11},
                "cliponaxis": False,
                "marker": {"color": colour, "symbol": symbol, "size": 10},
                "customdata": [b.trial_id for _, b in both],
                "hovertext": [
                    f"<b>{escape(a.trial_id)}</b> {a.val_bpb:.4f}<br><b>{escape(b.trial_id)}</b> {b.val_bpb:.4f}"
                    for a, b in both
                ],
                "hoverinfo": "text",
            }
        )
    if not traces:
        return None
    names = [(a.lower, a.upper) for a in analysis.rank_agreement if a.pairs]
    below, above = names[0] if len(names) == 1 else ("the lower rung", "the upper rung")
    x_range, _ = view_range([x for t in traces for x in t["x"]], margin=0.12)
    y_range, _ = view_range([y for t in traces for y in t["y"]], margin=0.15)
    return {
        "data": traces,
        "layout": {
            **_layout(),
            "showlegend": len(traces) > 1,
            "xaxis": {"title": {"text": f"val_bpb at {escape(below)}"}, "range": list(x_range)},
            "yaxis": {"title": {"text": f"val_bpb at {escape(above)}"}, "range": list(y_range)},
        },
    }


def forecast_figure(study: StudyConfig, analysis: Analysis) -> Figure | None:
    """Forecast against packed bytes, with the forecast's interval and the cap; None when there is no pair."""
    scale, unit = byte_unit(study)
    rows = [p for p in analysis.points if p.artifact_bytes and p.predicted_bytes]
    if not rows:
        return None
    traces = []
    for rung in study.rungs:
        at = [(p, p.artifact_bytes or 0, p.predicted_bytes or 0) for p in rows if p.rung == rung.name]
        colour, symbol = rung_style(study, rung.name)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(rung.name),
                "x": [predicted / scale for _, _, predicted in at],
                "y": [actual / scale for _, actual, _ in at],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1,
                    "width": 0,
                    "color": colour,
                    "array": [((p.predicted_high or predicted) - predicted) / scale for p, _, predicted in at],
                    "arrayminus": [(predicted - (p.predicted_low or predicted)) / scale for p, _, predicted in at],
                },
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "customdata": [p.trial_id for p, _, _ in at],
                "hovertext": [
                    f"<b>{escape(p.trial_id)}</b><br>forecast {predicted:,} B<br>packed {actual:,} B "
                    f"({actual / predicted - 1:+.2%})"
                    for p, actual, predicted in at
                ],
                "hoverinfo": "text",
            }
        )
    everything = [b / scale for p in rows for b in (p.artifact_bytes, p.predicted_bytes) if b]
    pad = 0.06 * ((max(everything) - min(everything)) or max(everything))
    low, high = min(everything) - pad, max(everything) + pad
    equal = {
        "type": "scatter",
        "mode": "lines",
        "x": [low, high],
        "y": [low, high],
        "name": "exact forecast",
        "line": {"color": GREY, "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return {
        "data": [equal, *(t for t in traces if t["x"])],
        "layout": {
            **_layout(),
            "xaxis": {"title": {"text": f"forecast ({unit})"}, "range": [low, high]},
            "yaxis": {"title": {"text": f"packed ({unit})"}, "range": [low, high]},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }


def history_figure(study: StudyConfig, analysis: Analysis) -> Figure | None:
    """val_bpb in the order trials were asked, and the best feasible one so far, per rung; None without a score."""
    traces: list[Trace] = []
    for rung in study.rungs:
        rows = [p for p in analysis.points if p.rung == rung.name and p.val_bpb is not None]
        colour, symbol = rung_style(study, rung.name)
        marker = {"color": [colour if p.feasible else GREY for p in rows], "symbol": symbol, "size": 7, "opacity": 0.8}
        lowest: list[float | None] = []
        for p in rows:
            before = lowest[-1] if lowest else None
            lowest.append(min(v for v in (before, p.val_bpb) if v is not None) if p.feasible else before)
        group = {"legendgroup": rung.name, "x": [p.number for p in rows]}
        traces += [
            {
                "type": "scatter",
                "mode": "lines",
                "y": lowest,
                **group,
                "hoverinfo": "skip",
                "showlegend": False,
                "line": {"color": colour, "width": 2, "shape": "hv"},
            },
            {
                "type": "scatter",
                "mode": "markers",
                "y": [p.val_bpb for p in rows],
                **group,
                "marker": marker,
                "name": escape(rung.name),
                "customdata": [p.trial_id for p in rows],
                "hovertext": [f"<b>{escape(p.trial_id)}</b> {p.val_bpb:.4f}" for p in rows],
                "hoverinfo": "text",
            },
        ]
    y_range, _ = view_range([p.val_bpb for p in analysis.points if p.val_bpb is not None])
    if not any(t["x"] for t in traces):
        return None
    return {
        "data": [t for t in traces if t["x"]],
        "layout": {
            **_layout(),
            "xaxis": {"title": {"text": "trial number at its rung"}, "rangemode": "nonnegative"},
            "yaxis": {"title": {"text": "val_bpb"}, "range": list(y_range)},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }


def knob_figures(study: StudyConfig, analysis: Analysis) -> tuple[tuple[str, float | None, Figure], ...]:
    """val_bpb at the first rung against each knob that took several values, strongest rank correlation first.

    Returns:
        (knob, its rank correlation or None where it has no order or few trials had it, figure).
    """
    first = study.rungs[0].name
    rows = [p for p in analysis.points if p.rung == first and p.val_bpb is not None]
    promoted = {a for agreement in analysis.rank_agreement for a, _ in agreement.pairs}
    y_range, _ = view_range([p.val_bpb or 0.0 for p in rows])
    found = []
    for name in sorted({name for p in rows for name in p.params}):
        at = [p for p in rows if name in p.params]
        if len({p.params[name] for p in at}) > 1:
            numbers = [float(v) for p in at if _is_number(v := p.params[name])]
            ordered = len(numbers) == len(at) and 2 * len(at) > len(rows)  # conditional knobs: too few trials to rank
            rho = spearman(numbers, [p.val_bpb or 0.0 for p in at]) if ordered else None
            found.append((name, rho, _knob_figure(study, name, at, promoted, y_range)))
    return tuple(sorted(found, key=lambda item: (-abs(item[1] or 0.0), item[0])))


def _knob_figure(
    study: StudyConfig, name: str, rows: Sequence[Point], promoted: set[str], y_range: tuple[float, float]
) -> Figure:
    colour, symbol = rung_style(study, rows[0].rung)
    values = [p.params[name] for p in rows]
    axis = _knob_axis(values)
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [str(v) for v in values] if axis["type"] == "category" else values,
        "y": [p.val_bpb for p in rows],
        "marker": {
            "color": [colour if p.feasible else GREY for p in rows],
            "size": 8,
            "symbol": [symbol if p.trial_id in promoted else f"{symbol}-open" for p in rows],
        },
        "customdata": [p.trial_id for p in rows],
        "hovertext": [
            f"<b>{escape(p.trial_id)}</b> {p.val_bpb:.4f}<br>{escape(name)} = {show(p.params[name])}" for p in rows
        ],
        "hoverinfo": "text",
    }
    layout = {
        **_layout(),
        "margin": {"l": 44, "r": 10, "t": 6, "b": 26},
        "font": {"size": 11},
        "showlegend": False,
        "xaxis": axis,
        "yaxis": {"range": list(y_range), "nticks": 5},
    }
    return {"data": [trace], "layout": layout}


def _knob_axis(values: Sequence[Scalar]) -> Figure:
    """A category axis for names and switches, logarithmic for a wide range of positive numbers, linear otherwise."""
    if not all(_is_number(v) for v in values):
        names = sorted({str(v) for v in values})
        return {"type": "category", "categoryarray": names, "range": [-0.5, len(names) - 0.5]}
    distinct = sorted({float(v) for v in values})
    low, high = distinct[0], distinct[-1]
    if low > 0 and high / low >= 8 and len(distinct) > 4:
        ticks = [m * 10**e for e in range(floor(log10(low)), ceil(log10(high)) + 1) for m in (1, 3)]
        pad = 0.06 * log10(high / low)
        return {
            "type": "log",
            "range": [log10(low) - pad, log10(high) + pad],
            "tickvals": ticks,
            "ticktext": [f"{t:g}" for t in ticks],
        }
    pad = 0.07 * (high - low)
    axis: Figure = {"type": "linear", "range": [low - pad, high + pad], "nticks": 6}
    return axis | {"tickvals": distinct} if len(distinct) <= 6 else axis


def _alternating(values: Sequence[float]) -> list[str]:
    """Text above and below in turn along the axis, so that neighbours' names do not collide."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    place = {i: n for n, i in enumerate(order)}
    return ["bottom center" if place[i] % 2 else "top center" for i in range(len(values))]


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def show(value: object) -> str:
    """A parameter's or measurement's value, short and safe inside HTML."""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def hover_text(study: StudyConfig, point: Point) -> str:
    """What the page says when the reader points at a trial: the measurements, then one line per parameter."""
    scale, unit = byte_unit(study)
    cap = study.caps.artifact_bytes
    title = f"<b>{escape(point.trial_id)}</b>" + (f" · {escape(point.label)}" if point.label else "")
    if point.parent is not None:
        title += f" · promoted from {point.parent:04d}"
    lines = [title]
    if point.val_bpb is not None and point.artifact_bytes is not None:
        spread = f" ± {point.val_bpb_sd:.4f}" if point.val_bpb_sd is not None else ""
        seeds = len(point.val_bpb_seeds)
        lines += [
            f"<b>{point.val_bpb:.4f}</b> bpb{spread} ({seeds} seed{'s' if seeds > 1 else ''})"
            f", {point.quant_gap or 0:+.4f} from quantization",
            f"<b>{point.artifact_bytes:,}</b> B, {point.artifact_bytes / cap:.1%} of the cap",
            f"{(point.num_params or 0) / 1e6:,.2f} M parameters, {point.steps or 0:,} steps, "
            f"{(point.tokens_seen or 0) / 1e6:,.1f} M tokens",
            f"{point.train_seconds or 0:,.0f} s training, {point.eval_seconds or 0:,.0f} s scoring",
        ]
        if point.over:
            lines.append(f"<b>over the cap on {', '.join(map(escape, point.over))}</b>")
    else:
        lines.append(f"{point.status}, no score")
        if point.predicted_bytes:
            lines.append(
                f"forecast {point.predicted_bytes / scale:,.2f} {unit}, {point.predicted_bytes / cap:.1%} of cap"
            )
    lines.append("")
    width = max(map(len, point.params), default=0)
    lines += [f"{escape(name.ljust(width)).replace(' ', '&nbsp;')}  {show(v)}" for name, v in point.params.items()]
    return "<br>".join(lines)


def _rung_markers(
    study: StudyConfig, analysis: Analysis, rows: Sequence[Point], place: int, scale: float
) -> list[Trace]:
    feasible = [p for p in rows if p.feasible]
    if not feasible:
        return []
    name = feasible[0].rung
    colour, symbol = rung_style(study, name)
    top = name == analysis.front_rung
    return [
        {
            **_scatter(study, feasible, scale),
            "name": f"{escape(name)} ({len(feasible)})",
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
    rows = [p for p in scored if not p.feasible]
    symbols = [f"{rung_style(study, p.rung)[1]}-open" for p in rows]
    return {
        **_scatter(study, rows, scale),
        "name": f"over a cap ({len(rows)})",
        "legendrank": 300,
        "marker": {"color": GREY, "symbol": symbols, "size": 9, "line": {"width": 1.5}},
    }


def _unscored(study: StudyConfig, rows: Sequence[Point], scale: float, view: tuple[float, float]) -> Trace:
    """Trials that never got a score, at their forecast size; those beyond the view stand at its edge as arrows."""
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
    """The step line of what is reachable at each size, drawn on to the cap."""
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
            "name": f"front at {escape(rung)}",
            "legendgroup": rung,
            "showlegend": top,
            "opacity": 1 if top else 0.7,
            "legendrank": 200,
        }
    ]


def _promotions(scored: Sequence[Point], study: StudyConfig, scale: float) -> Trace:
    """One thin line from every promoted trial to the run it came from; the legend switches them off."""
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


def _rings(analysis: Analysis, scale: float) -> list[Trace]:
    """The best and the control, ringed and named."""
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
    """The sizes in view; the cap joins them unless that would squash them into less than a fifth of the width."""
    (low, high), _ = view_range(sizes)
    if not sizes:
        return 0.0, cap * 1.1
    spread = max(high - low, 0.02 * cap)
    if cap > high and (cap - low) <= 5 * spread:
        high = cap + 0.08 * (cap - low)
    return low, max(high, low + spread)


def _cap_label(study: StudyConfig, cap: float, unit: str, *, in_view: bool) -> Figure:
    label: Figure = {"yref": "paper", "y": 1, "yanchor": "top", "showarrow": False, "font": {"color": CAP_COLOUR}}
    text = f"cap {study.caps.artifact_bytes:,} B"
    if in_view:
        return label | {"text": text, "xref": "x", "x": cap, "xanchor": "right", "xshift": -4}
    return label | {"text": f"{text} is further right →", "xref": "paper", "x": 1, "xanchor": "right"}


def _line(x: float, colour: str) -> Figure:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": colour, "width": 1.5, "dash": "dash"},
    }


def _layout() -> Figure:
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "autosize": True,
        "margin": {"l": 60, "r": 16, "t": 34, "b": 48},
        "hoverlabel": {"align": "left", "font": {"size": 11}},
    }
