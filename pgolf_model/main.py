"""The command line of the shipped script: train and leave an artifact with its metrics, score an artifact, or quantize
a checkpoint to any size."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from pgolf_model.config import RunConfig
from pgolf_model.data.batches import ByteTable
from pgolf_model.data.shards import shard_paths
from pgolf_model.distributed import DistEnv, dist_env_from_environ, process_group
from pgolf_model.errors import UserError
from pgolf_model.evaluate import Score, evaluate_artifact, score, validation_set
from pgolf_model.files import ARTIFACT_FILE, AUDIT_FILE, CHECKPOINT_FILE, METRICS_FILE, write_atomically
from pgolf_model.model.gpt import GPT
from pgolf_model.shapes import num_params
from pgolf_model.ship.checkpoint import (
    Scoring,
    measure_curve,
    open_bench,
    read_checkpoint,
    short_audit,
    write_checkpoint,
    write_shipment,
)
from pgolf_model.train.loop import TrainOutcome, train


def main(config: RunConfig, argv: list[str] | None = None) -> int:
    """Run what the command line asks for; 0 when done, a diverged run included, 1 after an `error:` line.

    Args:
        config: what is trained; `--seed` replaces its seed. Evaluation takes its config from the artifact.
        argv: the arguments, `sys.argv[1:]` by default.
    """
    options = _parse_options(argv, config)
    try:
        env = dist_env_from_environ()
        with process_group(env):
            if options.evaluate:
                _evaluate(options, env)
            elif options.quantize:
                _quantize(config, options, env)
            else:
                _train_and_score(replace(config, seed=options.seed), options, env)
    except UserError as error:
        print(error.lines(), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse_options(argv: list[str] | None, config: RunConfig) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Train, quantize and score one model, or score an artifact with --evaluate."
    )
    parser.add_argument("--data", default=os.environ.get("DATA_PATH", "data"), help="dataset folder ($DATA_PATH)")
    parser.add_argument("--tokenizer", default=os.environ.get("TOKENIZER_PATH"), help="SentencePiece model")
    parser.add_argument("--out", default=".", help="folder for the artifact and metrics.json")
    parser.add_argument("--seed", type=int, default=config.seed, help="replaces the config's seed")
    parser.add_argument("--val", help="validation shards: folder, glob or file; --data by default")
    parser.add_argument("--evaluate", metavar="ARTIFACT", help="score this file and print one JSON document")
    parser.add_argument("--max-tokens", type=int, help="score so many leading tokens instead; 0 scores all")
    parser.add_argument("--keep-checkpoint", action="store_true", help=f"leave the weights in {CHECKPOINT_FILE}")
    parser.add_argument("--quantize", metavar="CHECKPOINT", help="pack and score it, and print one JSON document")
    parser.add_argument(
        "--bytes", type=int, nargs="+", metavar="N", help="with --quantize: sizes of code and model, left in --out"
    )
    options = parser.parse_args(argv)
    options.tokenizer = options.tokenizer or str(Path(options.data) / "tokenizer.model")
    names_shards = "*" in options.data or Path(options.data).is_file()
    if names_shards and not options.val and not options.evaluate:
        parser.error(f"--data {options.data} is no folder, so --val must say what to score: never the training shards")
    options.val = options.val or options.data
    return options


def _evaluate(options: argparse.Namespace, env: DistEnv) -> None:
    """Score an artifact over all the given shards: `--max-tokens` limits that, the artifact's own config does not."""
    started = time.perf_counter()
    artifact = Path(options.evaluate).read_bytes()
    result, model = evaluate_artifact(
        artifact, val=options.val, tokenizer=options.tokenizer, env=env, max_tokens=options.max_tokens or 0
    )
    if env.is_main:
        seconds = time.perf_counter() - started
        print(f"val_loss:{result.val_loss:.8f} val_bpb:{result.val_bpb:.8f} eval_time:{seconds:.1f}s", file=sys.stderr)
        report = {
            "val_bpb": result.val_bpb,
            "val_loss": result.val_loss,
            "tokens": result.tokens,
            "bytes": result.bytes,
            "seconds": seconds,
            "model_bytes": len(artifact),
            "num_params": num_params(model),
            "device": _device_name(env),
            "world_size": env.world_size,
        }
        print(json.dumps(report, allow_nan=False))


