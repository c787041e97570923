"""What the header of an artifact says, and the checks that make a hostile one harmless.

A header is parsed JSON that anybody may have written. Every check raises ValueError, before anything of the size that
the header claims is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from pgolf_model.config import BITS_RANGE, ModelConfig
from pgolf_model.shapes import ParamInfo, param_shapes

MAX_PARAMS = 2**28  # larger models are refused before memory is allocated; the challenge's records have at most 106 M
MAX_VIRTUAL_LAYERS = 4096

NounT = TypeVar("NounT")


class MatrixKind(NamedTuple):
    """What the header says of a matrix beyond its name and shape."""

    bits: int
    states: int
    groups: int  # columns of the scales; 0 when they have one dimension
    rank: int  # of the low-rank correction; 0 without one
    rank_bits: int
    planned: int  # 1 when the columns have an order and gains of their own


def noun_from(cls: type[NounT], plain: Any) -> NounT:
    """A config from untrusted JSON: known keys and the defaults' types only; fields newer than the file default."""
    known = {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(plain, dict) or not known.keys() >= plain.keys():
        raise ValueError(f"{cls.__name__} in the header has unknown keys")
    values = {key: checked_value(key, known[key], value) for key, value in plain.items()}
    try:
        return cls(**values)
    except (TypeError, ArithmeticError, LookupError) as error:  # a check that did not expect such a value
        raise ValueError(f"{cls.__name__} in the header makes no sense ({error})") from None


def checked_value(key: str, default: Any, value: Any) -> Any:
    """A value of the default's type: a bounded number, a bool, a short string, or a tuple of them."""
    if isinstance(default, tuple):
        if not isinstance(value, list) or len(value) > MAX_VIRTUAL_LAYERS:
            raise ValueError(f"{key} in the header: expected a list of at most {MAX_VIRTUAL_LAYERS}")
        return tuple(checked_value(key, default[0] if default else 0, item) for item in value)
    expected = type(default)
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise ValueError(f"{key} in the header: expected {expected.__name__}, got {type(value).__name__}")
    if isinstance(value, (int, float)) and not abs(value) <= 1e9:
        raise ValueError(f"{key} in the header must lie within 1e9 of zero")
    if not isinstance(value, (int, float)) and not (isinstance(value, str) and len(value) <= 64):
        raise ValueError(f"{key} in the header: expected a number or a short text, got {type(value).__name__}")
    return value


def checked_shapes(model: ModelConfig) -> dict[str, ParamInfo]:
    """`param_shapes` of a config that may be hostile: bounded before it is built."""
    if model.num_layers * (1 + model.loop_repeats) > MAX_VIRTUAL_LAYERS:
        raise ValueError(f"at most {MAX_VIRTUAL_LAYERS} virtual layers can be packed, got {model.num_layers} looped")
    shapes = param_shapes(model)
    size = sum(info.size for info in shapes.values())
    if size > MAX_PARAMS:
        raise ValueError(f"at most {MAX_PARAMS} parameters can be packed, got {size}")
    return shapes


def kinds_from(plain: Any, shapes: Mapping[str, ParamInfo]) -> dict[str, MatrixKind]:
    """What each matrix is made of, from untrusted JSON."""
    matrices = {name: info.shape for name, info in shapes.items() if info.role != "scalar"}
    if not isinstance(plain, list) or len(plain) != len(matrices):
        raise ValueError(f"header needs an entry for each of {len(matrices)} matrices")
    kinds = {}
    for (name, shape), entry in zip(matrices.items(), plain, strict=True):
        if not isinstance(entry, list) or [type(value) for value in entry] != [int] * 6:
            raise ValueError(f"{name} in the header: expected six integers")
        kinds[name] = kind = MatrixKind(*entry)
        check_kind(name, kind, shape)
    return kinds


def check_kind(name: str, kind: MatrixKind, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a matrix of that shape can be of that kind."""
    rows, cols = shape
    if not BITS_RANGE[0] <= kind.bits <= BITS_RANGE[1]:
        raise ValueError(f"{name}: bits must be in [{BITS_RANGE[0]}, {BITS_RANGE[1]}], got {kind.bits}")
    if kind.states not in (1, 4, 8):
        raise ValueError(f"{name}: states must be 1, 4 or 8, got {kind.states}")
    if not 0 <= kind.groups <= cols or (kind.groups and cols % kind.groups):
        raise ValueError(f"{name}: {kind.groups} groups do not divide {cols} columns")
    if not 0 <= kind.rank <= min(rows, cols) or not (2 <= kind.rank_bits <= 8 if kind.rank else kind.rank_bits == 0):
        raise ValueError(f"{name}: no low-rank correction of rank {kind.rank} and {kind.rank_bits} bits is possible")
    if kind.planned not in (0, 1):
        raise ValueError(f"{name}: planned must be 0 or 1, got {kind.planned}")


def check_streams(streams: Any, count: int, available: int) -> None:
    """Raise ValueError unless `streams` lists `count` [codec, bytes] that fill `available` bytes."""
    if not isinstance(streams, list) or len(streams) != count:
        raise ValueError(f"header must list {count} streams")
    for item in streams:
        if not isinstance(item, list) or [type(field) for field in item] != [str, int] or item[1] < 0:
            raise ValueError("header lists a stream that is not [codec, bytes]")
    if sum(item[1] for item in streams) != available:
        raise ValueError(f"header lists {sum(item[1] for item in streams)} bytes of streams, found {available}")
