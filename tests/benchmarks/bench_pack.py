"""Seconds and memory of packing and unpacking a whole model, of filling a byte target, and bits per weight.

    python tests/benchmarks/bench_pack.py [--weights N] [--repeats N] [--method M] [--quantizer Q] [--target SHARE]

Normal rows, 512 columns, quantized with SDClip at the record recipe; no calibration data. `--target` also fills so
large a share of the packed size through the solver.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from statistics import median

import torch
import zstandard

from pgolf_model.codec.pack import pack_model, stream_bytes, unpack_model
from pgolf_model.config import EvalConfig, ModelConfig, QuantConfig, RunConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.shapes import param_shapes
from pgolf_model.ship.bench import QuantBench
from pgolf_model.ship.solve import ship


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def normal_weights(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Normal rows of different deviations."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, info in param_shapes(model).items():
        spread = torch.exp(0.3 * torch.randn(info.shape[0], *[1] * (len(info.shape) - 1), generator=generator))
        state[name] = torch.randn(info.shape, generator=generator) * 0.02 * spread
    return state


def main() -> None:
    """Print a line per quantity and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", default="round")
    parser.add_argument("--quantizer", default="uniform")
    parser.add_argument("--target", type=float, default=0.0)
    options = parser.parse_args()
    layers = max(1, round((options.weights - 1024 * 512) / 1_835_008))
    quant = QuantConfig(method=options.method, quantizer=options.quantizer)
    config = RunConfig(model=ModelConfig(num_layers=layers), quant=quant)
    state = normal_weights(config.model)
    weights_bytes = 4 * sum(map(torch.numel, state.values()))
    resident = peak_bytes()
    seconds: dict[str, list[float]] = {"quantize": [], "pack": [], "unpack": []}
    for _ in range(options.repeats):
        times = [time.perf_counter()]
        bench = QuantBench(state, config, None, DistEnv())
        tensors = bench.tensors(bench.explicit_plan())
        times.append(time.perf_counter())
        artifact = pack_model(config.model, EvalConfig(), tensors)
        times.append(time.perf_counter())
        unpack_model(artifact)
        times.append(time.perf_counter())
        for i, name in enumerate(seconds):
            seconds[name].append(times[i + 1] - times[i])
    facts: dict[str, object] = {
        "num_params": weights_bytes // 4,
        "artifact_bytes": len(artifact),
        "bits_per_weight": round(32 * len(artifact) / weights_bytes, 4),
        "bytes": stream_bytes(artifact),
        "n": options.repeats,
        # beyond what holding the weights and importing torch takes, in float32 weights
        "peak_memory_weights": round((peak_bytes() - resident) / weights_bytes, 2),
    }
    for name, values in seconds.items():
        facts |= {f"{name}_seconds": round(median(values), 3), f"{name}_spread": round(max(values) - min(values), 3)}
    if options.target:
        started = time.perf_counter()
        shipment = ship(bench, target_bytes=int(options.target * len(artifact)), code_bytes=0)
        facts["fill"] = shipment.audit["fill"] | {
            "seconds": round(time.perf_counter() - started, 2),
            "share_of_target": len(shipment.artifact) / int(options.target * len(artifact)),
            "matrices_quantized": shipment.audit["matrices_quantized"],
        }
    for name, value in facts.items():
        print(f"{name:<22} {value}")
    hardware = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}
    print(json.dumps({**facts, "hardware": hardware, "versions": versions}))


if __name__ == "__main__":
    main()
