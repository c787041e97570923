"""Muon for the matrices of the blocks, AdamW for token tables and for everything small."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from pgolf_model.config import TrainConfig
from pgolf_model.distributed import DistEnv, all_gather_rows
from pgolf_model.model.gpt import GPT
from pgolf_model.shapes import param_shapes

# a, b, c of x <- a x + b x^3 + c x^5 on singular values, one triple a step; further steps repeat the last triple.
# Sources: see `orthogonalize`.
NEWTON_SCHULZ = {
    "quintic": ((3.4445, -4.7750, 2.0315),),
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}


def orthogonalize(matrices: Tensor, *, iterations: int, dtype: torch.dtype, polynomial: str = "quintic") -> Tensor:
    """Push all singular values of each matrix towards 1 by a Newton-Schulz iteration of odd quintics.

    Args:
        matrices: (n, rows, cols); each is orthogonalised alone, all in the same batched products.
        iterations: five bring singular values that are not tiny into about [0.7, 1.2] (quintic), [0.86, 1.14]
            (polar_express).
        dtype: of the products.
        polynomial: a key of NEWTON_SCHULZ.
    Returns:
        (n, rows, cols) in `dtype`; an all-zero matrix stays zero.
    Source: https://kellerjordan.github.io/posts/muon/, https://arxiv.org/abs/2505.16932
    """
    norms = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x: Tensor = (matrices / (norms + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the Gram matrix of the short side is the cheap one
        x = x.mT
    coefficients = NEWTON_SCHULZ[polynomial]
    for step in range(iterations):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MatrixBank:
    """Matrices of one shape, updated together; each rank orthogonalises one contiguous share of them.

    The last shares are padded with zero matrices, so that every rank does the same work and gathers the same size.
    Momentum exists only for the rank's own share.
    """

    def __init__(self, parameters: list[nn.Parameter], env: DistEnv) -> None:
        self.parameters = parameters
        self.env = env
        share = -(-len(parameters) // env.world_size)
        self.own = parameters[env.rank * share : (env.rank + 1) * share]
        self.momentum = parameters[0].new_zeros((share, *parameters[0].shape))
        self.padding = [torch.zeros_like(parameters[0])] * (share - len(self.own))
        rows, cols = parameters[0].shape
        self.scale = max(1.0, rows / cols) ** 0.5

    def directions(self, *, momentum: float, recipe: TrainConfig) -> list[Tensor]:
        """Advance the momentum by one gradient; return all matrices' orthogonalised Nesterov directions, float32."""
        grads = torch.stack([_grad_of(parameter) for parameter in self.own] + self.padding)
        self.momentum.mul_(momentum).add_(grads)
        nesterov = grads.add_(self.momentum, alpha=momentum)
        if recipe.muon_normalize_rows:  # MuonEq-R: every row gets the same norm before orthogonalisation
            nesterov.div_(torch.linalg.vector_norm(nesterov, dim=-1, keepdim=True).add_(1e-7))
        # On a CPU without AMX, bfloat16 products are half as fast as float32 ones (8 x 128 x 128: 7.2 against 3.9 ms).
        dtype = torch.bfloat16 if nesterov.is_cuda else nesterov.dtype
        own = orthogonalize(nesterov, iterations=recipe.muon_iterations, dtype=dtype, polynomial=recipe.muon_polynomial)
        gathered = all_gather_rows(own, self.env).to(self.momentum.dtype)
        return list(gathered[: len(self.parameters)].unbind())


