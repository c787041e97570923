"""What a trial that runs says of itself: its phase, how far its training is, and since when it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf_model.files import METRICS_FILE, PROGRESS_FILE
from trials.files import read_lines

BEGAN_FILE = "began"  # in a seed's folder: its time is when the run began, its text the seconds of killed runs before
STARTING = "starting"  # no line yet: Python loads, data is read, CUDA compiles
TRAINING = "training"  # the phases after it are calibrating, packing and scoring, as the script names them


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveRun:
    """The newest word of a trial that has begun and not ended. Its seeds run one after another."""

    seed: int  # that runs now
    seeds_done: int
    phase: str
    step: int
    progress: float  # of this seed's training, in [0, 1]
    train_loss: float | None
    ms_per_step: float | None
    train_seconds: float  # of this seed, by the training clock
    seed_seconds: float  # since this seed's run began
    seconds: float  # of all seeds

    @property
    def other_seconds(self) -> float:
        """Of this seed's run so far, outside of training."""
        return max(0.0, self.seed_seconds - self.train_seconds)


def read_live(folder: Path, seeds: Sequence[int], *, now: float | None) -> LiveRun | None:
    """The state of the trial in `folder`; None before its first seed has begun.

    Args:
        now: Unix time; None where nobody works on the trial, which then stands as at its last sign of life.
    """
    begun = [seed for seed in seeds if (folder / f"seed{seed}").is_dir()]
    if not begun:
        return None
    done = [seed for seed in begun[:-1] if (folder / f"seed{seed}" / METRICS_FILE).exists()]
    seed_dir = folder / f"seed{begun[-1]}"
    lines = _lines(seed_dir)
    last = _last_step(lines)
    train_seconds = float(last.get("seconds", 0.0))
    seed_seconds = max(_seconds(seed_dir, now), train_seconds)
    return LiveRun(
        seed=begun[-1],
        seeds_done=len(done),
        phase=str(lines[-1].get("phase", TRAINING)) if lines else STARTING,
        step=int(last.get("step", 0)),
        progress=min(1.0, float(last.get("progress", 0.0))),
        train_loss=last.get("train_loss"),
        ms_per_step=last.get("ms_per_step"),
        train_seconds=train_seconds,
        seed_seconds=seed_seconds,
        seconds=seed_seconds + sum(_total_seconds(folder / f"seed{seed}") for seed in done),
    )


def _lines(seed_dir: Path) -> list[dict[str, Any]]:
    """What the script has written, line by line."""
    return [line for line in read_lines(seed_dir / PROGRESS_FILE) if isinstance(line, dict)]


def _last_step(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest line about a training step; empty before the first."""
    return next((line for line in reversed(lines) if "step" in line), {})


def _seconds(seed_dir: Path, now: float | None) -> float:
    """Since the run of a seed began, to `now` or to the newest file."""
    mark = seed_dir / BEGAN_FILE
    began = (mark if mark.exists() else seed_dir).stat().st_mtime
    newest = max((path.stat().st_mtime for path in seed_dir.iterdir()), default=began)
    return max(0.0, (newest if now is None else now) - began)


def _total_seconds(seed_dir: Path) -> float:
    """Of a seed that has ended, as its metrics say; where they do not, of its training."""
    trained = float(_last_step(_lines(seed_dir)).get("seconds", 0.0))
    try:
        metrics = json.loads((seed_dir / METRICS_FILE).read_text(encoding="utf-8"))
        return float(metrics.get("total_seconds", trained))
    except (OSError, ValueError):
        return trained
