"""What commands print to stdout: tables, facts, and JSON documents."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import click

WIDE = 10_000  # columns of a file or a pipe: nothing is cut there


def print_json(value: object, *, indent: int | None = 1) -> None:
    """Print a noun or plain value as one JSON document; NaN and infinity are refused."""
    from space.plain import to_plain

    click.echo(json.dumps(to_plain(value), indent=indent, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print rows under a header.

    Args:
        left: so many leading columns are words and lie left; the others are numbers and lie right.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for i, title in enumerate(header):
        table.add_column(title, justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    _print(table)


def print_facts(facts: Mapping[str, str], *, bold: Sequence[str] = ()) -> None:
    """Print a name and a text on each line; the texts of the names in `bold` stand out."""
    from rich.text import Text

    width = max(len(name) for name in facts) + 2
    for name, text in facts.items():
        _print(Text.assemble((f"{name:{width}}", "dim"), (text, "bold" if name in bold else "")))


def _print(what: object) -> None:
    """On a terminal with colours, unless NO_COLOR is set; elsewhere as plain lines without trailing spaces."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(soft_wrap=True).print(what)
        return
    console = Console(width=WIDE, color_system=None)
    with console.capture() as captured:
        console.print(what, crop=False, no_wrap=True, overflow="ignore")
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
