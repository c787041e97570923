"""A submission that verifies can be believed; one that was touched anywhere does not verify, and says where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from refusals import refused
from submissions import finished_study

from search.commands.evaluate import evaluate as evaluate_command
from search.commands.verify import verify as verify_command
from search.study.ledger import best_record, read_records
from search.submission.export import export
from search.submission.verify import VerifyReport, named_packages, verify

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def exported(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = finished_study(tiny_data)
    record = best_record(study, read_records(study))
    assert record is not None
    return export(study, record, tmp_path_factory.mktemp("exported") / "submission")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(exported, tmp_path / "submission")
    return tmp_path / "submission"


def edit_json(path: Path, edit: Edit) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def only_problem(report: VerifyReport) -> str:
    """The one problem found before scoring, which then was left out."""
    assert not report.ok
    assert report.val_bpb is None
    assert report.problems[-1].startswith("val_bpb was not computed again")
    assert len(report.problems) == 2, report.problems
    return report.problems[0]


def test_an_exported_trial_verifies(folder: Path) -> None:
    """Bytes are those of the files; the score comes back to the last bits, over the tokens the trial scored."""
    edit_json(folder / "submission.json", lambda data: data.update(attribution="a key of my own"))
    report = verify(folder)
    claimed = json.loads((folder / "submission.json").read_text())["seed_results"]["11"]
    assert report.problems == ()
    assert report.val_bpb == pytest.approx(claimed["val_bpb"], abs=1e-6)
    assert report.code_bytes == (folder / "train_gpt.py").stat().st_size
    assert report.artifact_bytes == report.code_bytes + (folder / "final_model.pgolf").stat().st_size
    assert 0 < report.tokens <= 5000


def test_moved_data_is_found_with_an_option(folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    edit_json(folder / "provenance.json", lambda data: data.update(data_dir=str(tmp_path / "gone")))
    assert "no validation shards match" in only_problem(verify(folder))
    assert verify(folder, data=tiny_data).ok


def test_a_flipped_byte_of_the_artifact_is_found(folder: Path) -> None:
    artifact = bytearray((folder / "final_model.pgolf").read_bytes())
    artifact[len(artifact) // 2] ^= 1
    (folder / "final_model.pgolf").write_bytes(artifact)
    assert only_problem(verify(folder)).startswith("final_model.pgolf sha256: expected ")


def test_an_enlarged_script_is_found(folder: Path) -> None:
    script = (folder / "train_gpt.py").read_bytes()
    (folder / "train_gpt.py").write_bytes(script + b"# more\n")
    problems = verify(folder).problems
    assert any(problem.startswith("train_gpt.py sha256") for problem in problems)
    assert f"bytes_code: expected {len(script)}, got {len(script) + 7}" in problems
    assert any(problem.startswith("bytes_total") for problem in problems)


def test_a_script_that_needs_our_package_is_found(folder: Path) -> None:
    script = (folder / "train_gpt.py").read_bytes()
    (folder / "train_gpt.py").write_bytes(
        script.replace(b"CONFIG=", b"CONFIG=__import__;import pgolf_model;CONFIG=", 1)
    )
    assert any("imports pgolf_model, which requirements.txt does not name" in p for p in verify(folder).problems)


def test_requirements_are_read_as_pip_reads_them() -> None:
    """Versions, extras, markers and addresses do not hide a name; comments and options are none."""
    text = "torch==2.13.0  # pinned\n# numpy\nray[tune]>=2\n-r more.txt\n\nzstandard ; python_version > '3'\n"
    assert named_packages(text + "own @ https://example.org/own.whl\n") == {"torch", "ray", "zstandard", "own"}


def test_an_edited_score_is_found(folder: Path) -> None:
    """In the seed that ships by computing it again; in the mean and in the log without."""

    def improve(data: dict[str, Any]) -> None:
        data["val_bpb"] -= 0.05
        data["seed_results"]["11"]["val_bpb"] -= 0.1

    edit_json(folder / "submission.json", improve)
    problems = verify(folder).problems
    assert [problem.partition(":")[0] for problem in problems] == [
        f"train_seed11.log does not end with the claimed val_bpb of {claimed_bpb(folder):.8f}",
        "val_bpb",
    ]


def claimed_bpb(folder: Path) -> float:
    return float(json.loads((folder / "submission.json").read_text())["seed_results"]["11"]["val_bpb"])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda data: data.update(val_bpb=1.0), "mean val_bpb over the seeds: expected 1.0, got "),
        (lambda data: data["seed_results"].pop("12"), "seeds of seed_results: expected 11, 12, got 11"),
        (lambda data: data.update(bytes_cap=1000), "bytes are over the cap of 1,000"),
        (lambda data: data.update(val_bpb=float("nan")), "mean val_bpb over the seeds: expected nan"),
    ],
)
def test_contradictions_in_the_papers_are_found(edit: Edit, reason: str, folder: Path) -> None:
    edit_json(folder / "submission.json", edit)
    (folder / "tokenizer.model").unlink()  # so that nothing is scored
    assert any(reason in problem for problem in verify(folder).problems)


def test_another_tokenizer_is_found(folder: Path, tiny_data: Path) -> None:
    shutil.copy(tiny_data / "manifest.json", folder / "tokenizer.model")
    assert only_problem(verify(folder)).startswith("tokenizer tokenizer.model sha256: expected ")


def test_missing_extra_and_changed_shards_are_found(folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    shard = data / "fineweb_val_000000.bin"
    shutil.copy(shard, data / "fineweb_val_000001.bin")
    assert only_problem(verify(folder, data=data)).endswith("fineweb_val_000001.bin was not scored")
    shard.rename(data / "fineweb_val_000002.bin")
    (data / "fineweb_val_000001.bin").unlink()
    assert f"validation shard {shard} is missing" in verify(folder, data=data).problems
    content = bytearray((data / "fineweb_val_000002.bin").read_bytes())
    content[-2] ^= 1
    (data / "fineweb_val_000002.bin").unlink()
    shard.write_bytes(content)
    assert only_problem(verify(folder, data=data)).startswith(f"validation shard {shard} sha256")


def test_a_folder_that_is_no_submission_is_refused(tmp_path: Path) -> None:
    with refused(r"no such folder", hint=r"give one made by `pgolf export`"):
        verify(tmp_path / "nothing")
    report = verify(tmp_path)
    assert (report.ok, len(report.problems)) == (False, 4)
    assert report.problems[0] == f"{tmp_path}/train_gpt.py: no such file"


def test_verify_command_prints_one_document_and_exits_1_on_a_mismatch(folder: Path) -> None:
    edit_json(folder / "submission.json", lambda data: data.update(bytes_total=7))
    (folder / "tokenizer.model").unlink()
    answer = CliRunner().invoke(verify_command, [str(folder), "--json"])
    report = json.loads(answer.stdout)
    assert answer.exit_code == 1
    assert report["ok"] is False
    assert set(report) >= {"artifact_bytes", "code_bytes", "model_bytes", "val_bpb", "val_loss", "ok", "problems"}
    assert "problem: bytes_total: expected 7, got " in answer.stderr


def test_evaluate_scores_a_submission_and_a_bare_artifact_alike(folder: Path, tiny_data: Path) -> None:
    """The submission by its own script, the artifact by this package: the same model, the same score."""
    options = ["--data", str(tiny_data), "--tokenizer", str(tiny_data / "tokenizer.model"), "--json"]
    reports = [
        json.loads(CliRunner().invoke(evaluate_command, [str(source), *options], catch_exceptions=False).stdout)
        for source in (folder, folder / "final_model.pgolf")
    ]
    for key in ("val_bpb", "val_loss", "tokens", "bytes", "model_bytes"):
        assert reports[0][key] == reports[1][key]
    assert reports[0]["tokens"] > 5000
