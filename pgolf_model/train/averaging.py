"""The mean of the weights over part of a run: exponential (EMA) or plain (SWA)."""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf_model.config import TrainConfig
from pgolf_model.model.gpt import GPT


class WeightAverage:
    """A running mean, in float32, of the weights after the steps that count.

    EMA counts every step: after t of them weight w_i has the share (1 - d) d^(t - i) / (1 - d^t). The initial weights
    have no share, so the mean of a short run is as unbiased as that of a long one.
    SWA counts every `swa_every`-th step whose lr multiplier is below `swa_start`, all with the same share.
    """

    def __init__(self, model: GPT, recipe: TrainConfig) -> None:
        self.recipe, self.updates = recipe, 0
        parameters = dict(model.named_parameters())
        self.sources: dict[str, Tensor] = {name: parameters[name].detach() for name in model.state_dict()}
        self.means = {name: torch.zeros_like(weight) for name, weight in self.sources.items() if self.is_on}

    @property
    def is_on(self) -> bool:
        """True when the recipe asks for a mean."""
        return bool(self.recipe.ema_decay or self.recipe.swa_start)

    @torch.no_grad()
    def update(self, step: int, lr_multiplier: float) -> None:
        """Take in the weights as they are after step number `step`, counted from 1, if that step counts."""
        decay = self.recipe.ema_decay
        if not decay and (lr_multiplier >= self.recipe.swa_start or step % self.recipe.swa_every):
            return
        self.updates += 1
        share = (1.0 - decay) / (1.0 - decay**self.updates) if decay else 1.0 / self.updates
        torch._foreach_lerp_(list(self.means.values()), list(self.sources.values()), share)

    def state_dict(self) -> dict[str, Tensor]:
        """The mean by parameter name; the weights themselves when no step has counted."""
        return self.means if self.updates else self.sources
