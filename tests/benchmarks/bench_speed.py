"""How far forecasts of step seconds and memory are from real runs of the shipped script on this machine.

    python tests/benchmarks/bench_speed.py [--threads N] [--steps N]

The machine is calibrated as `pgolf doctor` does it, which knows none of the models below. Then each is trained for a
few steps by `train_gpt.py` itself; seconds per step leave out the first quarter of the run. Other people's load on the
machine is part of the error: calibration and runs are minutes apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from pgolf_model.config import Budget, RunConfig
from pgolf_model.files import PROGRESS_FILE
from search.corpus.dataset import open_dataset
from search.engines.machine import worker_environment
from search.engines.single import run_single
from space.forecast.hardware import Hardware
from space.forecast.speed import estimate_speed
from space.plain import from_plain
from space.presets import preset
from trials.files import read_progress


def variants(vocab_size: int, steps: int) -> dict[str, RunConfig]:
    """Tiny models of other widths, depths, batches and elements than those that are calibrated with."""
    base = preset("tiny")
    base = replace(
        base,
        model=replace(base.model, vocab_size=vocab_size),
        budget=Budget(steps=steps),
        eval=replace(base.eval, max_tokens=16_384),
        train=replace(base.train, batch_tokens=2_048),
    )
    model, train = base.model, base.train
    return {
        "4 x 128": base,
        "2 x 64": replace(base, model=replace(model, num_layers=2, model_dim=64)),
        "8 x 96": replace(base, model=replace(model, num_layers=8, model_dim=96, num_heads=4, num_kv_heads=2)),
        "3 x 192, MLP 4": replace(base, model=replace(model, num_layers=3, model_dim=192, mlp_mult=4.0)),
        "4 x 128, looped": replace(base, model=replace(model, loop_start=1, loop_end=3, loop_repeats=2)),
        "4 x 128, 8,192 a batch": replace(base, train=replace(train, batch_tokens=8_192)),
    }


def main() -> int:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Forecasts of speed and memory against runs on this machine.")
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    dataset = open_dataset(options.data)
    command = [sys.executable, "-m", "trials.calibrate_machine", "--threads", str(options.threads)]
    environment = worker_environment() | {"OMP_NUM_THREADS": str(options.threads)}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    hardware = from_plain(Hardware, json.loads(answer.stdout))
    print(f"{hardware.device}, {options.threads} threads: {hardware.made}")
    print(f"{'model':<26}{'ms/step':>9}{'forecast':>10}{'off':>8}{'MiB':>8}{'forecast':>10}{'off':>8}")
    rows = []
    for name, config in variants(dataset.manifest.vocab_size, options.steps).items():
        forecast = estimate_speed(config, hardware)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            result = run_single(config, dataset=dataset, folder=out, seeds=(1,), cpus=options.threads, gpus=0)
            if result.status != "complete":
                raise RuntimeError(f"{name}: {result.error}")
            records = list(read_progress(out / "seed1" / PROGRESS_FILE))
        first = next((r for r in records if r["step"] >= options.steps // 4), records[0])
        last = records[-1]
        span = last["step"] - first["step"]
        run = result.runs[0]
        seconds = (last["seconds"] - first["seconds"]) / span if span else run.train_seconds / run.steps
        off, memory_off = forecast.step_seconds / seconds - 1, forecast.peak_memory_bytes / run.peak_memory_bytes - 1
        rows.append({"model": name, "seconds": seconds, "off": off, "memory_off": memory_off})
        print(
            f"{name:<26}{1e3 * seconds:>9.1f}{1e3 * forecast.step_seconds:>10.1f}{off:>+8.0%}"
            f"{run.peak_memory_bytes / 2**20:>8.0f}{forecast.peak_memory_bytes / 2**20:>10.0f}{memory_off:>+8.0%}"
        )
    summary = {
        "n": len(rows),
        "median_off": statistics.median(abs(row["off"]) for row in rows),
        "worst_off": max(abs(row["off"]) for row in rows),
        "median_memory_off": statistics.median(abs(row["memory_off"]) for row in rows),
        "stated_error": hardware.error,
        "rows": rows,
        "device": hardware.device,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
