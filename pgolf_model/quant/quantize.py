"""Trained weights -> small integers with steps per row or group, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pgolf_model.config import ModelConfig, QuantConfig, code_limit
from pgolf_model.errors import UserError
from pgolf_model.quant.gptq import feedback_factor, gptq, plan_columns
from pgolf_model.quant.lowrank import LowRank, fit_lowrank, lowrank_values
from pgolf_model.quant.trellis import code_values
from pgolf_model.shapes import param_shapes

# Scales are float16 with this many of the ten mantissa bits in use. A step up to 3 % off costs 0.0004 bits per weight,
# the six dropped ones saved 5.2 bits per row (0.010 per weight at 512 columns): rows round against the stored scale.
SCALE_MANTISSA_BITS = 4

CLIP_FLOOR_SIGMAS = 4.0  # rows whose steps are made finer still reach this far
REACH_STEP_SIGMAS = 0.25  # and as far as their largest weight, if that needs no wider step


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedTensor:
    """A matrix as codes times steps, plus a correction of low rank."""

    codes: Tensor  # (rows, cols) int8 in [-code_limit(bits), code_limit(bits)]
    scales: Tensor  # float16, positive: (rows,) one step per row, or (rows, groups) one per cols / groups columns
    bits: int  # 1..8; 1 is binary {-1, 1}, 2 ternary {-1, 0, 1}
    states: int = 1  # 1: a value is code * step; 4 or 8: dependent quantization along the row
    lowrank: LowRank | None = None
    # (2, cols) int8, `plan_columns`, in the matrix' order of columns. Codes and scales are in visiting order then,
    # columns[0].argsort(stable=True), and a column's step is multiplied by 2 ** (columns[1] / 4).
    columns: Tensor | None = None


PackedTensor = QuantizedTensor | Tensor  # a Tensor is a float16 `scalar` parameter


def row_scales(
    weight: Tensor,
    *,
    bits: int,
    clip_sigmas: float,
    states: int = 1,
    group: int = 0,
    row_factors: Tensor | None = None,
) -> Tensor:
    """Step of each row, or of each group of columns in it: the largest code lies at clip_sigmas deviations (SDClip).

    Sigma is taken about zero, as the codes are, so a constant row survives; trained rows have a mean near zero. With
    several states values lie twice as far out in steps, so the step halves: the bytes stay about the same. Steps of
    least squared error for Gaussian rows: ternary 1.224 sigma, binary 0.798.

    Args:
        weight: (rows, cols), any float dtype.
        bits: integers lie in [-code_limit(bits), code_limit(bits)].
        clip_sigmas: where the largest code lies, in deviations; with bits it sets the bytes and the error.
        group: columns that share a step; 0 is the whole row.
        row_factors: (rows,) multiples of the steps; none clips a row below CLIP_FLOOR_SIGMAS or, where the bits allow
            steps below REACH_STEP_SIGMAS, below its largest weight.
    Returns:
        float16 (rows,) or (rows, cols / group); an all-zero row or group gets 1, a tiny one
            (with 1 bit an all-zero one too) at least 2**-18.
    Raises:
        ValueError: weight is not 2-D, holds NaN or infinity, is too large for a float16 scale, or cols is no
            multiple of group.
    Source: https://github.com/openai/parameter-golf/pull/1394
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be in [1, 8], got {bits}")
    if not clip_sigmas > 0:
        raise ValueError(f"clip_sigmas must be positive, got {clip_sigmas}")
    if weight.ndim != 2 or not weight.numel():
        raise ValueError(f"expected a matrix with rows and columns, got shape {tuple(weight.shape)}")
    rows, cols = weight.shape
    if group and cols % group:
        raise ValueError(f"columns must be a multiple of group, got {cols} and {group}")
    weight = weight.detach().float()
    if not weight.isfinite().all():
        raise UserError("weights hold NaN or infinity", hint="lower the learning rate")
    sigma = weight.view(rows, -1, group or cols).square().mean(2).sqrt()
    wide = sigma * clip_sigmas
    if row_factors is not None:
        reach = weight.view(rows, -1, group or cols).abs().amax(2).minimum(sigma * REACH_STEP_SIGMAS * code_limit(bits))
        floor = torch.maximum(sigma * min(clip_sigmas, CLIP_FLOOR_SIGMAS), reach)
        wide = torch.maximum(wide * row_factors[:, None], floor)
    scales = _storable(wide / code_limit(bits) / min(2, states))
    if not scales.isfinite().all():
        raise UserError(
            f"row deviation {sigma.max():.3g} needs a scale above float16's 65504",
            hint="lower the learning rate",
        )
    if bits > 1:  # a sign has no zero: there an all-zero row keeps the smallest scale
        scales = torch.where(sigma > 0, scales, torch.ones_like(scales))
    return scales if group else scales[:, 0]


