"""Time short steps of the real training code on this machine and fit its rates: `python -m trials.calibrate_machine`.

Its own process, because torch lives here and peak memory is a process's. Prints the machine as one JSON document, a
`space.forecast.speed.Hardware`; how well it explains the steps it was fitted to becomes the machine's error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pgolf_model.config import RunConfig
from space.forecast.hardware import HARDWARE, Hardware
from space.forecast.speed import fit_hardware, leave_one_out, peak_memory, step_work, stretches
from space.plain import to_plain
from space.presets import preset

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgolf_model.distributed import DistEnv

WARMUP_STEPS, TIMED_STEPS = 2, 6
TIMED_STEPS_CUDA = 20
MIN_ERROR = 0.15  # below this the steps of two runs on a machine that does other things as well do not agree
PROBE_ROWS, PROBE_WIDTH = 2048, 256
SMALLER_DEVICE_MEMORY = 0.95  # of a GPU's memory that torch can have


def calibration_configs(*, is_gpu: bool) -> tuple[RunConfig, ...]:
    """Small runs that differ in what they spend their time on; the largest last, for its memory."""
    base = preset("baseline_2026_03_17" if is_gpu else "tiny")
    model, train = base.model, base.train
    tokens, seq_len = (65_536, train.seq_len) if is_gpu else (2_048, train.seq_len)
    wide = replace(
        model,
        num_layers=3,
        model_dim=2 * model.model_dim,
        num_heads=2 * model.num_heads,
        num_kv_heads=2 * model.num_kv_heads,
    )
    points = (
        (model, tokens, seq_len),
        (model, tokens // 8, seq_len),  # overheads
        (replace(model, num_layers=2), tokens, 4 * seq_len),  # attention
        (replace(model, num_layers=2, vocab_size=4 * model.vocab_size), tokens, seq_len),  # the head
        (wide, tokens, seq_len),  # products
    )
    return tuple(
        replace(base, model=m, train=replace(train, batch_tokens=t, seq_len=s, batch_schedule=(), seq_len_schedule=()))
        for m, t, s in points
    )


def time_steps(config: RunConfig, env: DistEnv) -> float:
    """Seconds of an optimizer step on made-up tokens, by the code that trains."""
    import torch

    from pgolf_model.model.gpt import build_model
    from pgolf_model.train.loop import compute_gradients, prepare_device
    from pgolf_model.train.optim import build_optimizers

    recipe = config.train
    model = build_model(config.model, seed=config.seed).to(env.device)
    loss_function, _ = prepare_device(model, recipe, env)
    optimizers = build_optimizers(model, recipe, env)
    rows = recipe.batch_tokens // recipe.seq_len
    generator = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(config.model.vocab_size, (rows, recipe.seq_len + 1), generator=generator).to(env.device)

    def step() -> None:
        compute_gradients(model, loss_function, ids[:, :-1], ids[:, 1:], recipe, env)
        optimizers.step()

    return _typical_seconds(step, env, count=TIMED_STEPS_CUDA if env.is_cuda else TIMED_STEPS)


def _typical_seconds(step: Callable[[], object], env: DistEnv, *, count: int) -> float:
    """The lower quartile of `count`: on a shared machine the median of a few steps is the neighbours' load."""
    import torch

    seconds = []
    for _ in range(WARMUP_STEPS + count):
        started = time.perf_counter()
        step()
        if env.is_cuda:
            torch.cuda.synchronize(env.device)
        seconds.append(time.perf_counter() - started)
    return statistics.quantiles(seconds[WARMUP_STEPS:], n=4)[0]


def probe(env: DistEnv) -> tuple[float, float]:
    """(FLOP/s of a product of a model's shape, bytes/s of a multiply-add over a batch's activations)."""
    import torch

    scale = 16 if env.is_cuda else 1
    dtype = torch.bfloat16 if env.is_cuda else torch.float32
    x = torch.ones(PROBE_ROWS * scale, PROBE_WIDTH * min(scale, 4), dtype=dtype, device=env.device)
    w = torch.ones(x.shape[1], x.shape[1], dtype=dtype, device=env.device)
    y = torch.empty_like(x)
    product = _typical_seconds(lambda: torch.mm(x, w, out=y), env, count=20)
    moved = _typical_seconds(lambda: torch.mul(x, 1.5, out=y), env, count=20)
    return 2 * x.numel() * x.shape[1] / product, 2 * x.numel() * x.element_size() / moved


def calibrate(*, threads: int) -> Hardware:
    """This machine: one GPU where there is one, else `threads` cores."""
    import torch

    from pgolf_model.distributed import DistEnv

    torch.set_num_threads(threads)
    env = DistEnv(device="cuda:0" if torch.cuda.is_available() else "cpu")
    flops, moved = probe(env)
    start = starting_point(env, flops=flops, moved=moved, threads=threads)
    samples, ratios = [], []
    for config in calibration_configs(is_gpu=env.is_cuda):
        if env.is_cuda:
            torch.cuda.reset_peak_memory_stats(env.device)
        (_, _, plan), *_ = stretches(config.train, ranks=1)
        samples.append((step_work(config, plan), time_steps(config, env)))
        ratios.append(_saved_factor(config, start, _used_memory(env)))
    fitted = fit_hardware(start, samples)
    off = [abs(ratio - 1) for ratio in leave_one_out(start, samples)]
    return replace(
        fitted,
        error=max(MIN_ERROR, statistics.median(off) * 2),
        saved_factor=max(0.1, ratios[-1]),
        made=f"{time.strftime('%Y-%m-%d')}, {len(samples)} short runs, leave one out: "
        + ", ".join(f"{share:.0%}" for share in off),
    )


def starting_point(env: DistEnv, *, flops: float, moved: float, threads: int) -> Hardware:
    """A guess of the machine from two probes; what the steps do not determine stays at it."""
    import torch

    if env.is_cuda:
        properties = torch.cuda.get_device_properties(env.device)
        known = HARDWARE["h100"]
        ratio = flops / known.flops_per_second
        return replace(
            known,
            name="this machine",
            flops_per_second=flops,
            attention_flops_per_second=known.attention_flops_per_second * ratio,
            bytes_per_second=moved,
            memory_bytes=SMALLER_DEVICE_MEMORY * properties.total_memory,
            dollars_per_hour=0.0,
            device=properties.name,
        )
    return Hardware(
        name="this machine",
        flops_per_second=flops,
        attention_flops_per_second=flops / 2,
        bytes_per_second=moved,
        block_seconds=1e-3,
        step_seconds=1e-3,
        memory_bytes=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        is_gpu=False,
        process_bytes=float(_used_memory(env)),
        device=_cpu_name(),
        threads=threads,
    )


def _used_memory(env: DistEnv) -> int:
    from pgolf_model.train.loop import peak_memory_bytes

    return peak_memory_bytes(env)


def _saved_factor(config: RunConfig, hardware: Hardware, used: float) -> float:
    """What the activations' share of the forecast has to be multiplied by to give the memory used."""
    without = peak_memory(config, replace(hardware, saved_factor=0.0))
    return (used - without) / (peak_memory(config, hardware) - without)


def _cpu_name() -> str:
    """As the shipped script names a CPU in its metrics."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(argv: list[str] | None = None) -> int:
    """Print the machine."""
    parser = argparse.ArgumentParser(description="Fit this machine's speed to a few short training steps.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of one rank")
    options = parser.parse_args(argv)
    print(json.dumps(to_plain(calibrate(threads=options.threads)), allow_nan=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
