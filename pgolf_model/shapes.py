"""The name, shape and role of every parameter, computed from a ModelConfig.

Sizing, optimizers, quantizing and packing read this table, and the model makes its parameters from it: no parameter can
be in one of them and missing in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from pgolf_model.config import ModelConfig

Role = Literal["embed", "attn", "mlp", "scalar"]

SMALL_ROWS = 16  # a gate or router with at most so many rows ...
SMALL_SIZE = 4096  # ... or fewer elements than this is a scalar: too small to quantize or to train with Muon


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamInfo:
    """One named parameter.

    `embed`, `attn` and `mlp` are (out, in) matrices and are quantized; `scalar` is everything small (gains, scales,
    mixes, skips, gates) and is kept in 16 bits. `layer` is the physical block; for a projection outside of the blocks
    it is the block it feeds or reads, else -1.
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
    dim, num_layers = config.model_dim, config.num_layers
    shapes = _table_shapes(config)
    for i in range(num_layers):
        for name, (role, *shape) in _block_shapes(config, i).items():
            shapes[f"blocks.{i}.{name}"] = ParamInfo(shape=tuple(shape), role=role, layer=i)
    streams: dict[str, tuple[int, ...]] = {}
    if config.skips != "none":
        streams["skip_weights"] = (config.num_skips, dim)
    if config.skips == "gated":
        streams["skip_gates"] = (config.num_skips, dim)
    if config.parallel == "lanes":
        streams["lane_mix"] = (1,)
    if config.parallel == "routed":  # layers before parallel_start never read their rows; records count them too
        streams |= {"lane_keep": (num_layers, 2), "lane_write": (num_layers, 2, 2)}
    if config.iteration_embeddings:
        streams["iteration_embeddings"] = ((config.loop_end - config.loop_start) * (1 + config.loop_repeats), dim)
    return shapes | {name: ParamInfo(shape=shape, role="scalar") for name, shape in streams.items()}


def num_params(config: ModelConfig) -> int:
    """Trainable parameters; looped blocks count once."""
    return sum(info.size for info in param_shapes(config).values())


def _table_shapes(config: ModelConfig) -> dict[str, ParamInfo]:
    """Parameters before the blocks, and of the head: tables of tokens and token pairs, their projections, the smear."""
    dim, vocab_size, last = config.model_dim, config.vocab_size, config.num_layers - 1
    width = config.embed_rank or dim

    def matrix(rows: int, cols: int, *, role: Role = "embed", layer: int = -1) -> ParamInfo:
        return ParamInfo(shape=(rows, cols), role=role, layer=layer)

    def scalar(*shape: int) -> ParamInfo:
        return ParamInfo(shape=shape, role="scalar")

    shapes = {"embed.weight": matrix(config.embed_buckets or vocab_size, width)}
    if config.embed_rank:
        shapes["embed.proj"] = matrix(dim, width, role="attn", layer=0)
        shapes["head.proj"] = matrix(width, dim, role="attn", layer=last)
    if not config.tied:
        shapes["head.weight"] = matrix(vocab_size, width)
    if config.vocab_bias:
        shapes["head.bias"] = scalar(vocab_size)
    if config.bigram_buckets:
        shapes["bigram.weight"] = matrix(config.bigram_buckets, config.bigram_dim)
        shapes["bigram.proj"] = matrix(dim, config.bigram_dim, role="attn", layer=0)
        shapes["bigram.scale"] = scalar(1)
    if config.smear == "channel":
        shapes["smear.gate"] = scalar(dim)
    if config.smear == "gated":
        shapes |= {"smear.gate": scalar(1, config.gate_inputs), "smear.scale": scalar(1)}
    if config.value_embed_dim:
        shapes["value_embed.weight"] = matrix(vocab_size, config.value_embed_dim)
        layer = min(config.value_embed_layers)
        shapes["value_embed.proj"] = matrix(config.kv_dim, config.value_embed_dim, role="attn", layer=layer)
        shapes["value_embed.scale"] = scalar(1)
    return shapes


def _block_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[Role, int] | tuple[Role, int, int]]:
    """Role and shape of every parameter in one physical block, by its name within the block."""
    dim, kv_dim, mlp_dim, num_heads = config.model_dim, config.kv_dim, config.mlp_dim, config.num_heads
    shapes: dict[str, tuple[Role, int] | tuple[Role, int, int]] = {
        "attn.q": ("attn", dim, dim),
        "attn.k": ("attn", kv_dim, dim),
        "attn.v": ("attn", kv_dim, dim),
        "attn.out": ("attn", dim, dim),
        "attn.q_gain": ("scalar", num_heads),
    }
    if config.attn_gate != "none":
        inputs = dim if config.attn_gate == "dense" else config.gate_inputs
        shapes["attn.gate"] = (_gate_role("attn", num_heads, inputs), num_heads, inputs)
    if layer in config.value_embed_layers:
        shapes["attn.value_embed_scale"] = ("scalar", 1)
    if config.value_residual:
        shapes["attn.value_mix"] = ("scalar", 2)
    shapes["mlp.up"] = ("mlp", mlp_dim, dim)
    shapes["mlp.down"] = ("mlp", dim, mlp_dim)
    if config.activation == "swiglu":
        shapes["mlp.gate"] = ("mlp", mlp_dim, dim)
    if config.has_experts(layer):
        shapes["mlp.router"] = (_gate_role("mlp", config.num_experts, dim), config.num_experts, dim)
    if config.resid_mix:
        shapes["resid_mix"] = ("scalar", 2, dim)
    return shapes | {"attn_scale": ("scalar", dim), "mlp_scale": ("scalar", dim)}


def _gate_role(role: Role, rows: int, cols: int) -> Role:
    return "scalar" if rows <= SMALL_ROWS or rows * cols < SMALL_SIZE else role
