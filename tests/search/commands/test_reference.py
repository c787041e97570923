"""The CLI reference says what the commands say."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.cli import COMMANDS, cli
from search.commands import reference as module
from search.commands.reference import reference

PAGE = Path(module.__file__).with_name("REFERENCE.md")


def test_the_committed_reference_is_current() -> None:
    """When this fails: python -m search.commands.reference > search/commands/REFERENCE.md"""
    assert PAGE.read_text(encoding="utf-8") == reference(cli)


def test_the_reference_has_every_command_with_an_example() -> None:
    """A verb that is added without an example shows up here."""
    sections = {part.splitlines()[0]: part for part in reference(cli).split("\n## ")}
    for name in COMMANDS:
        assert f"\n$ pgolf {name} " in sections[f"pgolf {name}"]


def test_the_terminal_does_not_change_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes the page gets the same one."""
    before = reference(cli)
    monkeypatch.setenv("COLUMNS", "40")
    assert reference(cli) == before
