"""Trial folders have one writer, and what it says in memory is what the folders say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from studies import complete, make_spec, make_study

from pgolf_model.config import RunConfig
from pgolf_model.errors import EXIT_DISK_FULL
from search.brain.known_trials import KnownTrials
from search.study.config import StudyConfig
from search.study.ledger import read_records, trial_dir
from space.params import FloatParam, IntParam, Space
from trials.files import write_json
from trials.spec import RESULT_FILE, SCRIPT_FILE, STOP_FILE, TrialResult, TrialSpec

SPACE = Space(
    name="s",
    params=(
        IntParam(name="num_layers", low=1, high=20, tag="scale_free"),
        FloatParam(name="matrix_lr", low=0.0, high=1.0, tag="scale_free"),
    ),
    make_config=lambda values, vocab_size: RunConfig(),
    control={"num_layers": 9, "matrix_lr": 0.04},
)


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return make_study(tmp_path / "s")


def known_with(study: StudyConfig, *specs: TrialSpec) -> KnownTrials:
    known = KnownTrials(study, SPACE)
    for spec in specs:
        known.add(spec, b"print()")
    return known


def test_memory_and_folders_say_the_same_after_every_step(study: StudyConfig) -> None:
    """A driver that is replaced after any step is replaced by one that knows as much."""
    first, second = make_spec(study, "proxy/0000"), make_spec(study, "proxy/0001", params={"num_layers": 3})
    known = known_with(study, first, second)
    assert read_records(study) == known.records
    known.hand_out(first)
    write_json(trial_dir(study, first.trial_id) / RESULT_FILE, complete(1.2, 15_000_000))
    known.learn(known.read_end(first.trial_id, "nothing", exit_code=0))
    assert read_records(study) == known.records
    known.suspect(known.record(first.trial_id), "too good")
    assert read_records(study) == known.records
    assert known.suspicion == (first.trial_id, "too good")
    known.rewrite(replace(second, cpus=7.0), b"print(1)")
    assert read_records(study) == known.records
    assert (trial_dir(study, second.trial_id) / SCRIPT_FILE).read_bytes() == b"print(1)"
    known.learn(known.refuse(second, TrialResult(status="infeasible", error="over")))
    assert [r.status for r in read_records(study)] == ["complete", "infeasible"]


def test_a_worker_that_left_nothing_is_lost_unless_the_disk_is_full(study: StudyConfig) -> None:
    """Then nothing is written: the trial stays unfinished."""
    spec = make_spec(study, "proxy/0000")
    known = known_with(study, spec)
    with pytest.raises(OSError, match="No space left"):
        known.read_end(spec.trial_id, "it fell over", exit_code=EXIT_DISK_FULL)
    assert read_records(study)[0].result is None
    ended = known.read_end(spec.trial_id, "it fell over", exit_code=-9).result
    assert ended == TrialResult(status="failed", fault="lost", error="it fell over")


def test_a_trial_is_unfinished_unless_it_is_in_flight_or_has_ended(study: StudyConfig) -> None:
    spec = make_spec(study, "proxy/0000")
    known = known_with(study, spec)
    assert [r.spec for r in known.unfinished] == [spec]
    known.hand_out(spec)
    assert known.in_flight
    assert known.unfinished == ()
    known.take_back(spec.trial_id)
    assert not known.in_flight
    assert [r.spec for r in known.unfinished] == [spec]


def test_a_trial_that_starts_again_finds_no_stop_file_and_no_old_result(study: StudyConfig) -> None:
    spec = make_spec(study, "proxy/0000")
    known = known_with(study, spec)
    folder = trial_dir(study, spec.trial_id)
    known.hand_out(spec)
    known.call_off()
    assert (folder / STOP_FILE).exists()
    write_json(folder / RESULT_FILE, complete(1.2, 15_000_000))
    known.hand_out(spec)
    assert not (folder / STOP_FILE).exists()
    assert not (folder / RESULT_FILE).exists()


def test_points_within_a_500th_of_a_range_count_as_tried(study: StudyConfig) -> None:
    known = known_with(study, make_spec(study, "proxy/0000"))
    assert known.was_tried({"num_layers": 9, "matrix_lr": 0.0401})
    assert not known.was_tried({"num_layers": 9, "matrix_lr": 0.043})
    assert not known.was_tried({"num_layers": 8, "matrix_lr": 0.04})
    assert KnownTrials(study, SPACE).was_tried({"num_layers": 9, "matrix_lr": 0.04}), "also after a restart"
