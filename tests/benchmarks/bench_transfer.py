"""Where the best learning rates are at two widths, with and without the rule of `space.transfer`.

    python tests/benchmarks/bench_transfer.py --data DATASET --out FILE.jsonl [--widths 64 256] [--steps 80]
        [--seeds 1 2] [--sweeps embed matrix] [--octaves -4 -3 -2 -1 0]

A sweep multiplies one rate, tuned or not, of the recipe at `BASE_DIM` channels; everything else stays. `embed` is run
twice: the rate as it is at every width, and through `at_own_width`, which divides it and the first deviation of the
tied table. `matrix` has no rule, its rate is meant to carry over. Scored: nats per token on validation text, float
weights. The optimum is the vertex of a parabola through the best point and its neighbours, in octaves of the rate.
Runs that FILE has are not repeated. Prints a Markdown table and one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from pgolf_model.config import Budget, EvalConfig, ModelConfig, RunConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.evaluate import score, validation_set
from pgolf_model.model.gpt import GPT
from pgolf_model.train.loop import train
from space.transfer import at_own_width

BASE_DIM = 128
FIELDS = {"embed": "embed_lr", "embed, rule": "embed_lr", "matrix": "matrix_lr"}
Key = tuple[str, int, int, int]  # sweep, width, octave, seed


def recipe(sweep: str, width: int, octave: int, *, steps: int, seed: int) -> RunConfig:
    """The baseline's recipe on two blocks, one rate multiplied by 2 ** octave."""
    model = ModelConfig(num_layers=2, model_dim=width, num_heads=width // 32, num_kv_heads=width // 64)
    settings = TrainConfig(
        batch_tokens=1024,
        seq_len=256,
        micro_batch_tokens=1024,
        loader="shuffled",
        warmdown_fraction=0.6,
        precision="float32",
        compile=False,
    )
    rate = getattr(settings, FIELDS[sweep]) * 2.0**octave
    config = RunConfig(
        model=model,
        train=replace(settings, **{FIELDS[sweep]: rate}),
        eval=EvalConfig(seq_len=256, batch_tokens=4096),
        budget=Budget(steps=steps),
        seed=seed,
    )
    return at_own_width(config, base_dim=BASE_DIM) if sweep == "embed, rule" else config


def val_loss(config: RunConfig, data: Path, max_tokens: int) -> float:
    """Train, then score the float weights."""
    env = DistEnv()
    with contextlib.redirect_stdout(io.StringIO()):
        outcome = train(config, data=str(data), env=env, out_dir=None)
    tokens, table = validation_set(
        str(data),
        str(data / "tokenizer.model"),
        vocab_size=config.model.vocab_size,
        seq_len=config.eval.seq_len,
        max_tokens=max_tokens,
    )
    model = GPT(config.model)
    model.load_state_dict(outcome.state)
    return score(model.eval(), tokens, table, config.eval, env).val_loss if not outcome.diverged else float("inf")


def optimum(losses: dict[int, float]) -> float:
    """The octave of the lowest point of a parabola through the lowest loss and its neighbours; at an end that end."""
    best = min(losses, key=lambda octave: losses[octave])
    if best - 1 not in losses or best + 1 not in losses:
        return float(best)
    below, here, above = (losses[best + step] for step in (-1, 0, 1))
    return best + 0.5 * (below - above) / (below - 2 * here + above)


def main() -> None:
    """Run what is missing, then print what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sweeps", nargs="+", choices=FIELDS, default=list(FIELDS))
    parser.add_argument("--octaves", type=int, nargs="+", default=[-4, -3, -2, -1, 0, 1, 2])
    parser.add_argument("--max-tokens", type=int, default=32_768)
    options = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[Key, float] = {}
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            sweep, width, octave, seed, steps, loss = json.loads(line)
            if steps == options.steps:
                done[sweep, width, octave, seed] = loss
    jobs: list[Key] = [
        (sweep, width, octave, seed)
        for seed in options.seeds
        for width in options.widths
        for sweep in options.sweeps
        for octave in options.octaves
    ]
    started = time.perf_counter()
    for i, (sweep, width, octave, seed) in enumerate(jobs):
        if (sweep, width, octave, seed) in done:
            continue
        if sweep == "matrix" and octave == 0 and ("embed", width, 0, seed) in done:
            loss = done["embed", width, 0, seed]  # the same run
        else:
            loss = val_loss(
                recipe(sweep, width, octave, steps=options.steps, seed=seed), options.data, options.max_tokens
            )
        done[sweep, width, octave, seed] = loss
        with options.out.open("a") as file:
            file.write(json.dumps([sweep, width, octave, seed, options.steps, loss]) + "\n")
        seconds = time.perf_counter() - started
        print(f"{i + 1}/{len(jobs)} {sweep} {width} {octave:+} {seed}: {loss:.4f}, {seconds:.0f} s", file=sys.stderr)

    head = " | ".join(f"x {2.0**octave:g}" for octave in options.octaves)
    print(f"| rate | width | {head} | best, octaves (each seed) |")
    print(f"|---|---:|{'---:|' * len(options.octaves)}---:|")
    rows = []
    for sweep in options.sweeps:
        for width in options.widths:
            by_seed = [{o: done[sweep, width, o, seed] for o in options.octaves} for seed in options.seeds]
            mean = {o: statistics.fmean(losses[o] for losses in by_seed) for o in options.octaves}
            best = [optimum(losses) for losses in by_seed]
            cells = " | ".join(f"{mean[o]:.4f}" for o in options.octaves)
            seeds = ", ".join(f"{octaves:+.2f}" for octaves in best)
            print(f"| {sweep} | {width} | {cells} | {optimum(mean):+.2f} ({seeds}) |")
            rows.append({"sweep": sweep, "width": width, "losses": by_seed, "optima": best})
    print(json.dumps({"benchmark": "transfer", "steps": options.steps, "seeds": options.seeds, "rows": rows}))


if __name__ == "__main__":
    main()
