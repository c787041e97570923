"""The brain loses nothing and counts nothing twice, whatever dies around it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

import search.brain.known_trials
import search.brain.starting_points
import search.sampler.sampler
import search.sampler.storage
import search.study.ledger
from search.brain.driver import Driver
from search.ladder.promote import CONTROL, Done, Wait
from search.study.config import Caps, StudyConfig, load_study
from search.study.ledger import read_records, trial_dir
from trials.files import write_json
from trials.rungs import Rung
from trials.spec import RESULT_FILE, SCRIPT_FILE, SeedRun, TrialResult, TrialSpec


@pytest.fixture
def study(tmp_path: Path, tiny_data: Path) -> StudyConfig:
    rungs = (Rung(name="proxy", trials=6, steps=5), Rung(name="full", keep=0.3, min_promote=2, steps=20))
    return StudyConfig(
        name="s", space="tiny", data=(str(tiny_data),), rungs=rungs, folder=str(tmp_path / "s"),
        caps=Caps(artifact_bytes=500_000),
    )  # fmt: skip


def outcome(spec: TrialSpec) -> TrialResult:
    """What an imagined training gives: wider is better, longer is better, a loud learning rate diverges."""
    if spec.params["matrix_lr"] > 0.055:
        return TrialResult(status="diverged", error="loud")
    bpb = 3 - spec.config.model.model_dim / 200 - spec.config.budget.steps / 100
    run = SeedRun(
        seed=spec.seeds[0], val_bpb=bpb, val_loss=bpb, pre_quant_val_bpb=bpb, model_bytes=spec.predicted_bytes - 100,
        code_bytes=100, steps=5, tokens_seen=1, num_params=1, train_seconds=1, eval_seconds=1, total_seconds=2,
        peak_memory_bytes=1, artifact_sha256="",
    )  # fmt: skip
    return TrialResult(status="complete", runs=(run,))


def leave_result(driver: Driver, spec: TrialSpec) -> None:
    write_json(trial_dir(driver.study, spec.trial_id) / RESULT_FILE, outcome(spec))


def run_to_the_end(driver: Driver) -> None:
    while isinstance(spec := driver.next(), TrialSpec):
        leave_result(driver, spec)
        driver.finish(spec)
    assert isinstance(spec, Done)


def optuna_studies(study: StudyConfig) -> dict[str, optuna.Study]:
    names = (rung.name for rung in study.rungs)
    return {name: optuna.load_study(study_name=f"{study.name}/{name}", storage=study.storage_url) for name in names}


def assert_storage_equals_folders(study: StudyConfig) -> None:
    """Every trial folder is told to Optuna exactly once, with its score and its constraints."""
    records = read_records(study)
    assert all(r.result is not None for r in records)
    for name, told in optuna_studies(study).items():
        mine = {r.spec.number: r for r in records if r.spec.rung == name}
        ran = [t for t in told.trials if t.number in mine]
        assert len(ran) == len(mine)
        assert all(t.state == optuna.trial.TrialState.FAIL for t in told.trials if t.number not in mine)
        for trial in ran:
            record = mine[trial.number]
            assert set(trial.constraints) == {"artifact_bytes", "train_seconds", "eval_seconds"}
            if record.status == "complete":
                assert trial.state == optuna.trial.TrialState.COMPLETE
                assert trial.values == [record.result.val_bpb]
                assert trial.user_attrs["artifact_bytes"] == record.result.artifact_bytes
            else:
                assert trial.state == optuna.trial.TrialState.PRUNED


def assert_ladder_is_climbed(study: StudyConfig) -> None:
    records = read_records(study)
    proxies = [r for r in records if r.spec.rung == "proxy" and r.status != "infeasible"]
    full = [r for r in records if r.spec.rung == "full"]
    assert len(proxies) == 6
    assert sum(r.spec.label == CONTROL for r in proxies) == 1
    assert len(full) == len({r.spec.parent for r in full}) >= 2
    by_number = {r.spec.number: r for r in proxies}
    for r in full:
        assert r.spec.params == by_number[r.spec.parent].spec.params
        assert r.spec.config.budget.steps == 20


def test_a_study_runs_to_its_end_and_optuna_knows_everything(study: StudyConfig) -> None:
    run_to_the_end(Driver(study))
    assert_ladder_is_climbed(study)
    assert_storage_equals_folders(study)


def test_each_trial_folder_holds_the_script_that_would_ship(study: StudyConfig) -> None:
    driver = Driver(study)
    spec = driver.next()
    assert isinstance(spec, TrialSpec)
    script = trial_dir(study, spec.trial_id) / SCRIPT_FILE
    assert spec.predicted_low <= spec.predicted_bytes <= spec.predicted_high
    assert script.stat().st_size < spec.predicted_bytes


def test_a_complete_study_has_nothing_more_to_do(study: StudyConfig) -> None:
    run_to_the_end(Driver(study))
    before = read_records(study)
    assert isinstance(Driver(study).next(), Done)
    assert read_records(study) == before


@pytest.mark.parametrize("seed", range(4))
def test_a_driver_killed_anywhere_is_replaced_without_loss(
    study: StudyConfig, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers die at random moments: between calls, and inside one at any file write or storage write."""

    class Killed(Exception):
        pass

    rng = random.Random(seed)
    fuse = {"left": 10**9}

    def burn(function):
        def burning(*args, **kwargs):
            fuse["left"] -= 1
            if fuse["left"] == 0:
                raise Killed
            return function(*args, **kwargs)

        return burning

    for module in (search.brain.known_trials, search.study.ledger, search.brain.starting_points):
        monkeypatch.setattr(module, "write_json", burn(write_json))
    for name in ("add_trial", "tell", "ask"):
        monkeypatch.setattr(optuna.Study, name, burn(getattr(optuna.Study, name)))
    for name in ("set_constraint", "set_user_attr"):
        monkeypatch.setattr(optuna.trial.Trial, name, burn(getattr(optuna.trial.Trial, name)))

    finished: dict[str, TrialResult] = {}
    deaths = 0
    while True:
        fuse["left"] = rng.randrange(2, 60)
        try:
            driver, running = Driver(study), []
            while not isinstance(said := driver.next(), Done) or running:
                if isinstance(said, TrialSpec):
                    running.append(said)
                if isinstance(said, Wait) or len(running) == 2:
                    spec = running.pop(rng.randrange(len(running)))
                    leave_result(driver, spec)
                    finished[spec.trial_id] = outcome(spec)
                    driver.finish(spec)
            break
        except Killed:
            deaths += 1
    assert deaths
    monkeypatch.undo()
    told = {r.spec.trial_id: r.result for r in read_records(study) if r.status != "infeasible"}
    assert told == finished
    assert_ladder_is_climbed(study)
    assert_storage_equals_folders(study)


