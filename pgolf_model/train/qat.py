"""Quantization-aware training: gradients are taken at the rounded weights and applied to the exact ones.

Weights are rounded before they enter the graph, so a compiled model needs no second graph and the compiler cannot fold
the switch away. It did in some records of the challenge of March 2026, where a class attribute was to turn rounding on
late in the run and never did (https://github.com/openai/parameter-golf).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pgolf_model.config import QuantConfig
from pgolf_model.errors import UserError
from pgolf_model.model.gpt import GPT
from pgolf_model.quant.quantize import dequantize_rows, quantize_rows
from pgolf_model.shapes import param_shapes


def rounded_like_shipped(weight: Tensor, role: str, layer: int, *, num_layers: int, quant: QuantConfig) -> Tensor:
    """A (rows, cols) matrix as the artifact would store it, each row (or group of columns) rounded on its own.

    Weights that cannot be stored are returned unchanged: they have diverged, and the loss will show it.
    """
    bits = quant.bits(role, layer, num_layers)
    clip_sigmas = quant.clip_sigmas(role, layer, num_layers)
    group = quant.group(weight.shape[1]) or weight.shape[1]
    try:
        rounded = dequantize_rows(*quantize_rows(weight.reshape(-1, group), bits=bits, clip_sigmas=clip_sigmas))
        return rounded.view_as(weight)
    except UserError:
        return weight


class WeightRounder:
    """Puts rounded values into a model's matrices for the length of a forward and backward pass."""

    def __init__(self, model: GPT, quant: QuantConfig) -> None:
        self.quant, self.num_layers = quant, model.config.num_layers
        parameters = dict(model.named_parameters())
        # Matrices that are rounded alike become one tall matrix: rounding is by rows, and few large calls are cheaper.
        alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
        infos = param_shapes(model.config)
        for name, info in infos.items():
            if info.role != "scalar":
                bits = quant.bits(info.role, info.layer, self.num_layers)
                clip_sigmas = quant.clip_sigmas(info.role, info.layer, self.num_layers)
                alike[info.role, bits, clip_sigmas, info.shape[1]].append(name)
        self.groups = [
            (infos[names[0]].role, infos[names[0]].layer, [parameters[name].detach() for name in names])
            for names in alike.values()
        ]

    @contextmanager
    def rounded(self, *, active: bool) -> Iterator[None]:
        """Within the block the matrices hold rounded values; after it they hold their own again, bit for bit."""
        if not active:
            yield
            return
        saved: list[Tensor] = []
        for role, layer, weights in self.groups:
            exact = torch.cat(weights)
            rounded = rounded_like_shipped(exact, role, layer, num_layers=self.num_layers, quant=self.quant)
            _copy_rows(rounded, weights)
            saved.append(exact)
        yield
        for (_, _, weights), exact in zip(self.groups, saved, strict=True):
            _copy_rows(exact, weights)


def _copy_rows(tall: Tensor, weights: list[Tensor]) -> None:
    """Copy the rows of one tall matrix into matrices, from top to bottom."""
    torch._foreach_copy_(weights, torch.split(tall, [len(weight) for weight in weights]))
