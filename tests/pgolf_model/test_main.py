"""The shipped command line: what it leaves behind, what it says, and how it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from submissions import CONFIG

from pgolf_model.codec.pack import unpack_model
from pgolf_model.config import EvalConfig, QuantConfig, RunConfig
from pgolf_model.errors import EXIT_DISK_FULL
from pgolf_model.files import FAULT_FILE, METRICS_FILE, PROGRESS_FILE
from pgolf_model.main import main
from trials.spec import SeedRun

Train = Callable[..., dict[str, object]]


@pytest.fixture
def train(tiny_data: Path, tmp_path: Path) -> Train:
    """Train in `tmp_path` and return the metrics."""

    def run(config: RunConfig = CONFIG, *options: str) -> dict[str, object]:
        assert main(config, ["--data", str(tiny_data), "--out", str(tmp_path), *options]) == 0
        metrics: dict[str, object] = json.loads((tmp_path / "metrics.json").read_text())
        return metrics

    return run


def evaluate(artifact: Path, data: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    capsys.readouterr()
    tokenizer = str(data / "tokenizer.model")
    assert main(RunConfig(), ["--evaluate", str(artifact), "--val", str(data), "--tokenizer", tokenizer, *options]) == 0
    report: dict[str, object] = json.loads(capsys.readouterr().out)  # exactly one document
    return report


def test_a_run_leaves_its_artifact_and_metrics(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metrics describe the file on disk, and hold all that a trial result wants to know."""
    metrics = train()
    artifact = (tmp_path / "final_model.pgolf").read_bytes()
    assert metrics["status"] == "complete"
    assert metrics["model_bytes"] == len(artifact)
    assert metrics["artifact_sha256"] == hashlib.sha256(artifact).hexdigest()
    assert metrics["artifact_bytes"] == metrics["model_bytes"] + metrics["code_bytes"]  # type: ignore[operator]
    assert set(SeedRun.__dataclass_fields__) <= set(metrics)
    assert metrics["tokens_seen"] == 3 * 256
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    log = capsys.readouterr().out
    assert f"final val_loss:{metrics['val_loss']:.8f} val_bpb:{metrics['val_bpb']:.8f} " in log
    assert f"Total submission size pgolf: {metrics['artifact_bytes']} bytes" in log
    assert "train.matrix_lr:0.04\n" in log


def test_seed_option_replaces_the_config_seed(train: Train) -> None:
    """The same seed gives the same artifact; another gives another."""
    digests = [train(replace(CONFIG, seed=1), "--seed", seed)["artifact_sha256"] for seed in ("2", "2", "3")]
    assert digests[0] == digests[1] != digests[2]


def test_only_the_leading_tokens_are_scored_when_the_config_says_so(train: Train) -> None:
    """A proxy's score covers whole windows within max_tokens."""
    assert train(replace(CONFIG, eval=EvalConfig(seq_len=32, batch_tokens=64, max_tokens=100)))["tokens"] == 96


def test_evaluating_the_artifact_gives_the_score_of_the_run(
    train: Train, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the same tokens to the last bit; without --max-tokens over all shards, whatever the run scored."""
    metrics = train()
    same = evaluate(tmp_path / "final_model.pgolf", tiny_data, capsys, "--max-tokens", "5000")
    for key in ("val_bpb", "val_loss", "tokens", "bytes", "model_bytes", "num_params"):
        assert same[key] == metrics[key], key
    everything = evaluate(tmp_path / "final_model.pgolf", tiny_data, capsys)
    assert everything["tokens"] > metrics["tokens"]  # type: ignore[operator]


def test_the_artifact_does_not_carry_the_proxys_shortcut(train: Train, tmp_path: Path) -> None:
    train()
    assert unpack_model((tmp_path / "final_model.pgolf").read_bytes()).eval_config.max_tokens == 0


def test_a_diverged_run_is_a_result(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It exits 0, says why, and its metrics are JSON without NaN and without a score."""
    metrics = train(replace(CONFIG, train=replace(CONFIG.train, embed_lr=1e38, scalar_lr=1e38)))
    assert metrics["status"] == "diverged"
    assert metrics["error"]
    assert "val_bpb" not in metrics
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert "diverged: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "error: nowhere/tokenizer.model: not a SentencePiece model"),
        (["--data", "{data}", "--tokenizer", "nothing.model"], "error: nothing.model: not a SentencePiece model"),
        (["--data", "{data}", "--val", "nothing*.bin"], "error: no validation shards match nothing*.bin"),
        (["--data", "{data}", "--evaluate", "nothing.pgolf"], "No such file or directory: 'nothing.pgolf'"),
        (["--data", "{data}", "--evaluate", "{data}/manifest.json"], "error: not a pgolf artifact"),
    ],
)
def test_bad_input_is_an_error_a_hint_and_exit_1(
    options: list[str],
    message: str,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(CONFIG, [option.format(data=tiny_data) for option in options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert [line.partition(": ")[0] for line in error.splitlines()] in (["error"], ["error", "hint"])
    assert not (tmp_path / "metrics.json").exists()


def test_paths_come_from_the_environment_and_nothing_else_does(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_PATH", str(tiny_data))
    monkeypatch.setenv("SEED", "99")
    assert main(CONFIG, []) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["seed"] == CONFIG.seed


def test_phases_are_told_in_their_order(train: Train, tmp_path: Path) -> None:
    """A line without a step when each phase begins, with the seconds of the whole run; steps lie between them."""
    train(replace(CONFIG, quant=QuantConfig(method="gptq", calibration_tokens=256)))
    lines = [json.loads(line) for line in (tmp_path / PROGRESS_FILE).read_text().splitlines()]
    told = [line.get("phase", "a step") for line in lines]
    ways = ["training", "a step", "scoring", "calibrating", "packing", "scoring"]
    assert [way for i, way in enumerate(told) if not i or way != told[i - 1]] == ways
    phases = [line for line in lines if "phase" in line]
    assert all({"phase", "seconds"} <= set(line) <= {"phase", "seconds", "fraction"} for line in phases)
    assert all(0 <= line.get("fraction", 0) < 1 for line in phases)
    seconds = [line["seconds"] for line in phases]
    assert seconds == sorted(seconds)


class OutOfMemoryOnCuda(torch.AcceleratorError):
    """As a kernel launch raises it, which the CPU build of torch cannot."""

    error_code = 2


class IllegalAddressOnCuda(torch.AcceleratorError):
    """Any other fault of the device."""

    error_code = 700


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (OutOfMemoryOnCuda("CUDA error: out of memory"), True),
        (IllegalAddressOnCuda("CUDA error: an illegal memory access was encountered"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_a_run_without_memory_leaves_word_of_it(
    error: Exception, is_told: bool, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error goes on with its traceback; only a lack of memory is told in the folder."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pgolf_model.main.train", fail)
    with pytest.raises(type(error)):
        main(CONFIG, ["--data", str(tiny_data), "--out", str(tmp_path)])
    assert (tmp_path / FAULT_FILE).exists() == is_told
    if is_told:
        assert json.loads((tmp_path / FAULT_FILE).read_text()) == {"fault": "oom"}
    assert not (tmp_path / METRICS_FILE).exists()


def test_a_full_disk_has_an_exit_code_of_its_own(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no fault of the run; the message names the file or, where that is unknown, the folder."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(CONFIG, ["--data", str(tiny_data), "--out", str(tmp_path)]) == EXIT_DISK_FULL == 74
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith(f"error: no space left on the device ({tmp_path}")
    assert error[1] == "hint: free some space, then run it again"