def quantize_rows(weight: Tensor, *, bits: int, clip_sigmas: float) -> tuple[Tensor, Tensor]:
    """Round each row to the nearest signed integers, with one step per row: `row_scales`, errors included.

    Returns:
        (rows, cols) int8 and (rows,) float16 scales. Rounding is against the scale that is stored.
    """
    scales = row_scales(weight, bits=bits, clip_sigmas=clip_sigmas)
    limit, ratio = code_limit(bits), weight.detach().float() / scales.float()[:, None]
    codes = ratio.round().clamp_(-limit, limit) if bits > 1 else torch.copysign(torch.ones_like(ratio), ratio)
    return codes.to(torch.int8), scales


def quantize_matrix(
    weight: Tensor,
    *,
    bits: int,
    clip_sigmas: float,
    hessian: Tensor | None = None,
    states: int = 1,
    rate_weight: float = 0.0,
    group: int = 0,
    row_factors: Tensor | None = None,
    damping: float = 0.01,
    rank: int = 0,
    rank_bits: int = 4,
    plan: bool = False,
) -> QuantizedTensor:
    """One matrix by GPTQ, with the steps of `row_scales` and, if rank > 0, a low-rank correction of what is left.

    Args:
        hessian: (cols, cols) second moments of the matrix' inputs; None rounds every weight for itself.
        states, rate_weight, damping: as in `gptq`.
        plan: visit columns and scale their steps by a column plan (`plan_columns`); needs a Hessian. The deviations are
            still those of the weights.

    Bits per weight at equal divergence from the unquantized 6x256 model (blocks 1, 3, 5 at about 2.8 bits, real coder,
    side information counted), against GPTQ with uniform codes: plain rounding +0.83, rate_weight 0.1 -0.17, with 8
    states too -0.40, with a column plan too -0.58 (0.05 and 0.2 instead of 0.1: 0.03 and 0.02 worse).
    Raises:
        ValueError: as `row_scales` and `gptq` do; dependent quantization of one bit; a column plan without a Hessian.
    """
    if bits == 1 and (states > 1 or rate_weight):
        raise ValueError("binary codes have no zero and cost one bit: they need states 1 and rate_weight 0")
    if plan and hessian is None:
        raise ValueError("a plan of columns needs a Hessian")
    weight = weight.detach().float()
    columns = plan_columns(hessian, damping=damping) if plan and hessian is not None else None
    target, metric = weight, hessian
    if columns is not None and hessian is not None:
        order, gains = column_order(columns)
        target, metric = weight[:, order] / gains, hessian[order][:, order] * gains * gains[:, None]
        # A massive activation's column has a small gain and so becomes its rows' outlier, up to sqrt(cols) deviations.
        # On a trained 1024x256 embedding at 3.4 bits clipping that one column cost 0.08 nats, and steps that follow it
        # 0.0021 instead of 0.0016: steps follow the weights, and floors keep them from clipping.
        ratio = (weight.square().sum(1) / target.square().sum(1).clamp_min(1e-30)).sqrt()
        row_factors = ratio if row_factors is None else ratio * row_factors
    scales = row_scales(target, bits=bits, clip_sigmas=clip_sigmas, states=states, group=group, row_factors=row_factors)
    codes = gptq(
        target,
        metric,
        steps=scales,
        limit=code_limit(bits),
        states=states,
        rate_weight=rate_weight,
        damping=damping,
        binary=bits == 1,
        sort=False if plan else None,
    )
    item = QuantizedTensor(codes=codes, scales=scales, bits=bits, states=states, columns=columns)
    if rank:
        factor = None if hessian is None else feedback_factor(hessian, damping)
        item = replace(item, lowrank=fit_lowrank(weight - dequantize(item), factor, rank=rank, bits=rank_bits))
    return item


