"""GPTQ against a naive float64 loop over columns, against plain rounding, and on inputs that break Cholesky."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model.quant.gptq import feedback_factor, gptq, hessian_error
from pgolf_model.quant.trellis import code_values


def correlated_inputs(cols: int, *, seed: int, decay: float = 0.9, tokens: int = 200) -> torch.Tensor:
    """AR(1) channels with log-normal sizes, (tokens, cols) float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, cols, generator=generator, dtype=torch.float64)
    inputs = noise.clone()
    for column in range(1, cols):
        inputs[:, column] = decay * inputs[:, column - 1] + (1 - decay**2) ** 0.5 * noise[:, column]
    return inputs * torch.randn(cols, generator=generator, dtype=torch.float64).mul(0.5).exp()


def second_moments(cols: int, *, seed: int = 0) -> torch.Tensor:
    inputs = correlated_inputs(cols, seed=seed)
    return (inputs.T @ inputs).float()


def gaussian(rows: int, cols: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def naive_gptq(weight: np.ndarray, hessian: np.ndarray, step: np.ndarray, limit: int, damping: float) -> np.ndarray:
    """The published algorithm without blocks: after each column, the inverse Hessian of the columns that remain."""
    rows, cols = weight.shape
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian + damping * np.diag(hessian).mean() * np.eye(cols)
    work, codes = weight.astype(np.float64).copy(), np.zeros((rows, cols), int)
    for position, column in enumerate(order):
        rest = order[position:]
        inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
        codes[:, column] = np.clip(np.rint(work[:, column] / step), -limit, limit)
        error = (work[:, column] - codes[:, column] * step) / inverse[0, 0]
        work[:, rest] -= error[:, None] * inverse[0]
    return codes


@pytest.mark.parametrize("block", [5, 16, 128])
def test_codes_are_those_of_the_naive_loop(block: int) -> None:
    """Lazy blocks, Cholesky factors and the visiting order change nothing but a few ties of float32."""
    weight, hessian = gaussian(24, 40), second_moments(40)
    steps = torch.linspace(0.3, 0.6, 24)
    codes = gptq(weight, hessian, steps=steps, limit=3, damping=0.02, block=block)
    expected = naive_gptq(weight.numpy(), hessian.double().numpy(), steps.double().numpy(), 3, 0.02)
    assert (codes.numpy() == expected).mean() > 0.995
    assert codes.dtype == torch.int8


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 99),
    limit=st.sampled_from([1, 3, 31]),
    states=st.sampled_from([1, 4, 8]),
    cols=st.integers(8, 80),
)
def test_outputs_are_nearer_than_without_the_hessian(seed: int, limit: int, states: int, cols: int) -> None:
    """Below the same rule without feedback, in the norm that the outputs see."""
    weight, hessian = gaussian(32, cols, seed=seed), second_moments(cols, seed=seed)
    steps = torch.full((32,), 2.5 / limit / min(2, states))
    errors = [
        hessian_error(weight - code_values(codes, states) * steps[:, None], hessian)
        for codes in (gptq(weight, used, steps=steps, limit=limit, states=states, block=32) for used in (hessian, None))
    ]
    assert errors[0] < errors[1]


def test_without_a_hessian_it_is_plain_rounding() -> None:
    """One state, no rate: the nearest code, clipped."""
    weight = gaussian(9, 33)
    codes = gptq(weight, None, steps=torch.full((9,), 0.25), limit=7)
    assert torch.equal(codes, (weight / 0.25).round().clamp(-7, 7).to(torch.int8))


def test_the_factor_inverts_the_damped_hessian() -> None:
    """U is upper triangular and U'U is the inverse."""
    hessian = second_moments(30)
    factor = feedback_factor(hessian, 0.1)
    damped = hessian.double() + 0.1 * hessian.double().diagonal().mean() * torch.eye(30)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.double().T @ factor.double() @ damped, torch.eye(30, dtype=torch.float64), atol=1e-5)


def test_dead_columns_are_rounded_alone() -> None:
    """A channel that calibration never saw keeps its nearest codes and disturbs no other, also undamped."""
    hessian, weight = second_moments(20), gaussian(8, 20)
    alive = torch.arange(20) != 7
    hessian[7], hessian[:, 7] = 0, 0
    steps = torch.full((8,), 0.4)
    codes = gptq(weight, hessian, steps=steps, limit=9, damping=0.0)
    assert torch.equal(codes[:, 7], (weight[:, 7] / 0.4).round().to(torch.int8))
    rest = gptq(weight[:, alive], hessian[alive][:, alive], steps=steps, limit=9, damping=0.0)
    assert torch.equal(codes[:, alive], rest)


def test_groups_have_steps_of_their_own() -> None:
    """A column uses its group's step, although columns are visited in another order."""
    weight, hessian = gaussian(6, 32), second_moments(32)
    weight[:, 16:] *= 100
    steps = torch.tensor([[0.2, 20.0]]).expand(6, 2)
    codes = gptq(weight, hessian, steps=steps, limit=30)
    back = codes * steps.repeat_interleave(16, 1)
    assert (back - weight).abs()[:, 16:].max() < 100
    assert hessian_error(back - weight, hessian) < hessian_error(
        (weight / steps.repeat_interleave(16, 1)).round() * steps.repeat_interleave(16, 1) - weight, hessian
    )


def test_binary_codes_have_no_zero() -> None:
    """Minus one and one, and feedback still helps."""
    weight, hessian = gaussian(16, 48), second_moments(48)
    steps = torch.full((16,), 0.8)
    codes = gptq(weight, hessian, steps=steps, limit=1, binary=True)
    assert set(codes.unique().tolist()) == {-1, 1}
    plain = gptq(weight, None, steps=steps, limit=1, binary=True)
    assert torch.equal(plain, torch.where(weight < 0, -1, 1).to(torch.int8))
    assert hessian_error(codes * 0.8 - weight, hessian) < hessian_error(plain * 0.8 - weight, hessian)


@pytest.mark.parametrize("states", [1, 4, 8])
def test_rate_buys_error(states: int) -> None:
    """A higher price of bits never gives a smaller output error, and never more entropy."""
    weight, hessian = gaussian(100, 32), second_moments(32)
    steps = torch.full((100,), 0.5 / min(2, states))
    errors, entropies = [], []
    for rate_weight in (0.0, 0.2, 1.5):
        codes = gptq(weight, hessian, steps=steps, limit=31, states=states, rate_weight=rate_weight)
        errors.append(hessian_error(weight - code_values(codes, states) * steps[:, None], hessian))
        shares = torch.unique(codes, return_counts=True)[1] / codes.numel()
        entropies.append(float(-(shares * shares.log2()).sum()))
    assert errors == sorted(errors)
    assert entropies == sorted(entropies, reverse=True)


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (torch.full((4, 4), float("nan")), "calibration inputs hold NaN"),
        (torch.eye(4) + 2 * torch.eye(4).flip(0), "not positive definite with damping 0.01"),
    ],
)
def test_a_bad_hessian_is_refused(hessian: torch.Tensor, message: str) -> None:
    """Not-a-number and indefinite matrices are ValueErrors that say so."""
    with pytest.raises(ValueError, match=message):
        gptq(gaussian(2, 4), hessian, steps=torch.ones(2), limit=3)
