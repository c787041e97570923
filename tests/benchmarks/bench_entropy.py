"""Bits per weight of the entropy coder next to general compressors and to what the codes hold; seconds and memory.

    python tests/benchmarks/bench_entropy.py [CHECKPOINT ...] [--large]

Synthetic matrices at the record's step of 0.4145 deviations. A checkpoint (torch.save of a model config and a state
dict) adds its matrices at 6, 5 and 4 bits. --large adds a model of 36 M weights: seconds of CPU and peak memory.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import platform
import resource
import time
from pathlib import Path

import brotli
import numpy as np
import torch
import zstandard

from pgolf_model.codec.entropy import CodePlane, _batches, coded_bits, decode_codes, encode_codes
from pgolf_model.quant.quantize import quantize_rows
from pgolf_model.shapes import param_shapes

STEP = 0.4145
LZMA2 = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]


def entropy_bits(codes: np.ndarray) -> float:
    """Order-0 entropy of a matrix, all its codes together, in bits."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum())


def rows_of_codes(weight: np.ndarray, step: float = STEP) -> np.ndarray:
    """Weights rounded to steps of their row's deviation."""
    scale = step * np.sqrt(np.square(weight).mean(1, keepdims=True))
    codes: np.ndarray = np.rint(weight / scale).clip(-127, 127).astype(np.int8)
    return codes


def synthetic() -> dict[str, list[np.ndarray]]:
    """Named models, each a list of matrices of codes."""
    rng = np.random.default_rng(0)
    small = [(1024, 128)] + [(128, 128), (64, 128), (64, 128), (128, 128), (256, 128), (128, 256)] * 3
    laplace = rng.laplace(0, 1, (1024, 1024)) * np.exp(rng.normal(0, 0.3, 1024))
    gauss = rng.normal(0, 1, (1024, 1024)) * np.exp(rng.normal(0, 0.3, 1024))
    mixed = gauss * np.exp(rng.normal(0, 0.3, (1024, 1)))
    common = rng.normal(0, 1, (4096, 6)) @ rng.normal(0, 0.25, (6, 256)) + rng.normal(0, 1, (4096, 256))
    return {
        "gaussian 1M": [rows_of_codes(rng.normal(0, 1, (2048, 512)))],
        "gaussian 4M": [rows_of_codes(rng.normal(0, 1, (8192, 512)))],
        "gaussian small model": [rows_of_codes(rng.normal(0, 1, shape)) for shape in small],
        "laplace tails x column scales .3": [rows_of_codes(laplace)],
        "column scales .3": [rows_of_codes(gauss)],
        "column and row scales .3, one step": [np.rint(mixed / STEP).clip(-127, 127).astype(np.int8)],
        "6 common directions, 27 % of energy": [rows_of_codes(common)],
    }


def trained(path: Path, bits: int, clip_sigmas: float) -> list[np.ndarray]:
    """Codes of a checkpoint's matrices."""
    model, state = torch.load(path, map_location="cpu", weights_only=False)
    names = [name for name, info in param_shapes(model).items() if info.role != "scalar"]
    return [quantize_rows(state[name], bits=bits, clip_sigmas=clip_sigmas)[0].numpy() for name in names]


def measure(name: str, matrices: list[np.ndarray], *, compressors: bool = True) -> dict[str, float | str]:
    """One line of the table, in bits per weight unless named otherwise."""
    size = sum(codes.size for codes in matrices)
    planes = [CodePlane(shape=(codes.shape[0], codes.shape[1]), limit=127) for codes in matrices]
    used = [(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)]

    def lap() -> tuple[float, float]:
        used.append((time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        return used[-1][0] - used[-2][0], (used[-1][1] - used[-2][1]) * 1024

    data = encode_codes(list(zip(planes, matrices, strict=True)))
    encode_seconds, encode_bytes = lap()
    decoded = decode_codes(planes, data)
    decode_seconds, _ = lap()
    assert all(np.array_equal(a, b) for a, b in zip(matrices, decoded, strict=True))
    estimate = sum(map(coded_bits, planes, matrices))
    estimate_seconds, _ = lap()
    row: dict[str, float | str] = {
        "weights": name,
        "num_weights": size,
        "order0": sum(map(entropy_bits, matrices)) / size,
        "ours": 8 * len(data) / size,
        "estimate": estimate / size,
        "lane_bytes": 5 * max(batch.num_lanes for batch in _batches(planes, {})),
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_seconds,
        "estimate_seconds": estimate_seconds,
        "encode_peak_of_float32": encode_bytes / (4 * size),
    }
    if compressors:
        raw = b"".join(codes.tobytes() for codes in matrices)
        row["brotli11"] = 8 * len(brotli.compress(raw, quality=11)) / size
        row["zstd22"] = 8 * len(zstandard.ZstdCompressor(level=22).compress(raw)) / size
        row["lzma9"] = 8 * len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=LZMA2)) / size
    return row


def large_model() -> list[np.ndarray]:
    """The record's 36 M weights: embedding at 7 bits, 11 layers at 6."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, cols: int, step: float = STEP) -> np.ndarray:
        columns = np.exp(0.15 * rng.standard_normal(cols, np.float32))
        return rows_of_codes(rng.standard_normal((rows, cols), np.float32) * columns, step)

    layer = [(512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)]
    return [matrix(8192, 512, 0.238), *(matrix(*shape) for _ in range(11) for shape in layer)]


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(name, matrices) for name, matrices in synthetic().items()]
    for path in arguments.checkpoints:
        for bits, clip_sigmas in ((6, 12.85), (5, 8.0), (4, 5.0)):
            rows.append(measure(f"{path.stem}, {bits} bits {clip_sigmas}", trained(path, bits, clip_sigmas)))
    if arguments.large:
        rows.append(measure("36 M weights", large_model(), compressors=False))
    print(f"{'weights':<37} order-0   ours  estim. brotli   zstd   lzma  lanes  enc s  dec s  est s  peak")
    for row in rows:
        others = "".join(f"{float(row.get(name, math.nan)):7.3f}" for name in ("brotli11", "zstd22", "lzma9"))
        print(
            f"{row['weights']:<37} {row['order0']:7.4f} {row['ours']:7.4f} {row['estimate']:7.4f}{others} "
            f"{row['lane_bytes']:5d}B {row['encode_seconds']:6.2f} {row['decode_seconds']:6.2f} "
            f"{row['estimate_seconds']:6.2f} {row['encode_peak_of_float32']:5.2f}"
        )
    versions = {"numpy": np.__version__, "torch": torch.__version__, "brotli": brotli.__version__}
    print(json.dumps({"rows": rows, "n": 1, "hardware": platform.processor() or "cpu", "versions": versions}))


if __name__ == "__main__":
    main()
