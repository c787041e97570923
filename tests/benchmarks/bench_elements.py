"""One architecture element or training technique at a time against a control: same steps, paired seeds, real text.

    python tests/benchmarks/bench_elements.py --data DATASET --out FOLDER [--seeds 1 2] [--workers 2] [--only NAME ...]

Every run trains, packs, unpacks and scores through the code that ships, and leaves a `metrics.json` in a folder of its
own, so a stopped benchmark goes on where it was. Prints a Markdown table and one JSON line. The table in
`results/elements_*.md` came from FineWeb documents with the official 1024-token tokenizer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgolf_model.config import Budget, EvalConfig, ModelConfig, QuantConfig, RunConfig, TrainConfig

CONTROL = RunConfig(
    model=ModelConfig(vocab_size=1024, num_layers=4, model_dim=128, num_heads=4, num_kv_heads=2, mlp_mult=3.0),
    train=TrainConfig(
        batch_tokens=2048,
        seq_len=256,
        micro_batch_tokens=2048,
        loader="shuffled",
        matrix_lr=0.03,
        embed_lr=0.03,
        scalar_lr=0.02,
        warmdown_fraction=0.6,
        precision="float32",
        compile=False,
    ),
    quant=QuantConfig(),
    eval=EvalConfig(seq_len=256, batch_tokens=8192, max_tokens=65_536),
    budget=Budget(steps=150),
)
Changes = Mapping[str, Any]  # "section.field" -> value
LOOP: Changes = {"model.loop_start": 1, "model.loop_end": 3, "model.loop_repeats": 1}

ELEMENTS: dict[str, Changes] = {
    "control": {},
    # architecture
    "partial RoPE, 16 of 32": {"model.rope_dims": 16},
    "RoPE base 2,000": {"model.rope_base": 2000.0},
    "LN scale": {"model.ln_scale": True},
    "partial RoPE + LN scale": {"model.rope_dims": 16, "model.ln_scale": True},
    "QK gain 4": {"model.qk_gain_init": 4.0},
    "leaky relu^2": {"model.activation": "leaky_relu2"},
    "SwiGLU (1.5 x MLP weights)": {"model.activation": "swiglu"},
    "SwiGLU, same MLP weights": {"model.activation": "swiglu", "model.mlp_mult": 2.0},
    "no resid mix": {"model.resid_mix": False},
    "gated skips": {"model.skips": "gated"},
    "no skips": {"model.skips": "none"},
    "XSA, all layers": {"model.xsa_layers": 4},
    "value embedding, last 2 layers": {"model.value_embed_dim": 64, "model.value_embed_layers": (2, 3)},
    "value residual": {"model.value_residual": True},
    "SmearGate v1": {"model.smear": "channel"},
    "SmearGate v2": {"model.smear": "gated"},
    "BigramHash 2,048 x 64": {"model.bigram_buckets": 2048, "model.bigram_dim": 64},
    "factored embedding, rank 64": {"model.embed_rank": 64},
    "quotient-remainder embedding, 256 rows": {"model.embed_buckets": 256},
    "untied head": {"model.tied": False},
    "overtone embedding init": {"model.embed_init": "overtone"},
    "orthogonal matrix init": {"model.matrix_init": "orthogonal"},
    "dense attention gate": {"model.attn_gate": "dense"},
    "sparse attention gate": {"model.attn_gate": "sparse"},
    "parallel, single stream, last 2": {"model.parallel": "single", "model.parallel_start": 2},
    "parallel, two lanes, last 2": {"model.parallel": "lanes", "model.parallel_start": 2},
    "parallel, routed lanes, last 2": {"model.parallel": "routed", "model.parallel_start": 2},
    "loop 1-2 twice": LOOP,
    "loop 1-2 twice, on at 35 %": {**LOOP, "train.loop_at": 0.35},
    "loop 1-2 twice, iteration embeddings": {**LOOP, "model.iteration_embeddings": True},
    "loop 1-2 three times": {**LOOP, "model.loop_repeats": 2},
    "MoEUT experts, 8 of 16": {"model.num_experts": 16, "model.experts_per_token": 8},
    "wide and shallow: 2 x 192, 3 passes": {
        "model.num_layers": 2,
        "model.model_dim": 192,
        "model.num_heads": 6,
        "model.num_kv_heads": 3,
        "model.loop_start": 0,
        "model.loop_end": 2,
        "model.loop_repeats": 2,
    },
    "document attention": {"model.document_attention": True},
    # training
    "MuonEq-R": {"train.muon_normalize_rows": True},
    "Polar Express": {"train.muon_polynomial": "polar_express"},
    "Newton-Schulz, 3 iterations": {"train.muon_iterations": 3},
    "weight decay .05": {"train.matrix_weight_decay": 0.05, "train.embed_weight_decay": 0.05},
    "weight decay .05, taper": {
        "train.matrix_weight_decay": 0.05,
        "train.embed_weight_decay": 0.05,
        "train.weight_decay_taper_start": 0.7,
        "train.weight_decay_final": 0.5,
    },
    "EMA .98": {"train.ema_decay": 0.98},
    "SWA below .3, every 5": {"train.swa_start": 0.3, "train.swa_every": 5},
    "gradient clip .3": {"train.grad_clip": 0.3},
    "beta2 .99": {"train.adam_beta2": 0.99},
    "min LR .1": {"train.min_lr_fraction": 0.1},
    "min LR .1 + EMA .98": {"train.min_lr_fraction": 0.1, "train.ema_decay": 0.98},
    "sequential loader": {"train.loader": "sequential"},
    "strided loader": {"train.loader": "strided"},
    "packed loader": {"train.loader": "packed"},
    "packed loader + document attention": {"train.loader": "packed", "model.document_attention": True},
    "sequence 128 for the first half": {"train.seq_len_schedule": ((0.0, 0.5), (0.5, 1.0))},
    "half batch for the first half": {"train.batch_schedule": ((0.0, 0.5), (0.5, 1.0))},
    "QAT from 70 %": {"train.qat_start": 0.7},
}


def changed(config: RunConfig, changes: Changes) -> RunConfig:
    """`config` with dotted fields replaced, all fields of a section at once."""
    for section in ("model", "train", "quant", "eval"):
        fields = {key.split(".")[1]: value for key, value in changes.items() if key.startswith(f"{section}.")}
        config = replace(config, **{section: replace(getattr(config, section), **fields)})
    return config


def run(config: RunConfig, data: Path, out: Path) -> dict[str, Any]:
    """One run in its own process, unless its metrics are there already."""
    metrics = out / "metrics.json"
    if not metrics.exists():
        code = (
            "import sys; from pgolf_model.config import *; from pgolf_model.main import main; "
            f"sys.exit(main({config!r}, sys.argv[1:]))"
        )
        out.mkdir(parents=True, exist_ok=True)
        with (out / "train.log").open("w") as log:
            environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[2]))
            command = [sys.executable, "-c", code, "--data", str(data), "--out", str(out)]
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    result: dict[str, Any] = json.loads(metrics.read_text())
    return result


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and sample deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def main() -> None:
    """Run what is missing, then print everything that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="dataset folder with shards and tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--only", nargs="+", help="elements by name; the control always runs")
    parser.add_argument(
        "--report", action="store_true", help="run nothing, print the elements whose runs are all there"
    )
    options = parser.parse_args()
    names = ["control", *(options.only or [name for name in ELEMENTS if name != "control"])]

    def folder(name: str, seed: int) -> Path:
        return Path(options.out) / f"{''.join(c if c.isalnum() else '_' for c in name)}-{seed}"

    if options.report:
        names = [n for n in names if all((folder(n, seed) / "metrics.json").exists() for seed in options.seeds)]
    jobs = [(name, seed) for name in names for seed in options.seeds]
    left = [job for job in jobs if not (folder(*job) / "metrics.json").exists()]
    started = time.perf_counter()

    def work(job: tuple[str, int]) -> dict[str, Any]:
        name, seed = job
        config = replace(changed(CONTROL, ELEMENTS[name]), seed=seed)
        metrics = run(config, options.data, folder(name, seed))
        if job in left:
            ended = left.index(job) + 1
            eta = (time.perf_counter() - started) / ended * (len(left) - ended)
            score = metrics.get("val_bpb")
            print(f"{ended}/{len(left)} {name}, seed {seed}: {score} | {eta:.0f} s left", file=sys.stderr)
        return metrics

    with ThreadPoolExecutor(options.workers) as pool:
        done = dict(zip(jobs, pool.map(work, jobs), strict=True))

    print("| element | params | bpb, trained | against control | bpb, shipped | against control | bytes | ms/step |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name in names:
        runs = [done[name, seed] for seed in options.seeds]
        if any(r["status"] != "complete" for r in runs):
            print(f"| {name} | {runs[0]['num_params']:,} | diverged | | | | | |")
            continue
        controls = [done["control", seed] for seed in options.seeds]
        cells = []
        for key in ("pre_quant_val_bpb", "val_bpb"):
            mean, _ = summary([r[key] for r in runs])
            delta, sd = summary([r[key] - c[key] for r, c in zip(runs, controls, strict=True)])
            cells += [f"{mean:.4f}", f"{delta:+.4f} (sd {sd:.4f})" if name != "control" else ""]
        step_ms = statistics.median(1e3 * r["train_seconds"] / r["steps"] for r in runs)
        size = statistics.median(r["model_bytes"] for r in runs)
        print(f"| {name} | {runs[0]['num_params']:,} | {' | '.join(cells)} | {size:,.0f} | {step_ms:.0f} |")
        rows.append({"element": name, **{k: [r[k] for r in runs] for k in ("pre_quant_val_bpb", "val_bpb")}})
    print(json.dumps({"benchmark": "elements", "seeds": options.seeds, "steps": CONTROL.budget.steps, "rows": rows}))


if __name__ == "__main__":
    main()
