"""plotly: its script for the page, and its check of every figure. The only file that imports it."""

from __future__ import annotations

import json

from search.report.style import Figure


def plotly_script() -> str:
    """The text of plotly.js, to be embedded in a page (4.8 MB)."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def figure_json(figure: Figure) -> str:
    """A figure checked by plotly and written so that it can stand inside a `<script>` element."""
    import plotly.graph_objects as go

    return str(json.dumps(go.Figure(figure).to_plotly_json(), allow_nan=False)).replace("<", "\\u003c")
