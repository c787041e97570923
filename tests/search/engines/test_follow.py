"""What a running study says: the phase of every trial, and lines that a log can hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from studies import make_spec, make_study

from search.engines.follow import describe_live, describe_running
from trials.live import LiveRun

LIVE = LiveRun(
    seed=1, seeds_done=0, phase="training", step=200, progress=0.833, train_loss=3.67, ms_per_step=100.0,
    train_seconds=30.0, seed_seconds=34.0, seconds=34.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("live", "num_seeds", "words"),
    [
        (None, 1, "starting"),
        (LIVE, 1, "training 83 %, step 200, loss 3.670"),
        (replace(LIVE, seeds_done=1), 3, "seed 2/3 training 83 %, step 200, loss 3.670"),
        (replace(LIVE, train_loss=None), 1, "training 83 %, step 200, loss not finite"),
        (replace(LIVE, phase="calibrating"), 1, "calibrating"),
        (replace(LIVE, phase="packing"), 1, "packing"),
        (replace(LIVE, phase="scoring"), 2, "seed 1/2 scoring"),
    ],
)
def test_a_trial_says_its_phase(live: LiveRun | None, num_seeds: int, words: str) -> None:
    assert describe_live(live, num_seeds) == words


def test_all_running_trials_are_in_one_line(tmp_path) -> None:
    study = make_study(tmp_path)
    running = [make_spec(study, "full/0001"), make_spec(study, "full/0002")]
    said = describe_running(running, {"full/0001": replace(LIVE, phase="packing")})
    assert said == "running full/0001 packing; full/0002 starting"
    assert describe_running([], {}) == "nothing runs"
