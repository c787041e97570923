"""Weightless pieces: the norm and rotary positions.

Shape suffixes: B sequences, T positions, H heads, K channels of a head, R rotation pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square of the last dimension; no weight."""
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
