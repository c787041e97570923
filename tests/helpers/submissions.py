"""A tiny configuration, and a tiny finished study of real runs with it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pgolf_model.config import Budget, EvalConfig, ModelConfig, RunConfig, TrainConfig
from search.bundle.script import bundle
from search.study.config import Caps, StudyConfig
from trials.files import write_json
from trials.run import run_trial
from trials.rungs import Rung
from trials.spec import RESULT_FILE, SCRIPT_FILE, SPEC_FILE, TrialSpec

SEEDS = (11, 12)
CONFIG = RunConfig(
    model=ModelConfig(
        vocab_size=512, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, loop_end=1, loop_repeats=1
    ),
    train=TrainConfig(batch_tokens=256, seq_len=32, micro_batch_tokens=128, precision="float32"),
    eval=EvalConfig(seq_len=32, batch_tokens=1024, max_tokens=5000),
    budget=Budget(steps=3),
    seed=SEEDS[0],
)


@cache
def finished_study(data: Path) -> StudyConfig:
    """A study beside `data` whose one trial, top/0000, really ran, once per seed."""
    study = StudyConfig(
        name="tiny",
        space="baseline",
        data=(str(data),),
        rungs=(Rung(name="top", steps=3, trials=1, seeds=SEEDS, val_tokens=CONFIG.eval.max_tokens),),
        caps=Caps(artifact_bytes=100_000),
        folder=str(data.parent / "tiny-study"),
    )
    folder = study.dir / "top" / "0000"
    folder.mkdir(parents=True)
    spec = TrialSpec(
        study=study.name,
        rung="top",
        number=0,
        label="control",
        params={"num_layers": 2, "matrix_lr": 0.04},
        config=CONFIG,
        seeds=SEEDS,
        data_dir=str(data),
        tokenizer=str(data / "tokenizer.model"),
        timeout_seconds=120.0,
    )
    (folder / SCRIPT_FILE).write_bytes(bundle(CONFIG))
    write_json(folder / SPEC_FILE, spec)
    write_json(folder / RESULT_FILE, run_trial(folder))
    return study
