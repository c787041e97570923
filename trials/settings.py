"""Which settings of a study may change between its launches: each field says so itself, the others are frozen."""

from __future__ import annotations

from dataclasses import Field, field
from typing import Any, TypeVar

T = TypeVar("T")
FREE = "free to change between launches"  # key of a field's metadata


def free(default: T) -> T:
    """A dataclass field with this default that may change between two launches of a study.

    A field declared without it is frozen: a launch with another value is refused (search/study/freeze.py).
    """
    declared: T = field(default=default, metadata={FREE: True})
    return declared


def is_free(declared: Field[Any]) -> bool:
    """Whether a field was declared with `free`."""
    return bool(declared.metadata.get(FREE, False))
