"""Bytes of the packed model before a weight is trained: the quantizer's and the packer's arithmetic, without torch.

Rows of trained matrices are close to normal and the quantizer's step is a fixed share of the row's deviation, so the
distribution of the codes is known in advance. `pgolf_model.pack` writes the codes of one (role, bitwidth) as one
stream, several small codes to a byte, and what compresses them best is zstd's Huffman stage: its output is the mean
length of a Huffman code, plus a table per block. On normal weights the packer is met within 0.4 %.

`tests/benchmarks/bench_sizing.py` measures the constants below. The idea is the records': with a clip in row deviations
the size is known before training (https://github.com/openai/parameter-golf/pull/1394).
"""

from __future__ import annotations

import heapq
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

from pgolf_model.config import ModelConfig, QuantConfig, RunConfig, code_limit
from pgolf_model.shapes import num_params, param_shapes

BLOCK_BYTES = 2**17  # zstd codes blocks of so many bytes ...
TABLE_BYTES = 40  # ... each with a Huffman table of about this size
RAREST = 2.0**-12  # zstd limits code lengths: symbols rarer than this cost as if they were not
FIXED_BYTES = 24  # magic, version, checksum, header length
STREAM_BYTES = 20  # a stream's entry in the header


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A measured constant: the usual value, and what 90 % of runs lie between."""

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
    """What a configuration's packed model will weigh."""

    num_params: int
    model_bytes: int  # central estimate, the sum of `by_role`
    low: int  # 90 % interval of model_bytes
    high: int
    by_role: Mapping[str, int]  # embed, attn, mlp (codes and scales), scalar, header

    @property
    def bits_per_param(self) -> float:
        """Packed bits per trainable parameter."""
        return 8 * self.model_bytes / self.num_params


def estimate_model_bytes(config: RunConfig) -> SizeEstimate:
    """Forecast the artifact's model bytes, in milliseconds.

    The interval adds the parts' deviations up: a run that is off is off everywhere. It covers short and long training;
    it does not know of weights that are not normal at all, such as a diverged run's.
    """
    normal = normal_code_bytes(config.model, config.quant)
    sizes: dict[str, int] = defaultdict(int)
    num_rows: dict[str, int] = defaultdict(int)
    for info in param_shapes(config.model).values():
        sizes[info.role] += info.size
        num_rows[info.role] += info.shape[0]

    def parts(side: str) -> dict[str, float]:
        factor, deficit = getattr(MATRIX_FACTOR, side), getattr(EMBED_DEFICIT, side)
        codes = {"embed": normal["embed"] - deficit * num_rows["embed"] / 8}
        codes |= {role: factor * normal[role] for role in ("attn", "mlp")}
        total = {role: value + getattr(SCALE_BITS, side) * num_rows[role] / 8 for role, value in codes.items()}
        total["scalar"] = getattr(SCALAR_BITS, side) * sizes["scalar"] / 8
        total["header"] = _header_bytes(config)
        return total

    by_role = {role: round(value) for role, value in parts("central").items()}
    return SizeEstimate(
        num_params=num_params(config.model),
        model_bytes=sum(by_role.values()),
        low=math.floor(sum(parts("low").values())),
        high=math.ceil(sum(parts("high").values())),
        by_role=by_role,
    )


def normal_code_bytes(model: ModelConfig, quant: QuantConfig) -> dict[str, float]:
    """Bytes of each role's codes when every row is normal."""
    streams: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)  # (role, bits) -> (weights, step)
    for info in param_shapes(model).values():
        if info.role != "scalar":
            bits = quant.bits(info.role, info.layer, model.num_layers)
            clip = quant.clip_sigmas(info.role, info.layer, model.num_layers)
            streams[info.role, bits].append((info.size, clip / code_limit(bits)))
    total = {"embed": 0.0, "attn": 0.0, "mlp": 0.0}
    for (role, bits), parts in streams.items():
        total[role] += stream_bytes(parts, limit=code_limit(bits))
    return total


def stream_bytes(parts: Sequence[tuple[int, float]], *, limit: int) -> float:
    """Compressed bytes of one stream of codes.

    Args:
        parts: (number of weights, step in row deviations) of what the stream is made of.
        limit: codes lie in [-limit, limit].
    """
    size = sum(count for count, _ in parts)
    shares: dict[float, float] = defaultdict(float)
    for count, step in parts:
        shares[step] += count / size
    # The packer uses the largest code present: about five deviations, the largest of a million normal weights.
    peak = min(limit, max(1, round(5 / min(shares))))
    probs = [0.0] * (2 * peak + 1)
    for step, share in shares.items():
        for i, p in enumerate(code_probabilities(step, peak)):
            probs[i] += share * p
    per_byte = int(math.log(256.5, 2 * peak + 1))  # as pgolf_model.pack joins them
    symbols = [math.prod(combination) for combination in product(probs, repeat=per_byte)]
    num_bytes = -(-size // per_byte)
    return num_bytes * huffman_bits(symbols) / 8 + TABLE_BYTES * -(-num_bytes // BLOCK_BYTES)


def code_probabilities(step: float, peak: int) -> list[float]:
    """Share of each code -peak..peak when a standard normal weight is rounded to multiples of `step` and clipped."""
    edges = [0.5 * math.erfc(-(code + 0.5) * step / math.sqrt(2)) for code in range(-peak, peak)]
    return [high - low for low, high in zip([0.0, *edges], [*edges, 1.0], strict=True)]


def entropy_bits(probs: Sequence[float]) -> float:
    """Shannon entropy in bits per symbol: what no coder beats."""
    return -sum(p * math.log2(p) for p in probs if p > 0)


def huffman_bits(probs: Sequence[float]) -> float:
    """Mean code length, in bits per symbol, of a Huffman code whose long codes are cut short as zstd's are."""
    heap = [(max(p, RAREST), i, p) for i, p in enumerate(probs) if p > 1e-9]  # (weight, tie break, probability below)
    heapq.heapify(heap)
    bits, order = 0.0, len(probs)
    while len(heap) > 1:
        left, right = heapq.heappop(heap), heapq.heappop(heap)
        bits += left[2] + right[2]  # everything below a joint is one bit longer
        heapq.heappush(heap, (left[0] + right[0], order, left[2] + right[2]))
        order += 1
    return bits


def _header_bytes(config: RunConfig) -> int:
    """The container around the streams; the header is JSON and lists configs, bitwidths and streams."""
    shapes, quant = param_shapes(config.model), config.quant
    matrices = [
        (i.role, quant.bits(i.role, i.layer, config.model.num_layers)) for i in shapes.values() if i.role != "scalar"
    ]
    text = json.dumps({"model": asdict(config.model), "eval": asdict(config.eval), "bits": "", "streams": []})
    return FIXED_BYTES + len(text) + len(matrices) + STREAM_BYTES * (len(set(matrices)) + 2)
