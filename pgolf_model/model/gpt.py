"""GPT: the challenge's transformer, its blocks run in virtual order with U-Net skips and a soft-capped head.

Shape suffixes: B sequences, T positions, D model channels, V vocabulary, W width of the head's table.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig
from pgolf_model.model.attention import AttentionInputs
from pgolf_model.model.blocks import TransformerBlock
from pgolf_model.model.embed import OutputHead, ProjectedTable, Smear, TokenEmbedding, bigram_ids
from pgolf_model.model.init import initial_weights
from pgolf_model.model.kernels import document_mask
from pgolf_model.model.layers import rms_norm, rotary_table
from pgolf_model.model.losses import mean_softcapped_cross_entropy, softcapped_cross_entropy
from pgolf_model.shapes import param_shapes

CHUNK_LOGITS_CPU = 2**20  # logits in memory at once; they fit the cache: half the time of all at once (V 1024, N 2048)
CHUNK_LOGITS_CUDA = 2**26  # 256 MiB of float32


class GPT(nn.Module):
    """The language model of a `ModelConfig`.

    All parameters are zero until `load_state_dict`. The state dict is exactly `param_shapes`: names, shapes and order.
    Matmuls and the residual stream take the ambient autocast's dtype, else the parameters' dtype; losses are float32
    at least.
    """

    skip_weights: nn.Parameter
    skip_gates: nn.Parameter
    lane_mix: nn.Parameter
    lane_keep: nn.Parameter
    lane_write: nn.Parameter
    iteration_embeddings: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.looping = True
        self.embed = TokenEmbedding(config)
        self.head = OutputHead(config)
        self.bigram = ProjectedTable()
        self.value_embed = ProjectedTable()
        self.smear = Smear(config)
        self.blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.num_layers))
        for name, info in param_shapes(config).items():
            module, _, leaf = name.rpartition(".")
            self.get_submodule(module).register_parameter(leaf, nn.Parameter(torch.zeros(info.shape)))
        self.register_state_dict_post_hook(_order_like_param_shapes)  # type: ignore[no-untyped-call]

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar."""
        return mean_softcapped_cross_entropy(*self._loss_inputs(ids_BT, targets_BT))

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross-entropy of every target in nats, (B, T)."""
        return softcapped_cross_entropy(*self._loss_inputs(ids_BT, targets_BT)).view_as(targets_BT)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Soft-capped scores of the next token, (B, T, V), float32 at least. Losses never hold them whole."""
        cap = self.config.logit_softcap
        z_BTV = F.linear(*self.head(self.hidden(ids_BT), self.embed))
        return cap * torch.tanh(z_BTV.to(torch.promote_types(z_BTV.dtype, torch.float32)) / cap)

    def set_looping(self, active: bool) -> None:
        """Run looped blocks as often as configured, or (inactive) every physical block once.

        Records train the cheap model first. Without loops the skips pair the halves of the physical blocks. Of skip
        weights, skip gates and iteration embeddings the leading entries are used: the model equals the one with
        loop_repeats = 0 and these entries. A compiled model compiles again.
        """
        self.looping = active

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """The normalised stream after the last block, (B, T, D)."""
        config = self.config
        x0_BTD = x_BTD = self.embedded(ids_BT)
        y_BTD: Tensor | None = None  # the second stream, once there are two: x is attention's, y the MLP's
        inputs = self.attention_inputs(ids_BT, x_BTD)
        order = config.virtual_layers if self.looping else tuple(range(config.num_layers))
        num_skips = len(order) // 2 if config.skips != "none" else 0
        skips: list[Tensor] = []
        for depth, layer in enumerate(order):
            slot = depth - num_skips  # the second half pops; with an odd depth its last block finds nothing
            if 0 <= slot < num_skips:
                x_BTD = self.with_skip(x_BTD, skips.pop(), slot)
            if config.iteration_embeddings and layer in range(config.loop_start, config.loop_end):
                pass_D = self.iteration_embeddings[depth - config.loop_start].to(x_BTD.dtype)
                x_BTD = x_BTD + pass_D
                y_BTD = None if y_BTD is None else y_BTD + pass_D
            block: TransformerBlock = self.blocks[layer]  # type: ignore[assignment]
            if block.is_parallel and config.parallel != "single":
                routes = (self.lane_keep[layer], self.lane_write[layer]) if config.parallel == "routed" else None
                y_BTD = x_BTD if y_BTD is None else y_BTD
                x_BTD, y_BTD = block.two_streams(x_BTD, y_BTD, x0_BTD, inputs, routes)
            else:
                x_BTD = block(x_BTD, x0_BTD, inputs)
            if slot < 0:
                skips.append(x_BTD)
        if y_BTD is not None:
            x_BTD = torch.lerp(y_BTD, x_BTD, self.lane_mix.to(x_BTD.dtype) if config.parallel == "lanes" else 0.5)
        return rms_norm(x_BTD)

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """The normalised embedding, (B, T, D). As in records, a gated smear comes before the norm, the other after."""
        config = self.config
        x_BTD = self.embed(ids_BT)
        if config.bigram_buckets:
            x_BTD = x_BTD + self.bigram(bigram_ids(ids_BT, buckets=config.bigram_buckets, bos_id=config.bos_id))
        x_BTD = _as_stream(x_BTD)
        if config.smear == "gated":
            x_BTD = self.smear(x_BTD, ids_BT)
        x_BTD = rms_norm(x_BTD)
        return self.smear(x_BTD, ids_BT) if config.smear == "channel" else x_BTD

    def attention_inputs(self, ids_BT: Tensor, x_BTD: Tensor) -> AttentionInputs:
        """The inputs that depend only on the ids or their number, computed once for all blocks."""
        config = self.config
        rope_dims = config.rope_dims or config.head_dim
        cos_T1R, sin_T1R = rotary_table(ids_BT.shape[1], rope_dims, base=config.rope_base, like=x_BTD)
        return AttentionInputs(
            cos_T1R=cos_T1R,
            sin_T1R=sin_T1R,
            mask=document_mask(ids_BT, config.bos_id) if config.document_attention else None,
            value_embed_BTC=_as_stream(self.value_embed(ids_BT)) if config.value_embed_dim else None,
        )

    def with_skip(self, x_BTD: Tensor, skip_BTD: Tensor, slot: int) -> Tensor:
        """x + w skip, or with gates the blend of x (sigmoid(g)) and w skip."""
        weight_D = self.skip_weights[slot].to(x_BTD.dtype)
        if self.config.skips == "plain":
            return torch.addcmul(x_BTD, weight_D, skip_BTD)
        return torch.lerp(weight_D * skip_BTD, x_BTD, torch.sigmoid(self.skip_gates[slot]).to(x_BTD.dtype))

    def _loss_inputs(self, ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, float, int]:
        """The arguments of the losses: (N, W) and (V, W) of the head, (N,) targets, softcap, tokens of a chunk."""
        x_BTW, weight_VW = self.head(self.hidden(ids_BT), self.embed)
        chunk_logits = CHUNK_LOGITS_CUDA if x_BTW.is_cuda else CHUNK_LOGITS_CPU
        chunk_tokens = max(1, chunk_logits // self.config.vocab_size)
        return x_BTW.flatten(0, 1), weight_VW, targets_BT.flatten(), self.config.logit_softcap, chunk_tokens


def build_model(config: ModelConfig, *, seed: int) -> GPT:
    """A freshly initialised model on the CPU: same config and seed, same weights."""
    model = GPT(config)
    model.load_state_dict(initial_weights(config, seed))
    return model


def _as_stream(x: Tensor) -> Tensor:
    """Cast to the ambient autocast's dtype, so that the whole residual stream has it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _order_like_param_shapes(model: GPT, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """torch lists a module's own parameters before its children's; `param_shapes` lists a block in reading order."""
    for name in param_shapes(model.config):
        state[prefix + name] = state.pop(prefix + name)
