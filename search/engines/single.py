"""One trial outside any study: the same folder, script and worker that a study uses."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError
from search.bundle.script import bundle
from search.corpus.dataset import Dataset
from search.engines.machine import worker_command, worker_environment
from trials.files import read_noun, write_json
from trials.spec import LOG_FILE, RESULT_FILE, SCRIPT_FILE, SPEC_FILE, TrialResult, TrialSpec


def run_single(
    config: RunConfig,
    *,
    dataset: Dataset,
    folder: Path,
    seeds: tuple[int, ...],
    cpus: float,
    gpus: int,
    keep_checkpoint: bool = False,
) -> TrialResult:
    """Run `config` once per seed in `folder`, showing its log; a folder with a result answers at once.

    Raises:
        UserError: the folder holds another trial.
    """
    vocab_size = dataset.manifest.vocab_size
    if config.model.vocab_size != vocab_size:
        raise UserError(
            f"the configuration has vocab_size {config.model.vocab_size}, the shards in {dataset.folder} have "
            f"{vocab_size}",
            hint=f"set model.vocab_size = {vocab_size} or take another dataset",
        )
    spec = TrialSpec(
        study="",
        rung="single",
        number=0,
        params={},
        config=replace(config, seed=seeds[0]),
        seeds=seeds,
        data_dir=str(dataset.folder),
        tokenizer=str(dataset.tokenizer),
        cpus=cpus,
        gpus=float(gpus),
        processes=max(1, gpus),
        timeout_seconds=86_400.0,
        keep_checkpoint=keep_checkpoint,
    )
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SPEC_FILE).exists() and read_noun(TrialSpec, folder / SPEC_FILE) != spec:
        raise UserError(f"{folder} holds another trial", hint="take another --out or remove it")
    if not (folder / RESULT_FILE).exists():
        (folder / SCRIPT_FILE).write_bytes(bundle(spec.config))
        write_json(folder / SPEC_FILE, spec)
        process = subprocess.Popen(worker_command(folder), env=worker_environment(), start_new_session=True)
        try:
            _show_logs(process, [folder / f"seed{seed}" / LOG_FILE for seed in seeds])
        finally:
            process.terminate()
            process.wait()
    if not (folder / RESULT_FILE).exists():
        return TrialResult(status="failed", fault="lost", error="the worker left no result")
    return read_noun(TrialResult, folder / RESULT_FILE)


def _show_logs(process: subprocess.Popen[bytes], logs: list[Path]) -> None:
    """Copy the script's output to stderr as it appears."""
    shown = [0] * len(logs)
    running = True
    while running:
        running = process.poll() is None
        for i, log in enumerate(logs):
            if log.exists():
                with log.open("rb") as file:
                    file.seek(shown[i])
                    new = file.read()
                sys.stderr.write(new.decode("utf-8", errors="replace"))
                sys.stderr.flush()
                shown[i] += len(new)
        time.sleep(0.2 if running else 0)
