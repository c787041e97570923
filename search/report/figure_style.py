"""The look that all figures share: colours and symbols of rungs, units, ranges of axes.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any colour vision can tell
apart; every rung also has its own symbol. The page sets the colours of text, grid and background, because they follow
the reader's light or dark setting. A figure is a dict: the JSON that plotly.js draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """The range of an axis that shows the values, and how many values lie above it.

    The range ends at three times the distance from the lowest value to the median, so that a few trials at 8 bpb do
    not squash the others. It always holds the lowest value.
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
    """The colour and the symbol of a rung, by its place from the top of the ladder."""
    names = [r.name for r in reversed(study.rungs)]
    place = names.index(rung) % len(RUNG_COLOURS)
    return RUNG_COLOURS[place], RUNG_SYMBOLS[place]


def byte_unit(study: StudyConfig) -> tuple[float, str]:
    """The number of bytes in the unit of the axes, and the unit's name: MB for large caps, kB for small ones."""
    return (1e6, "MB") if study.caps.artifact_bytes >= 2e6 else (1e3, "kB")


def vertical_line(x: float, colour: str) -> Figure:
    """A dashed line over the whole height of a figure."""
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
    """The layout that every figure starts from."""
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "autosize": True,
        "margin": {"l": 60, "r": 16, "t": 34, "b": 48},
        "hoverlabel": {"align": "left", "font": {"size": 11}},
    }
