"""Points of a space: when two are the same, how a partial one is completed, how text becomes a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, Space

BINS = 500  # floats that fall into one of so many parts of their range are the same point


def point_key(space: Space, params: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    """Return a point with its floats rounded to a 500th of their range. Points with equal keys count as the same."""
    key = []
    for param in space.params:
        if param.name in params:
            value = params[param.name]
            if isinstance(param, FloatParam):
                low, high, here = param.low, param.high, float(value)
                if param.log:
                    low, high, here = map(math.log, (low, high, here))
                value = round(BINS * (here - low) / (high - low))
            key.append((param.name, value))
    return tuple(key)


def complete_point(params: Sequence[Param], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a whole point from some of its values.

    Values of inactive parameters are dropped; a missing value becomes the middle of its range.
    """
    point: dict[str, Scalar] = {}
    for param in params:
        if param.active(point):
            point[param.name] = given[param.name] if param.name in given else _middle(param)
    return point


def parse_value(param: Param, text: str) -> Scalar:
    """Return the value that a text such as a CSV cell stands for, or the text itself, which `param.check` refuses."""
    if isinstance(param, ChoiceParam):
        return next((option for option in param.options if str(option) == text), text)
    try:
        return float(text) if isinstance(param, FloatParam) else int(text)
    except ValueError:
        return text


def _middle(param: Param) -> Scalar:
    """Return the middle of a range, on its own scale; the first option of a choice."""
    match param:
        case FloatParam():
            return math.sqrt(param.low * param.high) if param.log else (param.low + param.high) / 2
        case IntParam():
            return param.low + param.step * ((param.high - param.low) // param.step // 2)
    return param.options[0]
