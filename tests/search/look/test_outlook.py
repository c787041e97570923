"""When trials and studies end: against sums done by hand, and against a study whose times are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from studies import make_run, make_spec, make_study

from search.ladder.promote import planned_trials
from search.look.outlook import OVERDUE, InUse, Pace, in_use, paces, study_seconds_left, trial_seconds_left
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord
from trials.live import LiveRun
from trials.rungs import Rung
from trials.spec import TrialResult

LIVE = LiveRun(
    seed=1, seeds_done=0, phase="training", step=50, progress=0.25, train_loss=3.0, ms_per_step=100.0,
    train_seconds=30.0, seed_seconds=34.0, seconds=34.0,
)  # fmt: skip
PACE = Pace(whole=150.0, rest=20.0)


@pytest.mark.parametrize(
    ("live", "num_seeds", "pace", "left"),
    [
        # a quarter took 30 s: 90 s of training remain, and 16 of the 20 s beside it
        (LIVE, 1, PACE, 90 + 16),
        # its own pace, not the rung's, counts for the seeds that follow too: 120 s of training and 20 s
        (LIVE, 3, PACE, 90 + 16 + 2 * 140),
        # nobody knows yet what comes after training
        (LIVE, 1, Pace(whole=None, rest=None), 90),
        # no step yet: the rung's mean less what has passed
        (replace(LIVE, phase="starting", progress=0.0, train_seconds=0.0, seed_seconds=10.0), 1, PACE, 140),
        (replace(LIVE, phase="starting", progress=0.0), 1, Pace(whole=None, rest=None), None),
        # after training: what is left of the rest, whatever training took
        (replace(LIVE, phase="packing", progress=1.0, train_seconds=120.0, seed_seconds=132.0), 1, PACE, 8),
        # and never nothing while it still runs
        (replace(LIVE, phase="scoring", progress=1.0, train_seconds=120.0, seed_seconds=190.0), 1, PACE, 20 * OVERDUE),
        (replace(LIVE, phase="scoring"), 1, Pace(whole=150.0, rest=None), None),
    ],
)
def test_a_trials_end(live: LiveRun, num_seeds: int, pace: Pace, left: float | None) -> None:
    found = trial_seconds_left(live, num_seeds, pace)
    assert found == (None if left is None else pytest.approx(left))


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    """Four proxies of 100 steps and the full runs of 300; one core each."""
    rungs = (
        Rung(name="proxy", trials=4, steps=100, cpus=1),
        Rung(name="full", keep=0.5, min_promote=2, steps=300, cpus=1),
    )
    return make_study(tmp_path, rungs=rungs)


def ended(study: StudyConfig, trial_id: str, seconds: float, train_seconds: float) -> TrialRecord:
    run = make_run(1.2, 10**6, total_seconds=seconds, train_seconds=train_seconds)
    result = TrialResult(status="complete", runs=(run,), seconds=seconds)
    return TrialRecord(spec=make_spec(study, trial_id, cpus=1.0, gpus=0.0), result=result)


def unfinished(study: StudyConfig, trial_id: str) -> TrialRecord:
    return TrialRecord(spec=make_spec(study, trial_id, cpus=1.0, gpus=0.0))


def test_a_rung_nobody_climbed_is_guessed_by_its_budget(study: StudyConfig) -> None:
    found = paces(study, [ended(study, "proxy/0000", 50.0, 40.0)], {})
    assert found == {"proxy": Pace(whole=50.0, rest=10.0), "full": Pace(whole=150.0, rest=10.0)}


def test_the_first_running_trial_of_a_rung_corrects_the_guess(study: StudyConfig) -> None:
    """A quarter in 30 s is 120 s of training; with the 10 s beside it, as below."""
    records = [ended(study, "proxy/0000", 50.0, 40.0), unfinished(study, "full/0000")]
    assert paces(study, records, {"full/0000": LIVE})["full"] == Pace(whole=130.0, rest=10.0)


def test_nothing_is_promised_before_something_is_known(study: StudyConfig) -> None:
    assert study_seconds_left(study, [unfinished(study, "proxy/0000")], {}) is None


def test_a_study_counts_what_running_trials_have_done(study: StudyConfig) -> None:
    """Two proxies ended after 50 s; two run side by side, one of them at half of its 40 s of training.

    Of that one 20 s of training remain and the 10 s beside it are to come but for the 2 spent; the other has not begun
    and takes 50 s. Full runs are 150 s each: two of them and the control's share two cores.
    """
    assert planned_trials(study) == (4, 3)
    records = [ended(study, f"proxy/000{i}", 50.0, 40.0) for i in range(2)]
    records += [unfinished(study, f"proxy/000{i}") for i in (2, 3)]
    half = replace(LIVE, progress=0.5, train_seconds=20.0, seed_seconds=22.0)
    left = study_seconds_left(study, records, {"proxy/0002": half})
    assert left == pytest.approx((28 + 50) / 2 + 3 * 150 / 2)


def test_the_forecast_falls_as_fast_as_time_passes(study: StudyConfig) -> None:
    """Second by second of a last trial's 60 s, training and the phases after it: never stuck, never at nothing.

    This is the fault of a forecast that counts only whole trials: it stood at one value for 91 s, then at 0.
    """
    done = [ended(study, f"proxy/000{i}", 50.0, 40.0) for i in range(4)]
    done += [ended(study, f"full/000{i}", 60.0, 40.0) for i in range(2)]
    records = [*done, unfinished(study, "full/0002")]
    said = []
    for second in range(1, 60):
        trained = min(40.0, float(second))
        phase = "training" if second < 40 else "packing" if second < 50 else "scoring"
        live = replace(LIVE, phase=phase, progress=trained / 40, train_seconds=trained, seed_seconds=float(second))
        left = study_seconds_left(study, records, {"full/0002": live})
        assert left is not None
        said.append(left)
    for second, left in enumerate(said, 1):
        assert left == pytest.approx(max(60 - second, OVERDUE * 20), abs=1e-6)
    assert min(said) > 0


def test_nothing_ends_before_the_longest_running_trial(study: StudyConfig) -> None:
    """Two cores share the work, but one trial does not run on both."""
    records = [ended(study, f"proxy/000{i}", 50.0, 40.0) for i in range(4)]
    records += [ended(study, "full/0002", 150.0, 120.0), *(unfinished(study, f"full/000{i}") for i in range(2))]
    slow = replace(LIVE, progress=0.1, train_seconds=40.0, seed_seconds=42.0)
    quick = replace(LIVE, progress=0.9, train_seconds=90.0, seed_seconds=99.0)
    left = study_seconds_left(study, records, {"full/0000": slow, "full/0001": quick})
    assert left == pytest.approx(360 + 30 - 2)


def test_the_end_of_one_trial_does_not_double_the_rest(study: StudyConfig) -> None:
    """Two cores were in use; between the end of one trial and the start of the next, one is."""
    records = [ended(study, f"proxy/000{i}", 50.0, 40.0) for i in range(3)] + [unfinished(study, "proxy/0003")]
    room = in_use([unfinished(study, trial_id).spec for trial_id in ("proxy/0003", "full/0000")])
    assert room == InUse(cpus=2.0)
    assert study_seconds_left(study, records, {}) == pytest.approx(50 + 3 * 150)
    assert study_seconds_left(study, records, {}, room) == pytest.approx((50 + 3 * 150) / 2)
    assert InUse(cpus=1.0, gpus=8.0).at_least(room) == InUse(cpus=2.0, gpus=8.0)
