"""The command line of the shipped script: train and leave an artifact with its metrics, score an artifact, or quantize
a checkpoint to any size."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import torch

from pgolf_model.config import RunConfig
from pgolf_model.data.shards import shard_paths
from pgolf_model.distributed import DistEnv, dist_env_from_environ, process_group
from pgolf_model.errors import EXIT_DISK_FULL, UserError
from pgolf_model.evaluate import evaluate_artifact, validation_set
from pgolf_model.files import CHECKPOINT_FILE, FAULT_FILE, METRICS_FILE, write_atomically
from pgolf_model.shapes import num_params
from pgolf_model.ship.checkpoint import (
    Scoring,
    measure_curve,
    open_bench,
    read_checkpoint,
    write_checkpoint,
)
from pgolf_model.ship.finish import device_name, log_line, pack_weights, run_facts, score_packed, score_weights
from pgolf_model.train.loop import train
from pgolf_model.train.progress import PhaseLog

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, the `error_code` of a torch.AcceleratorError


def main(config: RunConfig, argv: list[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit code.

    It is 0 when done, a diverged run included; EXIT_DISK_FULL when a file found no space; 1 after an `error:` line.
    Every other exception goes on to the caller: Python prints its traceback and exits with 1.

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
                with _memory_faults_in(Path(options.out)):
                    _train_and_score(replace(config, seed=options.seed), options, env)
    except UserError as error:
        print(error.lines(), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        message, hint, exit_code = str(error), "", 1
        if error.errno == errno.ENOSPC:
            message = f"no space left on the device ({error.filename or options.out})"
            hint, exit_code = "free some space, then run it again", EXIT_DISK_FULL
        print(UserError(message, hint=hint).lines(), file=sys.stderr)
        return exit_code
    return 0


@contextmanager
def _memory_faults_in(folder: Path) -> Iterator[None]:
    """Leave FAULT_FILE in the folder when the block runs out of memory, on whatever rank; the error goes on."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError) as error:
        if not isinstance(error, torch.AcceleratorError) or getattr(error, "error_code", 0) == CUDA_OUT_OF_MEMORY:
            write_atomically(folder / FAULT_FILE, b'{"fault": "oom"}\n')
        raise


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
            "device": device_name(env),
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
    phases = PhaseLog(None)
    trained = score_weights(state, config, tokens, table, env, phases)
    bench = open_bench(state, config, data=options.data, env=env, phases=phases)
    code_bytes = Path(__file__).stat().st_size
    scoring = Scoring(val=options.val, tokenizer=options.tokenizer, max_tokens=max_tokens)
    points = measure_curve(
        bench, targets, env, code_bytes=code_bytes, folder=out, scoring=scoring, keep=True, phases=phases
    )
    if env.is_main:
        report = {
            "pre_quant_val_bpb": trained.val_bpb,
            "pre_quant_val_loss": trained.val_loss,
            "code_bytes": code_bytes,
            "num_params": num_params(config.model),
            "points": points,
            "device": device_name(env),
            "threads": torch.get_num_threads(),
            "seconds": time.perf_counter() - started,
        }
        print(json.dumps(report, allow_nan=False))


def _train_and_score(config: RunConfig, options: argparse.Namespace, env: DistEnv) -> None:
    """Train, pack, read the artifact back, score it; rank 0 leaves the artifact and its metrics in `--out`."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    phases = PhaseLog(out if env.is_main else None)
    scoring = Scoring(val=options.val, tokenizer=options.tokenizer, max_tokens=config.eval.max_tokens)
    tokens, table = validation_set(
        options.val,
        options.tokenizer,
        vocab_size=config.model.vocab_size,
        seq_len=config.eval.seq_len,
        max_tokens=config.eval.max_tokens,
    )
    _log_start(config, options, env, len(tokens) - 1)
    outcome = train(config, data=options.data, env=env, out_dir=out, phases=phases)
    metrics = run_facts(config, env, outcome)
    code_bytes = Path(__file__).stat().st_size  # the bundle's own file; bare main.py when run from the package
    if options.keep_checkpoint and env.is_main:
        write_checkpoint(out / CHECKPOINT_FILE, outcome.state, config)
    problem = f"the loss was not finite after step {outcome.steps}" if outcome.diverged else ""
    if not problem:
        # The data was checked before training, so an error here is about the weights: not finite, or too large.
        try:
            phases.enter("scoring")
            trained = score_weights(outcome.state, config, tokens, table, env, phases)
            log_line(env, f"pre-quantization val_loss:{trained.val_loss:.4f} val_bpb:{trained.val_bpb:.4f}")
            bench, packed = pack_weights(outcome.state, config, out, options.data, code_bytes, env, phases)
        except UserError as error:
            problem = str(error)
    if problem:
        log_line(env, f"diverged: {problem}")
        metrics = {"status": "diverged", "error": problem, **metrics}
    else:
        metrics = {
            "status": "complete",
            **metrics,
            "pre_quant_val_bpb": trained.val_bpb,
            "pre_quant_val_loss": trained.val_loss,
            **packed,
            **score_packed(bench, config, out, scoring, code_bytes, env, phases),
        }
    metrics["total_seconds"] = phases.seconds
    if env.is_main:
        write_atomically(out / METRICS_FILE, json.dumps(metrics, indent=1, allow_nan=False).encode() + b"\n")


def _log_start(config: RunConfig, options: argparse.Namespace, env: DistEnv, val_tokens: int) -> None:
    """Everything the run depends on, in the first lines of its log."""
    log_line(env, f"model_params:{num_params(config.model)}")
    log_line(env, f"world_size:{env.world_size} device:{device_name(env)} threads:{torch.get_num_threads()}")
    log_line(env, f"train_shards:{len(shard_paths(options.data, 'train'))} val_tokens:{val_tokens}")
    log_line(env, f"tokenizer_path:{options.tokenizer}")
    for name, value in _flat(config):
        log_line(env, f"{name}:{value}")


def _flat(noun: object, prefix: str = "") -> list[tuple[str, object]]:
    """(dotted name, value) of every field of a config."""
    if not is_dataclass(noun):
        return [(prefix, noun)]
    dotted = f"{prefix}." if prefix else ""
    return [pair for f in fields(noun) for pair in _flat(getattr(noun, f.name), dotted + f.name)]


if __name__ == "__main__":
    raise SystemExit(main(RunConfig()))
