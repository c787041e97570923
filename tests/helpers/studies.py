"""Study folders for tests, written as the driver and the worker write them, with numbers that could be real."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from pgolf_model.config import RunConfig
from pgolf_model.files import PROGRESS_FILE
from search.study.config import STUDY_FILE, Caps, StudyConfig
from trials.files import write_json
from trials.rungs import Rung
from trials.spec import RESULT_FILE, SPEC_FILE, SeedRun, TrialResult, TrialSpec

CAP = 16_000_000


def make_study(folder: Path, *, rungs: tuple[Rung, ...] | None = None, name: str = "demo") -> StudyConfig:
    """A study of two rungs in `folder`, its study.json written."""
    study = StudyConfig(
        name=name,
        space="baseline",
        data=("/data/fineweb",),
        rungs=rungs or (Rung(name="proxy", steps=500, trials=16, gpus=1), Rung(name="full", seconds=600.0, gpus=1)),
        caps=Caps(artifact_bytes=CAP),
        folder=str(folder),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STUDY_FILE, study)
    return study


def make_spec(study: StudyConfig, trial_id: str, **changes: object) -> TrialSpec:
    """The spec of `rung/0007`."""
    rung, number = trial_id.split("/")
    spec = TrialSpec(
        study=study.name,
        rung=rung,
        number=int(number),
        params={"num_layers": 9, "matrix_lr": 0.04},
        config=RunConfig(),
        seeds=(1337,),
        data_dir="/data/fineweb",
        tokenizer="/data/fineweb/tokenizer.model",
        gpus=1.0,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def make_run(val_bpb: float, artifact_bytes: int, **changes: object) -> SeedRun:
    """One seed's measurements around a score and a size."""
    run = SeedRun(
        seed=1337,
        val_bpb=val_bpb,
        val_loss=val_bpb * 1.69,
        pre_quant_val_bpb=val_bpb - 0.006,
        model_bytes=artifact_bytes - 52_000,
        code_bytes=52_000,
        steps=500,
        tokens_seen=500 * 524_288,
        num_params=17_059_912,
        train_seconds=590.0,
        eval_seconds=41.0,
        total_seconds=660.0,
        peak_memory_bytes=10**10,
        artifact_sha256="0" * 64,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def complete(val_bpb: float, artifact_bytes: int, **changes: object) -> TrialResult:
    """A complete result of one seed."""
    return TrialResult(status="complete", runs=(make_run(val_bpb, artifact_bytes, **changes),), seconds=660.0)


def add_trial(study: StudyConfig, trial_id: str, result: TrialResult | None = None, **changes: object) -> Path:
    """Write a trial's folder; without a result it has not ended."""
    folder = study.dir / trial_id
    folder.mkdir(parents=True)
    write_json(folder / SPEC_FILE, make_spec(study, trial_id, **changes))
    if result:
        write_json(folder / RESULT_FILE, result)
    return folder


def add_progress(folder: Path, *, step: int, progress: float, seconds: float, seed: int = 1337) -> None:
    """Append a record to a seed's progress.jsonl, and the torn line that a kill leaves."""
    (folder / f"seed{seed}").mkdir(exist_ok=True)
    record = {
        "step": step,
        "train_loss": 2.41,
        "seconds": seconds,
        "progress": progress,
        "lr_multiplier": 1.0,
        "tokens_seen": step * 524_288,
        "ms_per_step": 121.7,
    }
    with (folder / f"seed{seed}" / PROGRESS_FILE).open("a") as file:
        file.write(json.dumps(record) + '\n{"step": ')


def make_realistic_study(folder: Path, *, name: str = "8xh100-depth") -> StudyConfig:
    """16 scored proxies (one far off, two over the cap), 3 infeasible, 1 diverged, 1 failed, 5 full runs."""
    rng = random.Random(7)
    rungs = (
        Rung(name="proxy", steps=1200, trials=16, gpus=0.25),
        Rung(name="full", seconds=600.0, gpus=8, processes=8, seeds=(1337, 42, 2025)),
    )
    study = make_study(folder, rungs=rungs, name=name)
    scored: list[tuple[float, int, dict[str, object], int]] = []
    for number in range(21):
        params: dict[str, object] = {
            "num_layers": rng.randint(8, 13),
            "model_dim": rng.choice([384, 448, 512, 576]),
            "mlp_mult": rng.choice([2.0, 3.0, 4.0]),
            "loop_repeats": rng.randint(0, 2),
            "matrix_lr": round(10 ** rng.uniform(-2.2, -0.9), 5),
            "embed_lr": round(10 ** rng.uniform(-1.8, -0.5), 5),
            "matrix_weight_decay": round(rng.uniform(0, 0.15), 4),
            "warmdown_fraction": round(rng.uniform(0.1, 0.8), 3),
            "attn_bits": rng.randint(4, 8),
            "mlp_bits": rng.randint(4, 7),
            "embed_bits": rng.choice([6, 8]),
            "qk_gain_init": round(rng.uniform(1.0, 5.0), 2),
            "ema": rng.choice([True, False]),
            "precision": rng.choice(["bfloat16", "float32"]),
        }
        label = ""
        if number == 0:
            label = "control"
            params |= {"num_layers": 9, "model_dim": 512, "mlp_mult": 2.0, "loop_repeats": 0, "matrix_lr": 0.04}
            params |= {"attn_bits": 6, "mlp_bits": 6}
        size = int(params["num_layers"] * params["model_dim"] ** 2 * (2.5 + 2 * params["mlp_mult"]) * 0.62)  # type: ignore[operator]
        size = int(size * (params["mlp_bits"] + 1) / 7 * 0.94)  # type: ignore[operator]
        size = min(max(size, 8_600_000 + number * 90_000), 17_900_000)
        size = 14_620_000 if number == 0 else size
        predicted = int(size * rng.uniform(0.97, 1.025))
        forecast = {
            "predicted_bytes": predicted,
            "predicted_low": int(predicted * 0.975),
            "predicted_high": int(predicted * 1.025),
        }
        trial = f"proxy/{number:04d}"
        shared = {"params": params, "label": label, "gpus": 0.25, **forecast}
        if number in (5, 11, 17):
            over = int(CAP * rng.uniform(1.04, 1.3))
            shared |= {"predicted_bytes": over, "predicted_low": over - 300_000, "predicted_high": over + 300_000}
            error = f"forecast artifact_bytes {over:,} is over the cap {CAP:,}"
            add_trial(study, trial, TrialResult(status="infeasible", error=error), **shared)
            continue
        if number == 8:
            error = "loss is nan at step 212; lower matrix_lr (0.118)"
            add_trial(study, trial, TrialResult(status="diverged", error=error, seconds=31.0), **shared)
            continue
        if number == 13:
            error = (
                'Traceback (most recent call last):\n  File "worker.py", line 91, in train\n'
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB"
            )
            add_trial(study, trial, TrialResult(status="failed", error=error, seconds=12.0), **shared)
            continue
        bpb = 1.335 - 0.012 * (size - 12e6) / 1e6 + abs(params["matrix_lr"] - 0.03) * 0.9 + rng.gauss(0, 0.012)  # type: ignore[operator]
        if number == 0:
            bpb = 1.3712
        if number == 15:
            bpb = 8.21
        result = complete(bpb, size, steps=1200, train_seconds=212.0, num_params=int(size * 1.25))
        add_trial(study, trial, result, **shared)
        if size < CAP and bpb < 3:
            scored.append((bpb, number, params, size))
    scored.sort()
    promoted = scored[:4] + [s for s in scored[4:] if s[1] == 0]
    for number, (bpb, parent, params, size) in enumerate(promoted):
        base = bpb - 0.118 + rng.gauss(0, 0.006)
        size = min(int(size * 1.03), CAP - 40_000 - number * 7000)
        runs = tuple(
            make_run(
                base + rng.gauss(0, 0.0008),
                size - rng.randint(0, 20_000),
                seed=seed,
                steps=rng.randint(4800, 5100),
                train_seconds=600.0 - rng.random(),
                num_params=int(size * 1.25),
                tokens_seen=4900 * 524_288,
            )
            for seed in (1337, 42, 2025)
        )
        add_trial(
            study,
            f"full/{number:04d}",
            TrialResult(status="complete", runs=runs, seconds=2100.0),
            parent=parent,
            params=params,
            label="control" if parent == 0 else "",
            seeds=(1337, 42, 2025),
            gpus=8.0,
            predicted_bytes=int(size * rng.uniform(0.985, 1.01)),
            predicted_low=int(size * 0.975),
            predicted_high=int(size * 1.02),
        )
    return study
