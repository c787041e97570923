"""`pgolf show`: one trial, from what was asked of it to its last words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from search.commands import options
from search.commands.tables import print_facts, print_json, print_table
from space.words import count, duration

if TYPE_CHECKING:
    from search.look.trial import Change, TrialView


@click.command()
@click.argument("study")
@click.argument("trial")
@click.option("--log-lines", type=click.IntRange(0), default=20, show_default=True, help="Last lines of its log.")
@options.as_json
def show(study: str, trial: str, log_lines: int, as_json: bool) -> None:
    """Show TRIAL of STUDY: its settings against the control's, how it ended, and the end of its log.

    \b
    Example:
      pgolf show demo full/0003
    """
    from search.look.trial import view_trial
    from search.study.config import load_study
    from search.study.ledger import read_records

    config = load_study(study)
    view = view_trial(config, read_records(config), trial, log_lines=log_lines)
    if as_json:
        print_json(view)
        return
    print_facts(_facts(view), bold=("trial", "val_bpb"))
    for title, changed in (("knob", view.params), ("field", view.config)):
        if changed:
            click.echo()
            print_table([title, "control", "this trial"], [_cells(change) for change in changed])
    if view.result and view.result.error:
        click.echo(f"\nerror\n{view.result.error.rstrip()}")
    if view.log:
        click.echo(f"\n{view.log_file} ends with\n{view.log}")


def _facts(view: TrialView) -> dict[str, str]:
    """A line each; what is not known is left out."""
    spec, result = view.spec, view.result
    facts = {"trial": f"{view.trial_id}: {view.state}" + (f", fault {result.fault}" if result and result.fault else "")}
    if spec.label:
        facts["label"] = spec.label
    if spec.parent is not None:
        facts["promoted from"] = f"number {spec.parent} of the rung below"
    if view.control:
        facts["against"] = f"{view.control}, the control"
    if result and result.status == "complete":
        facts["val_bpb"] = f"{result.val_bpb:.4f} over {count(len(result.runs), 'seed')}"
        facts["bytes"] = f"{result.artifact_bytes:,}, forecast {spec.predicted_bytes:,}"
        facts["time"] = (
            f"{duration(result.seconds)}: training {duration(result.train_seconds)}, "
            f"scoring {duration(result.eval_seconds)} a seed at most"
        )
    elif result:
        facts["time"] = duration(result.seconds)
    facts["seeds"] = ", ".join(map(str, spec.seeds))
    facts["uses"] = f"{spec.cpus:g} CPUs, {spec.gpus:g} GPUs, {spec.processes} process{'es' * (spec.processes != 1)}"
    if spec.attempt > 1:
        facts["attempt"] = str(spec.attempt)
    facts["folder"] = view.folder
    return facts


def _cells(change: Change) -> list[str]:
    return [change.name, *("-" if value is None else _text(value) for value in (change.control, change.trial))]


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
