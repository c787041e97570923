"""The settings of each training step, as pure functions of progress in [0, 1]. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgolf_model.config import Budget, RunConfig, TrainConfig
from pgolf_model.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """The settings that change over a run, as they are at one step."""

    lr_multiplier: float
    momentum: float  # Muon's
    decay_multiplier: float  # of the matrices' weight decay
    num_sequences: int  # on this rank
    seq_len: int
    is_looping: bool
    is_rounded: bool  # the forward pass sees quantized weights

    @property
    def shape(self) -> tuple[int, int, bool]:
        """The settings that a compiled graph is specific to."""
        return self.num_sequences, self.seq_len, self.is_looping


def training_budget(config: RunConfig) -> Budget:
    """The budget less `reserve_seconds`, so that the schedule ends when training does.

    Raises:
        UserError: nothing would be left.
    """
    budget, reserve = config.budget, config.train.reserve_seconds
    if not budget.seconds or not reserve:
        return budget
    if reserve >= budget.seconds:
        raise UserError(f"reserve_seconds must be below the budget's {budget.seconds:g} seconds, got {reserve:g}")
    return replace(budget, seconds=budget.seconds - reserve)


def plan_step(recipe: TrainConfig, progress: float, *, world_size: int) -> StepPlan:
    """The plan of a step that starts when `progress` of the run is over."""
    seq_len = max(1, round(recipe.seq_len * value_at(recipe.seq_len_schedule, progress)))
    batch_tokens = recipe.batch_tokens * value_at(recipe.batch_schedule, progress)
    return StepPlan(
        lr_multiplier=lr_multiplier(
            progress, warmdown_fraction=recipe.warmdown_fraction, min_lr_fraction=recipe.min_lr_fraction
        ),
        momentum=muon_momentum_at(
            progress,
            start=recipe.muon_momentum_start,
            end=recipe.muon_momentum,
            warmup_fraction=recipe.muon_momentum_warmup,
        ),
        decay_multiplier=decay_multiplier(
            progress, taper_start=recipe.weight_decay_taper_start, final=recipe.weight_decay_final
        ),
        num_sequences=max(1, round(batch_tokens / (world_size * seq_len))),
        seq_len=seq_len,
        is_looping=progress >= recipe.loop_at,
        is_rounded=recipe.qat_start < 1 and progress >= recipe.qat_start,
    )


def all_plans(recipe: TrainConfig, *, world_size: int) -> list[StepPlan]:
    """One plan for every shape a run can meet, in the order of the run.

    Raises:
        UserError: the recipe's batch does not divide into sequences per rank. A schedule's batches are rounded.
    """
    if recipe.batch_tokens % (world_size * recipe.seq_len):
        raise UserError(
            "batch_tokens must be divisible by world_size * seq_len, "
            f"got {recipe.batch_tokens} and {world_size} * {recipe.seq_len}"
        )
    times = {0.0, recipe.loop_at, *(fraction for fraction, _ in recipe.batch_schedule + recipe.seq_len_schedule)}
    plans = [plan_step(recipe, time, world_size=world_size) for time in sorted(times)]
    return list({plan.shape: plan for plan in plans}.values())


def value_at(schedule: tuple[tuple[float, float], ...], progress: float) -> float:
    """The multiplier of the last (fraction, multiplier) pair that has begun; 1 before the first."""
    return next((factor for fraction, factor in reversed(schedule) if progress >= fraction), 1.0)


def lr_multiplier(progress: float, *, warmdown_fraction: float, min_lr_fraction: float) -> float:
    """1 until the warmdown, then a straight line to `min_lr_fraction` at the end. There is no warm-up."""
    if warmdown_fraction <= 0:
        return 1.0
    left = (1.0 - progress) / warmdown_fraction
    return min(1.0, max(left, min_lr_fraction))


def decay_multiplier(progress: float, *, taper_start: float, final: float) -> float:
    """1 until `taper_start`, then a straight line to `final` at the end."""
    share = (progress - taper_start) / (1.0 - taper_start) if progress > taper_start else 0.0
    return 1.0 + share * (final - 1.0)


def muon_momentum_at(progress: float, *, start: float, end: float, warmup_fraction: float) -> float:
    """Momentum rises linearly from `start` to `end` over the first `warmup_fraction` of the run."""
    if warmup_fraction <= 0:
        return end
    share = min(1.0, progress / warmup_fraction)
    return (1.0 - share) * start + share * end
