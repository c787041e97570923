"""What space/forecast/sizing.py and CLIP_SIGMAS rest on: coders on normal codes, the forecast against the packer.

    python tests/benchmarks/bench_sizing.py [--codes 1048576]

Prints a table of bits per weight for each bitwidth and clip, then forecast against packed bytes for random points of
the spaces, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import lzma
import platform
import time
from statistics import median

import numpy as np
import torch
import zstandard

from pgolf_model.codec.entropy import CodePlane, encode_codes
from pgolf_model.codec.pack import pack_model
from pgolf_model.config import ModelConfig
from pgolf_model.quant.quantize import quantize_state
from pgolf_model.shapes import param_shapes
from space.forecast.sizing import EMBED_DEFICIT, code_limit, code_probabilities, entropy_bits, estimate_model_bytes
from space.knobs.quant import CLIP_SIGMAS
from space.spaces import named_space

LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def coder_table(num_codes: int) -> list[dict[str, float]]:
    """Bits per weight: entropy, our coder, and two others on plain int8 codes."""
    weights = np.random.default_rng(0).standard_normal(num_codes).astype(np.float32)
    rows = []
    for bits, usual in CLIP_SIGMAS.items():
        for clip in (0.8 * usual, usual, 1.25 * usual):
            limit = code_limit(bits)
            step = clip / limit
            codes = np.clip(np.rint(weights / step), -limit, limit).astype(np.int8).reshape(-1, 512)
            plane, raw = CodePlane(shape=(len(codes), 512), limit=limit), codes.tobytes()
            rows.append(
                {
                    "bits": bits,
                    "clip": clip,
                    "step": step,
                    "entropy": entropy_bits(code_probabilities(step, limit)),
                    "coder": 8 * len(encode_codes([(plane, codes)])) / num_codes,
                    "zstd": 8 * len(zstandard.ZstdCompressor(level=22).compress(raw)) / num_codes,
                    "lzma": 8 * len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=LZMA)) / num_codes,
                }
            )
    return rows


def normal_state(model: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Normal rows of different deviations, scalars about 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, info in param_shapes(model).items():
        values = torch.randn(info.shape, generator=generator)
        rows = torch.exp(0.3 * torch.randn(info.shape[0], 1, generator=generator))
        state[name] = 1 + 0.2 * values if info.role == "scalar" else 0.1 * values * rows
    return state


def forecast_errors(num_points: int) -> list[tuple[int, int, float]]:
    """(packed bytes, forecast, milliseconds) for random points of the tiny space, on normal weights."""
    space, rng, rows = named_space("tiny"), np.random.default_rng(1), []
    for seed in range(num_points):
        config = space.build(space.sample(rng))
        start = time.perf_counter()
        estimate = estimate_model_bytes(config)
        took = 1000 * (time.perf_counter() - start)
        tensors = quantize_state(normal_state(config.model, seed), config.model, config.quant)
        untrained = EMBED_DEFICIT.central * config.model.vocab_size / 8
        actual = len(pack_model(config.model, config.eval, tensors))
        rows.append((actual, round(estimate.model_bytes + untrained), took))
    return rows


def main() -> None:
    """Print both tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=2**20)
    parser.add_argument("--points", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("bits   clip   step  entropy     coder  zstd-22  lzma-9e   (bits per weight; zstd, lzma: int8 codes)")
    table = coder_table(args.codes)
    for row in table:
        print("{bits:4d} {clip:6.2f} {step:6.3f} {entropy:8.3f} {coder:9.3f} {zstd:8.3f} {lzma:8.3f}".format(**row))
    print("\npacked bytes  forecast   error")
    rows = forecast_errors(args.points)
    for actual, forecast, _ in rows:
        print(f"{actual:12,} {forecast:9,} {100 * (forecast / actual - 1):+6.2f} %")
    errors = [abs(forecast / actual - 1) for actual, forecast, _ in rows]
    summary = {
        "bench": "sizing",
        "n": len(rows),
        "error_median": round(median(errors), 5),
        "error_max": round(max(errors), 5),
        "milliseconds_median": round(median(took for *_, took in rows), 3),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "zstandard": zstandard.__version__,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
