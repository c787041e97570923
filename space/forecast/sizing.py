"""Forecast the bytes of a packed model before training, from the arithmetic of quantizer and packer, without torch.

Rows of trained matrices are close to normal, and the quantizer's step is a fixed share of the row's deviation. So the
distribution of the codes is known in advance, and `pgolf_model.codec.entropy` codes them close to its entropy: on
normal weights the forecast is within 0.6 % of the packed size. A byte target is filled, unless the bits allow no such
size.

`tests/benchmarks/bench_sizing.py` measures the constants below. That a clip in row deviations makes the size known
before training is an idea of https://github.com/openai/parameter-golf/pull/1394.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

from pgolf_model.config import ModelConfig, QuantConfig, RunConfig, code_limit
from pgolf_model.shapes import num_params, param_shapes

FIXED_BYTES = 24  # magic, version, checksum, header length
STREAM_BYTES = 150  # cost of the entropy coder's learning, for each stream ...
ROW_BYTES = 0.27  # ... and for each row; with both, 13 models of 0.3 to 2.4 M normal weights were within 0.4 %
FINEST, COARSEST = -4.5, 2.0  # log2 of the steps, in deviations, between which the solver of a byte target chooses
FILL_TOLERANCE = 0.002  # a target is met from below within this share
LOWRANK_BITS = 4.0  # per entry of a low-rank factor
FP8_SHARE = 0.65  # of a float16 scalar's bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A measured constant: its usual value, and the ends of the interval that holds 90 % of runs."""

    low: float
    central: float
    high: float


