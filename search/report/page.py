"""The report page: one HTML file with everything in it, which opens from disk and never touches the network.

The analysis becomes values (`headline`, `sections`, `trial_views`), and Jinja2's templates lay them out. Jinja2 escapes
every value. The page's own style sheet and scripts are the only texts that are exempt.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from search.look.analysis import Analysis
from search.report.headline import headline
from search.report.plot import plotly_script
from search.report.sections import evidence_sections, forecast_section, knob_section, main_section
from search.report.texts import printable
from search.report.trial_views import TABLE_COLUMNS, table_rows, trial_cards
from search.study.config import StudyConfig

REPORT_FILE = "report.html"
FOLDER = Path(__file__).parent
# Nothing may be loaded from anywhere; scripts and styles are inline, downloads of a figure are data and blob URLs.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def report_html(study: StudyConfig, analysis: Analysis, *, made: str = "") -> str:
    """The page as text.

    Args:
        made: when and in what state of the study it was written, for the footer.
    """
    return render(
        "page.html.j2",
        headline=headline(study, analysis),
        main=main_section(study, analysis),
        cards=trial_cards(study, analysis),
        evidence=evidence_sections(study, analysis),
        knobs=knob_section(study, analysis),
        forecasts=forecast_section(analysis),
        columns=TABLE_COLUMNS,
        rows=table_rows(study, analysis),
        made=made,
    )


def render(template: str, **values: object) -> str:
    """A template filled with values, beside which it sees the page's own policy, style sheet and scripts."""
    own = {
        "policy": Markup(POLICY),
        "style": _asset("style.css"),
        "script": _asset("page.js"),
        "plotly_script": Markup(plotly_script()),
    }
    return _environment().get_template(template).render(own | values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def _printable(value: object) -> object:
    """A text as `printable` returns it; any other value, also one that is exempt from escaping, as it is."""
    return printable(value) if type(value) is str else value


def _asset(name: str) -> Markup:
    """A file of this folder, exempt from escaping: it is ours."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))
