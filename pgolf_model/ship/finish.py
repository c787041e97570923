"""What follows training: the weights are scored, packed and scored again; the metrics of each step."""

from __future__ import annotations

import hashlib
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from pgolf_model.config import RunConfig
from pgolf_model.data.batches import ByteTable
from pgolf_model.distributed import DistEnv
from pgolf_model.evaluate import Score, score
from pgolf_model.files import ARTIFACT_FILE, AUDIT_FILE
from pgolf_model.model.gpt import GPT
from pgolf_model.shapes import num_params
from pgolf_model.ship.bench import QuantBench
from pgolf_model.ship.checkpoint import (
    Scoring,
    measure_curve,
    open_bench,
    score_artifact,
    short_audit,
    write_shipment,
)
from pgolf_model.train.loop import TrainOutcome
from pgolf_model.train.progress import PhaseLog


def run_facts(config: RunConfig, env: DistEnv, outcome: TrainOutcome) -> dict[str, object]:
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
        "device": device_name(env),
        "world_size": env.world_size,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "zstandard", "sentencepiece")},
        },
    }


def score_weights(
    state: dict[str, Tensor], config: RunConfig, tokens: Tensor, table: ByteTable, env: DistEnv, phases: PhaseLog
) -> Score:
    """The score of the trained weights before quantization."""
    model = GPT(config.model)
    model.load_state_dict(state)
    return score(model.eval().to(env.device), tokens, table, config.eval, env, tell=phases.tell)


def pack_weights(
    state: dict[str, Tensor], config: RunConfig, out: Path, data: str, code_bytes: int, env: DistEnv, phases: PhaseLog
) -> tuple[QuantBench, dict[str, object]]:
    """Calibrate, quantize and pack as the config says, into the artifact and its audit; (bench, metrics of it).

    Raises:
        UserError: the weights cannot be quantized, or do not fit the target.
    """
    started = time.perf_counter()
    bench = open_bench(state, config, data=data, env=env, phases=phases)
    phases.enter("packing")
    audit = write_shipment(
        out / ARTIFACT_FILE,
        out / AUDIT_FILE,
        bench,
        env,
        target_bytes=config.quant.target_bytes,
        code_bytes=code_bytes,
    )
    return bench, {
        "calibrate_seconds": audit.get("calibration_seconds", 0.0),
        "quantize_seconds": time.perf_counter() - started,  # calibrating and packing included
        "quant": short_audit(audit),
    }


def score_packed(
    bench: QuantBench, config: RunConfig, out: Path, scoring: Scoring, code_bytes: int, env: DistEnv, phases: PhaseLog
) -> dict[str, object]:
    """Metrics of the artifact in `out`, read back, and of the other sizes that the config asks for."""
    started = time.perf_counter()
    artifact, final = score_artifact(out / ARTIFACT_FILE, scoring, env, phases)
    eval_seconds = time.perf_counter() - started
    points = measure_curve(
        bench,
        config.quant.curve_bytes,
        env,
        code_bytes=code_bytes,
        folder=out,
        scoring=scoring,
        keep=False,
        phases=phases,
    )
    log_line(env, f"Serialized model pgolf: {len(artifact)} bytes")
    log_line(env, f"Code size: {code_bytes} bytes")
    log_line(env, f"Total submission size pgolf: {len(artifact) + code_bytes} bytes")
    log_line(env, f"final val_loss:{final.val_loss:.8f} val_bpb:{final.val_bpb:.8f} eval_time:{eval_seconds:.1f}s")
    return {
        "val_bpb": final.val_bpb,
        "val_loss": final.val_loss,
        "tokens": final.tokens,
        "bytes": final.bytes,
        "model_bytes": len(artifact),
        "code_bytes": code_bytes,
        "artifact_bytes": len(artifact) + code_bytes,
        "artifact_sha256": hashlib.sha256(artifact).hexdigest(),
        "eval_seconds": eval_seconds,
        "curve": [[point["artifact_bytes"], point["val_bpb"]] for point in points if "val_bpb" in point],
        "curve_points": points,
    }


def device_name(env: DistEnv) -> str:
    """The GPU's name, or the CPU's where Linux tells it."""
    if env.is_cuda:
        return torch.cuda.get_device_name(env.device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def log_line(env: DistEnv, line: str) -> None:
    """Print on rank 0, at once."""
    if env.is_main:
        print(line, flush=True)
