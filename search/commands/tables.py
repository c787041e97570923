"""How commands print tables and durations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass


def print_plain(table: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join([first, *others]))


def print_rich(head: dict[str, str], tables: list[list[list[str]]]) -> None:
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


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
