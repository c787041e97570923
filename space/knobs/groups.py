"""Groups of knobs that are asked together, and the fields of a RunConfig that their answers set.

A space is a list of groups around a fixed configuration. A group returns dotted fields such as "model.num_layers".
`with_fields` sets all of them at once, so that checks across fields see the finished configuration only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pgolf_model.config import RunConfig
from space.params import Param, Scalar

Values = Mapping[str, Scalar]
Fields = Mapping[str, object]  # "section.field" -> value


@dataclass(frozen=True, kw_only=True, slots=True)
class KnobGroup:
    """Knobs that belong together. Every combination that they allow must give valid fields."""

    params: tuple[Param, ...]  # in the order they are asked
    baseline: Values  # the answers of the challenge's 2026-03-17 baseline: the control's
    fields: Callable[[Values], Fields]  # of the answers to all groups, so far as they were asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The differences between the challenge's spaces and small ones: sizes, ranges that follow them, fixed fields."""

    head_dim: int
    mlp_granule: int  # MLP hidden channels are a multiple of it; divides every model_dim
    num_layers: tuple[int, int]
    model_dim: tuple[int, int]  # multiples of `dim_step`, itself a multiple of head_dim
    dim_step: int
    mlp_mult: tuple[float, float]
    max_loop_layers: int  # at most the fewest layers, so that the looped range always fits
    matrix_bits: tuple[int, int]
    matrix_lr: tuple[float, float]
    embed_lr: tuple[float, float]
    scalar_lr: tuple[float, float]
    momentum_gap: tuple[float, float]
    ema_gap: tuple[float, float]
    seq_lens: tuple[int, ...]  # the first is used when there is no choice
    bigram_buckets: tuple[int, ...]  # the first is 0: none
    table_dims: tuple[int, ...]  # channels of value and bigram embeddings
    calibration_tokens: int  # training tokens that GPTQ measures inputs on
    quantizer: str  # of solved trials; trellis8 takes twice the seconds of trellis4 and saves .01 bits per weight
    num_layers_baseline: int
    model_dim_baseline: int
    fixed: RunConfig  # values of all fields that are not searched
    rates_at_baseline_width: bool = True  # learning-rate knobs are rates at model_dim_baseline (space/transfer.py)

    def __post_init__(self) -> None:
        assert self.max_loop_layers <= self.num_layers[0]
        assert self.dim_step % self.head_dim == 0
        assert self.dim_step % self.mlp_granule == 0


def with_fields(config: RunConfig, fields: Fields) -> RunConfig:
    """Return `config` with dotted fields replaced, all those of a section in one step."""
    for section in ("model", "train", "quant", "eval"):
        own = {name.partition(".")[2]: value for name, value in fields.items() if name.startswith(section + ".")}
        if own:
            config = replace(config, **{section: replace(getattr(config, section), **own)})
    return config


def number(values: Values, name: str) -> float:
    """Return an answer as a float."""
    return float(values[name])


def whole(values: Values, name: str) -> int:
    """Return an answer as an int."""
    return int(values[name])


def nearest_divisor(number: int, target: float) -> int:
    """Return the divisor of `number` nearest to `target` in ratio; the larger of two equally near."""
    divisors = [d for d in range(number, 0, -1) if number % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / target)))
