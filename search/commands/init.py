"""`pgolf init`: a built-in study as a file of your own."""

from __future__ import annotations

import re

import click

NAME_LINE = re.compile(r"^name = .*$", re.MULTILINE)


@click.command()
@click.argument("study", default="8xh100")
@click.option("--name", default="mine", show_default=True, help="Name of the new study: its trials go to runs/NAME.")
def init(study: str, name: str) -> None:
    """Print the built-in STUDY as TOML with comments, to edit and to run. `pgolf list studies` names them.

    \b
    Example:
      pgolf init 8xh100 > mine.toml
      pgolf search mine.toml --dry-run
    """
    import json

    from pgolf_model.errors import unknown
    from search.study.config import builtin_studies

    known = builtin_studies()
    wanted = study.removesuffix(".toml")
    if wanted not in known:
        raise unknown("built-in study", study, known)
    text = known[wanted].read_text(encoding="utf-8")
    click.echo(NAME_LINE.sub(f"name = {json.dumps(name)}", text, count=1), nl=False)
