"""The transformer block: attention and MLP, one after the other or side by side, in one stream or in two.

Shape suffixes: B sequences, T positions, D model channels, F hidden channels of the MLP, E experts, L = F / E.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig
from pgolf_model.model.attention import AttentionInputs, SelfAttention
from pgolf_model.model.layers import relu_squared, rms_norm


class MLP(nn.Module):
    """down(f(up x)), with f = relu^2 or leaky relu^2; or down(up x * swish(gate x)) (SwiGLU).

    With experts the hidden channels are cut into E parts and a token uses its k best: part e is multiplied by
    sigmoid(router_e . x), or by 0 (https://arxiv.org/abs/2405.16039). All parts are computed and most are discarded:
    the result is a sparse mixture's, the cost a dense MLP's. The paper's entropy term in the loss is left out.
    """

    up: nn.Parameter
    down: nn.Parameter
    gate: nn.Parameter
    router: nn.Parameter

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.has_experts = config.has_experts(layer)

    def forward(self, x_BTD: Tensor, out_scale_D: Tensor) -> Tensor:
        """The MLP's update of x_BTD, which is normalised already, times `out_scale_D`."""
        config = self.config
        hidden_BTF = F.linear(x_BTD, self.up)
        if config.activation == "relu2":
            hidden_BTF = relu_squared(hidden_BTF)
        elif config.activation == "leaky_relu2":
            hidden_BTF = F.leaky_relu(hidden_BTF, 0.5).square()
        else:
            hidden_BTF = hidden_BTF * F.silu(F.linear(x_BTD, self.gate))
        if self.has_experts:
            scores_BTE = torch.sigmoid(F.linear(x_BTD, self.router))
            best = scores_BTE.topk(config.experts_per_token)
            share_BTE = torch.zeros_like(scores_BTE).scatter(-1, best.indices, best.values)
            hidden_BTEL = hidden_BTF.view(*share_BTE.shape, -1)
            hidden_BTF = (hidden_BTEL * share_BTE[..., None]).flatten(-2)
        if config.out_norm:
            hidden_BTF = rms_norm(hidden_BTF)
        return F.linear(hidden_BTF, out_scale_D[:, None] * self.down)


class TransformerBlock(nn.Module):
    """Mix the embedding back into the stream, attend, transform: each step a learned per-channel blend."""

    resid_mix: nn.Parameter
    attn_scale: nn.Parameter
    mlp_scale: nn.Parameter

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.norm_scale = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        self.is_parallel = config.parallel != "none" and layer >= config.parallel_start
        self.attn = SelfAttention(config, layer)
        self.mlp = MLP(config, layer)

    def forward(self, x_BTD: Tensor, x0_BTD: Tensor, inputs: AttentionInputs) -> Tensor:
        """One stream; x0_BTD is the normalised embedding. Side by side (as in GPT-J), both read the same input."""
        x_BTD = self.mix(x_BTD, x0_BTD)
        attended_BTD = self.attend(x_BTD, inputs).add_(x_BTD)  # in place, while the product is still in the CPU's cache
        return self.transform(x_BTD if self.is_parallel else attended_BTD).add_(attended_BTD)

    def two_streams(
        self,
        x_BTD: Tensor,
        y_BTD: Tensor,
        x0_BTD: Tensor,
        inputs: AttentionInputs,
        routes: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Attention reads stream x, mixed with the embedding; the MLP reads stream y.

        Args:
            routes: None when each adds to the stream it read. Else (2,) shares of either stream that are kept and
                (2, 2) weights of attention (row 0) and MLP (row 1) in x and y.
        """
        mixed_BTD = self.mix(x_BTD, x0_BTD)
        attn_BTD, mlp_BTD = self.attend(mixed_BTD, inputs), self.transform(y_BTD)
        if routes is None:
            return mixed_BTD + attn_BTD, y_BTD + mlp_BTD
        keep, write = (route.to(x_BTD.dtype) for route in routes)
        return (
            keep[0] * x_BTD + write[0, 0] * attn_BTD + write[1, 0] * mlp_BTD,
            keep[1] * y_BTD + write[0, 1] * attn_BTD + write[1, 1] * mlp_BTD,
        )

    def mix(self, x_BTD: Tensor, x0_BTD: Tensor) -> Tensor:
        """a x + b x0 per channel."""
        if not self.config.resid_mix:
            return x_BTD
        keep_D, embed_D = self.resid_mix.to(x_BTD.dtype)
        kept_BTD: Tensor = keep_D * x_BTD
        return kept_BTD.addcmul_(embed_D, x0_BTD)

    def attend(self, x_BTD: Tensor, inputs: AttentionInputs) -> Tensor:
        """The update that attention adds to its stream."""
        update_BTD: Tensor = self.attn(self.normed(x_BTD), inputs, self.attn_scale)
        return update_BTD

    def transform(self, x_BTD: Tensor) -> Tensor:
        """The update that the MLP adds to its stream."""
        update_BTD: Tensor = self.mlp(self.normed(x_BTD), self.mlp_scale)
        return update_BTD

    def normed(self, x_BTD: Tensor) -> Tensor:
        """The input of attention and MLP."""
        x_BTD = rms_norm(x_BTD)
        return x_BTD if self.norm_scale == 1.0 else x_BTD * self.norm_scale
