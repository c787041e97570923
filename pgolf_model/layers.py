"""The pieces of a transformer block: weightless norm, rotary positions, grouped-query attention, relu^2 MLP.

Shape suffixes: B sequences, T positions, D model channels, H query heads, G key-value heads, K channels of a head,
R = K / 2 rotation pairs, F hidden channels of the MLP.

Weights are float32. Activations have the dtype of the residual stream, which `GPT` sets from the ambient autocast.
A per-channel output scale is multiplied into the output matrix, not into the activations: the same function with a
D x D product in place of B x T x D ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square of the last dimension; no weight."""
    return F.rms_norm(x, (x.size(-1),)).to(x.dtype)


def rotary_table(seq_len: int, head_dim: int, *, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, both (T, 1, R), with the device and dtype of `like`.

    Angles are computed in float32 or better: bfloat16 cannot tell neighbouring positions apart beyond 256.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponents_R = torch.arange(0, head_dim, 2, device=like.device, dtype=dtype) / head_dim
    positions_T = torch.arange(seq_len, device=like.device, dtype=dtype)
    angles_T1R = torch.outer(positions_T, base**-exponents_R)[:, None, :]
    return angles_T1R.cos().to(like.dtype), angles_T1R.sin().to(like.dtype)


def rotate_halves(x_BTHK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + R) by the angle of their position."""
    first_BTHR, second_BTHR = x_BTHK.chunk(2, dim=-1)
    return torch.cat(
        (first_BTHR * cos_T1R + second_BTHR * sin_T1R, second_BTHR * cos_T1R - first_BTHR * sin_T1R), dim=-1
    )


class SelfAttention(nn.Module):
    """Causal grouped-query attention with normalised, rotated queries and keys and a learned gain per query head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, kv_dim = config.model_dim, config.kv_dim
        self.head_dim = config.head_dim
        self.q = nn.Parameter(torch.zeros(dim, dim))
        self.k = nn.Parameter(torch.zeros(kv_dim, dim))
        self.v = nn.Parameter(torch.zeros(kv_dim, dim))
        self.out = nn.Parameter(torch.zeros(dim, dim))
        self.q_gain = nn.Parameter(torch.zeros(config.num_heads))

    def forward(self, x_BTD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, out_scale_D: Tensor) -> Tensor:
        """x_BTD is normalised already; the result is multiplied by `out_scale_D`."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHK = rotate_halves(rms_norm(F.linear(x_BTD, self.q).view(heads)), cos_T1R, sin_T1R)
        k_BTGK = rotate_halves(rms_norm(F.linear(x_BTD, self.k).view(heads)), cos_T1R, sin_T1R)
        v_BTGK = F.linear(x_BTD, self.v).view(heads)
        q_BTHK = q_BTHK * self.q_gain.to(q_BTHK.dtype)[:, None]
        y_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            k_BTGK.transpose(1, 2),
            v_BTGK.transpose(1, 2),
            is_causal=True,
            enable_gqa=q_BTHK.shape[2] != k_BTGK.shape[2],
        )
        return F.linear(y_BHTK.transpose(1, 2).flatten(2), out_scale_D[:, None] * self.out)


class ReluSquaredMLP(nn.Module):
    """down(relu(up(x))^2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(config.mlp_dim, config.model_dim))
        self.down = nn.Parameter(torch.zeros(config.model_dim, config.mlp_dim))

    def forward(self, x_BTD: Tensor, out_scale_D: Tensor) -> Tensor:
        """x_BTD is normalised already; the result is multiplied by `out_scale_D`."""
        hidden_BTF = F.relu(F.linear(x_BTD, self.up)).square()
        return F.linear(hidden_BTF, out_scale_D[:, None] * self.down)


class TransformerBlock(nn.Module):
    """Mix the embedding back into the stream, attend, then transform: each step a learned per-channel blend."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config)
        self.mlp = ReluSquaredMLP(config)
        self.resid_mix = nn.Parameter(torch.zeros(2, config.model_dim))
        self.attn_scale = nn.Parameter(torch.zeros(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.zeros(config.model_dim))

    def forward(self, x_BTD: Tensor, x0_BTD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        """x0_BTD is the normalised embedding."""
        keep_D, embed_D = self.resid_mix.to(x_BTD.dtype)
        x_BTD = torch.addcmul(keep_D * x_BTD, embed_D, x0_BTD)
        x_BTD = x_BTD + self.attn(rms_norm(x_BTD), cos_T1R, sin_T1R, self.attn_scale)
        update_BTD: Tensor = self.mlp(rms_norm(x_BTD), self.mlp_scale)
        return x_BTD + update_BTD
