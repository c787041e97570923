"""Trained weights -> small integers with one scale per row, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf_model.config import BITS_RANGE, ModelConfig, QuantConfig, code_limit
from pgolf_model.shapes import param_shapes

# Scales are float16 with this many of the ten mantissa bits in use. A step up to 3 % off costs 0.0004 bits per weight,
# the six dropped ones saved 5.2 bits per row (0.010 per weight at 512 columns): rows round against the stored scale.
SCALE_MANTISSA_BITS = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedTensor:
    """A matrix as `codes * scales[:, None]`."""

    codes: Tensor  # (rows, cols) int8 in [-code_limit(bits), code_limit(bits)]
    scales: Tensor  # (rows,) float16, positive
    bits: int


PackedTensor = QuantizedTensor | Tensor  # a Tensor is a float16 `scalar` parameter


def quantize_rows(weight: Tensor, *, bits: int, clip_sigmas: float) -> tuple[Tensor, Tensor]:
    """Round each row to signed integers with one scale per row (SDClip).

    The step is clip_sigmas * sigma / code_limit(bits). Sigma is taken about zero, as the codes are, so a constant row
    survives; trained rows have a mean near zero. Rounding is against the scale that is stored.

    Args:
        weight: (rows, cols), any float dtype. Computed in float32.
        bits: integers lie in [-(2**(bits-1) - 1), 2**(bits-1) - 1].
        clip_sigmas: where the largest code lies, in row deviations; with bits it sets the bytes and the error.
    Returns:
        (rows, cols) int8 and (rows,) float16 scales; an all-zero row gets scale 1, a tiny one at least 2**-18.
    Raises:
        ValueError: weight is not 2-D, holds NaN or infinity, or is too large for a float16 scale.
    Source: https://github.com/openai/parameter-golf/pull/1394
    """
    low, high = BITS_RANGE
    if not low <= bits <= high:
        raise ValueError(f"bits must be in [{low}, {high}], got {bits}")
    if not clip_sigmas > 0:
        raise ValueError(f"clip_sigmas must be positive, got {clip_sigmas}")
    if weight.ndim != 2 or not weight.numel():
        raise ValueError(f"expected a matrix with rows and columns, got shape {tuple(weight.shape)}")
    weight = weight.detach().float()
    if not weight.isfinite().all():
        raise ValueError("weights hold NaN or infinity; training diverged, lower the learning rate")
    sigma = weight.square().mean(1).sqrt()
    scales = _storable(sigma * (clip_sigmas / code_limit(bits)))
    if not scales.isfinite().all():
        raise ValueError(f"row deviation {sigma.max():.3g} needs a scale above float16's 65504; training diverged")
    scales = torch.where(sigma > 0, scales, torch.ones_like(scales))
    codes = (weight / scales.float()[:, None]).round_().clamp_(-code_limit(bits), code_limit(bits))
    return codes.to(torch.int8), scales


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """(rows, cols) float32 from `quantize_rows`' pair."""
    return codes.float() * scales.float()[:, None]


def quantize_state(state: Mapping[str, Tensor], model: ModelConfig, quant: QuantConfig) -> dict[str, PackedTensor]:
    """What the artifact holds: matrices as integers by role and layer, scalars as float16, on the CPU.

    Raises:
        ValueError: names differ from `param_shapes(model)`, or a tensor cannot be stored; names the tensor.
    """
    shapes = param_shapes(model)
    check_names(state, shapes)
    packed: dict[str, PackedTensor] = {}
    for name, info in shapes.items():
        weight = state[name].detach()
        if tuple(weight.shape) != info.shape:
            raise ValueError(f"{name}: expected shape {info.shape}, got {tuple(weight.shape)}")
        if info.role == "scalar":
            packed[name] = half = weight.half().cpu().contiguous()
            if not half.isfinite().all():
                raise ValueError(f"{name}: holds NaN or a value above float16's 65504; training diverged")
            continue
        bits = quant.bits(info.role, info.layer, model.num_layers)
        clip_sigmas = quant.clip_sigmas(info.role, info.layer, model.num_layers)
        try:
            codes, scales = quantize_rows(weight, bits=bits, clip_sigmas=clip_sigmas)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        packed[name] = QuantizedTensor(codes=codes.cpu().contiguous(), scales=scales.cpu().contiguous(), bits=bits)
    return packed


def dequantize_state(tensors: Mapping[str, PackedTensor]) -> dict[str, Tensor]:
    """Float32 weights, ready for `load_state_dict`."""
    return {
        name: dequantize_rows(item.codes, item.scales) if isinstance(item, QuantizedTensor) else item.float()
        for name, item in tensors.items()
    }


def check_names(given: Iterable[str], expected: Iterable[str]) -> None:
    """Raise ValueError when two sets of tensor names differ."""
    missing, extra = set(expected) - set(given), set(given) - set(expected)
    if missing or extra:
        raise ValueError(
            "tensors do not match the model config: "
            f"missing {sorted(missing)[:3] or 'none'}, unexpected {sorted(extra)[:3] or 'none'}"
        )


def _storable(scales: Tensor) -> Tensor:
    """Round positive scales to SCALE_MANTISSA_BITS, never to zero; infinity where float16 overflows."""
    drop = 10 - SCALE_MANTISSA_BITS
    pattern = scales.half().view(torch.int16).int()  # of positive floats: ordered like the floats themselves
    pattern = ((pattern + (1 << drop >> 1)) >> drop << drop).clamp(1 << drop)
    return pattern.short().view(torch.float16)
