"""The CLI reference, made from the commands themselves.

python -m search.commands.reference > search/commands/REFERENCE.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module

import click

TITLE = """# Every command of pgolf

This page is made from the commands: change their help and run
`python -m search.commands.reference > search/commands/REFERENCE.md`. Each of them also takes `-h` and `--help`."""
WIDTH = 100  # columns of a usage line; fixed, so that the terminal does not matter


def reference(program: click.Group) -> str:
    """The whole page: the program first, then every command in the order of its `--help`."""
    return "\n\n".join([TITLE, *(_section(context) for context in _contexts(program, None))]) + "\n"


def _contexts(command: click.Command, parent: click.Context | None) -> Iterator[click.Context]:
    """A context for the command and for each command below it, depth first."""
    name = command.name if parent else "pgolf"
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    yield context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None, child
            yield from _contexts(found, context)


def _section(context: click.Context) -> str:
    """One command: usage, what it does, its options, its examples."""
    command = context.command
    options = [p.get_help_record(context) for p in command.params if isinstance(p, click.Option)]
    usage = command.get_usage(context).removeprefix("Usage: ")
    level = "##" if context.parent is None or context.parent.parent is None else "###"
    parts = [f"{level} {context.command_path}", f"```\n{usage}\n```", *map(_paragraph, _paragraphs(command))]
    parts.insert(-1 if "```console" in parts[-1] else len(parts), _option_list(options))
    return "\n\n".join(part for part in parts if part)


def _paragraphs(command: click.Command) -> list[str]:
    """The help text in pieces."""
    return re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))


def _paragraph(text: str) -> str:
    """A paragraph on one line; what click leaves as it is (behind a backspace character) as a block.

    Ours are examples: commands below a line that introduces them. That line has said enough on a terminal.
    """
    if "\b" not in text:
        return _one_line(text)
    lines = [line.rstrip() for line in text.replace("\b", "").splitlines() if line.strip()]
    commands = [line.strip() for line in lines[1:]]
    if commands and all(line.startswith("pgolf ") for line in commands):
        return "```console\n" + "\n".join(f"$ {line}" for line in commands) + "\n```"
    return "```\n" + "\n".join(lines) + "\n```"


def _option_list(options: list[tuple[str, str] | None]) -> str:
    """An option a line; click has nothing to say about hidden ones."""
    return "\n".join(f"- `{option[0]}`: {_one_line(option[1])}" for option in options if option is not None)


def _one_line(text: str) -> str:
    """Text without line breaks and double spaces."""
    return " ".join(text.split())


if __name__ == "__main__":
    print(reference(import_module("search.cli").cli), end="")  # by name: no room imports what lies above it