def _quantize(config: RunConfig, options: argparse.Namespace, env: DistEnv) -> None:
    """Pack a checkpoint at every size asked for, by default the config's own; artifacts and audits go to `--out`."""
    started = time.perf_counter()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    targets = options.bytes or [config.quant.target_bytes]
    config = replace(config, quant=replace(config.quant, target_bytes=targets[0]))  # so that it calibrates if need be
    state = read_checkpoint(Path(options.quantize), config.model)
    max_tokens = config.eval.max_tokens if options.max_tokens is None else options.max_tokens
    tokens, table = validation_set(
        options.val,
        options.tokenizer,
        vocab_size=config.model.vocab_size,
        seq_len=config.eval.seq_len,
        max_tokens=max_tokens,
    )
    trained = _score_weights(state, config, tokens, table, env)
    bench = open_bench(state, config, data=options.data, env=env)
    code_bytes = Path(__file__).stat().st_size
    scoring = Scoring(val=options.val, tokenizer=options.tokenizer, max_tokens=max_tokens)
    points = measure_curve(bench, targets, env, code_bytes=code_bytes, folder=out, scoring=scoring, keep=True)
    if env.is_main:
        report = {
            "pre_quant_val_bpb": trained.val_bpb,
            "pre_quant_val_loss": trained.val_loss,
            "code_bytes": code_bytes,
            "num_params": num_params(config.model),
            "points": points,
            "device": _device_name(env),
            "threads": torch.get_num_threads(),
            "seconds": time.perf_counter() - started,
        }
        print(json.dumps(report, allow_nan=False))


def _train_and_score(config: RunConfig, options: argparse.Namespace, env: DistEnv) -> None:
    """Train, pack, read the artifact back, score it; rank 0 leaves the artifact and its metrics in `--out`."""
    started = time.perf_counter()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    tokens, table = validation_set(
        options.val,
        options.tokenizer,
        vocab_size=config.model.vocab_size,
        seq_len=config.eval.seq_len,
        max_tokens=config.eval.max_tokens,
    )
    _log_start(config, options, env, len(tokens) - 1)
    outcome = train(config, data=options.data, env=env, out_dir=out)
    metrics = _run_facts(config, env, outcome)
    code_bytes = Path(__file__).stat().st_size  # the bundle's own file; bare main.py when run from the package
    if options.keep_checkpoint and env.is_main:
        write_checkpoint(out / CHECKPOINT_FILE, outcome.state, config)
    problem = f"the loss was not finite after step {outcome.steps}" if outcome.diverged else ""
    if not problem:
        # The data was checked before training, so an error here is about the weights: not finite, or too large.
        try:
            trained = _score_weights(outcome.state, config, tokens, table, env)
            _log(env, f"pre-quantization val_loss:{trained.val_loss:.4f} val_bpb:{trained.val_bpb:.4f}")
            packing = time.perf_counter()
            bench = open_bench(outcome.state, config, data=options.data, env=env)
            audit = write_shipment(
                out / ARTIFACT_FILE,
                out / AUDIT_FILE,
                bench,
                env,
                target_bytes=config.quant.target_bytes,
                code_bytes=code_bytes,
            )
            quantize_seconds = time.perf_counter() - packing
        except UserError as error:
            problem = str(error)
    if problem:
        _log(env, f"diverged: {problem}")
        ended = {"status": "diverged", "error": problem, **metrics, "total_seconds": time.perf_counter() - started}
        _write_metrics(out, ended, env)
        return

    eval_started = time.perf_counter()
    artifact = (out / ARTIFACT_FILE).read_bytes()
    final, _ = evaluate_artifact(
        artifact, val=options.val, tokenizer=options.tokenizer, env=env, max_tokens=config.eval.max_tokens
    )
    eval_seconds = time.perf_counter() - eval_started

    scoring = Scoring(val=options.val, tokenizer=options.tokenizer, max_tokens=config.eval.max_tokens)
    points = measure_curve(
        bench, config.quant.curve_bytes, env, code_bytes=code_bytes, folder=out, scoring=scoring, keep=False
    )
    metrics |= {
        "val_bpb": final.val_bpb,
        "val_loss": final.val_loss,
        "pre_quant_val_bpb": trained.val_bpb,
        "pre_quant_val_loss": trained.val_loss,
        "tokens": final.tokens,
        "bytes": final.bytes,
        "model_bytes": len(artifact),
        "code_bytes": code_bytes,
        "artifact_bytes": len(artifact) + code_bytes,
        "artifact_sha256": hashlib.sha256(artifact).hexdigest(),
        "eval_seconds": eval_seconds,
        "calibrate_seconds": audit.get("calibration_seconds", 0.0),
        "quantize_seconds": quantize_seconds,  # calibrating and packing included
        "quant": short_audit(audit),
        "curve": [[point["artifact_bytes"], point["val_bpb"]] for point in points if "val_bpb" in point],
        "curve_points": points,
    }
    _log(env, f"Serialized model pgolf: {len(artifact)} bytes")
    _log(env, f"Code size: {code_bytes} bytes")
    _log(env, f"Total submission size pgolf: {len(artifact) + code_bytes} bytes")
    _log(env, f"final val_loss:{final.val_loss:.8f} val_bpb:{final.val_bpb:.8f} eval_time:{eval_seconds:.1f}s")
    _write_metrics(out, {"status": "complete", **metrics, "total_seconds": time.perf_counter() - started}, env)


