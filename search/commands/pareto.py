"""`pgolf pareto`: the page of bpb against bytes, its main figure as a PNG, or its points as JSON or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgolf_model.files import write_atomically
from search.commands import options
from search.commands.tables import print_json

if TYPE_CHECKING:
    from search.look.analysis import Analysis
    from search.study.config import StudyConfig


@click.command()
@click.argument("study")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Page to write [default: in the study].")
@click.option(
    "--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the main figure there and write no page."
)
@options.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print the points as CSV and write no page.")
def pareto(study: str, out: Path | None, png: Path | None, as_json: bool, as_csv: bool) -> None:
    """Write the page of val_bpb against bytes, every trial and its front on it.

    STUDY is a study's name, its folder, or its TOML file. The page is one HTML file that needs no network; its path
    is printed. --png draws its main figure alone, small enough for a README; that needs Chromium or Chrome.

    \b
    Example:
      pgolf pareto demo
      pgolf pareto demo --csv > points.csv
      pgolf pareto demo --png pareto.png
    """
    from search.look.analysis import analyse
    from search.study.config import load_study
    from search.study.ledger import read_records
    from search.study.lock import driver_alive

    if as_json + as_csv + (out is not None) + (png is not None) > 1:
        raise click.UsageError("--out, --png, --json and --csv exclude each other")
    config = load_study(study)
    analysis = analyse(config, read_records(config), alive=driver_alive(config))
    if as_json:
        print_json(document(config, analysis))
    elif as_csv:
        click.echo(csv_text(analysis), nl=False)
    elif png is not None:
        click.echo(write_picture(config, analysis, png))
    else:
        click.echo(write_report(config, analysis, out))


def write_report(study: StudyConfig, analysis: Analysis, out: Path | None = None) -> Path:
    """Write the page, whole or not at all, and return its path."""
    import time

    from search.report.page import REPORT_FILE, report_html

    unfinished = sum(point.status in ("running", "interrupted") for point in analysis.points)
    state = f"{len(analysis.points)} trials" + (f", {unfinished} not ended" if unfinished else "")
    made = f"Written by pgolf pareto on {time.strftime('%Y-%m-%d at %H:%M')} with {state}, from {study.dir}."
    return _written(out or study.dir / REPORT_FILE, report_html(study, analysis, made=made).encode())


def write_picture(study: StudyConfig, analysis: Analysis, out: Path) -> Path:
    """Write the main figure as a PNG, whole or not at all, and return its path."""
    from search.report.picture import picture_png

    return _written(out, picture_png(study, analysis))


def _written(path: Path, content: bytes) -> Path:
    """The full path of a file, written whole or not at all."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def document(study: StudyConfig, analysis: Analysis) -> dict[str, object]:
    """The document that `pgolf pareto --json` prints."""
    from space.plain import to_plain

    head = {
        "study": study.name,
        "question": study.question,
        "caps": to_plain(study.caps),
        "rungs": [rung.name for rung in study.rungs],
    }
    return {**head, **to_plain(analysis)}


def csv_text(analysis: Analysis) -> str:
    """The points as CSV: a column per field and one per knob (`params.NAME`); lists joined by spaces."""
    import csv
    import io
    from dataclasses import fields

    from search.look.analysis import Point
    from space.plain import to_plain

    rows = [to_plain(point) for point in analysis.points]
    knobs = sorted({name for row in rows for name in row["params"]})
    plain = [field.name for field in fields(Point) if field.name != "params"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(plain + [f"params.{name}" for name in knobs])
    for row in rows:
        cells = [" ".join(map(str, row[name])) if isinstance(row[name], list) else row[name] for name in plain]
        writer.writerow(cells + [row["params"].get(name) for name in knobs])
    return text.getvalue()
