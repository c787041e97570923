"""`pgolf status`: where a study stands, while it runs and afterwards. It changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from search.commands import options
from search.commands.tables import print_facts, print_json, print_table
from space.words import duration

if TYPE_CHECKING:
    from search.look.score_forecast import BpbForecast
    from search.look.status import LiveTrial, RungStatus, StudyStatus


@click.command()
@click.argument("study")
@options.as_json
def status(study: str, as_json: bool) -> None:
    """Show where a study stands: trials per rung, what runs now, what was spent.

    STUDY is a study's name, its folder, or its TOML file.

    \b
    Example:
      pgolf status demo
    """
    import time

    from search.look.status import study_status
    from search.study.config import load_study
    from search.study.ledger import read_records
    from search.study.lock import driver_alive, driver_pid

    config = load_study(study)
    alive = driver_alive(config)
    found = study_status(config, read_records(config), driver=driver_pid(config), alive=alive, now=time.time())
    if as_json:
        print_json(found)
    else:
        _print_status(found)


def _print_status(found: StudyStatus) -> None:
    driver = f" (driver is process {found.driver})" if found.driver else ""
    best = f"{found.best_val_bpb:.4f} bpb, {found.best}" if found.best else "no feasible trial yet"
    elapsed = f"{duration(found.elapsed_seconds)} since launch, " if found.elapsed_seconds is not None else ""
    cost = f" (about ${found.dollars:,.2f})" if found.gpu_seconds else ""
    spent = f"{elapsed}{found.gpu_seconds / 3600:,.2f} GPU-hours{cost}, {found.cpu_seconds / 3600:,.2f} CPU-hours"
    head = {"study": f"{found.study}: {found.state}{driver}", "best": best, "spent": spent, "folder": found.folder}
    head |= {"budget": found.budget} if found.gpu_hours_limit is not None else {}
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
    print_facts(head, bold=("study", "best"))
    for cells in [_rung_cells(found.rungs), _live_cells(found.live), _forecast_cells(found.forecasts)]:
        if cells:
            click.echo()
            print_table(cells[0], cells[1:])
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
    if not live:
        return []
    rows = [["trial", "phase", "seed", "step", "trained", "loss", "ms/step", "ETA"]]
    for t in live:
        rows.append(
            [
                t.trial_id,
                f"{t.phase}, interrupted" if t.interrupted else t.phase,
                f"{min(t.seeds_done + 1, t.num_seeds)}/{t.num_seeds}",
                str(t.step),
                f"{t.progress:.0%}",
                "-" if t.train_loss is None else f"{t.train_loss:.4f}",
                "-" if t.ms_per_step is None else f"{t.ms_per_step:.1f}",
                "-" if t.eta_seconds is None else duration(t.eta_seconds),
            ]
        )
    return rows


def _forecast_cells(forecasts: tuple[BpbForecast, ...]) -> list[list[str]]:
    if not forecasts:
        return []
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
