"""Training speed against a plain trainer, side by side: tokens per second, MFU, milliseconds per step, peak memory.

    python tests/benchmarks/bench_train.py [--only NAME ...] [--repeats N] [--threads N] [--profile]

Both trainers start from the same weights, see the same batch and must agree on the losses of the first three steps.
Repetitions alternate between them; reported are the median and the quartiles. On a CPU the ratio is given in seconds of
processor time too: other people's load on a shared machine counts less there. Memory comes from a process of its own.
MFU: matrix products of one step (6 per weight and token, causal attention) over what the largest products reach here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from plain_trainer import PlainTrainer
from torch import Tensor

from pgolf_model.config import ModelConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model import build_model
from pgolf_model.optim import build_optimizers
from pgolf_model.shapes import num_params, param_shapes
from pgolf_model.train import compute_gradients, prepare_device
from space.presets import preset

CUDA_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, from the data sheets
CPU_RECIPE = replace(preset("tiny").train, precision="float32", compile=False)


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model and recipe, and where it is measured."""

    model: ModelConfig
    train: TrainConfig
    device: str = "cpu"


SIZES = {
    "tiny": Size(model=preset("tiny").model, train=CPU_RECIPE),
    "d256x6": Size(model=ModelConfig(num_layers=6, model_dim=256), train=CPU_RECIPE),
    "d512x9": Size(model=ModelConfig(), train=replace(CPU_RECIPE, seq_len=512, batch_tokens=2048)),
    "cuda_baseline": Size(model=ModelConfig(), train=TrainConfig(), device="cuda:0"),
    "cuda_frontier": Size(model=preset("loop_demo").model, train=preset("loop_demo").train, device="cuda:0"),
}

Step = Callable[[], Tensor]


def make_steps(size: Size) -> dict[str, Step]:
    """What one call of each trainer does: a whole optimizer step on the same batch."""
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
    plain = PlainTrainer(size.model, recipe, weights, size.device)

    def ours() -> Tensor:
        loss = compute_gradients(model, loss_function, inputs, targets, recipe, env)
        optimizers.step()
        return loss

    return {"ours": ours, "plain": lambda: plain.step(inputs, targets)}


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
    step = make_steps(size)[variant]
    for _ in range(3):
        step()
    print(torch.cuda.max_memory_allocated() / 1e6 if size.device != "cpu" else (memory_kib("VmHWM") - before) / 1e3)


def memory_kib(name: str) -> int:
    """A line of Linux's account of this process; unlike getrusage's it does not start with the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(name: str, repeats: int, threads: int) -> dict[str, object]:
    """One row of the table for each trainer, and how many times as fast ours is."""
    size = SIZES[name]
    steps = make_steps(size)
    losses = {variant: [round(float(step()), 4) for _ in range(3)] for variant, step in steps.items()}
    apart = max(abs(one - other) for one, other in zip(*losses.values(), strict=True))
    assert apart < 0.02, f"{name}: the trainers disagree on the first losses: {losses}"
    pairs = [{variant: timed(step, size.device) for variant, step in steps.items()} for _ in range(repeats)]
    seconds = {variant: [pair[variant][0] for pair in pairs] for variant in steps}
    flops, peak = flops_per_step(size.model, size.train), peak_flops(size.device)
    ratios, busy_ratios = ([pair["plain"][i] / pair["ours"][i] for pair in pairs] for i in (0, 1))
    row: dict[str, object] = {"size": name, "num_params": num_params(size.model), "n": repeats}
    row |= {"batch_tokens": size.train.batch_tokens, "peak_flops": peak, "speedup": statistics.median(ratios)}
    row |= {"speedup_quartiles": statistics.quantiles(ratios, n=4)[::2], "busy_speedup": statistics.median(busy_ratios)}
    print(f"{name}: {num_params(size.model):,} parameters, {size.train.batch_tokens:,} tokens per step, n = {repeats}")
    for variant, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        row[variant] = facts = {
            "ms_per_step": median * 1e3,
            "ms_quartiles": [low * 1e3, high * 1e3],
            "tokens_per_second": size.train.batch_tokens / median,
            "mfu": flops / median / peak,
            "peak_memory_mb": peak_memory(name, variant, threads),
        }
        print(
            f"  {variant:5} {median * 1e3:9.1f} ms [{low * 1e3:.1f}, {high * 1e3:.1f}] "
            f"{facts['tokens_per_second']:11,.0f} tok/s  mfu {facts['mfu']:5.1%}  {facts['peak_memory_mb']:7,.0f} MB"
        )
    low, median, high = statistics.quantiles(ratios, n=4)
    busy = row["busy_speedup"]
    print(f"  ours is {median:.2f} [{low:.2f}, {high:.2f}] times as fast, {busy:.2f} by processor time", flush=True)
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
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIZE", "TRAINER"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_memory(*options.memory_of)
        return
    results = []
    for name in options.only:
        if SIZES[name].device != "cpu" and not torch.cuda.is_available():
            print(f"{name}: skipped, there is no CUDA device")
        elif options.profile:
            print_profile(name)
        else:
            results.append(measure(name, options.repeats, options.threads))
    if results:
        speedup = statistics.median(float(str(row["speedup"])) for row in results)
        print(f"median over sizes: {speedup:.2f} times as fast")
        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        facts = {"threads": options.threads, "torch": torch.__version__, "cuda": cuda, "median_speedup": speedup}
        print(json.dumps({"rows": results} | facts))


if __name__ == "__main__":
    main()
