"""Muon and the AdamW groups against plain references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgolf_model.config import ModelConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model import GPT, build_model
from pgolf_model.optim import Muon, build_optimizers, orthogonalize

CONFIG = ModelConfig(vocab_size=32, num_layers=3, model_dim=16, num_heads=4, num_kv_heads=2, mlp_mult=3.0)
RECIPE = TrainConfig(
    matrix_lr=0.03, embed_lr=0.02, scalar_lr=0.01, matrix_weight_decay=0.1, embed_weight_decay=0.2, adam_eps=1e-6
)


def naive_newton_schulz(matrix: Tensor, iterations: int) -> Tensor:
    """The quintic on the singular values themselves, by SVD in float64."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (matrix.double().norm() + 1e-7)
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vh


def set_random_grads(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (96, 24)])
def test_five_iterations_bring_singular_values_near_one(shape: tuple[int, int]) -> None:
    """The known band of these coefficients, for values that start above 1 % of the norm; directions are kept."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices, iterations=5, dtype=torch.float32)
    for matrix, direction in zip(matrices, result, strict=True):
        start = torch.linalg.svdvals(matrix) / matrix.norm()
        end = torch.linalg.svdvals(direction)
        assert end.max() < 1.21
        assert end[start > 0.01].min() > 0.65


def test_newton_schulz_acts_on_singular_values_alone() -> None:
    """Against the same polynomial on an SVD in float64."""
    matrices = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(1))
    result = orthogonalize(matrices, iterations=4, dtype=torch.float32)
    expected = torch.stack([naive_newton_schulz(matrix, 4) for matrix in matrices])
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    rough = orthogonalize(matrices, iterations=4, dtype=torch.bfloat16)
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - expected).abs().max() < 0.05


def test_a_batch_is_orthogonalised_matrix_by_matrix() -> None:
    """Batching changes speed, not results; a zero matrix stays zero among others."""
    matrices = torch.randn(4, 24, 40, generator=torch.Generator().manual_seed(2))
    matrices[2] = 0.0
    together = orthogonalize(matrices, iterations=5, dtype=torch.float32)
    alone = torch.cat([orthogonalize(matrix[None], iterations=5, dtype=torch.float32) for matrix in matrices])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not together[2].any()


def test_muon_follows_its_definition() -> None:
    """Nesterov momentum, decoupled decay, the shape scale, changing rates: four steps of mixed shapes by hand."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(8, 8), (8, 24), (24, 8), (8, 8), (4, 8)]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    expected = [parameter.detach().double().clone() for parameter in parameters]
    buffers = [torch.zeros_like(weight) for weight in expected]
    muon = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.3, iterations=5, env=DistEnv())
    for lr, mu in ((0.1, 0.85), (0.1, 0.9), (0.05, 0.95), (0.01, 0.95)):
        muon.lr, muon.momentum = lr, mu
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double()
            buffers[i] = mu * buffers[i] + gradient
            rows, cols = parameter.shape
            direction = naive_newton_schulz(gradient + mu * buffers[i], 5) * max(1.0, rows / cols) ** 0.5
            expected[i] = expected[i] * (1 - lr * 0.3) - lr * direction
        muon.step()
    for parameter, weight in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-3, atol=1e-4)


def test_small_and_embedding_parameters_follow_adamw() -> None:
    """Each role with its own rate and decay, against torch's plain AdamW, through a change of the multiplier."""
    model, twin = build_model(CONFIG, seed=0), build_model(CONFIG, seed=0)
    optimizers = build_optimizers(model, RECIPE, DistEnv())
    embed = [twin.embed.weight]
    scalars = [p for name, p in twin.named_parameters() if p.ndim == 1 or "mix" in name or "skip" in name]
    reference = torch.optim.AdamW(
        [
            {"params": embed, "lr": 0.02, "weight_decay": 0.2},
            {"params": scalars, "lr": 0.01, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-6,
        foreach=False,
    )
    for step, multiplier in enumerate((1.0, 1.0, 0.5)):
        set_random_grads(model, seed=step)
        set_random_grads(twin, seed=step)
        optimizers.set_rates(lr_multiplier=multiplier, momentum=0.9)
        for group, peak in zip(reference.param_groups, (0.02, 0.01), strict=True):
            group["lr"] = peak * multiplier
        optimizers.step()
        reference.step()
    assert len(scalars) == 3 * 4 + 1
    for name, parameter in twin.named_parameters():
        if any(parameter is other for other in embed + scalars):
            torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_every_parameter_is_updated_by_exactly_one_optimizer() -> None:
    """By its role; a parameter without elements by none."""
    for config in (CONFIG, ModelConfig(vocab_size=8, num_layers=1, model_dim=8, num_heads=2, num_kv_heads=1)):
        model = build_model(config, seed=0)
        optimizers = build_optimizers(model, RECIPE, DistEnv())
        muon = [p for bank in optimizers.muon.banks for p in bank.parameters]
        adamw = [p for group in optimizers.adamw.param_groups for p in group["params"]]
        assert sorted(map(id, muon + adamw)) == sorted(id(p) for p in model.parameters() if p.numel())
        assert all(p.ndim == 2 and min(p.shape) > 2 for p in muon)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        set_random_grads(model, seed=0)
        optimizers.step()
        assert all(not torch.equal(before[name], p) for name, p in model.named_parameters() if p.numel())


def test_rates_are_peaks_times_the_multiplier() -> None:
    """Every time: multipliers do not compound."""
    optimizers = build_optimizers(build_model(CONFIG, seed=0), RECIPE, DistEnv())
    for multiplier in (0.5, 0.25, 1.0):
        optimizers.set_rates(lr_multiplier=multiplier, momentum=0.91)
        assert optimizers.muon.lr == 0.03 * multiplier
        assert optimizers.muon.momentum == 0.91
        assert [group["lr"] for group in optimizers.adamw.param_groups] == [0.02 * multiplier, 0.01 * multiplier]
