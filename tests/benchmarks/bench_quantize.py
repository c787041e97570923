"""Bits per weight above Shannon's bound of each quantizer on Gaussian weights, and the seconds it takes.

    python tests/benchmarks/bench_quantize.py [--rows N] [--coder]

Bits are the entropy of the codes given the active quantizer, the best a static table can do; `--coder` adds the bits
that `encode_codes` spends. The bound is R(D) = log2(sigma**2 / D) / 2.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pgolf_model.config import code_limit
from pgolf_model.quant.quantize import QuantizedTensor, dequantize, quantize_matrix
from pgolf_model.quant.trellis import active_quantizers

KINDS = {
    "uniform": (1, 0.0),
    "uniform, rate-aware": (1, 0.1),
    "4 states": (4, 0.0),
    "4 states, rate-aware": (4, 0.1),
    "8 states": (8, 0.0),
    "8 states, rate-aware": (8, 0.1),
}
SPACINGS = (0.06, 0.12, 0.25, 0.5, 1.0, 1.6, 2.2)  # in deviations, of neighbouring values of one quantizer
BITS = 8
GROUPED = ((1, 0.798), (2, 0.798), (2, 1.0), (2, 1.224), (2, 1.5))  # bits, clip_sigmas; 0.798 is mean |w| of Gaussians


def entropy_bits(item: QuantizedTensor) -> float:
    """Entropy per code given the active quantizer."""
    active = active_quantizers(item.codes, item.states) if item.states > 1 else torch.zeros_like(item.codes)
    total = 0.0
    for quantizer in (0, 1):
        counts = torch.unique(item.codes[active == quantizer], return_counts=True)[1].double()
        total -= float((counts * (counts / counts.sum()).log2()).sum())
    return total / item.codes.numel()


def coder_bits(item: QuantizedTensor) -> float:
    """Bits per code of the artifact's entropy coder."""
    from pgolf_model.codec.entropy import CodePlane, encode_codes

    rows, cols = item.codes.shape
    plane = CodePlane(shape=(rows, cols), limit=code_limit(item.bits), states=item.states)
    return 8 * len(encode_codes([(plane, item.codes.numpy().astype(np.int16))])) / item.codes.numel()


def measure(name: str, weight: Tensor, *, coder: bool, **options: float) -> dict[str, float | str]:
    """One line: entropy, error, gap to the bound, seconds per million weights."""
    started = time.process_time()
    item = quantize_matrix(weight, **options)  # type: ignore[arg-type]
    seconds = time.process_time() - started
    error = float((dequantize(item) - weight).double().square().mean() / weight.double().square().mean())
    shannon = -0.5 * math.log2(error)
    row: dict[str, float | str] = {"kind": name, "entropy": entropy_bits(item), "error": error, "shannon": shannon}
    row["gap"] = entropy_bits(item) - shannon
    if coder:
        row["coder_gap"] = coder_bits(item) - shannon
    return row | {"cpu_seconds_per_million": seconds * 1e6 / weight.numel()}


def gap_at(rows: Sequence[dict[str, float | str]], bits: float, key: str) -> float:
    """Gap at a rate, between the measured points; NaN outside them."""
    points = sorted((float(row["entropy"]), float(row[key])) for row in rows)
    if not points[0][0] <= bits <= points[-1][0]:
        return math.nan
    return float(np.interp(bits, *zip(*points, strict=True)))


def main() -> None:
    """Print the tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--coder", action="store_true")
    arguments = parser.parse_args()
    weight = torch.randn(arguments.rows, 512, generator=torch.Generator().manual_seed(0))
    key = "coder_gap" if arguments.coder else "gap"
    curves = {}
    print(f"bits per weight above Shannon, {key}  " + " ".join(f"{bits:5d}b" for bits in range(1, 7)) + "  cpu s / 1M")
    for kind, (states, rate_weight) in KINDS.items():
        curves[kind] = [
            measure(
                kind,
                weight,
                coder=arguments.coder,
                bits=BITS,
                clip_sigmas=spacing * code_limit(BITS),
                states=states,
                rate_weight=rate_weight,
            )
            for spacing in SPACINGS
        ]
        gaps = " ".join(f"{gap_at(curves[kind], bits, key):6.3f}" for bits in range(1, 7))
        seconds = sorted(float(row["cpu_seconds_per_million"]) for row in curves[kind])
        print(f"{kind:<41} {gaps}  {seconds[len(seconds) // 2]:10.2f}")
    grouped = [
        measure(f"{bits} bits at {clip}", weight, coder=False, bits=bits, clip_sigmas=clip, group=128)
        for bits, clip in GROUPED
    ]
    print("groups of 128    error  entropy     gap")
    for row in grouped:
        print(f"{row['kind']:<15} {row['error']:6.4f}  {row['entropy']:7.3f} {row['gap']:7.3f}")
    record = {"curves": curves, "groups": grouped, "n": weight.numel(), "torch": torch.__version__}
    print(json.dumps(record | {"hardware": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