def _score_weights(
    state: dict[str, Tensor], config: RunConfig, tokens: Tensor, table: ByteTable, env: DistEnv
) -> Score:
    """The trained weights before quantization."""
    model = GPT(config.model)
    model.load_state_dict(state)
    return score(model.eval().to(env.device), tokens, table, config.eval, env)


def _run_facts(config: RunConfig, env: DistEnv, outcome: TrainOutcome) -> dict[str, object]:
    """What is known after training, diverged or not."""
    loss = outcome.final_train_loss
    return {
        "seed": config.seed,
        "steps": outcome.steps,
        "tokens_seen": outcome.tokens_seen,
        "num_params": num_params(config.model),
        "train_seconds": outcome.train_seconds,
        "warmup_seconds": outcome.warmup_seconds,  # compiling, outside the training clock
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "final_train_loss": loss if math.isfinite(loss) else None,
        "device": _device_name(env),
        "world_size": env.world_size,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "zstandard", "sentencepiece")},
        },
    }


def _device_name(env: DistEnv) -> str:
    """The GPU's name, or the CPU's where Linux tells it."""
    if env.is_cuda:
        return torch.cuda.get_device_name(env.device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _write_metrics(out: Path, metrics: dict[str, object], env: DistEnv) -> None:
    if env.is_main:
        write_atomically(out / METRICS_FILE, json.dumps(metrics, indent=1, allow_nan=False).encode() + b"\n")


def _log_start(config: RunConfig, options: argparse.Namespace, env: DistEnv, val_tokens: int) -> None:
    """Everything the run depends on, in the first lines of its log."""
    _log(env, f"model_params:{num_params(config.model)}")
    _log(env, f"world_size:{env.world_size} device:{_device_name(env)} threads:{torch.get_num_threads()}")
    _log(env, f"train_shards:{len(shard_paths(options.data, 'train'))} val_tokens:{val_tokens}")
    _log(env, f"tokenizer_path:{options.tokenizer}")
    for name, value in _flat(config):
        _log(env, f"{name}:{value}")


def _flat(noun: object, prefix: str = "") -> list[tuple[str, object]]:
    """(dotted name, value) of every field of a config."""
    if not is_dataclass(noun):
        return [(prefix, noun)]
    dotted = f"{prefix}." if prefix else ""
    return [pair for f in fields(noun) for pair in _flat(getattr(noun, f.name), dotted + f.name)]


def _log(env: DistEnv, line: str) -> None:
    if env.is_main:
        print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(RunConfig()))
