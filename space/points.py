"""Points of a space: when two are the same, how a partial one is completed, how text becomes a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, Space

BINS = 500  # floats that fall into one of so many parts of their range are the same point


def point_key(space: Space, params: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    """A point with its floats rounded to a 500th of their range: points with one key are not worth two runs."""
    key: list[tuple[str, Scalar]] = []
    for param in space.params:
        if param.name in params:
            value = params[param.name]
            if isinstance(param, FloatParam):
                value = round(BINS * param.place(value))
            key.append((param.name, value))
    return tuple(key)


def complete_point(params: Sequence[Param], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A point from some of its values: what is not active is dropped, what is missing is its range's middle."""
    point: dict[str, Scalar] = {}
    for param in params:
        if param.active(point):
            point[param.name] = given[param.name] if param.name in given else _middle(param)
    return point


def parse_value(param: Param, text: str) -> Scalar:
    """A cell or a word as the parameter's kind of value; what is no such value stays text, for `check` to refuse."""
    if isinstance(param, ChoiceParam):
        return next((option for option in param.options if str(option) == text), text)
    try:
        return float(text) if isinstance(param, FloatParam) else int(text)
    except ValueError:
        return text


def _middle(param: Param) -> Scalar:
    match param:
        case FloatParam():
            return math.sqrt(param.low * param.high) if param.log else (param.low + param.high) / 2
        case IntParam():
            return param.low + param.step * ((param.high - param.low) // param.step // 2)
    return param.options[0]
