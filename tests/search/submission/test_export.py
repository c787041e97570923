"""An export is the measured trial itself: its script, its artifact, its numbers, in one whole folder."""

from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from click.testing import CliRunner
from refusals import refused
from submissions import CONFIG, SEEDS, finished_study

from search.commands.export import export as export_command
from search.study.config import STUDY_FILE, StudyConfig
from search.study.ledger import TrialRecord, best_record, read_records, trial_dir
from search.submission.export import Credits, export
from trials.files import write_json
from trials.spec import TrialResult

FILES = {
    "train_gpt.py",
    "final_model.pgolf",
    "train_gpt_readable.py",
    "README.md",
    "submission.json",
    "provenance.json",
    "requirements.txt",
    "tokenizer.model",
    "train_seed11.log",
    "train_seed12.log",
}


@pytest.fixture
def study(tiny_data: Path) -> StudyConfig:
    return finished_study(tiny_data)


@pytest.fixture
def record(study: StudyConfig) -> TrialRecord:
    best = best_record(study, read_records(study))
    assert best is not None
    return best


def test_export_holds_the_files_that_were_measured(study: StudyConfig, record: TrialRecord, tmp_path: Path) -> None:
    """Script and first seed's artifact are copies, not re-made ones; each seed has its log."""
    folder = export(study, record, tmp_path / "out")
    trial = trial_dir(study, record.spec.trial_id)
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "train_gpt.py").read_bytes() == (trial / "train_gpt.py").read_bytes()
    assert (folder / "final_model.pgolf").read_bytes() == (trial / "seed11" / "final_model.pgolf").read_bytes()
    assert (folder / "train_seed12.log").read_bytes() == (trial / "seed12" / "train.log").read_bytes()
    assert "torch==2.13.0\n" in (folder / "requirements.txt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_submission_states_means_over_seeds_and_bytes_of_the_files(
    study: StudyConfig, record: TrialRecord, tmp_path: Path
) -> None:
    folder = export(
        study,
        record,
        tmp_path / "out",
        credits=Credits(author="Ada", github_id="ada"),
        date=datetime.date(2026, 5, 1),
    )
    submission = json.loads((folder / "submission.json").read_text())
    assert record.result is not None
    scores = [run.val_bpb for run in record.result.runs]
    assert submission["val_bpb"] == pytest.approx(fmean(scores), abs=1e-12)
    assert submission["val_bpb_std"] == pytest.approx(stdev(scores), abs=1e-12)
    assert submission["bytes_total"] == sum(
        (folder / name).stat().st_size for name in ("train_gpt.py", "final_model.pgolf")
    )
    assert (submission["author"], submission["github_id"], submission["date"]) == ("Ada", "ada", "2026-05-01")
    assert submission["seeds"] == list(SEEDS)
    assert sorted(submission["seed_results"]) == ["11", "12"]
    assert submission["track"] == "non_record_16mb"  # neither eight H100s nor the whole validation set
    assert submission["compliance"]["full_validation_set"] is False
    assert submission["compliance"]["artifact_under_cap"] is True


def test_readme_tells_the_score_the_command_and_every_field(
    study: StudyConfig, record: TrialRecord, tmp_path: Path
) -> None:
    folder = export(study, record, tmp_path / "out", credits=Credits(name="My entry", blurb="Small"))
    readme = (folder / "README.md").read_text()
    assert record.result is not None
    assert readme.startswith(f"# My entry: val_bpb {record.result.val_bpb:.5f} +- ")
    assert "Small." in readme
    assert "torchrun --standalone --nproc_per_node=8 train_gpt.py" in readme
    assert f"| train.batch_tokens | {CONFIG.train.batch_tokens} |" in readme
    assert "not comparable" in readme  # scored on a subset


def test_export_replaces_an_earlier_export_and_nothing_else(
    study: StudyConfig, record: TrialRecord, tmp_path: Path
) -> None:
    out = export(study, record, tmp_path / "out")
    (out / "README.md").write_text("old")
    export(study, record, out)
    assert (out / "README.md").read_text() != "old"
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis is not empty and not an earlier export"):
        export(study, record, other)
    assert [path.name for path in other.iterdir()] == ["chapter1.txt"]


def test_trials_that_cannot_be_submitted_are_refused(study: StudyConfig, record: TrialRecord, tmp_path: Path) -> None:
    """With the numbers, and without leaving a folder behind."""
    assert record.result is not None
    small = replace(study, caps=replace(study.caps, artifact_bytes=1000))
    with pytest.raises(ValueError, match=rf"over the cap on artifact_bytes: {record.result.artifact_bytes} of 1000"):
        export(small, record, tmp_path / "out")
    failed = replace(record, result=TrialResult(status="diverged", error="seed 11: the loss was not finite"))
    with pytest.raises(ValueError, match=r"top/0000 is diverged, only complete trials.*the loss was not finite"):
        export(study, failed, tmp_path / "out")
    with pytest.raises(ValueError, match="has no result yet"):
        export(study, replace(record, result=None), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train_gpt.py", "seed11/final_model.pgolf"])
def test_files_changed_since_the_run_are_refused(
    name: str, study: StudyConfig, record: TrialRecord, tmp_path: Path
) -> None:
    shutil.copytree(study.dir, tmp_path / "study")
    moved = replace(study, folder=str(tmp_path / "study"))
    path = trial_dir(moved, record.spec.trial_id) / name
    path.write_bytes(path.read_bytes() + b"#")
    with pytest.raises(ValueError, match=r"it was changed"):
        export(moved, record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_command_prints_the_folder_or_one_document(study: StudyConfig, tmp_path: Path) -> None:
    write_json(study.dir / STUDY_FILE, study)
    out = tmp_path / "out"
    answer = CliRunner().invoke(export_command, [str(study.dir), "--out", str(out)], catch_exceptions=False)
    assert answer.stdout == f"{out}\n"
    answer = CliRunner().invoke(
        export_command, [str(study.dir), "--trial", "top/0000", "--out", str(out), "--json"], catch_exceptions=False
    )
    assert json.loads(answer.stdout)["name"] == "tiny top/0000"
    with refused(r"study 'tiny' has no trial 'top/9'", hint=r"the last ones are: top/0000"):
        CliRunner().invoke(
            export_command, [str(study.dir), "--trial", "top/9", "--out", str(out)], catch_exceptions=False
        )
