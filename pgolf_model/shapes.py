"""ModelConfig -> every parameter's name, shape and role: one truth for sizing, optimizers, quantizing, packing."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from pgolf_model.config import ModelConfig

Role = Literal["embed", "attn", "mlp", "scalar"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamInfo:
    """One named parameter.

    `embed`, `attn` and `mlp` are (out, in) matrices and are quantized; `scalar` is everything small (gains, scales,
    mixes, skips) and is kept in 16 bits. `layer` is the physical block, -1 outside the blocks.
    """

    shape: tuple[int, ...]
    role: Role
    layer: int = -1

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def param_shapes(config: ModelConfig) -> dict[str, ParamInfo]:
    """All parameters in the order of the model's state dict."""
    dim, kv_dim, mlp_dim = config.model_dim, config.kv_dim, config.mlp_dim
    shapes = {"embed.weight": ParamInfo(shape=(config.vocab_size, dim), role="embed")}
    for i in range(config.num_layers):
        block: dict[str, tuple[tuple[int, ...], Role]] = {
            "attn.q": ((dim, dim), "attn"),
            "attn.k": ((kv_dim, dim), "attn"),
            "attn.v": ((kv_dim, dim), "attn"),
            "attn.out": ((dim, dim), "attn"),
            "attn.q_gain": ((config.num_heads,), "scalar"),
            "mlp.up": ((mlp_dim, dim), "mlp"),
            "mlp.down": ((dim, mlp_dim), "mlp"),
            "resid_mix": ((2, dim), "scalar"),
            "attn_scale": ((dim,), "scalar"),
            "mlp_scale": ((dim,), "scalar"),
        }
        for name, (shape, role) in block.items():
            shapes[f"blocks.{i}.{name}"] = ParamInfo(shape=shape, role=role, layer=i)
    shapes["skip_weights"] = ParamInfo(shape=(config.num_skips, dim), role="scalar")
    return shapes


def num_params(config: ModelConfig) -> int:
    """Trainable parameters; looped blocks count once."""
    return sum(info.size for info in param_shapes(config).values())
