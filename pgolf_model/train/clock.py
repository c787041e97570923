"""When training stops: its steps or seconds are over, or it has diverged."""

from __future__ import annotations

import math
import time

from pgolf_model.config import Budget
from pgolf_model.distributed import DistEnv, value_of_main

DIVERGED_NATS = 1.0  # this much worse than a uniform guess ...
DIVERGED_STEPS = 20  # ... for so many steps in a row; a healthy run may spike for a step or two


class RunClock:
    """Seconds of training: when the next step starts, and whether it may."""

    def __init__(self, budget: Budget, env: DistEnv) -> None:
        self.budget, self.env = budget, env
        self.started = time.perf_counter()
        self.finished_steps = 0
        self.finished_seconds = 0.0

    def finish_step(self) -> float:
        """Note that one more step has finished now; seconds since the start."""
        self.finished_steps += 1
        self.finished_seconds = time.perf_counter() - self.started
        return self.finished_seconds

    def next_start(self, step: int, *, in_flight: int) -> float | None:
        """Seconds at which step number `step` (from 0) starts on the device, the same on all ranks; None to stop.

        A step may start if, at the mean pace so far, it ends within the budget. So a run exceeds its seconds at most by
        the time that its last step takes longer than the mean. The first step always runs.
        """
        if self.budget.steps and step >= self.budget.steps:
            return None
        elapsed = time.perf_counter() - self.started
        if not self.budget.seconds:
            return elapsed
        pace = self.finished_seconds / max(1, self.finished_steps)
        start = max(elapsed, self.finished_seconds + in_flight * pace)
        may_start = step == 0 or start + pace <= self.budget.seconds
        agreed = value_of_main(start if may_start else math.inf, self.env)
        return None if math.isinf(agreed) else agreed


class DivergenceGuard:
    """Tells a run that has diverged from one whose loss is high for a few steps."""

    def __init__(self, vocab_size: int) -> None:
        self.bound = math.log(vocab_size) + DIVERGED_NATS
        self.steps_above = 0

    def is_diverged(self, loss: float) -> bool:
        """Take one step's loss; True when training should stop."""
        self.steps_above = self.steps_above + 1 if loss > self.bound else 0
        return not math.isfinite(loss) or self.steps_above >= DIVERGED_STEPS
