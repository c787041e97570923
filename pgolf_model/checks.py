"""Checks of the fields of a config. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pgolf_model.errors import UserError


def check_fields(noun: object, wanted: str, is_good: Callable[[Any], bool], names: str) -> None:
    """Raise UserError for the first of the fields (names, with spaces between) whose value is not as wanted."""
    for name in names.split():
        if not is_good(getattr(noun, name)):
            raise UserError(f"{name} must be {wanted}, got {getattr(noun, name)}")


def check_choices(noun: object) -> None:
    """Raise UserError for the first field annotated `Literal[...]` that has another value."""
    cls: type = type(noun)
    for name, options in literal_options(cls).items():
        if getattr(noun, name) not in options:
            raise UserError(f"{name} must be one of {', '.join(options)}, got {getattr(noun, name)!r}")


@cache
def literal_options(cls: type) -> dict[str, tuple[str, ...]]:
    """The values of each field annotated `Literal[...]`, by its name."""
    return {name: get_args(hint) for name, hint in get_type_hints(cls).items() if get_origin(hint) is Literal}
