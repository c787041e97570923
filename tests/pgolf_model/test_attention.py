"""Attention kernels and the attention module against explicit softmax over the past."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_model import naive_attention, naive_norm
from torch import Tensor

from pgolf_model.config import ModelConfig
from pgolf_model.model.attention import AttentionInputs, exclude_own_value
from pgolf_model.model.gpt import GPT
from pgolf_model.model.kernels import (
    attention,
    document_mask,
    flash_attention,
    flash_package,
    flex_mask,
    imported_package,
)
from pgolf_model.model.layers import rotary_table


def random_heads(*, num_heads: int, num_kv_heads: int, seq_len: int, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, seq_len, heads, size) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """Softmax over the seen positions, one query at a time; sees is (B, T, T)."""
    y = torch.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            past = [s for s in range(q.shape[1]) if sees[b, t, s]]
            for h in range(q.shape[2]):
                scores = torch.stack([q[b, t, h] @ k[b, s, h // group] for s in past]) / math.sqrt(q.shape[3])
                y[b, t, h] = torch.softmax(scores, 0) @ v[b, past, h // group]
    return y


def explicit_sees(ids: Tensor, bos_id: int) -> Tensor:
    """(B, T, T): no position in (s, t] begins a document."""
    sees = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool)
    for b, row in enumerate(ids.tolist()):
        for t in range(len(row)):
            for s in range(t + 1):
                sees[b, t, s] = bos_id not in row[s + 1 : t + 1]
    return sees


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_a_document_ends_before_the_next_bos(ids: list[int]) -> None:
    """Brute force over all pairs; both masks agree."""
    tokens = torch.tensor([ids])
    expected = explicit_sees(tokens, 1)
    assert torch.equal(document_mask(tokens, 1)[:, 0], expected)
    mask = flex_mask((tokens == 1).cumsum(1))
    b = h = torch.zeros((), dtype=torch.int64)
    positions = torch.arange(len(ids))
    seen = torch.stack([torch.stack([mask.mask_mod(b, h, t, s) for s in positions]) for t in positions])
    assert torch.equal(seen, expected[0])


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_kernels_are_explicit_softmax_over_what_is_seen(num_heads: int, num_kv_heads: int) -> None:
    """Plainly causal, and within documents."""
    q, k, v = random_heads(num_heads=num_heads, num_kv_heads=num_kv_heads, seq_len=9)
    ids = torch.tensor([[1, 5, 5, 1, 5, 5, 5, 1, 1], [5, 5, 1, 5, 5, 5, 5, 5, 5]])
    plain = explicit_attention(q, k, v, explicit_sees(torch.zeros_like(ids), 1))
    torch.testing.assert_close(attention(q, k, v, None), plain)
    within = explicit_attention(q, k, v, explicit_sees(ids, 1))
    torch.testing.assert_close(attention(q, k, v, document_mask(ids, 1)), within)
    assert not torch.allclose(plain, within)


class PretendedCuda(Tensor):
    """A CPU tensor that says it lies on a GPU."""

    is_cuda = True


class FakeFlashPackage(ModuleType):
    """FlashAttention as an explicit softmax that counts its calls; some releases return log sums as well."""

    def __init__(self, name: str, *, returns_log_sums: bool = False) -> None:
        super().__init__(name)
        self.calls = 0
        self.returns_log_sums = returns_log_sums

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor | tuple[Tensor, None]:
        assert causal
        self.calls += 1
        plain = [x.as_subclass(Tensor).float() for x in (q, k, v)]
        y = explicit_attention(*plain, torch.ones(q.shape[0], q.shape[1], q.shape[1]).tril()).to(q.dtype)
        return (y, None) if self.returns_log_sums else y


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[FakeFlashPackage]]]:
    """Pretend a GPU generation and what FlashAttention packages are installed; their fakes."""

    def install(generation: int, *names: str, returns_log_sums: bool = False) -> list[FakeFlashPackage]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (generation, 0))
        fakes = {name: FakeFlashPackage(name, returns_log_sums=returns_log_sums) for name in names}
        for name in ("flash_attn_interface", "flash_attn"):
            monkeypatch.setitem(sys.modules, name, fakes.get(name))  # None: importing it is an ImportError
        imported_package.cache_clear()
        return list(fakes.values())

    yield install
    imported_package.cache_clear()


def pretended_heads(*, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    heads = random_heads(num_heads=4, num_kv_heads=2, seq_len=9, size=size)
    return tuple(x.to(dtype).as_subclass(PretendedCuda) for x in heads)


@pytest.mark.parametrize("returns_log_sums", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_is_used_where_a_package_is(
    gpu: Callable[..., list[FakeFlashPackage]], dtype: torch.dtype, returns_log_sums: bool
) -> None:
    """Version 3 on Hopper before version 2, version 2 on Ampere; the same numbers as without them."""
    q, k, v = pretended_heads(size=8, dtype=dtype)
    (third, second) = gpu(9, "flash_attn_interface", "flash_attn", returns_log_sums=returns_log_sums)
    y = attention(q, k, v, None)
    assert (third.calls, second.calls) == (1, 0)
    (third, second) = gpu(8, "flash_attn_interface", "flash_attn", returns_log_sums=returns_log_sums)
    assert torch.equal(attention(q, k, v, None), y)
    assert (third.calls, second.calls) == (0, 1)
    gpu(9)
    plain = attention(q, k, v, None).as_subclass(Tensor)
    torch.testing.assert_close(y, plain, rtol=0.02, atol=0.005)  # PyTorch rounds more often on the way


@pytest.mark.parametrize(
    ("generation", "names", "size", "dtype"),
    [
        (9, ("flash_attn_interface", "flash_attn"), 8, torch.float32),  # no such products
        (9, ("flash_attn_interface", "flash_attn"), 12, torch.bfloat16),  # not a multiple of 8 channels
        (9, ("flash_attn_interface", "flash_attn"), 264, torch.bfloat16),  # more than 256
        (8, ("flash_attn_interface",), 8, torch.bfloat16),  # version 3 is for Hopper
        (7, ("flash_attn",), 8, torch.bfloat16),  # too old
        (10, ("flash_attn_interface", "flash_attn"), 8, torch.bfloat16),  # too new for either
        (9, (), 8, torch.bfloat16),
    ],
)
def test_attention_falls_back_to_pytorch(
    gpu: Callable[..., list[FakeFlashPackage]], generation: int, names: tuple[str, ...], size: int, dtype: torch.dtype
) -> None:
    fakes = gpu(generation, *names)
    q, k, v = pretended_heads(size=size, dtype=dtype)
    y = attention(q, k, v, None)
    assert [fake.calls for fake in fakes] == [0] * len(names)
    expected = attention(*(x.as_subclass(Tensor) for x in (q, k, v)), None)
    assert torch.equal(y.as_subclass(Tensor), expected)


def test_documents_and_cpus_have_no_flash_attention(gpu: Callable[..., list[FakeFlashPackage]]) -> None:
    (fake,) = gpu(9, "flash_attn_interface")
    q, k, v = pretended_heads(size=8, dtype=torch.bfloat16)
    attention(q, k, v, document_mask(torch.ones(2, 9, dtype=torch.int64), 1))
    attention(*(x.as_subclass(Tensor) for x in (q, k, v)), None)
    assert fake.calls == 0


def test_a_compiled_model_looks_for_flash_attention_while_it_is_traced(
    gpu: Callable[..., list[FakeFlashPackage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a break of the graph; the package's function is part of it."""
    gpu(9, "flash_attn_interface")
    fake = sys.modules["flash_attn_interface"]
    monkeypatch.setattr(fake, "flash_attn_func", lambda q, k, v, causal: 2 * q if causal else k + v)
    q = torch.ones(1, 3, 2, 8, dtype=torch.bfloat16)
    torch.compiler.assume_constant_result(flash_package)  # as `prepare_device` does
    compiled = torch.compile(flash_attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, q, q), 2 * q)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("default")  # torch deprecates what its own tracing of a mask does
