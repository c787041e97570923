"""`pgolf status` and `pgolf pareto`: looking at a study while it runs and afterwards. Neither changes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from search.analysis import Analysis
    from search.forecast import BpbForecast
    from search.status import LiveTrial, RungStatus, StudyStatus
    from search.study import StudyConfig


@click.command()
@click.argument("study")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(study: str, as_json: bool) -> None:
    """Show where a study stands: trials per rung, what runs now, what was spent.

    STUDY is a study's name, its folder, or its TOML file.

    \b
    Example:
      pgolf status demo
    """
    import json
    import time

    from search.ledger import read_records
    from search.lock import driver_alive, driver_pid
    from search.status import study_status
    from search.study import load_study
    from space.plain import to_plain

    config = load_study(study)
    alive = driver_alive(config)
    found = study_status(config, read_records(config), driver=driver_pid(config), alive=alive, now=time.time())
    if as_json:
        click.echo(json.dumps(to_plain(found), indent=1))
    else:
        _print_status(found)


@click.command()
@click.argument("study")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Page to write [default: in the study].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and write no page.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the points as CSV and write no page.")
def pareto(study: str, out: Path | None, as_json: bool, as_csv: bool) -> None:
    """Write the page of val_bpb against bytes, every trial and its front on it.

    STUDY is a study's name, its folder, or its TOML file. The page is one HTML file that needs no network; its path
    is printed.

    \b
    Example:
      pgolf pareto demo
      pgolf pareto demo --csv > points.csv
    """
    import json

    from search.analysis import analyse
    from search.ledger import read_records
    from search.lock import driver_alive
    from search.study import load_study

    if as_json + as_csv + (out is not None) > 1:
        raise click.UsageError("--out, --json and --csv exclude each other")
    config = load_study(study)
    analysis = analyse(config, read_records(config), alive=driver_alive(config))
    if as_json:
        click.echo(json.dumps(document(config, analysis), indent=1, allow_nan=False))
    elif as_csv:
        click.echo(csv_text(analysis), nl=False)
    else:
        click.echo(write_report(config, analysis, out))


def write_report(study: StudyConfig, analysis: Analysis, out: Path | None = None) -> Path:
    """Write the page, whole or not at all, and say where it is."""
    import os
    import time

    from search.report import REPORT_FILE, report_html

    path = (out or study.dir / REPORT_FILE).absolute()
    unfinished = sum(point.status in ("running", "interrupted") for point in analysis.points)
    state = f"{len(analysis.points)} trials" + (f", {unfinished} not ended" if unfinished else "")
    made = f"Written by pgolf pareto on {time.strftime('%Y-%m-%d at %H:%M')} with {state}, from {study.dir}."
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(report_html(study, analysis, made=made), encoding="utf-8")
    os.replace(temporary, path)
    return path


def document(study: StudyConfig, analysis: Analysis) -> dict[str, object]:
    """What `pgolf pareto --json` prints."""
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

    from search.analysis import Point
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


def _print_status(found: StudyStatus) -> None:
    import sys

    driver = f" (driver is process {found.driver})" if found.driver else ""
    best = f"{found.best_val_bpb:.4f} bpb, {found.best}" if found.best else "no feasible trial yet"
    elapsed = f"{_duration(found.elapsed_seconds)} since launch, " if found.elapsed_seconds is not None else ""
    cost = f" (about ${found.dollars:,.2f})" if found.gpu_seconds else ""
    spent = f"{elapsed}{found.gpu_seconds / 3600:,.2f} GPU-hours{cost}, {found.cpu_seconds / 3600:,.2f} CPU-hours"
    head = {"study": f"{found.study}: {found.state}{driver}", "best": best, "spent": spent, "folder": found.folder}
    head |= {"budget": found.budget} if "no limit" not in found.budget else {}
    for n in found.noise:
        head[f"noise {n.rung}"] = f"sd {n.sd:.5f} over seeds, {n.degrees_of_freedom} degrees of freedom"
    for r in found.rungs:
        if len(r.devices) > 1:
            head[f"warning {r.rung}"] = (
                f"ran on {len(r.devices)} kinds of device ({', '.join(r.devices)}): its trials do not compare; "
                "run the rung, control included, on one kind"
            )
    for q in found.proxies:
        if q.spearman is not None and q.recall is not None:
            head[f"{q.lower} -> {q.upper}"] = (
                f"Spearman {q.spearman:+.2f} [{q.spearman_low:+.2f}, {q.spearman_high:+.2f}], recall of the top "
                f"quarter {q.recall:.2f} [{q.recall_low:.2f}, {q.recall_high:.2f}] over {q.num_pairs} pairs; "
                f"keeps {q.keep:.0%}"
            )
    tables = [_rung_cells(found.rungs)]
    if found.live:
        tables.append(_live_cells(found.live))
    if found.forecasts:
        tables.append(_forecast_cells(found.forecasts))
    if sys.stdout.isatty():
        _print_rich(head, tables)
    else:
        width = max(8, *(len(name) + 2 for name in head))
        for name, text in head.items():
            click.echo(f"{name:{width}}{text}")
        for table in tables:
            click.echo()
            _print_plain(table)
    if found.next:
        click.echo("\nnext")
        for command in found.next:
            click.echo(f"  {command}")


def _rung_cells(rungs: tuple[RungStatus, ...]) -> list[list[str]]:
    """Header and rows; states that no trial is in are left out, but for the first three."""
    optional = ("waiting", "interrupted", "diverged", "failed", "timeout", "infeasible")
    states = ["asked", "running", "complete", *(s for s in optional if any(getattr(r, s) for r in rungs))]
    rows = [["rung", *states, "best val_bpb", "bytes"]]
    for r in rungs:
        best = [f"{r.best_val_bpb:.4f}", f"{r.best_artifact_bytes:,}"] if r.best_val_bpb is not None else ["-", "-"]
        rows.append([r.rung, *(str(getattr(r, s)) for s in states), *best])
    return rows


def _live_cells(live: tuple[LiveTrial, ...]) -> list[list[str]]:
    rows = [["trial", "state", "seed", "step", "progress", "loss", "ms/step", "ETA"]]
    for t in live:
        rows.append(
            [
                t.trial_id,
                "interrupted" if t.interrupted else "running" if t.seed is not None else "starting",
                f"{min(t.seeds_done + 1, t.num_seeds)}/{t.num_seeds}",
                str(t.step),
                f"{t.progress:.0%}",
                "-" if t.train_loss is None else f"{t.train_loss:.4f}",
                "-" if t.ms_per_step is None else f"{t.ms_per_step:.1f}",
                "-" if t.eta_seconds is None else _duration(t.eta_seconds),
            ]
        )
    return rows


def _forecast_cells(forecasts: tuple[BpbForecast, ...]) -> list[list[str]]:
    rows = [["trial", f"at {forecasts[0].rung}", "50 %", "90 %", "from"]]
    for f in forecasts:
        known = f"{f.num_pairs} earlier trial{'s' * (f.num_pairs != 1)}" if f.num_pairs else "no earlier trial"
        rows.append(
            [
                f.trial_id,
                f"{f.val_bpb:.4f}",
                f"{f.low50:.4f} to {f.high50:.4f}",
                f"{f.low90:.4f} to {f.high90:.4f}",
                f"its {f.source}, {known}{': mostly a guess' if f.few else ''}",
            ]
        )
    return rows


def _print_plain(table: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join([first, *others]))


def _print_rich(head: dict[str, str], tables: list[list[list[str]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()  # honours NO_COLOR
    for name, text in head.items():
        console.print(Text.assemble((f"{name:8}", "dim"), (text, "bold" if name in ("study", "best") else "")))
    for cells in tables:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for i, title in enumerate(cells[0]):
            table.add_column(title, justify="right" if i else "left", no_wrap=True)
        for row in cells[1:]:
            table.add_row(*map(Text, row))
        console.print()
        console.print(table)


def _duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
