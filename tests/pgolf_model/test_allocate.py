"""Allocation: the same slope everywhere, what brute force finds, and sizes that never break the target."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model.ship.allocate import RateTable, allocate, fill, plan_line


def random_tables(rng: np.random.Generator, tensors: int, points: int) -> dict[str, RateTable]:
    """Tables in which error mostly falls with bits, ties, bumps and dominated points included."""
    tables = {}
    for i in range(tensors):
        bits = np.sort(rng.integers(1, 60, points)).astype(float)
        errors = np.exp2(-bits / rng.uniform(5, 20)) * rng.uniform(0.1, 10) * rng.uniform(0.7, 1.3, points)
        tables[f"t{i}"] = RateTable(log_steps=-np.arange(points, dtype=float), bits=bits, errors=errors)
    return tables


def cost(tables: dict[str, RateTable], steps: dict[str, float]) -> tuple[float, float]:
    """(bits, error) of a plan, linear between a table's hull points."""
    bits = error = 0.0
    for name, table in tables.items():
        hull = table.hull()
        bits += float(np.interp(-steps[name], -table.log_steps[hull], table.bits[hull]))
        error += float(np.interp(-steps[name], -table.log_steps[hull], table.errors[hull]))
    return bits, error


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), tensors=st.integers(1, 4), points=st.integers(1, 5))
def test_no_plan_that_brute_force_finds_is_better(seed: int, tensors: int, points: int) -> None:
    """At the line's corners the plan is a real one and the optimum; between them it bounds the optimum from below."""
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, tensors, points)
    line = plan_line(tables)
    choices = [list(zip(t.bits, t.errors, strict=True)) for t in tables.values()]
    plans = [(sum(b for b, _ in plan), sum(e for _, e in plan)) for plan in product(*choices)]
    budgets = [*line.bits, *rng.uniform(line.fewest_bits, line.most_bits, 5)]
    for budget, steps in zip(budgets, allocate(tables, budgets), strict=True):
        bits, error = cost(tables, steps)
        optimum = min(e for b, e in plans if b <= budget + 1e-9)
        assert bits == pytest.approx(budget)
        assert error <= optimum + 1e-9
        if budget in line.bits:
            assert error == pytest.approx(optimum)


def test_what_a_bit_buys_falls_along_the_line() -> None:
    """Equal slope: no segment saves more error per bit than the one before it."""
    tables = random_tables(np.random.default_rng(3), 20, 12)
    line = plan_line(tables)
    errors = [cost(tables, line.at(bits))[1] for bits in line.bits]
    slopes = -np.diff(errors) / np.diff(line.bits)
    assert len(slopes) > 50
    assert (np.diff(slopes) <= 1e-9 * slopes[:-1]).all()


def test_gaussian_tensors_share_one_absolute_error() -> None:
    """Reverse water filling: at equal slope with D = sigma^2 2^(-2b), every tensor ends at one error per weight."""
    sigmas, size = np.array([0.1, 0.5, 1.0, 2.0]), 100
    bits = np.linspace(0, 12, 481)
    tables = {
        f"t{i}": RateTable(log_steps=-bits, bits=size * bits, errors=size * s**2 * np.exp2(-2 * bits))
        for i, s in enumerate(sigmas)
    }
    (steps,) = allocate(tables, [4 * size * 6.0])
    got = np.array(list(steps.values()))
    want = -(6.0 + np.log2(sigmas) - np.log2(sigmas).mean())
    assert np.abs(got - want).max() < 0.03
    coarse, fine = allocate(tables, [-5.0, 1e9])
    assert set(coarse.values()) == {0.0}
    assert set(fine.values()) == {-12.0}


def test_bad_tables_are_refused_by_name() -> None:
    grid = np.arange(2.0)
    with pytest.raises(ValueError, match="no tensor"):
        plan_line({})
    with pytest.raises(ValueError, match="w: its rates or errors are not finite"):
        plan_line({"w": RateTable(log_steps=grid, bits=grid, errors=np.array([1.0, np.nan]))})


@given(
    seed=st.integers(0, 10**6),
    target=st.integers(200, 40_000),
    scale=st.floats(0.7, 1.4),
    noise=st.integers(0, 8),
    guess=st.floats(-0.5, 1.5),
)
def test_a_fill_is_never_above_its_target(seed: int, target: int, scale: float, noise: int, guess: float) -> None:
    """Whatever the packer's bytes are to the forecast bits: within the tolerance, or at an end that says so."""
    tables = random_tables(np.random.default_rng(seed), 30, 10)
    line = plan_line(
        {k: RateTable(log_steps=t.log_steps, bits=t.bits * 200, errors=t.errors) for k, t in tables.items()}
    )
    calls: list[float] = []

    def size_of(bits: float) -> int:
        calls.append(bits)
        return 150 + round(bits * scale / 8) + (hash((seed, bits)) % (2 * noise + 1)) - noise

    smallest = size_of(line.fewest_bits)
    if smallest > target:
        with pytest.raises(
            ValueError, match=f"the smallest artifact is {smallest} bytes, above the target of {target}"
        ):
            fill(size_of, line, target=target, guess=guess * line.most_bits)
        return
    found = fill(size_of, line, target=target, guess=guess * line.most_bits)
    assert found.size == size_of(found.bits) <= target
    assert found.tries <= 16
    if found.ended == "finest":
        assert found.bits == line.most_bits
    elif 0.002 * target > 4 * noise + 2:
        assert found.ended == "within"
        assert found.size >= 0.998 * target


def test_a_good_guess_needs_few_packs() -> None:
    """With bytes within 3 % of the forecast, the size is met in five packs or fewer."""
    tables = random_tables(np.random.default_rng(1), 40, 12)
    line = plan_line(
        {k: RateTable(log_steps=t.log_steps, bits=t.bits * 1e4, errors=t.errors) for k, t in tables.items()}
    )
    for target in np.linspace(line.fewest_bits / 7, line.most_bits / 9, 20):
        found = fill(lambda b: 3000 + round(b * 1.03 / 8), line, target=int(target), guess=8 * (target - 3000))
        assert found.ended == "within"
        assert found.tries <= 5
