"""Dataclasses to and from plain dicts, for JSON and TOML: round trips are exact, unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pgolf_model.errors import UserError, unknown

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Return a tree of dataclasses as dicts, lists and scalars. JSON keeps floats exactly, as it writes their repr."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[T], data: Any, *, where: str = "") -> T:
    """Return the instance of `cls` that `data` describe, the inverse of `to_plain`; missing keys take their defaults.

    Args:
        where: name of `data` in messages, such as "study.toml [rungs.0]".
    Raises:
        UserError: an unknown key (with the nearest known one), a missing key, or a value of the wrong type.
    """
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected a table, got {data!r}")
    hints = _hints(cls)  # type: ignore[arg-type]  # classes are hashable
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    refuse_unknown(data, known, where=where)
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}  # type: ignore[arg-type]
    missing = sorted(required - set(data))
    if missing:
        raise UserError(f"{where}: missing key: {', '.join(missing)}")
    values = {key: _convert(hints[key], item, where=f"{where}.{key}") for key, item in data.items()}
    try:
        return cls(**values)
    except UserError as error:
        raise error.at(where) from None


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the field types of a dataclass, kept because looking them up takes two thirds of `from_plain`'s time."""
    return get_type_hints(cls)


def refuse_unknown(data: Mapping[str, Any], known: list[str], *, where: str) -> None:
    """Raise UserError for the first key of `data` that is not in `known`, naming the nearest known one."""
    for key in data:
        if key not in known:
            raise unknown("key", str(key), known).at(where)


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    """Return `value` as the annotated type, or raise UserError."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and type(None) in args:
            return None
        errors: list[UserError] = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _convert(option, value, where=where)
            except UserError as error:
                errors.append(error)
        raise errors[0]
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where}: expected one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, got {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, where=f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) != len(value):
            raise UserError(f"{where}: expected {len(args)} items, got {len(value)}")
        return tuple(
            _convert(a, item, where=f"{where}[{i}]") for i, (a, item) in enumerate(zip(args, value, strict=True))
        )
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a table, got {value!r}")
        return {_convert(args[0], k, where=where): _convert(args[1], v, where=f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(hint):
        return from_plain(hint, value, where=where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise UserError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