def test_flex_attention_takes_the_block_mask() -> None:
    """The GPU's way through the lookup, on the CPU, in a compiled model and alone: the plain mask's numbers."""
    q, k, v = random_heads(num_heads=4, num_kv_heads=2, seq_len=300, size=16)
    ids = torch.randint(40, (2, 300), generator=torch.Generator().manual_seed(1))

    def within_documents(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
        return attention(q, k, v, flex_mask((ids == 1).cumsum(1)))

    expected = attention(q, k, v, document_mask(ids, 1))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(within_documents, fullgraph=True)(q, k, v, ids), expected)
        torch.testing.assert_close(within_documents(q, k, v, ids), expected)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "rope_dims"), [(4, 4, 0), (4, 2, 4), (6, 1, 2)])
def test_attention_is_an_explicit_softmax_over_the_past(num_heads: int, num_kv_heads: int, rope_dims: int) -> None:
    """Heads, groups, norms, rotations, gains and the causal mask, one query at a time in float64."""
    config = ModelConfig(
        num_layers=1, model_dim=num_heads * 6, num_heads=num_heads, num_kv_heads=num_kv_heads, rope_dims=rope_dims
    )
    generator = torch.Generator().manual_seed(0)
    module = GPT(config).get_submodule("blocks.0.attn").double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 9, config.model_dim, generator=generator, dtype=torch.float64)
    out_scale = torch.randn(config.model_dim, generator=generator, dtype=torch.float64)
    cos, sin = rotary_table(9, rope_dims or config.head_dim, base=config.rope_base, like=x)
    got = module(x, AttentionInputs(cos_T1R=cos, sin_T1R=sin, mask=None, value_embed_BTC=None), out_scale)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    ids = torch.zeros(9)
    expected = [naive_attention(weights, row, ids, row @ weights["v"].T, 0, config) for row in x]
    torch.testing.assert_close(got, torch.stack(expected) * out_scale, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 1000), group=st.sampled_from((1, 3)))
@settings(max_examples=20)
def test_exclusive_attention_is_orthogonal_to_the_tokens_own_value(seed: int, group: int) -> None:
    """Nothing is left along v, nothing else is changed, and doing it twice is doing it once."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(2, 3, 2, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, 2 * group, 6, generator=generator, dtype=torch.float64)
    out = exclude_own_value(y, v)
    own = v.repeat_interleave(group, dim=2)
    torch.testing.assert_close((out * own).sum(-1), torch.zeros(2, 3, 2 * group, dtype=torch.float64))
    taken = y - out
    torch.testing.assert_close(taken, (taken * naive_norm(own)).sum(-1, keepdim=True) / 6 * naive_norm(own))
    torch.testing.assert_close(exclude_own_value(out, v), out)