class Muon:
    """Momentum whose update is orthogonalised: p <- (1 - lr wd) p - lr sqrt(max(1, rows / cols)) NS(g + mu m).

    Expects gradients that are averaged over the ranks already, and leaves the same weights on every rank.
    Source: https://kellerjordan.github.io/posts/muon/
    """

    def __init__(self, parameters: list[nn.Parameter], recipe: TrainConfig, env: DistEnv) -> None:
        self.recipe = recipe
        self.lr, self.momentum = recipe.matrix_lr, recipe.muon_momentum
        self.weight_decay = recipe.matrix_weight_decay
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        self.banks = [MatrixBank(members, env) for members in by_shape.values()]

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix in place."""
        for bank in self.banks:
            directions = bank.directions(momentum=self.momentum, recipe=self.recipe)
            weights: list[Tensor] = list(bank.parameters)
            if self.weight_decay:
                torch._foreach_mul_(weights, 1.0 - self.lr * self.weight_decay)
            torch._foreach_add_(weights, directions, alpha=-self.lr * bank.scale)


class AdamW:
    """torch.optim.AdamW with `fused=True`, by the same kernel, without torch._dynamo, which that class imports.

    That import takes 2 s on a CPU, a third of the shortest trial. A group holds params, lr, betas and weight_decay.
    """

    def __init__(self, groups: list[dict[str, Any]], *, eps: float) -> None:
        self.param_groups, self.eps = groups, eps
        self.states = [
            [(p, torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=p.device)) for p in group["params"]]
            for group in groups
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        for group, states in zip(self.param_groups, self.states, strict=True):
            used = [state for state in states if state[0].grad is not None]
            if used:
                params, means, squares, steps = map(list, zip(*used, strict=True))
                torch._foreach_add_(steps, 1)
                torch._fused_adamw_(
                    params, [_grad_of(p) for p in params], means, squares, [], steps, lr=group["lr"],
                    beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                    eps=self.eps, amsgrad=False, maximize=False,
                )  # fmt: skip


class Optimizers:
    """Both optimizers of a run. Each learning rate is its peak times one common multiplier."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.muon, self.adamw = muon, adamw
        self.peak_adamw_lrs = [float(group["lr"]) for group in adamw.param_groups]

    def set_rates(self, *, lr_multiplier: float, momentum: float, decay_multiplier: float = 1.0) -> None:
        """Set the schedule's values for the next step; momentum and decay are Muon's."""
        self.muon.lr = self.muon.recipe.matrix_lr * lr_multiplier
        self.muon.weight_decay = self.muon.recipe.matrix_weight_decay * decay_multiplier
        self.muon.momentum = momentum
        for group, peak in zip(self.adamw.param_groups, self.peak_adamw_lrs, strict=True):
            group["lr"] = peak * lr_multiplier

    def step(self) -> None:
        """Update all weights from their gradients."""
        self.muon.step()
        self.adamw.step()


def build_optimizers(model: GPT, config: TrainConfig, env: DistEnv) -> Optimizers:
    """Muon on attention and MLP matrices; AdamW groups for token tables, an untied head and scalars, by role."""
    by_role: dict[str, list[nn.Parameter]] = {"embed": [], "attn": [], "mlp": [], "scalar": [], "head": []}
    parameters = dict(model.named_parameters())
    for name, info in param_shapes(model.config).items():
        if info.size:  # a model of one virtual layer has no skips
            by_role["head" if name == "head.weight" else info.role].append(parameters[name])
    embed_betas = (config.adam_beta1, config.embed_beta2 or config.adam_beta2)
    scalar_betas = (config.adam_beta1, config.scalar_beta2 or config.adam_beta2)
    groups = [
        ("embed", config.embed_lr, config.embed_weight_decay, embed_betas),
        ("head", config.head_lr or config.embed_lr, config.embed_weight_decay, embed_betas),
        ("scalar", config.scalar_lr, config.scalar_weight_decay, scalar_betas),
    ]
    adamw = AdamW(
        [
            {"params": by_role[role], "lr": lr, "weight_decay": decay, "betas": betas}
            for role, lr, decay, betas in groups
            if by_role[role]
        ],
        eps=config.adam_eps,
    )
    return Optimizers(Muon(by_role["attn"] + by_role["mlp"], config, env), adamw)


def _grad_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every matrix takes part in every forward pass"
    return parameter.grad