def test_a_lost_storage_is_written_again_from_the_folders(study: StudyConfig) -> None:
    run_to_the_end(Driver(study))
    (study.dir / "optuna.db").unlink()
    assert isinstance(Driver(study).next(), Done)
    assert_storage_equals_folders(study)


def test_a_forecast_over_the_cap_is_told_without_training(study: StudyConfig) -> None:
    tight = replace(study, caps=Caps(artifact_bytes=30_000), control=False, warm_starts=False, max_infeasible=5)
    driver = Driver(tight)
    with pytest.raises(ValueError, match=r"\d configurations in a row were forecast over the cap of 30,000 bytes"):
        driver.next()
    assert all(r.status == "infeasible" for r in read_records(tight)), "nothing this small exists"
    refused = [r for r in read_records(tight) if r.status == "infeasible"]
    assert len(refused) >= 5
    with pytest.raises(ValueError, match="or raise max_infeasible to go on"):
        Driver(tight).next()  # a new process counts what the old one has seen
    assert len(read_records(tight)) == len(refused)
    for trial in optuna_studies(tight)["proxy"].trials:
        if trial.state == optuna.trial.TrialState.PRUNED:
            assert trial.constraints["artifact_bytes"] > 0


def test_several_datasets_make_the_tokenizer_a_knob(study: StudyConfig, tiny_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    both = replace(study, data=(str(tiny_data), str(other)), rungs=(replace(study.rungs[0], trials=12),))
    run_to_the_end(Driver(both))
    records = read_records(both)
    assert {r.spec.params["data"] for r in records} == set(both.data)
    assert all(r.spec.data_dir == r.spec.params["data"] for r in records)


def test_a_worker_that_left_nothing_twice_is_a_failed_trial(study: StudyConfig) -> None:
    driver = Driver(study)
    for attempt in (1, 2):
        spec = driver.next()
        assert isinstance(spec, TrialSpec)
        assert (spec.number, spec.attempt) == (0, attempt)
        result = driver.finish(spec, "it fell over")
        assert (result.status, result.fault, result.error) == ("failed", "lost", "it fell over")
    assert optuna_studies(study)["proxy"].trials[0].state == optuna.trial.TrialState.FAIL


def test_an_interrupted_trial_is_handed_out_again_before_new_ones(study: StudyConfig) -> None:
    first = Driver(study).next()
    assert Driver(study).next() == first


def test_an_interrupted_trial_gets_the_resources_its_rung_has_today(study: StudyConfig) -> None:
    first = Driver(study).next()
    assert isinstance(first, TrialSpec)
    smaller = replace(study, rungs=(replace(study.rungs[0], cpus=0.5, timeout_seconds=99), study.rungs[1]))
    again = Driver(smaller).next()
    assert again == replace(first, cpus=0.5, timeout_seconds=99.0)
    assert next(r.spec for r in read_records(smaller)) == again


def test_a_study_is_the_same_one_however_its_data_is_named(
    study: StudyConfig, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a TOML with relative paths first, then from its own folder."""
    for name in ("a", "b"):
        shutil.copytree(tiny_data, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    relative = replace(study, data=("a", "b"))
    first = Driver(relative).next()
    assert isinstance(first, TrialSpec)
    run_to_the_end(Driver(load_study(str(study.dir))))
    assert_storage_equals_folders(study)


def test_a_resumed_sampler_does_not_repeat_its_points(study: StudyConfig) -> None:
    more = replace(study, rungs=(replace(study.rungs[0], trials=12), study.rungs[1]))
    run_to_the_end(Driver(study))
    run_to_the_end(Driver(more))
    points = [tuple(sorted(r.spec.params.items())) for r in read_records(more) if r.spec.rung == "proxy"]
    assert len(points) == len(set(points)) >= 12


def test_other_settings_under_the_same_name_are_refused(study: StudyConfig) -> None:
    Driver(study)
    with pytest.raises(ValueError, match=r"launched with other settings: caps\.artifact_bytes 500000 -> 400000"):
        Driver(replace(study, caps=Caps(artifact_bytes=400_000)))


def test_the_front_question_keeps_both_objectives(study: StudyConfig) -> None:
    front = replace(study, question="front", rungs=study.rungs[:1])
    run_to_the_end(Driver(front))
    told = optuna_studies(front)["proxy"]
    assert len(told.directions) == 2
    assert all(
        t.values[1] == t.user_attrs["artifact_bytes"]
        for t in told.trials
        if t.state == optuna.trial.TrialState.COMPLETE
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "fineweb_val_000000.bin").write_bytes(b"\0" * 2048), "fineweb_val_000000.bin"),
        (lambda d: (d / "fineweb_val_000000.bin").unlink(), "fineweb_val_000000.bin"),
        (lambda d: os.truncate(d / "fineweb_train_000000.bin", 5000), "fineweb_train_000000.bin"),
        (lambda d: (d / "tokenizer.model").write_bytes(b"other"), "another tokenizer made the shards"),
        (lambda d: (d / "manifest.json").unlink(), "pgolf data build"),
    ],
)
def test_damaged_data_is_refused_before_anything_runs(
    study: StudyConfig, tiny_data: Path, tmp_path: Path, damage, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_data, copy)
    damage(copy)
    with pytest.raises(ValueError, match=message):
        Driver(replace(study, data=(str(copy),)))
    assert not (tmp_path / "s").exists()


def test_tokenizers_that_score_different_text_are_refused_in_one_study(
    study: StudyConfig, tiny_data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["val"]["scored_bytes"] = round(manifest["val"]["scored_bytes"] * 1.0011)
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"bytes of the same documents, more than 0\.1% apart"):
        Driver(replace(study, data=(str(tiny_data), str(other))))


def test_data_that_changed_under_a_study_is_refused(study: StudyConfig, tiny_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_data, copy)
    mine = replace(study, data=(str(copy),))
    Driver(mine)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64  # as `data fetch` does when it adds or replaces shards
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is not the one study 's' was launched on"):
        Driver(mine)


def test_a_locked_storage_is_named(study: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.sampler.storage, "LOCK_WAIT_SECONDS", 0.2)
    Driver(study)
    with contextlib.closing(sqlite3.connect(study.dir / "optuna.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ValueError, match=r"cannot use the storage sqlite:.*database is locked.*stop that one"):
            Driver(study)


def test_a_missing_dataset_is_answered_with_the_commands_that_make_one(study: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pgolf data build"):
        Driver(replace(study, data=(str(tmp_path / "nothing"),)))
