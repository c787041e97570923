"""Bits per weight of quantized codes by bitwidth and codec, and seconds to pack and unpack.

    python tests/benchmarks/bench_pack.py [CHECKPOINT] [--weights N]

Gaussian rows, 512 columns, quantized with SDClip. A checkpoint (torch.save of a state dict) adds its matrices.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import platform
import time

import numpy as np
import torch
import zstandard

from pgolf_model.config import EvalConfig, ModelConfig, QuantConfig
from pgolf_model.pack import _compress, _join_codes, pack_model, unpack_model
from pgolf_model.quantize import dequantize_rows, quantize_rows, quantize_state
from pgolf_model.shapes import param_shapes

SETTINGS = (
    (2, 1.225),
    (2, 2.0),
    (3, 1.95),
    (3, 3.0),
    (4, 3.4),
    (4, 6.0),
    (5, 6.0),
    (5, 12.85),
    (6, 12.85),
    (7, 15.0),
    (8, 20.0),
)
LZMA2 = [{"id": lzma.FILTER_LZMA2, "preset": 9}]


def entropy_bits(codes: np.ndarray) -> float:
    """Order-0 entropy, bits per code."""
    counts = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(counts * np.log2(counts)).sum())


def codec_row(name: str, weights: list[torch.Tensor], bits: int, clip_sigmas: float) -> dict[str, float | str]:
    """One line of the table: relative error and bits per weight of the codes, scales and header left out."""
    pairs = [quantize_rows(weight, bits=bits, clip_sigmas=clip_sigmas) for weight in weights]
    error = sum(float((dequantize_rows(*pair) - w).square().sum()) for pair, w in zip(pairs, weights, strict=True))
    codes = np.concatenate([pair[0].numpy().ravel() for pair in pairs])
    raw = codes.tobytes()
    return {
        "weights": name,
        "bits": bits,
        "clip": clip_sigmas,
        "error": error / sum(float(w.square().sum()) for w in weights),
        "entropy": entropy_bits(codes),
        "zstd22": 8 * len(zstandard.ZstdCompressor(level=22).compress(raw)) / codes.size,
        "lzma9": 8 * len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=LZMA2)) / codes.size,
        "ours": 8 * len(_compress(_join_codes(codes, max(1, int(np.abs(codes).max()))))[1]) / codes.size,
    }


def timed_pack(num_weights: int, repeats: int = 3) -> dict[str, float]:
    """Seconds of a model of about `num_weights` parameters at the record recipe, median of `repeats`."""
    layers = max(1, round((num_weights - 1024 * 512) / 1_835_008))
    model = ModelConfig(num_layers=layers)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(info.shape, generator=generator) * 0.02 for name, info in param_shapes(model).items()}
    seconds: dict[str, list[float]] = {"quantize": [], "pack": [], "unpack": []}
    for _ in range(repeats):
        times = [time.perf_counter()]
        tensors = quantize_state(state, model, QuantConfig())
        times.append(time.perf_counter())
        artifact = pack_model(model, EvalConfig(), tensors)
        times.append(time.perf_counter())
        unpack_model(artifact)
        times.append(time.perf_counter())
        for i, name in enumerate(seconds):
            seconds[name].append(times[i + 1] - times[i])
    result = {f"{name}_seconds": sorted(values)[repeats // 2] for name, values in seconds.items()}
    result |= {f"{name}_spread_seconds": max(values) - min(values) for name, values in seconds.items()}
    return result | {"num_params": sum(map(torch.numel, state.values())), "artifact_bytes": len(artifact), "n": repeats}


def main() -> None:
    """Print the table, the seconds and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--weights", type=int, default=4_000_000)
    arguments = parser.parse_args()
    sources = {"gaussian": [torch.randn(2048, 512, generator=torch.Generator().manual_seed(0))]}
    if arguments.checkpoint:
        state = torch.load(arguments.checkpoint, weights_only=True)
        sources["checkpoint"] = [w for name, w in state.items() if w.ndim == 2 and ("attn." in name or "mlp." in name)]
    rows = [codec_row(name, weights, *setting) for name, weights in sources.items() for setting in SETTINGS]
    print("weights     bits   clip    error  shannon  entropy  zstd-22  lzma-9    ours")
    for row in rows:
        shannon = -0.5 * math.log2(float(row["error"]))
        print(
            f"{row['weights']:<11} {row['bits']:4d} {row['clip']:6.2f} {row['error']:8.5f} {shannon:8.3f} "
            f"{row['entropy']:8.3f} {row['zstd22']:8.3f} {row['lzma9']:7.3f} {row['ours']:7.3f}"
        )
    timing = timed_pack(arguments.weights)
    print(" | ".join(f"{name} {value:,.3g}" for name, value in timing.items()))
    versions = {"torch": torch.__version__, "zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}
    print(json.dumps({"rows": rows, "timing": timing, "hardware": platform.processor() or "cpu", "versions": versions}))


if __name__ == "__main__":
    main()
