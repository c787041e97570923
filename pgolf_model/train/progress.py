"""What a run says while it trains: one line per second on stdout and in a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from pgolf_model.config import Budget
from pgolf_model.files import PROGRESS_FILE

LOG_EVERY_SECONDS = 1.0


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
        if self.path is None:
            return
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
        with self.path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def format_rate(per_second: float) -> str:
    """Three digits and a unit: 812, 12.3k, 6.46M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= factor:
            return f"{per_second / factor:.3g}{unit}"
    return f"{per_second:.3g}"
