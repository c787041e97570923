"""`pgolf list`: the spaces, presets, built-in studies and runs that there are."""

from __future__ import annotations

from pathlib import Path

import click

from search.commands import options
from search.commands.tables import print_json, print_table

KINDS = ("spaces", "presets", "studies", "runs")
RUNS = Path("runs")  # where studies keep their trials unless told otherwise


@click.command("list")
@click.argument("kinds", nargs=-1, type=click.Choice(KINDS), metavar="[spaces|presets|studies|runs]...")
@options.as_json
def list_(kinds: tuple[str, ...], as_json: bool) -> None:
    """List spaces to search, presets to start from, built-in studies, and the runs in this folder.

    \b
    Example:
      pgolf list
      pgolf list runs --json
    """
    tables = {"spaces": _spaces, "presets": _presets, "studies": _studies, "runs": _runs}
    found = {kind: tables[kind]() for kind in kinds or KINDS}
    if as_json:
        print_json(found)
        return
    for i, (kind, rows) in enumerate(found.items()):
        if i:
            click.echo()
        if not rows:
            click.echo(f"no {kind} here")
            continue
        header = [kind.removesuffix("s").replace("studie", "study"), *list(rows[0])[1:]]
        print_table(header, [[_cell(value) for value in row.values()] for row in rows], left=len(header))


def _spaces() -> list[dict[str, object]]:
    """Name, number of knobs, and what it is."""
    from space.spaces import SPACES

    return [
        {"name": name, "knobs": len(make().params), "what it is": _first_sentence(make.__doc__)}
        for name, make in SPACES.items()
    ]


def _presets() -> list[dict[str, object]]:
    """Name, number of parameters, and what it is."""
    from pgolf_model.shapes import num_params
    from space.presets import PRESETS

    return [
        {"name": name, "parameters": num_params(make().model), "what it is": _first_sentence(make.__doc__)}
        for name, make in PRESETS.items()
    ]


def _studies() -> list[dict[str, object]]:
    """Name of the file, its space, and its first comment."""
    from search.study.config import builtin_studies, load_study

    found: list[dict[str, object]] = []
    for path in builtin_studies().values():
        comment = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        found.append({"name": path.name, "space": load_study(str(path)).space, "what it is": comment})
    return found


def _runs() -> list[dict[str, object]]:
    """Studies in runs/: where each stands."""
    from search.look.status import study_state
    from search.study.config import STUDY_FILE, load_study
    from search.study.ledger import best_record, read_records
    from search.study.lock import driver_alive

    found: list[dict[str, object]] = []
    for path in sorted(RUNS.glob(f"*/{STUDY_FILE}")):
        study = load_study(str(path.parent))
        records = read_records(study)
        best = best_record(study, records)
        found.append(
            {
                "name": study.name,
                "state": study_state(study, records, alive=driver_alive(study)),
                "trials": len(records),
                "best": best.spec.trial_id if best else None,
                "val_bpb": best.result.val_bpb if best and best.result else None,
                "folder": str(path.parent),
            }
        )
    return found


def _first_sentence(doc: str | None) -> str:
    """The first sentence of a docstring's first line."""
    return (doc or "").strip().partition("\n")[0].partition(". ")[0].removesuffix(".")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
