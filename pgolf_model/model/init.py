"""The initial value of every parameter, a function of the seed alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgolf_model.config import ModelConfig
from pgolf_model.shapes import param_shapes


def initial_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Float32 weights by name, in the order of `param_shapes`.

    Token table N(0, std). Matrices uniform in +-1/sqrt(fan_in), torch's default for a linear layer, or orthogonal;
    output projections and an untied head zero. Gains, scales and mixes start where they change nothing, or where the
    records start them.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _initial(name, info.shape, config, generator) for name, info in param_shapes(config).items()}


def _initial(name: str, shape: tuple[int, ...], config: ModelConfig, generator: torch.Generator) -> Tensor:
    match name.split(".")[-2:]:
        case ["embed", "weight"]:
            table = torch.randn(shape, generator=generator) * config.embed_init_std
            return _overtone(table) if config.embed_init == "overtone" else table
        case ["value_embed", "weight"]:
            return torch.randn(shape, generator=generator) * 0.01
        case [_, "q" | "k" | "v" | "up" | "proj" | "router"] | ["mlp", "gate"]:
            if config.matrix_init == "orthogonal":
                matrix: Tensor = nn.init.orthogonal_(torch.empty(shape), generator=generator)
                return matrix
            matrix = 2 * torch.rand(shape, generator=generator) - 1
            return matrix / float(shape[1] ** 0.5)
        case [*_, "resid_mix"]:
            return torch.tensor([[1.0], [0.0]]).expand(shape).clone()
        case [*_, "q_gain"]:
            value = config.qk_gain_init
        case ["bigram", "scale"]:
            value = 0.05
        case ["value_embed", "scale"]:
            value = 0.1
        case [*_, "value_mix" | "lane_mix"]:
            value = 0.5
        case ["lane_keep"]:
            value = 1.1
        case [*_, "attn_scale" | "mlp_scale" | "value_embed_scale" | "skip_weights" | "lane_write"]:
            value = 1.0
        case _:  # output projections, gates, biases, the bigram table, an untied head
            value = 0.0
    return torch.full(shape, value)


def _overtone(table: Tensor) -> Tensor:
    """The same singular vectors and largest singular value; the k-th is k ** -0.5 of it."""
    u, singular, v = torch.linalg.svd(table, full_matrices=False)
    ranks = torch.arange(1, len(singular) + 1)
    falling: Tensor = u * (singular[0] * ranks**-0.5) @ v
    return falling
