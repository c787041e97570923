"""Short texts that the page and its figures share.

plotly reads the texts of a figure as a small subset of HTML, so figures pass a study's own words through `figure_text`.
The other functions but `hover_text` return plain text, which the templates escape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from search.look.analysis import Point
from search.report.figure_style import byte_unit, rung_style
from search.study.config import StudyConfig

GLYPHS = {"circle": "●", "diamond": "◆", "square": "■", "triangle-up": "▲", "pentagon": "⬟"}
# Characters that HTML does not allow: controls but tab and line ends, and halves of surrogate pairs.
FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Swatch:
    """A rung's symbol in its colour, for running text."""

    glyph: str
    colour: str


def swatch(study: StudyConfig, rung: str) -> Swatch:
    """The rung's symbol as text and its colour."""
    colour, symbol = rung_style(study, rung)
    return Swatch(glyph=GLYPHS[symbol], colour=colour)


def short_text(value: object) -> str:
    """A parameter's value as text; fractions have four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def minus_sign(text: str) -> str:
    """The text of a number with a minus sign in place of its hyphens."""
    return text.replace("-", "−")


def plural(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """The text with U+FFFD in place of every character that HTML does not allow."""
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def figure_text(text: str) -> str:
    """A study's own words as a text of a figure, in which markup stays visible as characters.

    Quotes stay as they are: plotly would show their escapes.
    """
    return escape(printable(text), quote=False)


def score_text(point: Point) -> str:
    """A trial's id and its score, for figures."""
    return f"<b>{figure_text(point.trial_id)}</b> {point.val_bpb:.4f}"


def hover_text(study: StudyConfig, point: Point) -> str:
    """The text shown when the reader points at a trial: the measurements, then one line per parameter."""
    scale, unit = byte_unit(study)
    cap = study.caps.artifact_bytes
    title = f"<b>{figure_text(point.trial_id)}</b>" + (f" · {figure_text(point.label)}" if point.label else "")
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
            lines.append(f"<b>over the cap on {', '.join(map(figure_text, point.over))}</b>")
    else:
        lines.append(f"{point.status}, no score")
        if point.predicted_bytes:
            lines.append(
                f"forecast {point.predicted_bytes / scale:,.2f} {unit}, {point.predicted_bytes / cap:.1%} of cap"
            )
    lines.append("")
    width = max(map(len, point.params), default=0)
    lines += [
        f"{figure_text(name.ljust(width)).replace(' ', '&nbsp;')}  {figure_text(short_text(v))}"
        for name, v in point.params.items()
    ]
    return "<br>".join(lines)
