"""GPT: the challenge's transformer, its blocks run in virtual order with U-Net skips and a tied, soft-capped head.

Shape suffixes: B sequences, T positions, D model channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig
from pgolf_model.layers import TransformerBlock, rms_norm, rotary_table
from pgolf_model.shapes import param_shapes


class TokenEmbedding(nn.Module):
    """One row per token: looked up at the bottom, multiplied by at the top."""

    def __init__(self, vocab_size: int, model_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, model_dim))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Rows of the given tokens, (B, T, D)."""
        return F.embedding(ids_BT, self.weight)


class GPT(nn.Module):
    """The language model of a `ModelConfig`.

    All parameters are zero until `init_weights` or `load_state_dict`. The state dict is exactly `param_shapes`: names,
    shapes and order. Matmuls and the residual stream take the ambient autocast's dtype, else the parameters' dtype;
    losses are float32 at least.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config.vocab_size, config.model_dim)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.skip_weights = nn.Parameter(torch.zeros(config.num_skips, config.model_dim))
        self.register_state_dict_post_hook(_order_like_param_shapes)  # type: ignore[no-untyped-call]

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar."""
        return self.token_losses(ids_BT, targets_BT).mean()

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross-entropy of every target in nats, (B, T)."""
        return self._head_losses(self.hidden(ids_BT), targets_BT)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Soft-capped scores of the next token, (B, T, V), float32 at least."""
        return self._head_logits(self.hidden(ids_BT))

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """What the head reads: the normalised stream after the last block, (B, T, D)."""
        config = self.config
        x_BTD = _as_stream(self.embed(ids_BT))
        x0_BTD = x_BTD = rms_norm(x_BTD)
        cos_T1R, sin_T1R = rotary_table(ids_BT.shape[1], config.head_dim, base=config.rope_base, like=x_BTD)
        skips: list[Tensor] = []
        for depth, layer in enumerate(config.virtual_layers):
            slot = depth - config.num_skips  # the second half pops; with an odd depth its last block finds nothing
            if 0 <= slot < config.num_skips:
                x_BTD = torch.addcmul(x_BTD, self.skip_weights[slot].to(x_BTD.dtype), skips.pop())
            x_BTD = self.blocks[layer](x_BTD, x0_BTD, cos_T1R, sin_T1R)
            if slot < 0:
                skips.append(x_BTD)
        return rms_norm(x_BTD)

    def _head_logits(self, x_BTD: Tensor) -> Tensor:
        cap = self.config.logit_softcap
        # The division goes to the weights (V x D), not to the logits (B x T x V): 20 % of a CPU step.
        z_BTV = F.linear(x_BTD, self.embed.weight / cap)
        return cap * torch.tanh(z_BTV.to(torch.promote_types(z_BTV.dtype, torch.float32)))

    def _head_losses(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """The one place that sees all logits: a loss in chunks replaces this method."""
        logits_BTV = self._head_logits(x_BTD)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(targets_BT)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initial weights of the 2026-03-17 baseline, a function of the seed alone.

        Embedding N(0, std); q, k, v and up uniform in +-1/sqrt(fan_in), torch's default for a linear layer; output
        projections zero; scales and skips 1; resid_mix (1, 0).
        """
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        self.embed.weight.copy_(torch.randn(self.embed.weight.shape, generator=generator) * config.embed_init_std)
        for name, parameter in self.named_parameters():
            match name.split(".")[-1]:
                case "q" | "k" | "v" | "up":
                    uniform = torch.rand(parameter.shape, generator=generator)
                    parameter.copy_((2 * uniform - 1) / parameter.shape[1] ** 0.5)
                case "out" | "down":
                    parameter.zero_()
                case "q_gain":
                    parameter.fill_(config.qk_gain_init)
                case "resid_mix":
                    parameter.copy_(torch.tensor([[1.0], [0.0]]).expand(2, config.model_dim))
                case "attn_scale" | "mlp_scale" | "skip_weights":
                    parameter.fill_(1.0)


def build_model(config: ModelConfig, *, seed: int) -> GPT:
    """A freshly initialised model on the CPU: same config and seed, same weights."""
    model = GPT(config)
    model.init_weights(seed)
    return model


def _as_stream(x: Tensor) -> Tensor:
    """Cast to the ambient autocast's dtype, so that the whole residual stream has it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _order_like_param_shapes(model: GPT, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """torch lists a module's own parameters before its children's; `param_shapes` lists a block in reading order."""
    for name in param_shapes(model.config):
        state[prefix + name] = state.pop(prefix + name)
