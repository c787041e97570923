"""Causal grouped-query attention, with the records' additions: exclusive attention, gates, extra values.

Shape suffixes: B sequences, T positions, D model channels, H query heads, G key-value heads, K channels of a head,
C = G * K channels of all values, R rotation pairs.

Weights are float32. Activations have the dtype of the residual stream, which `GPT` sets from the ambient autocast.
A per-channel output scale is multiplied into the output matrix, not into the activations: the same function with a
D x D product in place of B x T x D ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig
from pgolf_model.model.kernels import DocumentMask, attention
from pgolf_model.model.layers import is_by_hand, pair_rows, rms_norm, rotate_halves, split_norm_turn


@dataclass(kw_only=True)
class AttentionInputs:
    """The inputs that all blocks of one forward pass share, besides their stream."""

    cos_T1R: Tensor
    sin_T1R: Tensor
    mask: DocumentMask | None  # of the documents; None when attention is plainly causal
    value_embed_BTC: Tensor | None  # added to the values of `value_embed_layers`
    first_values_BTC: Tensor | None = None  # values of the first block that runs, set by that block


class SelfAttention(nn.Module):
    """Attention with normalised, rotated queries and keys and a learned gain per query head.

    `attn_gate` multiplies head h by sigmoid(gate_scale * gate_h . x) of the normalised input x, or of its first
    `gate_inputs` channels (sparse). One record multiplies by 2 sigmoid(.), which is the same function, since `out` can
    learn the 2.
    """

    q: nn.Parameter
    k: nn.Parameter
    v: nn.Parameter
    out: nn.Parameter
    q_gain: nn.Parameter
    gate: nn.Parameter
    value_embed_scale: nn.Parameter
    value_mix: nn.Parameter

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.is_exclusive = layer >= config.num_layers - config.xsa_layers
        self.embeds_values = layer in config.value_embed_layers

    def forward(self, x_BTD: Tensor, inputs: AttentionInputs, out_scale_D: Tensor) -> Tensor:
        """The attention update of x_BTD, which is normalised already, times `out_scale_D`."""
        config = self.config
        heads = (*x_BTD.shape[:2], -1, config.head_dim)
        cos_T1R, sin_T1R = inputs.cos_T1R, inputs.sin_T1R
        if is_by_hand(x_BTD):
            num_turned, num_pairs = config.num_heads + config.num_kv_heads, cos_T1R.shape[-1]
            weight_CD = torch.cat((self.q, self.k, self.v))
            weight_CD = pair_rows(weight_CD, head_dim=config.head_dim, num_heads=num_turned, num_pairs=num_pairs)
            qkv_BTMK = F.linear(x_BTD, weight_CD).view(heads)
            turns_T1R = torch.complex(cos_T1R, -sin_T1R)
            q_BTHK, k_BTGK, v_BTGK = split_norm_turn(qkv_BTMK, turns_T1R, self.q_gain, config.num_kv_heads)
        else:
            q_BTHK = rotate_halves(rms_norm(F.linear(x_BTD, self.q).view(heads)), cos_T1R, sin_T1R)
            q_BTHK = q_BTHK * self.q_gain.to(q_BTHK.dtype)[:, None]
            k_BTGK = rotate_halves(rms_norm(F.linear(x_BTD, self.k).view(heads)), cos_T1R, sin_T1R)
            v_BTGK = F.linear(x_BTD, self.v).view(heads)
        v_BTGK = self.values(v_BTGK.flatten(2), inputs).view(heads)
        y_BTHK = attention(q_BTHK, k_BTGK, v_BTGK, inputs.mask)
        if self.is_exclusive:
            y_BTHK = exclude_own_value(y_BTHK, v_BTGK)
        if config.attn_gate != "none":
            gate_BTH = F.linear(x_BTD[..., : self.gate.shape[1]], self.gate)
            y_BTHK = y_BTHK * torch.sigmoid(config.gate_scale * gate_BTH)[..., None]
        y_BTD = y_BTHK.flatten(2)
        return F.linear(rms_norm(y_BTD) if config.out_norm else y_BTD, out_scale_D[:, None] * self.out)

    def values(self, v_BTC: Tensor, inputs: AttentionInputs) -> Tensor:
        """(B, T, C): v x, plus the token's value embedding, blended with the first block's values."""
        if self.embeds_values:
            assert inputs.value_embed_BTC is not None
            v_BTC = torch.addcmul(v_BTC, self.value_embed_scale.to(v_BTC.dtype), inputs.value_embed_BTC)
        if self.config.value_residual:
            if inputs.first_values_BTC is None:
                inputs.first_values_BTC = v_BTC
            first, own = self.value_mix.to(v_BTC.dtype)
            v_BTC = first * inputs.first_values_BTC + own * v_BTC
        return v_BTC


def exclude_own_value(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Exclusive self-attention (XSA): y - (y . u) u with u the direction of the token's own value."""
    # Autocast computes norms and sums in float32; the stream keeps its own dtype.
    u_BTG1K = F.normalize(v_BTGK, dim=-1).to(y_BTHK.dtype)[:, :, :, None]
    y_BTGHK = y_BTHK.view(*v_BTGK.shape[:3], -1, v_BTGK.shape[3])  # the H / G heads that share a value, one row each
    along_BTGH1 = (y_BTGHK * u_BTG1K).sum(-1, keepdim=True).to(y_BTHK.dtype)
    return torch.addcmul(y_BTGHK, along_BTGH1, u_BTG1K, value=-1).view_as(y_BTHK)
