"""A checkpoint is a curve: what a run leaves, what `--quantize` and `pgolf quantize` make of it, where it is drawn."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from studies import add_trial, complete, make_run, make_study
from submissions import CONFIG

from pgolf_model.codec.pack import stream_bytes, unpack_model
from pgolf_model.config import QuantConfig, RunConfig
from pgolf_model.files import CHECKPOINT_FILE
from pgolf_model.main import main
from pgolf_model.model.gpt import build_model
from pgolf_model.ship.checkpoint import read_checkpoint, write_checkpoint
from search.bundle.script import bundle
from search.commands.quantize import quantize as quantize_command
from search.look.analysis import analyse
from search.report.pareto_figure import pareto_figure
from search.study.ledger import read_records
from search.submission.checkpoint import changed, find_source
from trials.files import read_noun, write_json
from trials.spec import SCRIPT_FILE, SPEC_FILE, SeedRun, TrialResult, TrialSpec

CODE_BYTES = Path(inspect.getfile(main)).stat().st_size  # as the package counts: of main.py alone
TARGET, SMALL, LARGE = (CODE_BYTES + model for model in (7_432, 5_932, 8_432))
QUANT = QuantConfig(
    embed_bits=8, attn_bits=(8,), mlp_bits=(8,), method="gptq", calibration_tokens=256, target_bytes=TARGET,
    curve_bytes=(SMALL, LARGE, 1_000),
)  # fmt: skip
CURVED = replace(CONFIG, quant=QUANT)


@pytest.fixture(scope="module")
def run_dir(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial's folder in which the package trained CURVED and kept its checkpoint."""
    trial = tmp_path_factory.mktemp("curve") / "trial"
    out = trial / "seed11"
    options = ["--data", str(tiny_data), "--out", str(out), "--keep-checkpoint"]
    assert main(CURVED, options) == 0
    spec = TrialSpec(
        study="", rung="single", number=0, params={}, config=CURVED, seeds=(11,), data_dir=str(tiny_data),
        tokenizer=str(tiny_data / "tokenizer.model"), keep_checkpoint=True,
    )  # fmt: skip
    write_json(trial / SPEC_FILE, spec)
    (trial / SCRIPT_FILE).write_bytes(bundle(CURVED))
    return trial


def test_a_run_with_a_target_fills_it_and_leaves_its_curve(run_dir: Path) -> None:
    """The artifact ends just below the target; every other size was packed and scored; the audit lies beside it."""
    out = run_dir / "seed11"
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0.998 * TARGET <= metrics["artifact_bytes"] <= TARGET
    audit = json.loads((out / "quant.json").read_text())
    artifact = (out / "final_model.pgolf").read_bytes()
    assert audit["bytes"] == metrics["quant"]["bytes"] == stream_bytes(artifact)
    assert sum(audit["bytes"].values()) == len(artifact)
    assert metrics["quantize_seconds"] >= metrics["calibrate_seconds"] > 0
    assert audit["calibration_tokens"] == 256
    assert audit["without_hessian"] == []
    (small, low), (large, high) = metrics["curve"]
    assert 0.998 * SMALL <= small <= SMALL
    assert 0.998 * LARGE <= large <= LARGE
    assert metrics["pre_quant_val_bpb"] - 0.02 < high < low + 0.01  # three steps of training: all sizes are alike
    assert "the smallest artifact is" in metrics["curve_points"][2]["error"]
    run = SeedRun(**{key: metrics[key] for key in SeedRun.__dataclass_fields__})
    assert run.artifact_bytes == metrics["artifact_bytes"]
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.npz", "final_model.pgolf", "metrics.json", "progress.jsonl", "quant.json",
    ]  # fmt: skip


def test_a_checkpoint_comes_back_exactly_and_foreign_files_are_refused(tmp_path: Path) -> None:
    model = build_model(CONFIG.model, seed=3)
    state = {name: weight.detach() for name, weight in model.state_dict().items()}
    path = tmp_path / "checkpoint.npz"
    write_checkpoint(path, state, CONFIG)
    back = read_checkpoint(path, CONFIG.model)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(ValueError, match=r"checkpoint.npz: not a checkpoint of this model \(tensors do not match"):
        read_checkpoint(path, replace(CONFIG.model, num_layers=3))
    np.savez(tmp_path / "pickle.npz", **{"embed.weight": np.array([{}], dtype=object)})
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "torn.npz").write_bytes(path.read_bytes()[:1000])
    for name in ("pickle", "text", "torn"):
        with pytest.raises(ValueError, match=f"{name}.npz: not a checkpoint"):
            read_checkpoint(tmp_path / f"{name}.npz", CONFIG.model)


