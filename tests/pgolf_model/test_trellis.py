"""Dependent quantization: the state machine written out, the search against all paths, what it gains on noise."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model.quant.gptq import gptq
from pgolf_model.quant.trellis import active_quantizers, code_bits, code_values, search_block, trellis_steps

# Written out by hand from Ungerboeck's systematic feedback encoders, next state by state and parity; odd states on Q1.
NEXT = {
    4: ((0, 1), (2, 3), (1, 0), (3, 2)),
    8: ((0, 2), (5, 7), (1, 3), (4, 6), (2, 0), (7, 5), (3, 1), (6, 4)),
}


def value_of(code: int, state: int) -> int:
    """Q0: even multiples. Q1: odd multiples and zero."""
    if state % 2 == 0:
        return 2 * code
    return 2 * code - (code > 0) + (code < 0)


def gaussian(rows: int, cols: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def search(weight: torch.Tensor, *, states: int, bits: torch.Tensor, price: float, factor: torch.Tensor | None = None):
    rows, cols = weight.shape
    return search_block(
        weight,
        torch.eye(cols) if factor is None else factor,
        torch.zeros(rows, dtype=torch.long),
        steps=torch.ones(rows, cols),
        bits=bits,
        states=states,
        rate_weight=torch.full((rows,), price),
        keep=cols,
    )


@pytest.mark.parametrize("states", [4, 8])
def test_the_tables_are_ungerboecks(states: int) -> None:
    """Two ways out of every state and two into it, as written out above."""
    assert trellis_steps(states).tolist() == [list(pair) for pair in NEXT[states]]
    assert sorted(trellis_steps(states).flatten().tolist()) == sorted(2 * list(range(states)))


def test_unknown_numbers_of_states_are_refused() -> None:
    """The error names the known ones."""
    with pytest.raises(ValueError, match=r"states must be one of \[1, 4, 8.*\], got 5"):
        trellis_steps(5)


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(-5, 5), min_size=7, max_size=7), min_size=1, max_size=4),
    states=st.sampled_from([4, 8]),
)
def test_values_are_those_of_the_state_machine(rows: list[list[int]], states: int) -> None:
    """Decoding equals walking the written-out machine one code at a time."""
    codes = torch.tensor(rows, dtype=torch.int8)
    expected, quantizers = [], []
    for row in rows:
        state, walked, active = 0, [], []
        for code in row:
            walked.append(float(value_of(code, state)))
            active.append(state % 2)
            state = NEXT[states][state][code % 2]
        expected.append(walked)
        quantizers.append(active)
    assert code_values(codes, states).tolist() == expected
    assert active_quantizers(codes, states).tolist() == quantizers


def path_cost(path: tuple[int, ...], row: torch.Tensor, states: int, bits: torch.Tensor, price: float) -> float:
    """Squared error plus price times bits of one row of codes."""
    state, cost = 0, 0.0
    for code, weight in zip(path, row.tolist(), strict=True):
        cost += (weight - value_of(code, state)) ** 2 + price * float(bits[state % 2, abs(code)])
        state = NEXT[states][state][code % 2]
    return cost


@pytest.mark.parametrize("price", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("states", [4, 8])
def test_the_search_finds_the_best_of_all_paths(states: int, price: float) -> None:
    """As cheap as the cheapest of all 7**4 rows of codes."""
    weight = gaussian(8, 4, seed=states) * 2.5
    bits = torch.tensor([[1.0, 2.5, 4.5, 7.0], [1.5, 2.0, 4.0, 6.5]])
    codes = search(weight, states=states, bits=bits, price=price).codes
    for row, found in zip(weight, codes.tolist(), strict=True):
        best = min(path_cost(path, row, states, bits, price) for path in itertools.product(range(-3, 4), repeat=4))
        assert path_cost(tuple(found), row, states, bits, price) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("states", [1, 4, 8])
def test_errors_are_what_the_factor_makes_of_them(states: int) -> None:
    """Reported errors, pushed right through the factor, lead from the weights to the values; so does their sum."""
    factor = (gaussian(6, 6, seed=3) * 0.2 + torch.eye(6)).triu()
    weight = gaussian(5, 6, seed=4) * 3
    found = search(weight, states=states, bits=torch.zeros(2, 20), price=0.0, factor=factor)
    values = code_values(found.codes, states)
    assert torch.allclose(found.errors @ factor, weight - values, atol=1e-4)
    # e'He with H the inverse of U'U
    residual = (weight - values).double()
    hessian = torch.linalg.inv(factor.double().T @ factor.double())
    assert torch.allclose(found.errors.double().square().sum(), (residual @ hessian * residual).sum(), rtol=1e-4)


@pytest.mark.parametrize("states", [4, 8])
def test_search_goes_on_where_the_last_block_ended(states: int) -> None:
    """The reported state is the one that the codes lead to."""
    found = search(gaussian(20, 9) * 3, states=states, bits=torch.zeros(2, 40), price=0.0)
    for codes, end in zip(found.codes.tolist(), found.state.tolist(), strict=True):
        state = 0
        for code in codes:
            state = NEXT[states][state][code % 2]
        assert state == end


def bits_above_shannon(weight: torch.Tensor, *, states: int, spacing: float, rate_weight: float) -> float:
    """Entropy of the codes given the active quantizer, minus Shannon's bound at their error, unit Gaussian weights."""
    step = spacing / min(2, states)
    codes = gptq(
        weight, None, steps=torch.full((len(weight),), step), limit=100, states=states, rate_weight=rate_weight
    )
    active = active_quantizers(codes, states) if states > 1 else torch.zeros_like(codes)
    entropy = 0.0
    for quantizer in (0, 1):
        counts = torch.unique(codes[active == quantizer], return_counts=True)[1].double()
        entropy -= float((counts * (counts / counts.sum()).log2()).sum()) / codes.numel()
    error = float((code_values(codes, states) * step - weight).double().square().mean())
    return entropy + 0.5 * math.log2(error)


def test_it_approaches_shannons_bound() -> None:
    """At 3 bits: plain rounding loses 0.25 bits per weight to the bound, 4 states less than 0.13, 8 less than 0.12."""
    weight = gaussian(256, 128)
    weight /= weight.square().mean().sqrt()
    assert 0.245 < bits_above_shannon(weight, states=1, spacing=0.5, rate_weight=0.1) < 0.27
    assert 0.075 < bits_above_shannon(weight, states=8, spacing=0.5, rate_weight=0.1) < 0.12
    assert 0.085 < bits_above_shannon(weight, states=4, spacing=0.5, rate_weight=0.1) < 0.125


def test_code_bits_are_the_entropy() -> None:
    """Their mean over the codes is the conditional entropy with symmetric signs, and unseen magnitudes stay finite."""
    codes = gptq(gaussian(300, 64), None, steps=torch.full((300,), 0.25), limit=31, states=4)
    bits = code_bits(codes, 4, 40)
    active = active_quantizers(codes, 4)
    expected = 0.0
    for quantizer in (0, 1):
        counts: dict[int, int] = {}
        chosen = codes[active == quantizer].tolist()
        for code in chosen:
            counts[abs(code)] = counts.get(abs(code), 0) + 1
        expected += sum(n * (math.log2(len(chosen) / n) + (size > 0)) for size, n in counts.items())
    assert float(bits[active.long(), codes.abs().long()].mean()) == pytest.approx(expected / codes.numel(), abs=2e-3)
    assert bits.isfinite().all()
