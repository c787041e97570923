"""Quantizing: codes and scales of rows, roles of whole states."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from pgolf_model.config import ModelConfig, QuantConfig
from pgolf_model.quant.gptq import hessian_error
from pgolf_model.quant.quantize import (
    QuantizedTensor,
    code_limit,
    dequantize,
    dequantize_rows,
    dequantize_state,
    quantize_matrix,
    quantize_rows,
    quantize_state,
    round_scalars,
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


def inputs_moments(cols: int) -> torch.Tensor:
    """Second moments of correlated inputs of very different sizes."""
    inputs = gaussian(200, cols, seed=5, std=1.0) * torch.linspace(2, -2, cols).exp()
    inputs[:, 1:] += 0.7 * inputs[:, :-1]
    return inputs.T @ inputs


@pytest.mark.parametrize("states", [1, 4, 8])
@pytest.mark.parametrize("clip_sigmas", [4.0, 12.85])
def test_matrices_gain_from_every_bit(states: int, clip_sigmas: float) -> None:
    """More bits never give a larger error, for each kind of quantizer."""
    weight = gaussian(32, 64)
    errors = [
        float((dequantize(quantize_matrix(weight, bits=bits, clip_sigmas=clip_sigmas, states=states)) - weight).norm())
        for bits in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)


def test_one_state_without_hessian_is_quantize_rows() -> None:
    """The general function agrees with the plain one, binary and ternary included."""
    weight = gaussian(16, 40)
    for bits, clip_sigmas in ((1, 0.8), (2, 1.2), (6, 12.85)):
        item = quantize_matrix(weight, bits=bits, clip_sigmas=clip_sigmas)
        codes, scales = quantize_rows(weight, bits=bits, clip_sigmas=clip_sigmas)
        assert torch.equal(item.codes, codes)
        assert torch.equal(item.scales, scales)
        assert torch.equal(dequantize(item), dequantize_rows(codes, scales))


def test_dependent_quantization_has_half_the_step_at_the_same_clip() -> None:
    """So that codes cost about the same: the entropy moves by less than 0.2 bits, the error falls by a fifth."""
    weight = gaussian(64, 128)
    plain, dependent = (quantize_matrix(weight, bits=5, clip_sigmas=8.0, states=states) for states in (1, 8))
    assert torch.equal(dependent.scales * 2, plain.scales)
    entropies = []
    for item in (plain, dependent):
        shares = torch.unique(item.codes, return_counts=True)[1] / item.codes.numel()
        entropies.append(float(-(shares * shares.log2()).sum()))
    assert abs(entropies[0] - entropies[1]) < 0.2
    assert float((dequantize(dependent) - weight).square().sum() / (dequantize(plain) - weight).square().sum()) < 0.8


@pytest.mark.parametrize(("bits", "clip_sigmas"), [(1, 0.798), (2, 1.224)])
def test_binary_and_ternary_groups(bits: int, clip_sigmas: float) -> None:
    """Each group of 16 columns has a step of its own: clip_sigmas deviations of the group."""
    weight = gaussian(6, 64) * torch.linspace(-3, 3, 64).exp()
    item = quantize_matrix(weight, bits=bits, clip_sigmas=clip_sigmas, group=16)
    assert item.scales.shape == (6, 4)
    assert set(item.codes.unique().tolist()) == ({-1, 1} if bits == 1 else {-1, 0, 1})
    for row in range(6):
        for group in range(4):
            part = weight[row, 16 * group : 16 * group + 16]
            scale = float(item.scales[row, group])
            assert scale == pytest.approx(clip_sigmas * float(part.square().mean().sqrt()), rel=2**-5 + 2**-10)
            codes = torch.where(part < 0, -1, 1) if bits == 1 else (part / scale).round().clamp(-1, 1)
            assert torch.equal(dequantize(item)[row, 16 * group : 16 * group + 16], codes * scale)
    whole = quantize_matrix(weight, bits=bits, clip_sigmas=clip_sigmas)
    assert (dequantize(item) - weight).norm() < (dequantize(whole) - weight).norm()


@pytest.mark.parametrize("states", [1, 8])
def test_a_massive_column_is_not_clipped_when_columns_are_planned(states: int) -> None:
    """Its step is small, so it is its rows' outlier; rows with finer steps than others reach it all the same."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(64, 256, generator=generator), torch.randn(4096, 256, generator=generator)
    inputs[:, 5], weight[:, 5] = inputs[:, 5] * 100, 3.0
    hessian, factors = inputs.T @ inputs / 4096, torch.linspace(0.1, 2, 64)
    errors = []
    for plan in (False, True):
        item = quantize_matrix(
            weight, bits=8, clip_sigmas=16.0, hessian=hessian, states=states, row_factors=factors, plan=plan
        )
        errors.append(hessian_error(dequantize(item) - weight, hessian))
    assert errors[1] < errors[0]
    assert int(item.codes[:, 0].abs().min()) > 0  # the massive column comes first
    assert float((dequantize(item) - weight)[:, 5].abs().max()) < 0.05


