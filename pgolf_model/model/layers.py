"""Weightless pieces: the norm, rotary positions and the squared ReLU.

On a CPU, where nothing is compiled and every operation is a pass over memory, each has a gradient by hand with half as
many passes. Elsewhere they are plain formulas, which the compiler fuses.

Shape suffixes: B sequences, T positions, H query heads, G key-value heads, K channels of a head, R rotation pairs,
N = H + G heads that are rotated, M = H + 2 G heads of a merged product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def is_by_hand(x: Tensor) -> bool:
    """True when the gradient for `x` is the one written by hand."""
    if torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square of the last dimension; no weight."""
    if is_by_hand(x):
        normed: Tensor = _RMSNorm.apply(x)  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x, (x.size(-1),)).to(x.dtype)


def rotary_table(seq_len: int, rope_dims: int, *, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, both (T, 1, R = rope_dims / 2), with the device and dtype of `like`.

    Angles are computed in float32 or better: bfloat16 cannot tell neighbouring positions apart beyond 256.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponents_R = torch.arange(0, rope_dims, 2, device=like.device, dtype=dtype) / rope_dims
    positions_T = torch.arange(seq_len, device=like.device, dtype=dtype)
    angles_T1R = torch.outer(positions_T, base**-exponents_R)[:, None, :]
    return angles_T1R.cos().to(like.dtype), angles_T1R.sin().to(like.dtype)


def rotate_halves(x_BTHK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + R) by the angle of their position; channels from 2 R on stay as they are."""
    first_BTHR, second_BTHR, *rest = torch.split(x_BTHK, cos_T1R.shape[-1], dim=-1)
    turned_BTHR = first_BTHR * cos_T1R + second_BTHR * sin_T1R
    return torch.cat((turned_BTHR, second_BTHR * cos_T1R - first_BTHR * sin_T1R, *rest), dim=-1)


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2."""
    if is_by_hand(x):
        squared: Tensor = _ReluSquared.apply(x)  # type: ignore[no-untyped-call]
        return squared
    return F.relu(x).square()


def pair_rows(weight_CD: Tensor, *, head_dim: int, num_heads: int, num_pairs: int) -> Tensor:
    """Move rows (i, i + R) of the first heads next to each other: a pair becomes one complex number of the product."""
    rows_MK = torch.arange(len(weight_CD)).view(-1, head_dim)
    turned_NS = rows_MK[:num_heads, : 2 * num_pairs]
    turned_NS.copy_(turned_NS.reshape(-1, 2, num_pairs).mT.flatten(1))
    return weight_CD.index_select(0, rows_MK.flatten())


def split_norm_turn(
    qkv_BTMK: Tensor, turns_T1R: Tensor, q_gain_H: Tensor, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, normalised and turned by complex factors, queries multiplied by their gain; and the values.

    The same function as `rotate_halves(rms_norm(.))`, except for the order of channels (`pair_rows`). Queries and keys
    have the same order, so their products are the same.
    """
    gain_N1 = torch.cat((q_gain_H, q_gain_H.new_ones(num_kv_heads)))[:, None].to(qkv_BTMK.dtype)
    parts: tuple[Tensor, Tensor, Tensor] = _SplitNormTurn.apply(qkv_BTMK, turns_T1R, gain_N1, num_kv_heads)  # type: ignore[no-untyped-call]
    return parts


class _RMSNorm(torch.autograd.Function):
    """`rms_norm`; the gradient is (g - y mean(g y)) / rms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _inverse_rms(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True)
        slope: Tensor = torch.addcmul(grad, y, along, value=-1 / y.shape[-1]).mul_(scale)
        return slope


class _ReluSquared(torch.autograd.Function):
    """`relu_squared`; the gradient is 2 g relu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        slope: Tensor = (grad * positive).mul_(2.0)
        return slope


class _SplitNormTurn(torch.autograd.Function):
    """turn(s x) with s = gain / rms(x); its gradient is s (z - x (z . x) / (x . x)) of the gradient z turned back."""

    @staticmethod
    def forward(
        ctx: Any, qkv_BTMK: Tensor, turns_T1R: Tensor, gain_N1: Tensor, num_kv_heads: int
    ) -> tuple[Tensor, ...]:
        x_BTNK, v_BTGK = qkv_BTMK[:, :, :-num_kv_heads], qkv_BTMK[:, :, -num_kv_heads:]
        inverse_BTN1 = _inverse_rms(x_BTNK)
        y_BTNK = x_BTNK * (inverse_BTN1 * gain_N1)
        _pairs(y_BTNK, turns_T1R).mul_(turns_T1R)
        ctx.save_for_backward(x_BTNK, turns_T1R, gain_N1, inverse_BTN1)
        return y_BTNK[:, :, :-num_kv_heads], y_BTNK[:, :, -num_kv_heads:], v_BTGK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BTNK, turns_T1R, gain_N1, inverse_BTN1 = ctx.saved_tensors
        grad_BTMK = torch.cat(grads, 2)
        z_BTNK = grad_BTMK[:, :, : len(gain_N1)]
        _pairs(z_BTNK, turns_T1R).mul_(turns_T1R.conj())
        along_BTN1 = (z_BTNK * x_BTNK).sum(-1, keepdim=True) * inverse_BTN1
        scale_BTN1 = inverse_BTN1 * gain_N1
        shrink_BTN1 = along_BTN1 * scale_BTN1 * inverse_BTN1
        z_BTNK.mul_(scale_BTN1).addcmul_(x_BTNK, shrink_BTN1, value=-1 / x_BTNK.shape[-1])
        return grad_BTMK, None, along_BTN1.sum((0, 1)), None


def _inverse_rms(x: Tensor) -> Tensor:
    """1 / rms of the last dimension, as `F.rms_norm` has it."""
    square_mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse: Tensor = square_mean.add_(torch.finfo(x.dtype).eps).rsqrt_()
    return inverse


def _pairs(x_BTNK: Tensor, turns_T1R: Tensor) -> Tensor:
    """The channels that turn as complex numbers, (B, T, N, R), a view."""
    turned_BTNS = x_BTNK[..., : 2 * turns_T1R.shape[-1]]
    return torch.view_as_complex(turned_BTNS.view(*turned_BTNS.shape[:3], -1, 2))
