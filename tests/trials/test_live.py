"""What a running trial says of itself, from the files that its script leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgolf_model.files import METRICS_FILE, PROGRESS_FILE
from trials.live import BEGAN_FILE, read_live


def begin(folder: Path, seed: int, *lines: dict[str, object], at: float = 1000.0) -> Path:
    """A seed's folder whose run began at Unix time `at`."""
    seed_dir = folder / f"seed{seed}"
    seed_dir.mkdir(parents=True)
    (seed_dir / BEGAN_FILE).write_text("0")
    (seed_dir / PROGRESS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    for path in seed_dir.iterdir():
        os.utime(path, (at, at))
    return seed_dir


STEP = {"step": 60, "progress": 0.5, "seconds": 30.0, "train_loss": 3.5, "ms_per_step": 500.0}


def test_nothing_is_known_before_the_first_seed_begins(tmp_path: Path) -> None:
    assert read_live(tmp_path, (1, 2), now=0.0) is None


@pytest.mark.parametrize(
    ("lines", "phase", "step"),
    [
        ((), "starting", 0),
        (({"phase": "training"},), "training", 0),
        ((STEP,), "training", 60),
        (({"phase": "training"}, STEP, {"phase": "packing"}), "packing", 60),
        ((STEP, {"phase": "packing"}, {"phase": "scoring"}), "scoring", 60),
    ],
)
def test_the_newest_line_says_the_phase(
    tmp_path: Path, lines: tuple[dict[str, object], ...], phase: str, step: int
) -> None:
    """A phase stays until another is named; steps are remembered through the phases after training."""
    begin(tmp_path, 7, *lines)
    live = read_live(tmp_path, (7,), now=1100.0)
    assert live is not None
    assert (live.phase, live.step, live.seed, live.seed_seconds) == (phase, step, 7, 100.0)


def test_seconds_count_seeds_that_are_done_and_what_is_outside_of_training(tmp_path: Path) -> None:
    """75 s of the first seed; of the second 30 s of training in the 42 s since it began."""
    (begin(tmp_path, 1) / METRICS_FILE).write_text('{"total_seconds": 75.0}')
    begin(tmp_path, 2, STEP, at=2000.0)
    live = read_live(tmp_path, (1, 2), now=2042.0)
    assert live is not None
    assert (live.seeds_done, live.seconds, live.train_seconds, live.other_seconds) == (1, 117.0, 30.0, 12.0)


def test_a_trial_that_nobody_works_on_stands_at_its_last_sign_of_life(tmp_path: Path) -> None:
    seed_dir = begin(tmp_path, 1, STEP)
    os.utime(seed_dir / PROGRESS_FILE, (1031.0, 1031.0))
    live = read_live(tmp_path, (1,), now=None)
    assert live is not None
    assert live.seed_seconds == 31.0


def test_a_loss_that_is_not_finite_is_no_number(tmp_path: Path) -> None:
    begin(tmp_path, 1, {**STEP, "train_loss": None})
    live = read_live(tmp_path, (1,), now=1100.0)
    assert live is not None
    assert live.train_loss is None
