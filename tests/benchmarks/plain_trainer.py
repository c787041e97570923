"""The yardstick of `bench_train.py`: the same model and recipe as someone would write them first.

`nn.Linear` modules, RMS norm by hand, scales on the activations, the whole table of float32 logits, Muon one matrix at
a time, AdamW one tensor at a time, the whole batch in one forward pass. Torch's fused attention is used: everyone does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig, TrainConfig


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class PlainBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.k = nn.Linear(config.model_dim, config.kv_dim, bias=False)
        self.v = nn.Linear(config.model_dim, config.kv_dim, bias=False)
        self.out = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.up = nn.Linear(config.model_dim, config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.model_dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.qk_gain_init))
        self.resid_mix = nn.Parameter(torch.tensor([1.0, 0.0])[:, None].repeat(1, config.model_dim))
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))

    def forward(self, x: Tensor, x0: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.resid_mix[0].to(x.dtype) * x + self.resid_mix[1].to(x.dtype) * x0
        x = x + self.attn_scale.to(x.dtype) * self.attend(rms(x), cos, sin)
        return x + self.mlp_scale.to(x.dtype) * self.down(torch.relu(self.up(rms(x))).square())

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (f(x).view(batch, length, -1, self.config.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = rotate(rms(q), cos, sin), rotate(rms(k), cos, sin)
        q = q * self.q_gain.to(q.dtype)[:, None, None]
        gqa = self.config.num_heads != self.config.num_kv_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    one, other = x[..., :half], x[..., half:]
    return torch.cat((one * cos + other * sin, -one * sin + other * cos), dim=-1).to(x.dtype)


class PlainGPT(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.skip_weights = nn.Parameter(torch.ones(config.num_skips, config.model_dim))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        config = self.config
        angles = torch.outer(
            torch.arange(ids.shape[1], device=ids.device).float(),
            config.rope_base ** -(torch.arange(0, config.head_dim, 2, device=ids.device) / config.head_dim),
        )
        cos, sin = angles.cos(), angles.sin()
        x = rms(self.embed(ids))
        if torch.is_autocast_enabled(ids.device.type):
            x, cos, sin = x.bfloat16(), cos.bfloat16(), sin.bfloat16()
        x0, skips = x, []
        for depth, layer in enumerate(config.virtual_layers):
            slot = depth - config.num_skips
            if 0 <= slot < config.num_skips:
                x = x + self.skip_weights[slot].to(x.dtype) * skips.pop()
            x = self.blocks[layer](x, x0, cos, sin)
            if slot < 0:
                skips.append(x)
        logits = F.linear(rms(x), self.embed.weight).float()
        logits = config.logit_softcap * torch.tanh(logits / config.logit_softcap)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights of `pgolf_model.model.GPT`."""
        linear = ("q", "k", "v", "out", "up", "down")
        for name, weight in weights.items():
            plain = name.replace(".attn.", ".").replace(".mlp.", ".")
            self.get_parameter(f"{plain}.weight" if plain.split(".")[-1] in linear else plain).data.copy_(weight)


def zeropower(gradient: Tensor, iterations: int) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16() if gradient.is_cuda else gradient
    x = x / (x.norm() + 1e-7)
    if gradient.shape[0] > gradient.shape[1]:
        x = x.T
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


class PlainTrainer:
    """One model, its optimizers, and `step`."""

    def __init__(self, config: ModelConfig, recipe: TrainConfig, weights: dict[str, Tensor], device: str) -> None:
        self.recipe = recipe
        self.model = PlainGPT(config)
        self.model.load(weights)
        self.model.to(device)
        self.matrices = [p for block in self.model.blocks for p in block.parameters() if p.ndim == 2 and len(p) > 2]
        chosen = {id(p) for p in self.matrices} | {id(self.model.embed.weight)}
        scalars = [p for p in self.model.parameters() if id(p) not in chosen]
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.adamw = torch.optim.AdamW(
            [
                {"params": [self.model.embed.weight], "lr": recipe.embed_lr},
                {"params": scalars, "lr": recipe.scalar_lr},
            ],
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_eps,
            weight_decay=0.0,
            foreach=False,
        )

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One optimizer step; the loss before it."""
        recipe = self.recipe
        self.model.zero_grad()
        micro = max(1, 65_536 // inputs.shape[1])
        total = torch.zeros((), device=inputs.device)
        for ids, next_ids in zip(inputs.split(micro), targets.split(micro), strict=True):
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = self.model(ids, next_ids) * (len(ids) / len(inputs))
            loss.backward()
            total += loss.detach()
        with torch.no_grad():
            for matrix, momentum in zip(self.matrices, self.momentum, strict=True):
                momentum.mul_(recipe.muon_momentum).add_(matrix.grad)
                update = zeropower(matrix.grad + recipe.muon_momentum * momentum, recipe.muon_iterations)
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.add_(update.to(matrix.dtype), alpha=-recipe.matrix_lr * scale)
        self.adamw.step()
        return total
