"""Training speed against plain trainers, side by side: tokens per second, MFU, milliseconds per step, peak memory.

    python tests/benchmarks/bench_train.py [--only NAME ...] [--reference unfused|sdpa] [--repeats N] [--threads N]
        [--batch-tokens N] [--memory] [--profile]

All trainers start from the same weights, see the same batch and must agree on the losses of the first three steps.
Repetitions go round between them; a ratio is the median over the rounds, with quartiles, by wall time and by seconds of
processor time: other people's load on a shared machine counts less in those. With --memory each trainer's comes from a
process of its own. Without --reference there is one column for either (see `plain_trainer.py`).
MFU: matrix products of one step (6 per weight and token, causal attention) over what the largest products reach here.
Newton-Schulz is timed apart, against the same number of operations in plain products of 512 x 512.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plain_trainer import REFERENCES, PlainTrainer, is_baseline
from torch import Tensor

from pgolf_model.config import ModelConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model.gpt import build_model
from pgolf_model.shapes import num_params, param_shapes
from pgolf_model.train.loop import compute_gradients, prepare_device
from pgolf_model.train.optim import build_optimizers
from space.presets import preset

CUDA_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, from the data sheets
CPU_RECIPE = replace(preset("tiny").train, precision="float32", compile=False)


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model and recipe, and where it is measured."""

    model: ModelConfig
    train: TrainConfig
    device: str = "cpu"
    repeats: int = 9


FRONTIER = preset("frontier_2026_04_27")
# The larger CPU sizes have few tokens, so that a step stays under four seconds on one core: Muon's share is then high.
SIZES = {
    "tiny": Size(model=preset("tiny").model, train=CPU_RECIPE),
    "d256x6": Size(
        model=ModelConfig(num_layers=6, model_dim=256), train=replace(CPU_RECIPE, batch_tokens=2048), repeats=5
    ),
    "d512x9": Size(model=ModelConfig(), train=replace(CPU_RECIPE, seq_len=512, batch_tokens=1024), repeats=5),
    "cuda_baseline": Size(model=ModelConfig(), train=TrainConfig(), device="cuda:0"),
    "cuda_frontier": Size(model=FRONTIER.model, train=FRONTIER.train, device="cuda:0"),
}

Step = Callable[[], Tensor]


def make_steps(size: Size, references: Sequence[str] = REFERENCES) -> dict[str, Step]:
    """What one call of each trainer does: a whole optimizer step on the same batch. Ours is first."""
    env = DistEnv(device=size.device)
    recipe = size.train
    model = build_model(size.model, seed=0)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.to(size.device)
    loss_function, _ = prepare_device(model, recipe, env)
    optimizers = build_optimizers(model, recipe, env)
    optimizers.set_rates(lr_multiplier=1.0, momentum=recipe.muon_momentum)
    generator = torch.Generator().manual_seed(0)
    shape = (recipe.batch_tokens // recipe.seq_len, recipe.seq_len + 1)
    ids = torch.randint(size.model.vocab_size, shape, generator=generator).to(size.device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    known = [name for name in references if name == "sdpa" or is_baseline(size.model)]
    plain = {name: PlainTrainer(size.model, recipe, weights, size.device, name) for name in known}

    def ours() -> Tensor:
        loss = compute_gradients(model, loss_function, inputs, targets, recipe, env)
        optimizers.step()
        return loss

    return {"ours": ours} | {name: partial(trainer.step, inputs, targets) for name, trainer in plain.items()}


def timed(step: Step, device: str) -> tuple[float, float]:
    """Wall and processor seconds of one step."""
    started, busy = time.perf_counter(), time.process_time()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - busy


def flops_per_step(model: ModelConfig, train: TrainConfig) -> float:
    """Of the model's own matrix products, forward and backward; norms, the optimizer and recomputing do not count."""
    per_layer = [0] * model.num_layers
    for info in param_shapes(model).values():
        if info.role in ("attn", "mlp"):
            per_layer[info.layer] += info.size
    weights = sum(per_layer[layer] for layer in model.virtual_layers) + model.vocab_size * model.model_dim
    attention = len(model.virtual_layers) * train.seq_len * model.model_dim  # two products over half of the positions
    return 6.0 * (weights + attention) * train.batch_tokens


def newton_schulz_flops(model: ModelConfig, train: TrainConfig) -> float:
    """Of one step's orthogonalisations: three products an iteration, on the shorter side of each matrix."""
    flops = 0
    for info in param_shapes(model).values():
        if info.role in ("attn", "mlp"):
            short, long = sorted(info.shape)
            flops += train.muon_iterations * (4 * short * short * long + 2 * short**3)
    return float(flops)


def muon_seconds(size: Size, repeats: int) -> float:
    """Median processor seconds (wall on a GPU) of Muon's step alone."""
    env = DistEnv(device=size.device)
    model = build_model(size.model, seed=0).to(size.device)
    muon = build_optimizers(model, size.train, env).muon
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)

    def step() -> Tensor:
        muon.step()
        return muon.banks[0].momentum

    return statistics.median(timed(step, size.device)[1 if size.device == "cpu" else 0] for _ in range(repeats))


def plain_product_flops(device: str) -> float:
    """Operations per processor second of a batch of 512 x 512 products, at best."""
    a = torch.randn(9, 512, 512, device=device)
    busy = [timed(lambda: a @ a, device)[1 if device == "cpu" else 0] for _ in range(8)]
    return 2 * 9 * 512**3 / min(busy)


def peak_flops(device: str) -> float:
    """What the device's largest matrix products reach, per second."""
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in CUDA_PEAK.items() if part in name), float("nan"))
    a, b = torch.randn(2, 1536, 1536).unbind()
    return 2 * 1536**3 / min(timed(lambda: a @ b, device)[0] for _ in range(8))