# Measured on five small models, FineWeb with 1,024 tokens: 2 to 4 blocks of width 64 to 192, 60 to 400 steps, weight
# decay 0 to .2, each packed at five bitwidths. All 25 lie in the interval; the central value is off by .4 % in the
# median and by 4.6 % at worst, where a 5-bit embedding is a third of the bytes (width 64).
#
# Matrices: bytes against those of a normal of the same deviation were -.3 to +.1 %; records come out .5 % below.
MATRIX_FACTOR = Spread(low=0.985, central=0.998, high=1.003)
# Rows of the embedding are not normal: bits per row below the normal's. 31 to 36 at widths 64 to 192, 54 with weight
# decay .1; per row, because per weight it falls as 1 / width, to about the .1 seen in records. 0 before training.
EMBED_DEFICIT = Spread(low=65.0, central=38.0, high=0.0)
# Bits per row scale, of which 4 mantissa bits are kept: 4.6 to 6.0. The low end is for rows that are still alike.
SCALE_BITS = Spread(low=3.0, central=5.3, high=7.0)
# Bits per float16 scalar: 12.1 and 12.4.
SCALAR_BITS = Spread(low=9.0, central=12.2, high=14.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeEstimate:
    """Forecast bytes of a configuration's packed model."""

    num_params: int
    model_bytes: int  # central estimate, the sum of `by_role`
    low: int  # 90 % interval of model_bytes
    high: int
    by_role: Mapping[str, int]  # embed, attn, mlp (codes and scales), scalar, header, lowrank if there is one

    @property
    def bits_per_param(self) -> float:
        """Packed bits per trainable parameter."""
        return 8 * self.model_bytes / self.num_params


def estimate_model_bytes(config: RunConfig, *, code_bytes: int = 0) -> SizeEstimate:
    """Forecast the model bytes of the artifact, in milliseconds.

    The interval adds up the deviations of the parts, since a run that is larger in one part is larger in all. It covers
    short and long training, but no weights that are far from normal, such as those of a diverged run.

    Args:
        code_bytes: of the script, which count against the config's `target_bytes`; not read without a target.
    """
    target = config.quant.target_bytes - code_bytes if config.quant.target_bytes else 0
    if not target:
        parts = {side: _part_bytes(config, side, None) for side in ("low", "central", "high")}
        low, high = (sum(parts[side].values()) for side in ("low", "high"))
    else:
        low, high = FINEST, COARSEST
        for _ in range(30):
            middle = (low + high) / 2
            fits = sum(_part_bytes(config, "central", middle).values()) <= target
            low, high = (low, middle) if fits else (middle, high)
        parts = {"central": _part_bytes(config, "central", high)}
        reached = sum(parts["central"].values())
        ends = [sum(_part_bytes(config, side, high).values()) for side in ("low", "high")]
        within = abs(reached - target) <= FILL_TOLERANCE * target  # else the bits allow no such size
        low, high = ((1 - FILL_TOLERANCE) * target, target) if within else ends
    by_role = {role: int(value) for role, value in parts["central"].items()}
    return SizeEstimate(
        num_params=num_params(config.model),
        model_bytes=sum(by_role.values()),
        low=math.floor(min(low, sum(by_role.values()))),
        high=math.ceil(max(high, sum(by_role.values()))),
        by_role=by_role,
    )


def _part_bytes(config: RunConfig, side: str, log_step: float | None) -> dict[str, float]:
    """Return bytes by role, with the measured constants at one end ("low", "high") or in the middle ("central")."""
    quant = config.quant
    normal = normal_code_bytes(config.model, quant, log_step)
    sizes: dict[str, int] = defaultdict(int)
    num_rows: dict[str, int] = defaultdict(int)
    num_scales: dict[str, int] = defaultdict(int)
    for info in param_shapes(config.model).values():
        sizes[info.role] += info.size
        num_rows[info.role] += info.shape[0]
        group = 0 if info.role == "scalar" else quant.group(info.shape[1])
        num_scales[info.role] += info.size // group if group else info.shape[0]
    factor, deficit = getattr(MATRIX_FACTOR, side), getattr(EMBED_DEFICIT, side)
    total = {"embed": max(0.0, normal["embed"] - deficit * num_rows["embed"] / 8)}
    total |= {role: factor * normal[role] for role in ("attn", "mlp")}
    total = {role: value + getattr(SCALE_BITS, side) * num_scales[role] / 8 for role, value in total.items()}
    share = FP8_SHARE if quant.scalar_format == "fp8" else 1.0
    total["scalar"] = share * getattr(SCALAR_BITS, side) * sizes["scalar"] / 8
    total["header"] = _header_bytes(config)
    if quant.lowrank_rank and quant.lowrank_tensors:
        sides = sorted(sum(info.shape) for info in param_shapes(config.model).values() if info.role != "scalar")
        total["lowrank"] = LOWRANK_BITS / 8 * quant.lowrank_rank * sum(sides[-quant.lowrank_tensors :])
    return total


def normal_code_bytes(model: ModelConfig, quant: QuantConfig, log_step: float | None = None) -> dict[str, float]:
    """Return the bytes of each role's codes when every row is normal.

    Args:
        log_step: log2 of all matrices' steps in row deviations; None takes the config's clips.
    """
    total: dict[str, float] = dict.fromkeys(("embed", "attn", "mlp"), STREAM_BYTES)
    for info in param_shapes(model).values():
        if info.role != "scalar":
            bits = quant.bits(info.role, info.layer, model.num_layers)
            step = quant.clip_sigmas(info.role, info.layer, model.num_layers) / code_limit(bits)
            if log_step is not None:
                step = max(2.0**log_step, 1 / code_limit(bits))
            total[info.role] += ROW_BYTES * info.shape[0] + info.size * _code_bits(step, bits) / 8
    return total


@cache
def _code_bits(step: float, bits: int) -> float:
    """Return bits per normal weight; a binary code has no zero and takes 1 bit."""
    return 1.0 if bits == 1 else entropy_bits(code_probabilities(step, code_limit(bits)))


def code_probabilities(step: float, peak: int) -> list[float]:
    """Return the share of each code -peak..peak when standard normal weights are rounded to `step` and clipped."""
    edges = [0.5 * math.erfc(-(code + 0.5) * step / math.sqrt(2)) for code in range(-peak, peak)]
    return [high - low for low, high in zip([0.0, *edges], [*edges, 1.0], strict=True)]


def entropy_bits(probs: Sequence[float]) -> float:
    """Return the Shannon entropy in bits per symbol, the lower bound of any coder."""
    return -sum(p * math.log2(p) for p in probs if p > 0)


def _header_bytes(config: RunConfig) -> int:
    """Return the bytes around the streams; the header is compressed JSON that lists configs, matrices and streams."""
    matrices = [info for info in param_shapes(config.model).values() if info.role != "scalar"]
    bits = [config.quant.bits(info.role, info.layer, config.model.num_layers) for info in matrices]
    kinds = [[b, config.quant.states, 0, 0, 0, 0] for b in bits]
    text = json.dumps({"model": asdict(config.model), "eval": asdict(config.eval), "matrices": kinds})
    return FIXED_BYTES + len(zlib.compress(text.encode())) + 60  # the streams' codecs and lengths
