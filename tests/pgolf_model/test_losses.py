"""The chunked loss against the plain one: values, gradients, and what it never allocates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pgolf_model.model.losses import mean_softcapped_cross_entropy, softcapped_cross_entropy


def plain_losses(x: Tensor, weight: Tensor, targets: Tensor, *, softcap: float) -> Tensor:
    """All logits at once, float32."""
    logits = softcap * torch.tanh(F.linear(x, weight / softcap).float())
    return F.cross_entropy(logits, targets, reduction="none")


def plain_losses_float64(x: Tensor, weight: Tensor, targets: Tensor, *, softcap: float) -> Tensor:
    """The definition, step by step, in float64."""
    logits = softcap * torch.tanh(x @ weight.T / softcap)
    chosen = logits[torch.arange(len(targets)), targets]
    return logits.exp().sum(1).log() - chosen


def example(num_tokens: int, dim: int, vocab: int, *, dtype: torch.dtype, scale: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens + vocab)
    x = torch.randn(num_tokens, dim, generator=generator, dtype=dtype)
    weight = scale * torch.randn(vocab, dim, generator=generator, dtype=dtype) / dim**0.5
    return [x.requires_grad_(), weight.requires_grad_(), torch.randint(vocab, (num_tokens,), generator=generator)]


@settings(max_examples=40)
@given(
    num_tokens=st.integers(1, 40),
    vocab=st.integers(1, 30),
    chunk_tokens=st.integers(1, 50),
    softcap=st.sampled_from([1.0, 8.0, 30.0]),
)
def test_values_and_gradients_are_the_definitions(
    num_tokens: int, vocab: int, chunk_tokens: int, softcap: float
) -> None:
    """In float64, whatever the chunks; tokens weighted unequally."""
    x, weight, targets = example(num_tokens, 6, vocab, dtype=torch.float64)
    share = torch.linspace(-1.0, 2.0, num_tokens, dtype=torch.float64)
    expected = plain_losses_float64(x, weight, targets, softcap=softcap)
    losses = softcapped_cross_entropy(x, weight, targets, softcap=softcap, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(losses, expected)
    for one, other in zip(
        torch.autograd.grad((losses * share).sum(), (x, weight)),
        torch.autograd.grad((expected * share).sum(), (x, weight), retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    mean = mean_softcapped_cross_entropy(x, weight, targets, softcap=softcap, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(mean, expected.mean())
    for one, other in zip(
        torch.autograd.grad(3.0 * mean, (x, weight)),
        torch.autograd.grad(3.0 * expected.mean(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def distance(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    """Between two lists of gradients, relative to the second."""
    off = sum(float((one.double() - other.double()).square().sum()) for one, other in zip(some, others, strict=True))
    return (off / sum(float(other.double().square().sum()) for other in others)) ** 0.5


@pytest.mark.parametrize("autocast", [False, True])
def test_rounding_is_no_worse_than_the_plain_losses(autocast: bool) -> None:
    """Against gradients in float64; float32 losses, products in the ambient autocast's dtype."""
    x, weight, targets = example(300, 32, 50, dtype=torch.float32)
    exact = plain_losses_float64(x.double(), weight.double(), targets, softcap=10.0)
    exact_gradients = torch.autograd.grad(exact.mean(), (x, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plain = plain_losses(x, weight, targets, softcap=10.0)
        losses = softcapped_cross_entropy(x, weight, targets, softcap=10.0, chunk_tokens=16)
        mean = mean_softcapped_cross_entropy(x, weight, targets, softcap=10.0, chunk_tokens=16)
    assert losses.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(losses.double(), exact, rtol=0.01 if autocast else 1e-5, atol=0.02 if autocast else 1e-5)
    torch.testing.assert_close(mean, losses.mean())
    bound = distance(torch.autograd.grad(plain.mean(), (x, weight)), exact_gradients)
    assert (1e-4 < bound < 0.02) == autocast
    for loss in (losses.mean(), mean):
        gradients = torch.autograd.grad(loss, (x, weight))
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        assert distance(gradients, exact_gradients) < 1.5 * bound


def test_logits_far_beyond_the_cap_stay_finite() -> None:
    """A cap at which exp overflows float32, and inputs that saturate it."""
    x, weight, targets = example(20, 8, 12, dtype=torch.float32, scale=1e4)
    for softcap in (30.0, 500.0):
        losses = softcapped_cross_entropy(x, weight, targets, softcap=softcap, chunk_tokens=7)
        torch.testing.assert_close(losses, plain_losses(x, weight, targets, softcap=softcap), rtol=1e-4, atol=1e-3)
        assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(losses.sum(), (x, weight)))


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("loss_function", [softcapped_cross_entropy, mean_softcapped_cross_entropy])
def test_the_whole_table_of_logits_never_exists(loss_function: Callable[..., Tensor]) -> None:
    """No tensor is larger than one chunk's logits, forward and backward."""
    x, weight, targets = example(256, 4, 64, dtype=torch.float32)
    with Largest() as largest:
        loss_function(x, weight, targets, softcap=30.0, chunk_tokens=32).mean().backward()
    assert largest.numel == 32 * 64
    with Largest() as largest:
        plain_losses(x, weight, targets, softcap=30.0).mean().backward()
    assert largest.numel == 256 * 64


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.13's own doing
@pytest.mark.parametrize("loss_function", [softcapped_cross_entropy, mean_softcapped_cross_entropy])
def test_it_compiles_into_one_graph(loss_function: Callable[..., Tensor]) -> None:
    """torch.compile takes it whole, gradients included."""
    x, weight, targets = example(48, 4, 16, dtype=torch.float32)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return loss_function(x, weight, targets, softcap=30.0, chunk_tokens=16).mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(x, weight), (x, weight))
    for one, other in zip(torch.autograd.grad(compiled(x, weight), (x, weight)), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_without_gradients_nothing_is_kept() -> None:
    """As an evaluation calls it."""
    x, weight, targets = example(40, 4, 16, dtype=torch.float32)
    with torch.no_grad():
        mean = mean_softcapped_cross_entropy(x, weight, targets, softcap=30.0, chunk_tokens=16)
        losses = softcapped_cross_entropy(x, weight, targets, softcap=30.0, chunk_tokens=16)
    assert not mean.requires_grad
    torch.testing.assert_close(mean, losses.mean())