def test_a_plan_of_columns_comes_back_in_place() -> None:
    """Codes are stored in visiting order; the weights return in theirs, nearer in the outputs at the same entropy."""
    weight, hessian = gaussian(64, 48), inputs_moments(48)
    plain = quantize_matrix(weight, bits=6, clip_sigmas=16.0, hessian=hessian)
    item = quantize_matrix(weight, bits=6, clip_sigmas=16.0, hessian=hessian, plan=True)
    assert item.columns is not None
    order = sorted(range(48), key=lambda j: int(item.columns[0, j]))
    back = dequantize(item)
    for place, column in enumerate(order):
        expected = item.codes[:, place] * item.scales.float() * 2.0 ** (int(item.columns[1, column]) / 4)
        assert torch.equal(back[:, column], expected)
    assert hessian_error(back - weight, hessian) < hessian_error(dequantize(plain) - weight, hessian)


def test_a_low_rank_correction_lessens_the_error() -> None:
    """It is fitted to what the codes leave, under the Hessian, and added on the way back."""
    weight, hessian = gaussian(64, 48), inputs_moments(48)
    errors = []
    for rank in (0, 2, 6):
        item = quantize_matrix(weight, bits=3, clip_sigmas=2.0, hessian=hessian, rank=rank)
        errors.append(hessian_error(dequantize(item) - weight, hessian))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 5}, "columns must be a multiple of group, got 8 and 5"),
        ({"bits": 1, "states": 4}, "binary codes have no zero"),
        ({"plan": True}, "a plan of columns needs a Hessian"),
        ({"states": 3}, "states must be one of"),
        ({"clip_sigmas": 0.0}, "clip_sigmas must be positive, got 0.0"),
    ],
)
def test_impossible_quantizers_are_refused(options: dict[str, Any], message: str) -> None:
    """Each refusal says why."""
    with pytest.raises(ValueError, match=message):
        quantize_matrix(gaussian(4, 8), **{"bits": 4, "clip_sigmas": 3.0, **options})


@pytest.mark.parametrize(("bits", "states"), [(6, 1), (2, 8)])
def test_matrices_that_cannot_be_stored_are_refused(bits: int, states: int) -> None:
    """As by quantize_rows."""
    with refused("weights hold NaN or infinity", hint="lower the learning rate"):
        quantize_matrix(torch.full((2, 4), math.nan), bits=bits, clip_sigmas=3.0, states=states)


SCALAR_FORMATS = {"float16": (10, 65504), "e5m6": (6, 65024), "e5m4": (4, 63488), "e5m2": (2, 57344), "e4m3": (3, 448)}


@given(value=st.floats(-440, 440, width=16), format=st.sampled_from(sorted(SCALAR_FORMATS)))
def test_scalars_round_to_the_nearest_of_their_format(value: float, format: Any) -> None:
    """Within half a unit of the last mantissa bit, and rounding again changes nothing."""
    mantissa = SCALAR_FORMATS[format][0]
    lowest = -6 if format == "e4m3" else -14
    got = round_scalars(torch.tensor([value]), format)
    unit = 2.0 ** (max(math.frexp(value)[1] - 1, lowest) - mantissa) if value else 0.0
    assert abs(float(got) - value) <= unit / 2
    assert got.dtype == torch.float16
    assert torch.equal(round_scalars(got, format), got)


def test_eight_bit_floats_are_torchs() -> None:
    """e5m2 and e4m3 give what torch's dtypes hold, ties aside; above their peak they refuse."""
    values = torch.randn(999, generator=torch.Generator().manual_seed(0)).exp().half()
    values = values[values.view(torch.int16) % 256 != 128].float()
    assert torch.equal(round_scalars(values, "e4m3"), values.to(torch.float8_e4m3fn).half())
    assert torch.equal(round_scalars(values, "e5m2"), values.to(torch.float8_e5m2).half())
    for format, (_, peak) in SCALAR_FORMATS.items():
        assert float(round_scalars(torch.tensor([-float(peak)]), cast(Any, format))) == -peak
        with pytest.raises(ValueError, match=f"holds NaN or a value above {format}'s"):
            round_scalars(torch.tensor([peak * 1.1]), cast(Any, format))
        with pytest.raises(ValueError, match="NaN"):
            round_scalars(torch.tensor([math.nan]), cast(Any, format))


def test_a_zero_row_stays_next_to_zero_with_signs_alone() -> None:
    """One bit has no zero: a row without weights must not become a row of ones."""
    codes, scales = quantize_rows(torch.zeros(2, 4), bits=1, clip_sigmas=0.798)
    assert float(dequantize_rows(codes, scales).abs().max()) <= 2**-18
