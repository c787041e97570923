"""From trained weights to artifacts on disk: the one that ships, and more sizes of the same checkpoint.

Rank 0 quantizes while the others wait; all ranks score. A checkpoint is float32 arrays in numpy's .npz, never a pickle.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pgolf_model.config import ModelConfig, RunConfig
from pgolf_model.distributed import DistEnv, value_of_main
from pgolf_model.errors import UserError
from pgolf_model.evaluate import Score, evaluate_artifact
from pgolf_model.files import CONFIG_ENTRY, write_atomically
from pgolf_model.model.gpt import GPT
from pgolf_model.quant.quantize import check_names
from pgolf_model.shapes import param_shapes
from pgolf_model.ship.bench import QuantBench
from pgolf_model.ship.calibrate import Calibration, calibrate, calibration_batches
from pgolf_model.ship.solve import ship
from pgolf_model.train.progress import PhaseLog


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What an artifact is scored on, as `evaluate_artifact` takes it."""

    val: str
    tokenizer: str
    max_tokens: int


def open_bench(
    state: Mapping[str, Tensor], config: RunConfig, *, data: str, env: DistEnv, phases: PhaseLog
) -> QuantBench:
    """Weights ready to be quantized, calibrated on all ranks where the config needs that.

    Raises:
        UserError: weights that do not fit the model, or training shards that calibration needs and lacks.
    """
    calibration: Calibration | None = None
    if config.quant.needs_calibration:
        phases.enter("calibrating")
        started = time.perf_counter()
        model = GPT(config.model)
        model.load_state_dict(dict(state))
        model.eval().to(env.device)
        batches = calibration_batches(config, model, data=data, env=env)
        calibration = calibrate(model, batches, env, seed=config.seed, tell=phases.tell)
        calibration = replace(calibration, seconds=time.perf_counter() - started)
    return QuantBench(state, config, calibration, env)


def write_shipment(
    path: Path, audit_path: Path, bench: QuantBench | None, env: DistEnv, *, target_bytes: int, code_bytes: int
) -> dict[str, Any]:
    """Quantize and pack on rank 0 into two files while the others wait for them.

    Args:
        bench: read on rank 0 only.
        target_bytes: of code and model; 0 takes the config's bits and clips.
    Returns:
        The audit on rank 0, elsewhere nothing.
    Raises:
        UserError: on every rank, when rank 0 could not quantize or the target cannot be met.
    """
    problem, audit = "", {}
    if env.is_main:
        assert bench is not None
        try:
            shipment = ship(bench, target_bytes=target_bytes, code_bytes=code_bytes)
            write_atomically(path, shipment.artifact)
            audit = shipment.audit
            write_atomically(audit_path, json.dumps(audit, indent=1, allow_nan=False).encode() + b"\n")
        except UserError as error:
            problem = str(error)
    if value_of_main(float(bool(problem)), env):  # also a barrier: nobody reads before the file is whole
        raise UserError(problem or "rank 0 could not quantize")
    return audit


def score_artifact(path: Path, scoring: Scoring, env: DistEnv, phases: PhaseLog) -> tuple[bytes, Score]:
    """An artifact's bytes, read back from its file, and its score; the phase is "scoring" from here on."""
    phases.enter("scoring")
    artifact = path.read_bytes()
    found, _ = evaluate_artifact(
        artifact,
        val=scoring.val,
        tokenizer=scoring.tokenizer,
        env=env,
        max_tokens=scoring.max_tokens,
        tell=phases.tell,
    )
    return artifact, found


def measure_curve(
    bench: QuantBench,
    targets: Sequence[int],
    env: DistEnv,
    *,
    code_bytes: int,
    folder: Path,
    scoring: Scoring,
    keep: bool,
    phases: PhaseLog,
) -> list[dict[str, Any]]:
    """One point for each target: packed, read back, scored. The same on every rank but for the audit's facts.

    Args:
        targets: bytes of code and model; 0 stands for the config's own bits.
        folder: where artifacts are written, as `quantized_TARGET.pgolf`; `keep` leaves them there with their audits.
    Returns:
        A dict of plain values per target: artifact_bytes, val_bpb and more, or `error` where it cannot be met.
    """
    points: list[dict[str, Any]] = []
    for target in targets:
        started = time.perf_counter()
        path, audit_path = (folder / f"quantized_{target}.{kind}" for kind in ("pgolf", "json"))
        try:
            phases.enter("packing")
            audit = write_shipment(path, audit_path, bench, env, target_bytes=target, code_bytes=code_bytes)
            packed = time.perf_counter()
            artifact, found = score_artifact(path, scoring, env, phases)
        except UserError as error:  # no room for the coarsest plan, or a loss that is not finite
            points.append({"target_bytes": target, "error": str(error)})
            continue
        points.append(
            {
                "target_bytes": target,
                "artifact_bytes": len(artifact) + code_bytes,
                "model_bytes": len(artifact),
                "val_bpb": found.val_bpb,
                "val_loss": found.val_loss,
                "tokens": found.tokens,
                "quantize_seconds": packed - started,
                "eval_seconds": time.perf_counter() - packed,
                **short_audit(audit),
            }
        )
        value_of_main(0.0, env)  # a barrier: all have read the file
        if env.is_main and not keep:
            path.unlink()
            audit_path.unlink()
    return points


def short_audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    """The audit without its matrices."""
    return {key: value for key, value in audit.items() if key not in ("tensors", "seconds", "code_bytes")}


def write_checkpoint(path: Path, state: Mapping[str, Tensor], config: RunConfig) -> None:
    """Leave trained float32 weights, and the config that made them, where `read_checkpoint` finds them."""
    text = np.frombuffer(json.dumps(asdict(config)).encode(), np.uint8)
    arrays = {name: tensor.cpu().float().numpy() for name, tensor in state.items()}
    file = BytesIO()
    np.savez(file, allow_pickle=False, **{CONFIG_ENTRY: text}, **arrays)
    write_atomically(path, file.getbuffer())


def read_checkpoint(path: Path, model: ModelConfig) -> dict[str, Tensor]:
    """Float32 weights of a model on the CPU, in `param_shapes` order.

    Raises:
        UserError: not a checkpoint, or not of this model; names the file.
    """
    shapes = param_shapes(model)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            check_names(set(arrays.files) - {CONFIG_ENTRY}, shapes)
            state = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in shapes}
            for name, info in shapes.items():
                if tuple(state[name].shape) != info.shape:
                    raise ValueError(f"{name}: expected shape {info.shape}, got {tuple(state[name].shape)}")
    except (ValueError, BadZipFile, EOFError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a checkpoint of this model ({error})") from None
    return state
