"""The smaller figures, each of which answers one question about the search.

Do proxies rank trials as full runs do? Were bytes forecast well? Does the search still improve? What did each knob do?
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor, log10

from search.look.analysis import Analysis, Point
from search.report.figure_style import GREY, Figure, Trace, base_layout, byte_unit, rung_style, view_range
from search.report.texts import figure_text, score_text, short_text
from search.study.config import StudyConfig
from search.study.statistics import spearman
from space.params import Scalar

AXIS_CHARACTERS = 28  # that fit side by side under a knob's small figure


def rank_figure(study: StudyConfig, analysis: Analysis) -> Figure | None:
    """Scores at a rung against the scores of the same configurations at the next rung; None without any pair."""
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
                "name": figure_text(f"{agreement.lower} to {agreement.upper}"),
                "x": [a.val_bpb for a, _ in both],
                "y": [b.val_bpb for _, b in both],
                "text": [figure_text(b.label) or f"{b.number:04d}" for _, b in both],
                "textposition": _alternating([a.val_bpb or 0.0 for a, _ in both]),
                "textfont": {"size": 11},
                "cliponaxis": False,
                "marker": {"color": colour, "symbol": symbol, "size": 10},
                "customdata": [b.trial_id for _, b in both],
                "hovertext": [f"{score_text(a)}<br>{score_text(b)}" for a, b in both],
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
            **base_layout(),
            "showlegend": len(traces) > 1,
            "xaxis": {"title": {"text": f"val_bpb at {figure_text(below)}"}, "range": list(x_range)},
            "yaxis": {"title": {"text": f"val_bpb at {figure_text(above)}"}, "range": list(y_range)},
        },
    }


def forecast_figure(study: StudyConfig, analysis: Analysis) -> Figure | None:
    """Forecast bytes against packed bytes, with the forecast's interval; None when there is no pair."""
    scale, unit = byte_unit(study)
    rows = [p for p in analysis.points if p.artifact_bytes and p.predicted_bytes]
    if not rows:
        return None
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
    traces = [_forecast_trace(study, rung.name, [p for p in rows if p.rung == rung.name]) for rung in study.rungs]
    return {
        "data": [equal, *(t for t in traces if t["x"])],
        "layout": {
            **base_layout(),
            "xaxis": {"title": {"text": f"forecast ({unit})"}, "range": [low, high]},
            "yaxis": {"title": {"text": f"packed ({unit})"}, "range": [low, high]},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }


def _forecast_trace(study: StudyConfig, rung: str, rows: Sequence[Point]) -> Trace:
    """One rung's trials, all with forecast and packed bytes."""
    scale, _ = byte_unit(study)
    colour, symbol = rung_style(study, rung)
    at = [(p, p.artifact_bytes or 0, p.predicted_bytes or 0) for p in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": figure_text(rung),
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
            f"<b>{figure_text(p.trial_id)}</b><br>forecast {predicted:,} B<br>packed {actual:,} B "
            f"({actual / predicted - 1:+.2%})"
            for p, actual, predicted in at
        ],
        "hoverinfo": "text",
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
                "name": figure_text(rung.name),
                "customdata": [p.trial_id for p in rows],
                "hovertext": [score_text(p) for p in rows],
                "hoverinfo": "text",
            },
        ]
    scored = [p for p in analysis.points if p.val_bpb is not None]
    if not scored:
        return None
    last = max(p.number for p in scored)
    y_range, _ = view_range([p.val_bpb or 0.0 for p in scored])
    pad = max(0.5, 0.03 * last)  # so that no marker is cut at the edge
    axis: Figure = {"title": {"text": "trial number at its rung"}, "range": [-pad, last + pad]}
    if last < 6:
        axis["dtick"] = 1  # no halves of trials
    return {
        "data": [t for t in traces if t["x"]],
        "layout": {
            **base_layout(),
            "xaxis": axis,
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
        "x": [figure_text(str(v)) for v in values] if axis["type"] == "category" else values,
        "y": [p.val_bpb for p in rows],
        "marker": {
            "color": [colour if p.feasible else GREY for p in rows],
            "size": 8,
            "symbol": [symbol if p.trial_id in promoted else f"{symbol}-open" for p in rows],
        },
        "customdata": [p.trial_id for p in rows],
        "hovertext": [f"{score_text(p)}<br>{figure_text(f'{name} = {short_text(p.params[name])}')}" for p in rows],
        "hoverinfo": "text",
    }
    layout = {
        **base_layout(),
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
        return _name_axis(sorted({str(v) for v in values}))
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
    labels = [f"{v:g}" if v.is_integer() else f"{v:.3g}" for v in distinct]
    closest = min(b - a for a, b in pairwise(distinct)) / (high - low)
    if len(distinct) <= 6 and closest * AXIS_CHARACTERS > max(map(len, labels)):
        axis |= {"tickvals": distinct, "ticktext": labels, "tickangle": 0}
    return axis


def _name_axis(names: Sequence[str]) -> Figure:
    """A category axis whose labels are cut to the room that each has."""
    room = max(4, AXIS_CHARACTERS // len(names))
    labels = [name if len(name) <= room else name[: room - 1] + "…" for name in names]
    categories = [figure_text(name) for name in names]
    return {
        "type": "category",
        "categoryarray": categories,
        "range": [-0.5, len(names) - 0.5],
        "tickvals": categories,
        "ticktext": [figure_text(label) for label in labels],
        "tickangle": 0,
    }


def _alternating(values: Sequence[float]) -> list[str]:
    """Where each point's text stands: above and below in turn along the axis, so that neighbours' names do not meet."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    place = {i: n for n, i in enumerate(order)}
    return ["bottom center" if place[i] % 2 else "top center" for i in range(len(values))]


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
