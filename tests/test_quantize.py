"""Quantizing: codes and scales of rows, roles of whole states."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model.config import ModelConfig, QuantConfig
from pgolf_model.quantize import (
    QuantizedTensor,
    code_limit,
    dequantize_rows,
    dequantize_state,
    quantize_rows,
    quantize_state,
)
from pgolf_model.shapes import param_shapes

BITS = range(2, 9)
TINY = ModelConfig(vocab_size=24, num_layers=3, model_dim=8, num_heads=2, num_kv_heads=1)


def gaussian(rows: int, cols: int, *, seed: int = 0, std: float = 0.02) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * std


def random_state(model: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(info.shape, generator=generator) for name, info in param_shapes(model).items()}


@settings(deadline=None)
@given(
    bits=st.sampled_from(BITS),
    clip_sigmas=st.floats(0.5, 30),
    std=st.floats(1e-5, 100),
    seed=st.integers(0, 1000),
)
def test_error_is_at_most_half_a_step_inside_the_clip(bits: int, clip_sigmas: float, std: float, seed: int) -> None:
    """Every weight that the largest code can reach comes back within half of its row's stored step."""
    weight = gaussian(5, 33, seed=seed, std=std)
    codes, scales = quantize_rows(weight, bits=bits, clip_sigmas=clip_sigmas)
    step = scales.float()[:, None]
    inside = weight.abs() <= code_limit(bits) * step
    error = (dequantize_rows(codes, scales) - weight).abs()
    assert (error <= 0.5001 * step)[inside].all()
    assert (codes.abs() == code_limit(bits))[~inside].all()


@pytest.mark.parametrize("bits", BITS)
def test_step_is_the_clip_over_the_largest_code(bits: int) -> None:
    """SDClip: clip_sigmas row deviations map to the largest code, up to the 4-bit mantissa of the stored scale."""
    weight = gaussian(64, 512)
    codes, scales = quantize_rows(weight, bits=bits, clip_sigmas=12.85)
    for row, scale in zip(weight.tolist(), scales.tolist(), strict=True):
        sigma = math.sqrt(sum(w * w for w in row) / len(row))
        assert scale == pytest.approx(12.85 * sigma / (2 ** (bits - 1) - 1), rel=2**-5 + 2**-10)
        assert math.frexp(scale)[0] * 32 % 1 == 0
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.float16


@pytest.mark.parametrize("clip_sigmas", [3.0, 6.0, 12.85, 20.0])
def test_more_bits_never_give_a_larger_error(clip_sigmas: float) -> None:
    """Mean squared error falls with every bit; tighter clips saturate, and there bits change nothing."""
    weight = gaussian(128, 512)
    errors = []
    for bits in BITS:
        back = dequantize_rows(*quantize_rows(weight, bits=bits, clip_sigmas=clip_sigmas))
        errors.append(float((back - weight).double().square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_zero_and_extreme_rows_survive() -> None:
    """Zero rows get scale 1, constant rows come back, tiny rows keep a usable scale, integers stay in range."""
    weight = torch.stack([torch.zeros(8), torch.full((8,), -0.25), torch.full((8,), 1e-30), torch.full((8,), 3e-7)])
    codes, scales = quantize_rows(weight, bits=8, clip_sigmas=4.0)
    assert scales[0] == 1
    assert not codes[0].any()
    back = dequantize_rows(codes, scales)
    assert torch.allclose(back[1], weight[1], atol=float(scales[1]) / 2)
    assert (scales > 0).all()
    assert (back - weight).abs().max() <= scales[1] / 2


def test_any_float_dtype_is_accepted() -> None:
    """bfloat16 weights give what their float32 values give."""
    weight = gaussian(4, 16).bfloat16()
    for got, want in zip(
        quantize_rows(weight, bits=5, clip_sigmas=6.0),
        quantize_rows(weight.float(), bits=5, clip_sigmas=6.0),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
        (torch.tensor([[1.0, -float("inf")]]), "NaN or infinity"),
        (torch.full((2, 2), 1e7), "65504"),
        (torch.full((2, 2), 1e30), "65504"),
        (torch.zeros(3), r"matrix .* \(3,\)"),
        (torch.zeros(0, 3), r"matrix .* \(0, 3\)"),
    ],
)
def test_what_cannot_be_stored_is_refused(weight: torch.Tensor, message: str) -> None:
    """Not-a-number, float16 overflow and wrong shapes are ValueErrors that say so."""
    with pytest.raises(ValueError, match=message):
        quantize_rows(weight, bits=6, clip_sigmas=12.85)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_outside_the_range_are_refused(bits: int) -> None:
    """One to eight bits."""
    with pytest.raises(ValueError, match=f"bits must be in \\[1, 8\\], got {bits}"):
        quantize_rows(gaussian(2, 2), bits=bits, clip_sigmas=1.0)


def test_roles_and_layers_choose_bits_and_clip() -> None:
    """Each matrix is what quantize_rows makes of it at its role's and layer's bits and clip; scalars become float16."""
    quant = QuantConfig(
        embed_bits=7, attn_bits=(2, 3, 4), mlp_bits=(5, 8), attn_clip_sigmas=(1.2, 3.0, 4.0), mlp_clip_sigmas=(9.0,)
    )
    state = random_state(TINY)
    packed = quantize_state(state, TINY, quant)
    assert list(packed) == list(param_shapes(TINY))
    for name, bits, clip in (
        ("embed.weight", 7, 20.0),
        ("blocks.0.attn.k", 2, 1.2),
        ("blocks.1.attn.out", 3, 3.0),
        ("blocks.2.attn.q", 4, 4.0),
        ("blocks.1.mlp.up", 5, 9.0),
        ("blocks.2.mlp.down", 8, 9.0),
    ):
        item = packed[name]
        assert isinstance(item, QuantizedTensor)
        assert item.bits == bits
        codes, scales = quantize_rows(state[name], bits=bits, clip_sigmas=clip)
        assert torch.equal(item.codes, codes)
        assert torch.equal(item.scales, scales)
    back = dequantize_state(packed)
    for name, info in param_shapes(TINY).items():
        assert back[name].dtype == torch.float32
        assert back[name].shape == info.shape
        if info.role == "scalar":
            assert torch.equal(back[name], state[name].half().float())


def test_a_state_that_does_not_fit_names_the_tensor() -> None:
    """Missing, misshapen, not-a-number and overflowing tensors are refused by name."""
    quant = QuantConfig()
    for name, tensor, message in (
        ("blocks.1.mlp.up", torch.full((16, 8), float("nan")), "blocks.1.mlp.up: weights hold NaN"),
        ("blocks.1.mlp.up", torch.zeros(8, 16), "blocks.1.mlp.up: expected shape"),
        ("skip_weights", torch.full((1, 8), 7e4), "skip_weights: .*65504"),
        ("extra", torch.zeros(1), "unexpected .'extra'"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_state({**random_state(TINY), name: tensor}, TINY, quant)
    state = random_state(TINY)
    del state["embed.weight"]
    with pytest.raises(ValueError, match=r"missing .'embed.weight'"):
        quantize_state(state, TINY, quant)
