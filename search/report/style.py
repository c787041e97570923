"""What the report's figures have in common: colours and symbols of rungs, units, views, hover texts.

Colours are Okabe and Ito's, told apart by people with any colour vision; every rung has its own symbol besides.
Text, grid and background colours are left to the page, which follows the reader's light or dark setting. A figure is
the JSON that plotly.js draws, as a dict.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from search.look.analysis import Point
from search.study.config import StudyConfig

RUNG_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # top rung first
RUNG_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "pentagon")
CAP_COLOUR = "#D55E00"
GREY = "#8a8f98"
UNSCORED_SYMBOLS = {"infeasible": "line-ns-open", "diverged": "x-thin-open", "failed": "x-thin-open"}
UNSCORED_BAND = 0.09  # share of the main figure's height for trials without a score

Trace = dict[str, Any]
Figure = dict[str, Any]


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


def vertical_line(x: float, colour: str) -> Figure:
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


def base_layout() -> Figure:
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "autosize": True,
        "margin": {"l": 60, "r": 16, "t": 34, "b": 48},
        "hoverlabel": {"align": "left", "font": {"size": 11}},
    }
