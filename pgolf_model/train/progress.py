"""What a run says of itself: its phases, and while it trains one line per second, on stdout too."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pgolf_model.config import Budget
from pgolf_model.files import PROGRESS_FILE

LOG_EVERY_SECONDS = 1.0

Phase = Literal["warming up", "training", "calibrating", "packing", "scoring"]


class PhaseLog:
    """Lines in `progress.jsonl` that say which phase a run is in; without a folder nothing is written.

    A line has the keys phase, seconds (since the log was made, as a run begins) and, where it is known, fraction (of
    the phase that is done, in [0, 1]). Lines about training steps have no phase.
    """

    def __init__(self, out_dir: Path | None) -> None:
        self.path = None if out_dir is None else out_dir / PROGRESS_FILE
        self.started = time.perf_counter()
        self.phase: Phase = "warming up"
        self.wrote = 0.0  # seconds of the last line

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def enter(self, phase: Phase) -> None:
        """Write that a phase begins."""
        self.phase = phase
        self._write({})

    def tell(self, fraction: float) -> None:
        """Write how much of the phase is done, unless the last line is younger than a second."""
        if self.seconds - self.wrote >= LOG_EVERY_SECONDS:
            self._write({"fraction": round(fraction, 4)})

    def _write(self, more: Mapping[str, float]) -> None:
        self.wrote = self.seconds
        _append_json(self.path, {"phase": self.phase, "seconds": round(self.wrote, 3), **more})


class StepRecord:
    """One launched step and the loss it will have; on CUDA the loss comes to the host without a stop of the queue."""

    def __init__(self, step: int, loss: Tensor, *, tokens_seen: int, lr_multiplier: float) -> None:
        self.step, self.tokens_seen = step, tokens_seen
        self.lr_multiplier = lr_multiplier
        self.arrived: torch.cuda.Event | None = None
        self.loss = loss
        if loss.is_cuda:
            self.loss = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()

    def wait(self) -> float:
        """Block until the device has finished this step; its mean training loss."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.loss)


class ProgressLog:
    """One line on stdout and one JSON line in `progress.jsonl` about every second."""

    def __init__(self, budget: Budget, out_dir: Path | None, *, enabled: bool) -> None:
        self.budget, self.enabled = budget, enabled
        self.path = None if out_dir is None else out_dir / PROGRESS_FILE
        self.step, self.tokens_seen, self.seconds = 0, 0, 0.0  # of the last line

    def write(self, record: StepRecord, seconds: float, *, due_only: bool) -> None:
        """Report a finished step, or with `due_only` leave it when the last report is younger than a second."""
        is_due = seconds - self.seconds >= LOG_EVERY_SECONDS
        if not self.enabled or record.step == self.step or (due_only and not is_due):
            return
        budget, span = self.budget, seconds - self.seconds
        step_seconds = span / (record.step - self.step)
        rate = format_rate((record.tokens_seen - self.tokens_seen) / span)
        self.step, self.tokens_seen, self.seconds = record.step, record.tokens_seen, seconds
        of_steps = f"/{budget.steps}" if budget.steps else ""
        of_seconds = f"/{budget.seconds:g}s" if budget.seconds else ""
        print(
            f"step {record.step}{of_steps} | loss {record.wait():.4f} | lr {record.lr_multiplier:.2f} | "
            f"{step_seconds * 1e3:.1f} ms | {rate} tok/s | {seconds:.1f}s{of_seconds}",
            flush=True,
        )
        loss = record.wait()
        line = {
            "step": record.step,
            "train_loss": loss if math.isfinite(loss) else None,
            "seconds": round(seconds, 3),
            "progress": budget.progress(record.step, seconds),
            "lr_multiplier": record.lr_multiplier,
            "tokens_seen": record.tokens_seen,
            "ms_per_step": round(step_seconds * 1e3, 3),
        }
        _append_json(self.path, line)


def _append_json(path: Path | None, line: Mapping[str, object]) -> None:
    """Add a line to a file; nothing without a path."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def format_rate(per_second: float) -> str:
    """Three digits and a unit: 812, 12.3k, 6.46M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= factor:
            return f"{per_second / factor:.3g}{unit}"
    return f"{per_second:.3g}"