def dequantize(item: QuantizedTensor) -> Tensor:
    """(rows, cols) float32."""
    rows, cols = item.codes.shape
    values = code_values(item.codes, item.states).view(rows, -1, cols // (item.scales.numel() // rows))
    values = (values * item.scales.float().view(rows, -1, 1)).view(rows, cols)
    if item.columns is not None:
        order, gains = column_order(item.columns)
        values = (values * gains)[:, order.argsort()]
    return values if item.lowrank is None else values + lowrank_values(item.lowrank)


def column_order(columns: Tensor) -> tuple[Tensor, Tensor]:
    """(order, gains): the columns in visiting order, and the gains of their steps in that order."""
    order = columns[0].argsort(stable=True)
    return order, torch.exp2(columns[1, order].float() / 4)


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """(rows, cols) float32 from `quantize_rows`' pair."""
    return codes.float() * scales.float()[:, None]


ScalarFormat = Literal["float16", "e5m6", "e5m4", "e5m2", "e4m3"]


def round_scalars(tensor: Tensor, format: ScalarFormat = "float16") -> Tensor:
    """A small parameter rounded to a float of fewer bits, e exponent and m mantissa bits, returned as float16.

    Every format's values are float16 values; dropped mantissa bits are zeros, which an entropy coder stores for
    nothing. e5m2 and e4m3 are the two 8-bit floats; e4m3 ends at 448. On a trained 6x256 model float16 is the choice:
    e5m6 saved 3.6 bits per scalar and cost a divergence of 1.0e-4 nats per token, ten times what those bytes buy back
    as smaller steps of the matrices; e5m4 cost 1.9e-3, e4m3 2.3e-3, e5m2 9.1e-3.
    Raises:
        ValueError: NaN, or a value above the format's largest.
    """
    tensor = tensor.detach().float()
    if format == "e4m3":
        rounded = torch.where(tensor.abs() <= 448, tensor, torch.nan).to(torch.float8_e4m3fn).half()
    else:
        size = _round_half(tensor.abs(), 10 if format == "float16" else int(format[-1]))
        rounded = torch.copysign(size, tensor.half())
    if not rounded.isfinite().all():
        raise UserError(
            f"holds NaN or a value above {format}'s {448 if format == 'e4m3' else 65504}",
            hint="lower the learning rate",
        )
    return rounded


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
            try:
                packed[name] = round_scalars(weight).cpu().contiguous()
            except UserError as error:
                raise error.at(name) from None
            continue
        bits = quant.bits(info.role, info.layer, model.num_layers)
        clip_sigmas = quant.clip_sigmas(info.role, info.layer, model.num_layers)
        try:
            codes, scales = quantize_rows(weight, bits=bits, clip_sigmas=clip_sigmas)
        except UserError as error:
            raise error.at(name) from None
        packed[name] = QuantizedTensor(codes=codes.cpu().contiguous(), scales=scales.cpu().contiguous(), bits=bits)
    return packed


def dequantize_state(tensors: Mapping[str, PackedTensor]) -> dict[str, Tensor]:
    """Float32 weights, ready for `load_state_dict`."""
    return {
        name: dequantize(item) if isinstance(item, QuantizedTensor) else item.float() for name, item in tensors.items()
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
    return _round_half(scales, SCALE_MANTISSA_BITS).clamp_min(2.0 ** (-14 - SCALE_MANTISSA_BITS))


def _round_half(values: Tensor, mantissa_bits: int) -> Tensor:
    """Nonnegative values as float16 with so many mantissa bits; infinity and NaN stay what they are or overflow."""
    drop = 10 - mantissa_bits
    pattern = values.half().view(torch.int16).int()  # of nonnegative floats: ordered like the floats themselves
    return ((pattern + (1 << drop >> 1)) >> drop << drop).short().view(torch.float16)
