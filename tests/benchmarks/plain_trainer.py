"""The yardstick of `bench_train.py`: the same model and recipe as someone would write them first.

`nn.Linear` modules, RMS norm by hand in float32, scales on the activations, the whole table of float32 logits, nothing
compiled, Muon one matrix at a time, AdamW one tensor at a time, up to 65,536 tokens in one forward pass. Attention is
torch's fused one (reference "sdpa") or written out as scores, mask, softmax and products (reference "unfused").

`PlainGPT` knows the baseline's architecture. Others are `EagerGPT`: the package's own formulas, not compiled, with a
dense mask of the documents and the whole table of logits; it exists with fused attention only.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig, TrainConfig
from pgolf_model.model.attention import AttentionInputs
from pgolf_model.model.gpt import GPT
from pgolf_model.shapes import param_shapes
from pgolf_model.train.optim import NEWTON_SCHULZ

REFERENCES = ("unfused", "sdpa")


def rms(x: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (B, H, T, K) queries, H a multiple of the heads of keys and values, one formula at a time."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ v


class PlainBlock(nn.Module):
    def __init__(self, config: ModelConfig, reference: str) -> None:
        super().__init__()
        self.config = config
        self.is_unfused = reference == "unfused"
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
        if self.is_unfused:
            y = explicit_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    one, other = x[..., :half], x[..., half:]
    return torch.cat((one * cos + other * sin, -one * sin + other * cos), dim=-1).to(x.dtype)


class PlainGPT(nn.Module):
    def __init__(self, config: ModelConfig, reference: str) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        self.blocks = nn.ModuleList(PlainBlock(config, reference) for _ in range(config.num_layers))
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
        """Take over the weights of `pgolf_model.model.gpt.GPT`."""
        for name, weight in weights.items():
            self.named(name).data.copy_(weight)

    def named(self, name: str) -> nn.Parameter:
        """The parameter that `pgolf_model.model.gpt.GPT` calls `name`."""
        plain = name.replace(".attn.", ".").replace(".mlp.", ".")
        is_linear = plain.split(".")[-1] in ("q", "k", "v", "out", "up", "down")
        return self.get_parameter(f"{plain}.weight" if is_linear else plain)


class EagerGPT(GPT):
    """The package's formulas with the whole table of logits and a dense mask of the documents."""

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(ids).flatten(0, 1), targets.reshape(-1))

    def attention_inputs(self, ids: Tensor, x: Tensor) -> AttentionInputs:
        inputs = super().attention_inputs(ids, x)
        if inputs.mask is not None:
            document = (ids == self.config.bos_id).cumsum(1)
            inputs.mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
        return inputs


def zeropower(gradient: Tensor, recipe: TrainConfig) -> Tensor:
    x = gradient.bfloat16() if gradient.is_cuda else gradient
    x = x / (x.norm() + 1e-7)
    if gradient.shape[0] > gradient.shape[1]:
        x = x.T
    coefficients = NEWTON_SCHULZ[recipe.muon_polynomial]
    for step in range(recipe.muon_iterations):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


class PlainTrainer:
    """One model, its optimizers, and `step`."""

    def __init__(
        self, config: ModelConfig, recipe: TrainConfig, weights: dict[str, Tensor], device: str, reference: str
    ) -> None:
        self.recipe = recipe
        names = list(weights)
        if is_baseline(config):
            plain = PlainGPT(config, reference)
            plain.load(weights)
            self.model: nn.Module = plain.to(device)
            parameters = [plain.named(name) for name in names]
        else:
            assert reference == "sdpa", "EagerGPT has no attention written out"
            self.model = EagerGPT(config)
            self.model.load_state_dict(weights)
            self.model.to(device)
            parameters = [self.model.get_parameter(name) for name in names]
        roles = {name: info.role for name, info in param_shapes(config).items()}
        by_role: dict[str, list[nn.Parameter]] = {"embed": [], "attn": [], "mlp": [], "scalar": [], "head": []}
        for name, parameter in zip(names, parameters, strict=True):
            by_role[roles[name]].append(parameter)
        self.matrices = by_role["attn"] + by_role["mlp"]
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.adamw = torch.optim.AdamW(
            [
                {"params": by_role["embed"], "lr": recipe.embed_lr, "weight_decay": recipe.embed_weight_decay},
                {"params": by_role["scalar"], "lr": recipe.scalar_lr, "weight_decay": recipe.scalar_weight_decay},
            ],
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_eps,
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
        if recipe.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.grad_clip)
        with torch.no_grad():
            for matrix, momentum in zip(self.matrices, self.momentum, strict=True):
                momentum.mul_(recipe.muon_momentum).add_(matrix.grad)
                direction = matrix.grad + recipe.muon_momentum * momentum
                if recipe.muon_normalize_rows:
                    direction = direction / (direction.norm(dim=-1, keepdim=True) + 1e-7)
                update = zeropower(direction, recipe)
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1.0 - recipe.matrix_lr * recipe.matrix_weight_decay)
                matrix.add_(update.to(matrix.dtype), alpha=-recipe.matrix_lr * scale)
        self.adamw.step()
        return total


def is_baseline(config: ModelConfig) -> bool:
    """Whether `PlainGPT` can be this model: it differs from the defaults in sizes only."""
    sizes = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult")
    return replace(config, **{name: getattr(ModelConfig(), name) for name in sizes}) == ModelConfig()
