"""Gradients written by hand are those of the plain formulas, in value and in slope."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf_model.model.layers import (
    is_by_hand,
    pair_rows,
    relu_squared,
    rms_norm,
    rotary_table,
    rotate_halves,
    split_norm_turn,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def values_and_gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The output and what it changes per input, weighed by fixed random numbers."""
    weights = random(*output.shape, seed=9).detach()
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_norm_and_slope_are_torchs_own() -> None:
    x = random(3, 5, 8)
    assert_same(values_and_gradients(rms_norm(x), x), values_and_gradients(F.rms_norm(x, (8,)), x))


def test_norm_of_zeros_is_zero_with_a_finite_slope() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = rms_norm(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert not y.any()
    assert slope.isfinite().all()


def test_norm_takes_what_is_not_contiguous() -> None:
    x = random(4, 6, 8)
    turned = x.transpose(0, 1)
    assert_same(values_and_gradients(rms_norm(turned), x), values_and_gradients(F.rms_norm(turned, (8,)), x))


def test_squared_relu_and_slope() -> None:
    x = random(4, 7)
    assert_same(values_and_gradients(relu_squared(x), x), values_and_gradients(F.relu(x).square(), x))


def test_bfloat16_keeps_the_plain_formulas() -> None:
    assert not is_by_hand(torch.zeros(1, dtype=torch.bfloat16))
    assert rms_norm(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("rope_dims", [2, 4, 8])
def test_merged_queries_and_keys_have_the_same_products_and_slopes(rope_dims: int) -> None:
    """All the scores between queries and keys, the values, and the slopes of weights, gain and input."""
    batch, length, heads, groups, channels, dim = 2, 5, 4, 2, 8, 6
    x, gain = random(batch, length, dim, seed=1), random(heads, seed=2)
    q, k, v = (random(n * channels, dim, seed=3 + n) for n in (heads, groups, groups))
    cos, sin = rotary_table(length, rope_dims, base=100.0, like=x)

    def products(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
        k_BTHK = k_BTGK.repeat_interleave(heads // groups, dim=2)
        return torch.cat([torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK).flatten(), v_BTGK.flatten()])

    def shape(y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, channels))

    paired = pair_rows(torch.cat((q, k, v)), head_dim=channels, num_heads=heads + groups, num_pairs=rope_dims // 2)
    qkv = shape(F.linear(x, paired))
    merged = products(*split_norm_turn(qkv, torch.complex(cos, -sin), gain, groups))
    q_plain, k_plain = (rotate_halves(F.rms_norm(shape(F.linear(x, w)), (channels,)), cos, sin) for w in (q, k))
    plain = products(q_plain * gain[:, None], k_plain, shape(F.linear(x, v)))
    inputs = (x, q, k, v, gain)
    assert_same(values_and_gradients(merged, *inputs), values_and_gradients(plain, *inputs))
