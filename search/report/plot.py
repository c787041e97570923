"""plotly: its script for the page, and its check of every figure. The only file that imports it."""

from __future__ import annotations

from search.report.figure_style import Figure


def plotly_script() -> str:
    """The text of plotly.js (4.8 MB), which a page embeds."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def checked(figure: Figure) -> Figure:
    """The figure as plotly reads it, in plain values.

    Raises:
        ValueError: plotly does not know one of its fields or values.
    """
    import plotly.graph_objects as go

    return dict(go.Figure(figure).to_plotly_json())
