"""The README's commands exist as written, and what it shows of cheap ones is what they print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from search.cli import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
COMMANDS = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]
COMMANDS += [words for words in re.findall(r"`(pgolf [a-z][^`]*)`", README.replace("\n", " ")) if words.islower()]


def shown_output(command: str) -> str:
    """What the README prints below a command."""
    block = next(block for block in BLOCKS if f"$ {command}\n" in block)
    return block.split(f"$ {command}\n", 1)[1].split("\n$ ", 1)[0].strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_parses(command: str) -> None:
    """Its name and options exist and its arguments are complete."""
    words = shlex.split(command)
    assert words[0] == "pgolf"
    group: click.Command = cli
    words = words[1:]
    while isinstance(group, click.Group):
        group, words = group.get_command(click.Context(group), words[0]) or pytest.fail(command), words[1:]
    group.make_context(command, words)


@pytest.mark.parametrize("command", ["pgolf size baseline_2026_03_17", "pgolf search 8xh100.toml --dry-run"])
def test_what_the_readme_shows_is_what_is_printed(command: str) -> None:
    """Cheap commands are run; a size may move by the bytes a code change costs."""
    answer = subprocess.run(
        [sys.executable, "-m", "search.cli", *command.split()[1:]], text=True, capture_output=True, check=True, cwd=ROOT
    )
    assert masked(answer.stdout) == masked(shown_output(command))


def masked(text: str) -> list[str]:
    """Lines without the digits of byte counts that include code, which every commit may change."""
    volatile = ("code_bytes", "artifact_bytes", "fits")
    return [
        re.sub(r"[\d,]+", "N", line) if any(w in line for w in volatile) else line for line in text.strip().splitlines()
    ]


def test_the_file_tree_names_every_room() -> None:
    """A room with no line in the tree is one a newcomer cannot place."""
    tree = README[README.index("## Files") :]
    for package in ("pgolf_model", "space", "trials", "search"):
        for face in (ROOT / package).rglob("__init__.py"):
            assert re.search(rf"\b{face.parent.name}/", tree), f"{face.parent.relative_to(ROOT)} is not in the tree"