def test_the_trials_own_script_quantizes_its_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    """`pgolf quantize TRIAL`: artifacts of the sizes asked for, their audits, one JSON document."""
    out = tmp_path / "sizes"
    targets = [len(bundle(CURVED)) + model for model in (8_500, 6_500)]
    sizes = [word for target in targets for word in ("--bytes", str(target))]
    words = [sys.executable, "-m", "search.cli", "quantize", str(run_dir), *sizes]
    done = subprocess.run([*words, "--out", str(out), "--json"], text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["code_bytes"] == len(bundle(CURVED))
    for target, point in zip(targets, report["points"], strict=True):
        artifact = Path(point["artifact"]).read_bytes()
        assert 0.998 * target <= len(artifact) + report["code_bytes"] == point["artifact_bytes"] <= target
        assert json.loads((out / f"quantized_{target}.json").read_text())["model_bytes"] == len(artifact)
        assert unpack_model(artifact).model == CONFIG.model
        assert point["tokens"] == 4992  # the trial's own subset, in whole windows
        assert point["bits_per_weight"] == pytest.approx(8 * len(artifact) / report["num_params"])
    metrics = json.loads((run_dir / "seed11" / "metrics.json").read_text())
    assert report["pre_quant_val_bpb"] == pytest.approx(metrics["pre_quant_val_bpb"], abs=1e-6)


def test_a_lone_checkpoint_is_quantized_by_this_version(
    run_dir: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It carries its config; settings can be changed; without a size its own bits are taken; a table is printed."""
    path = tmp_path / "lone.npz"
    path.write_bytes((run_dir / "seed11" / CHECKPOINT_FILE).read_bytes())
    monkeypatch.chdir(tmp_path)
    changes = ["--set", "target_bytes=0", "--set", "mlp_bits=[4]", "--set", "method=round", "--max-tokens", "1000"]
    answer = CliRunner().invoke(
        quantize_command, [str(path), "--data", str(tiny_data), *changes], catch_exceptions=False
    )
    lines = answer.stdout.splitlines()
    assert "parameters" in lines[0]
    assert lines[1].split()[:3] == ["target", "bytes", "val_bpb"]
    assert lines[2].split()[:2] == ["as", "is"]
    assert [path.name for path in tmp_path.iterdir()] == ["lone.npz"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.npz"], "nowhere.npz: no such checkpoint or trial folder"),
        (["{trial}", "--set", "methd=gptq"], "--set: unknown key: 'methd'; did you mean 'method'"),
        (["{trial}", "--set", "method"], "--set method: expected KEY=VALUE"),
        (["{trial}", "--set", "method=magic"], "expected one of 'round', 'gptq', got 'magic'"),
        (["{empty}"], "no checkpoint.npz in it; train with --keep-checkpoint"),
        (["{empty}/lone.npz"], "it is not known which dataset this was trained on; give --data DIR"),
        (["{trial}", "--bytes", "900"], "the smallest artifact is"),
    ],
)
def test_what_cannot_be_quantized_is_one_clear_error(
    words: list[str], message: str, run_dir: Path, tmp_path: Path
) -> None:
    if "lone" in words[0]:
        (tmp_path / "lone.npz").write_bytes((run_dir / "seed11" / CHECKPOINT_FILE).read_bytes())
    given = [word.format(trial=run_dir, empty=tmp_path) for word in words]
    answer = CliRunner().invoke(quantize_command, given)
    assert isinstance(answer.exception, ValueError)
    assert message in str(answer.exception)


def test_a_trial_names_its_checkpoint_script_and_data(run_dir: Path, tiny_data: Path) -> None:
    for given in (run_dir, run_dir / "seed11" / CHECKPOINT_FILE):
        source = find_source(given)
        assert source.checkpoint == run_dir / "seed11" / CHECKPOINT_FILE
        assert (source.script, source.data, source.config) == (run_dir / SCRIPT_FILE, str(tiny_data), CURVED)
    assert changed(RunConfig(), ("curve_bytes=[1, 2]", "rate_weight=0.1")).quant == QuantConfig(
        curve_bytes=(1, 2), rate_weight=0.1
    )


def test_curves_of_seeds_become_one_and_survive_their_file(tmp_path: Path) -> None:
    """Size by size: the largest artifact, the mean score; none unless every seed has one."""
    runs = tuple(make_run(1.2, 100, seed=s, curve=((90 + s, 1.3 + s / 10), (110, 1.1))) for s in (1, 2))
    result = TrialResult(status="complete", runs=runs)
    assert result.curve == ((92, pytest.approx(1.45)), (110, pytest.approx(1.1)))
    assert TrialResult(status="complete", runs=(*runs, make_run(1.2, 100))).curve == ()
    write_json(tmp_path / "result.json", result)
    assert read_noun(TrialResult, tmp_path / "result.json") == result
    with pytest.raises(ValueError, match="curve must hold"):
        make_run(1.2, 100, curve=((90, float("nan")),))


def test_a_curve_is_a_thin_line_through_its_trial(tmp_path: Path) -> None:
    """By size, the trial's own point among them; pointing at one says its bytes and its score."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", complete(1.30, 15_900_000))
    add_trial(study, "proxy/0001", complete(1.25, 15_990_000, curve=((18_400_000, 1.24), (13_600_000, 1.29))))
    figure = pareto_figure(study, analyse(study, read_records(study)))
    (line,) = [trace for trace in figure["data"] if trace.get("name") == "other sizes of proxy"]
    assert line["x"] == [13.6, 15.99, 18.4, None]
    assert line["y"] == [1.29, 1.25, 1.24, None]
    assert "18,400,000 B" in line["hovertext"][2]
    assert "<b>1.2400</b> bpb" in line["hovertext"][2]
    assert len(line["hovertext"]) == len(line["customdata"]) == len(line["x"])
