"""Low-rank corrections against the best ones (SVD), in the weights and in the outputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model.quant.gptq import feedback_factor, hessian_error
from pgolf_model.quant.lowrank import fit_lowrank, lowrank_values


def gaussian(rows: int, cols: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def second_moments(cols: int) -> torch.Tensor:
    inputs = gaussian(100, cols, seed=9) * torch.linspace(-2, 1, cols).exp()
    inputs[:, 1:] += 0.8 * inputs[:, :-1]
    return inputs.T @ inputs


@settings(max_examples=20)
@given(rows=st.integers(4, 40), cols=st.integers(4, 40), rank=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_matrix_of_that_rank_comes_back(rows: int, cols: int, rank: int, seed: int) -> None:
    """8-bit factors leave a few per cent of a matrix that has the rank, whatever its size."""
    residual = gaussian(rows, rank, seed=seed) @ gaussian(rank, cols, seed=seed + 1) * 1e-3
    item = fit_lowrank(residual, None, rank=rank, bits=8)
    assert (item.left.shape, item.right.shape) == ((rows, rank), (rank, cols))
    assert (lowrank_values(item) - residual).norm() < 0.08 * residual.norm()


def test_more_bits_come_nearer_to_the_svd() -> None:
    """The error falls with bits and ends within 2 % of the best that the rank allows."""
    residual = gaussian(60, 50) + 3 * gaussian(60, 2, seed=1) @ gaussian(2, 50, seed=2)
    errors = [
        float((lowrank_values(fit_lowrank(residual, None, rank=3, bits=bits)) - residual).norm())
        for bits in range(2, 9)
    ]
    left, sizes, right = torch.linalg.svd(residual)
    best = float((left[:, :3] * sizes[:3] @ right[:3] - residual).norm())
    assert errors == sorted(errors, reverse=True)
    assert best <= errors[-1] < 1.02 * best


def test_the_hessian_says_what_matters() -> None:
    """Fitted to the outputs, the correction leaves a smaller output error than fitted to the weights."""
    residual, hessian = gaussian(40, 32), second_moments(32)
    errors = [
        hessian_error(residual - lowrank_values(fit_lowrank(residual, factor, rank=3, bits=8)), hessian)
        for factor in (feedback_factor(hessian, 0.001), None)
    ]
    assert errors[0] < 0.8 * errors[1] < errors[1] < hessian_error(residual, hessian)


def test_nothing_left_to_correct() -> None:
    """A zero residual gives zeros."""
    assert not lowrank_values(fit_lowrank(torch.zeros(6, 5), None, rank=2, bits=4)).any()


@pytest.mark.parametrize(("rank", "bits"), [(0, 4), (6, 4), (2, 1), (2, 9)])
def test_impossible_factors_are_refused(rank: int, bits: int) -> None:
    """The rank must exist and the factors need two to eight bits."""
    with pytest.raises(ValueError, match=rf"rank must be in \[1, 5\] and bits in \[2, 8\], got {rank} and {bits}"):
        fit_lowrank(torch.zeros(6, 5), None, rank=rank, bits=bits)