def peak_memory(name: str, variant: str, threads: int) -> float:
    """MB that three steps of one trainer need on top of the process, from a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, variant, "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory(name: str, variant: str) -> None:
    """The other end of `peak_memory`."""
    size = SIZES[name]
    before = memory_kib("VmRSS")
    step = make_steps(size, [name for name in REFERENCES if name == variant])[variant]
    for _ in range(3):
        step()
    print(torch.cuda.max_memory_allocated() / 1e6 if size.device != "cpu" else (memory_kib("VmHWM") - before) / 1e3)


def memory_kib(name: str) -> int:
    """A line of Linux's account of this process; unlike getrusage's it does not start with the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def measure(
    name: str, size: Size, references: Sequence[str], *, repeats: int, threads: int, memory: bool
) -> dict[str, object]:
    """One row of the table for each trainer, and how many times as fast ours is; needs two repeats."""
    steps = make_steps(size, references)
    losses = {variant: [round(float(step()), 4) for _ in range(3)] for variant, step in steps.items()}
    apart = max(max(at_step) - min(at_step) for at_step in zip(*losses.values(), strict=True))
    assert apart < 0.02, f"{name}: the trainers disagree on the first losses: {losses}"
    rounds = [{variant: timed(step, size.device) for variant, step in steps.items()} for _ in range(repeats)]
    flops, peak = flops_per_step(size.model, size.train), peak_flops(size.device)
    tokens, weights = size.train.batch_tokens, num_params(size.model)
    row: dict[str, object] = {"size": name, "num_params": weights, "n": repeats, "batch_tokens": tokens}
    row["peak_flops"] = peak
    print(
        f"{name}: {weights:,} parameters, {tokens:,} tokens per step, n = {repeats}, {peak / 1e9:,.0f} GFLOP/s at best"
    )
    for variant in steps:
        low, median, high = quartiles([times[variant][0] for times in rounds])
        busy = statistics.median(times[variant][1] for times in rounds)
        facts: dict[str, object] = {"ms_per_step": median * 1e3, "ms_quartiles": [low * 1e3, high * 1e3]}
        facts |= {"busy_ms": busy * 1e3, "tokens_per_second": tokens / median, "mfu": flops / median / peak}
        line = f"  {variant:8}{median * 1e3:9.1f} ms [{low * 1e3:.1f}, {high * 1e3:.1f}] {busy * 1e3:9.1f} ms busy"
        line += f"{tokens / median:12,.0f} tok/s  mfu {flops / median / peak:5.1%}"
        if memory:
            facts["peak_memory_mb"] = peak_memory(name, variant, threads)
            line += f"  {facts['peak_memory_mb']:7,.0f} MB"
        for key, i in (("speedup", 0), ("busy_speedup", 1)):
            low, median, high = quartiles([times[variant][i] / times["ours"][i] for times in rounds])
            facts |= {key: median, f"{key}_quartiles": [low, high]}
            if variant != "ours":
                line += f"  {'wall' if i == 0 else 'busy'} x {median:.2f} [{low:.2f}, {high:.2f}]"
        row[variant] = facts
        print(line, flush=True)
    flops, seconds, plain = (
        newton_schulz_flops(size.model, size.train),
        muon_seconds(size, 5),
        plain_product_flops(size.device),
    )
    row["muon"] = {"flops": flops, "ms": seconds * 1e3, "flops_per_second": flops / seconds, "plain": plain}
    print(
        f"  Newton-Schulz: {flops / 1e9:,.1f} GFLOP beside {flops_per_step(size.model, size.train) / 1e9:,.1f}, Muon "
        f"{seconds * 1e3:.0f} ms busy, {flops / seconds / 1e9:.0f} GFLOP/s; plain products {plain / 1e9:.0f}"
    )
    return row


def print_profile(name: str, rows: int = 14) -> None:
    """Where the time of each trainer goes, by operation."""
    for variant, step in make_steps(SIZES[name]).items():
        step()
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                step()
        print(name, variant)
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40))


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--reference", choices=REFERENCES, help="default: all")
    parser.add_argument("--repeats", type=int, help="two or more; default: 9, of the larger CPU sizes 5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, help="of a step, instead of each size's own")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIZE", "TRAINER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_memory(*options.memory_of)
        return
    references = [options.reference] if options.reference else REFERENCES
    rows: list[dict[str, Any]] = []
    for name in options.only:
        if SIZES[name].device != "cpu" and not torch.cuda.is_available():
            print(f"{name}: skipped, there is no CUDA device")
        elif options.profile:
            print_profile(name)
        else:
            size = SIZES[name]
            if options.batch_tokens:
                size = replace(size, train=replace(size.train, batch_tokens=options.batch_tokens))
            repeats = options.repeats or size.repeats
            rows.append(
                measure(name, size, references, repeats=repeats, threads=options.threads, memory=options.memory)
            )
    if rows:
        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        medians = {
            name: statistics.median(row[name]["speedup"] for row in rows if name in row)
            for name in references
            if any(name in row for row in rows)
        }
        facts = {"threads": options.threads, "torch": torch.__version__, "cuda": cuda, "median_speedup": medians}
        print(json.dumps({"rows": rows} | facts))


if __name__ == "__main__":
    main()
