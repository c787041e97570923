"""Schedules as laws: where they start, where they end, and that they never turn around."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf_model.config import TrainConfig
from pgolf_model.train.schedule import all_plans, decay_multiplier, lr_multiplier, muon_momentum_at, plan_step, value_at

PROGRESS = st.floats(0.0, 1.0)
SMALL = TrainConfig(batch_tokens=512, seq_len=32)


def test_the_rate_is_flat_and_then_falls_in_a_line() -> None:
    """The rate after 1 - warmdown_fraction, down to its floor; momentum up to its plateau."""
    at = [lr_multiplier(p, warmdown_fraction=0.4, min_lr_fraction=0.1) for p in (0.0, 0.6, 0.7, 0.8, 0.99, 1.0)]
    assert at == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.1, 0.1])
    assert lr_multiplier(1.0, warmdown_fraction=0.0, min_lr_fraction=0.0) == 1.0
    momenta = [muon_momentum_at(p, start=0.8, end=0.9, warmup_fraction=0.2) for p in (0.0, 0.1, 0.2, 1.0)]
    assert momenta == pytest.approx([0.8, 0.85, 0.9, 0.9])
    assert muon_momentum_at(0.0, start=0.8, end=0.9, warmup_fraction=0.0) == 0.9


@given(one=PROGRESS, other=PROGRESS, turn=PROGRESS, end=PROGRESS)
def test_rates_never_rise_and_momentum_never_falls(one: float, other: float, turn: float, end: float) -> None:
    early, late = sorted((one, other))
    rates = [lr_multiplier(p, warmdown_fraction=turn, min_lr_fraction=end) for p in (0.0, early, late, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[3] == (end if turn else 1.0)
    decays = [decay_multiplier(p, taper_start=turn, final=end) for p in (0.0, early, late, 1.0)]
    assert decays == sorted(decays, reverse=True)
    assert decays[0] == 1.0 or turn == 0.0
    assert decays[3] == pytest.approx(end if turn < 1.0 else 1.0)
    momenta = [muon_momentum_at(p, start=0.5, end=0.9, warmup_fraction=turn) for p in (0.0, early, late, 1.0)]
    assert momenta == pytest.approx(sorted(momenta))
    assert momenta[3] == 0.9


def test_decay_is_flat_and_then_runs_in_a_line() -> None:
    """The record's taper: whole until 70 % of the run, half at its end."""
    at = [decay_multiplier(p, taper_start=0.7, final=0.5) for p in (0.0, 0.7, 0.85, 1.0)]
    assert at == pytest.approx([1.0, 1.0, 0.75, 0.5])


@given(progress=PROGRESS)
def test_a_baseline_run_never_changes_its_shape(progress: float) -> None:
    """Without schedules every step is the same but for its rates."""
    plan = plan_step(TrainConfig(), progress, world_size=8)
    assert (plan.num_sequences, plan.seq_len, plan.is_looping, plan.is_rounded) == (64, 1024, True, False)
    assert plan.decay_multiplier == 1.0


def test_a_schedule_holds_its_value_until_the_next_one() -> None:
    """1 before the first pair, the last pair's at the end."""
    steps = ((0.25, 0.5), (0.75, 2.0))
    assert [value_at(steps, p) for p in (0.0, 0.2, 0.25, 0.7, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.5, 2.0, 2.0]
    assert value_at((), 0.5) == 1.0


@given(
    batch=st.lists(st.tuples(st.integers(0, 99), st.floats(0.1, 4.0)), max_size=3, unique_by=lambda pair: pair[0]),
    lengths=st.lists(st.tuples(st.integers(0, 99), st.floats(0.1, 4.0)), max_size=3, unique_by=lambda pair: pair[0]),
    progress=PROGRESS,
    world_size=st.sampled_from([1, 2, 8]),
)
def test_a_scheduled_batch_is_near_its_size_in_whole_sequences(
    batch: list[tuple[int, float]], lengths: list[tuple[int, float]], progress: float, world_size: int
) -> None:
    """Off by at most half a sequence per rank, never empty, and among the shapes known before the run."""
    recipe = TrainConfig(
        batch_tokens=2048,
        seq_len=32,
        batch_schedule=tuple((at / 100, factor) for at, factor in sorted(batch)),
        seq_len_schedule=tuple((at / 100, factor) for at, factor in sorted(lengths)),
        loop_at=0.5,
    )
    plan = plan_step(recipe, progress, world_size=world_size)
    tokens = plan.num_sequences * plan.seq_len * world_size
    wanted = 2048 * value_at(recipe.batch_schedule, progress)
    assert plan.num_sequences >= 1
    assert abs(tokens - wanted) <= plan.seq_len * world_size / 2 or plan.num_sequences == 1
    assert abs(plan.seq_len - 32 * value_at(recipe.seq_len_schedule, progress)) <= 0.5
    plans = all_plans(recipe, world_size=world_size)
    assert plan.shape in [known.shape for known in plans]
    assert len({known.shape for known in plans}) == len(plans)


def test_switches_turn_on_at_their_fraction() -> None:
    """Loops from loop_at, rounding from qat_start; 1 is never for rounding."""
    recipe = TrainConfig(loop_at=0.35, qat_start=0.8)
    plans = [plan_step(recipe, p, world_size=1) for p in (0.0, 0.34, 0.35, 0.79, 0.8, 1.0)]
    assert [plan.is_looping for plan in plans] == [False, False, True, True, True, True]
    assert [plan.is_rounded for plan in plans] == [False, False, False, False, True, True]
    assert [plan.is_looping for plan in all_plans(recipe, world_size=1)] == [False, True]
    assert not plan_step(TrainConfig(), 1.0, world_size=1).is_rounded
    assert plan_step(TrainConfig(qat_start=0.0), 0.0, world_size=1).is_rounded


def test_a_batch_that_does_not_divide_over_ranks_is_refused() -> None:
    """Before training starts."""
    with pytest.raises(ValueError, match=r"divisible by world_size \* seq_len, got 512 and 3 \* 32"):
        all_plans(SMALL, world_size=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loader": "random"}, "loader must be 'sequential', 'shuffled', 'strided' or 'packed', got 'random'"),
        ({"muon_polynomial": "cubic"}, "muon_polynomial must be 'quintic' or 'polar_express', got 'cubic'"),
        ({"ema_decay": 0.9, "swa_start": 0.2}, "ema_decay and swa_start exclude each other, got 0.9 and 0.2"),
        ({"swa_every": 0}, "swa_every must be at least 1, got 0"),
        ({"embed_beta2": 1.0}, r"embed_beta2 must be in \[0, 1\), got 1.0"),
        ({"qat_start": 1.5}, r"qat_start must be in \[0, 1\], got 1.5"),
        ({"reserve_seconds": -1.0}, "reserve_seconds must be at least 0 and finite, got -1.0"),
        ({"batch_schedule": ((0.5, 2.0), (0.5, 1.0))}, "batch_schedule needs rising fractions"),
        ({"seq_len_schedule": ((0.5, 0.0),)}, "seq_len_schedule needs rising fractions .* positive multipliers"),
        ({"seq_len_schedule": ((1.0, 2.0),)}, r"fractions in \[0, 1\)"),
    ],
)
def test_impossible_recipes_are_refused(fields: dict[str, object], message: str) -> None:
    """With what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)
