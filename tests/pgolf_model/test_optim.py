"""Muon and the AdamW groups against plain references."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pgolf_model.config import ModelConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.shapes import ParamInfo, param_shapes
from pgolf_model.train import optim
from pgolf_model.train.optim import AdamW, Muon, build_optimizers, orthogonalize

CONFIG = ModelConfig(vocab_size=32, num_layers=3, model_dim=16, num_heads=4, num_kv_heads=2, mlp_mult=3.0)
RECIPE = TrainConfig(
    matrix_lr=0.03, embed_lr=0.02, scalar_lr=0.01, matrix_weight_decay=0.1, embed_weight_decay=0.2, adam_eps=1e-6
)


QUINTIC = [(3.4445, -4.7750, 2.0315)] * 6
POLAR_EXPRESS = [  # https://arxiv.org/abs/2505.16932; a sixth step repeats the fifth
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    *((3.285753657755655, -2.3681294933425376, 0.46449024233003106),),
    *((2.3465413258596377, -1.7097828382687081, 0.42323551169305323),) * 2,
]
POLYNOMIALS = {"quintic": QUINTIC, "polar_express": POLAR_EXPRESS}


def naive_newton_schulz(matrix: Tensor, iterations: int, polynomial: str = "quintic") -> Tensor:
    """The polynomials on the singular values themselves, by SVD in float64."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (matrix.double().norm() + 1e-7)
    for a, b, c in POLYNOMIALS[polynomial][:iterations]:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh


def set_random_grads(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (96, 24)])
@pytest.mark.parametrize(
    ("polynomial", "iterations", "smallest", "low", "high"),
    [
        ("quintic", 5, 0.01, 0.65, 1.21),
        ("polar_express", 5, 0.001, 0.85, 1.15),
        ("polar_express", 6, 0.001, 0.95, 1.14),
    ],
)
def test_iterations_bring_singular_values_near_one(
    shape: tuple[int, int], polynomial: str, iterations: int, smallest: float, low: float, high: float
) -> None:
    """Into the band of the polynomials, for values that start above a share of the norm; directions are kept."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices, iterations=iterations, dtype=torch.float32, polynomial=polynomial)
    for matrix, direction in zip(matrices, result, strict=True):
        start = torch.linalg.svdvals(matrix) / matrix.norm()
        end = torch.linalg.svdvals(direction)
        assert end.max() < high
        assert end[start > smallest].min() > low


@pytest.mark.parametrize("polynomial", ["quintic", "polar_express"])
@pytest.mark.parametrize("iterations", [3, 4, 5, 6])
def test_newton_schulz_acts_on_singular_values_alone(polynomial: str, iterations: int) -> None:
    """Against the same polynomials on an SVD in float64."""
    matrices = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(1))
    result = orthogonalize(matrices, iterations=iterations, dtype=torch.float32, polynomial=polynomial)
    expected = torch.stack([naive_newton_schulz(matrix, iterations, polynomial) for matrix in matrices])
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    rough = orthogonalize(matrices, iterations=iterations, dtype=torch.bfloat16, polynomial=polynomial)
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


@pytest.mark.parametrize(("polynomial", "normalize_rows"), [("quintic", False), ("polar_express", True)])
def test_muon_follows_its_definition(polynomial: str, normalize_rows: bool) -> None:
    """Nesterov momentum, equal rows, decoupled decay, the shape scale, changing rates: four steps by hand."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(8, 8), (8, 24), (24, 8), (8, 8), (4, 8)]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    expected = [parameter.detach().double().clone() for parameter in parameters]
    buffers = [torch.zeros_like(weight) for weight in expected]
    recipe = TrainConfig(
        matrix_lr=0.1,
        muon_momentum=0.9,
        matrix_weight_decay=0.3,
        muon_polynomial=polynomial,
        muon_normalize_rows=normalize_rows,
    )
    muon = Muon(parameters, recipe, DistEnv())
    for lr, mu in ((0.1, 0.85), (0.1, 0.9), (0.05, 0.95), (0.01, 0.95)):
        muon.lr, muon.momentum = lr, mu
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double()
            buffers[i] = mu * buffers[i] + gradient
            rows, cols = parameter.shape
            update = gradient + mu * buffers[i]
            if normalize_rows:
                update = torch.stack([row / row.norm() for row in update])
            direction = naive_newton_schulz(update, 5, polynomial) * max(1.0, rows / cols) ** 0.5
            expected[i] = expected[i] * (1 - lr * 0.3) - lr * direction
        muon.step()
    for parameter, weight in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-3, atol=1e-4)


def test_row_normalisation_makes_the_scale_of_a_row_irrelevant() -> None:
    """With it, and only with it; an all-zero row stays zero."""
    weights = []
    for normalize_rows, scale in ((True, 1.0), (True, 64.0), (False, 1.0), (False, 64.0)):
        parameter = torch.nn.Parameter(torch.zeros(6, 9))
        muon = Muon([parameter], TrainConfig(muon_normalize_rows=normalize_rows), DistEnv())
        parameter.grad = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
        parameter.grad[2] *= scale
        parameter.grad[4] = 0.0
        muon.step()
        weights.append(parameter.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    assert (weights[2] - weights[3]).abs().max() > 0.001
    assert not weights[0][4].any()


def untied(model: GPT) -> GPT:
    """The model with a second table called `head.weight`, as untied models have one."""
    model.head = torch.nn.Module()
    model.head.weight = torch.nn.Parameter(torch.ones(CONFIG.vocab_size, CONFIG.model_dim))
    return model


@pytest.mark.parametrize("head_lr", [None, 0.0, 0.007])
def test_small_and_embedding_parameters_follow_adamw(monkeypatch: pytest.MonkeyPatch, head_lr: float | None) -> None:
    """Each group with its own rate, decay and beta2 against a torch AdamW of its own, through changes of the rate."""
    model, twin = build_model(CONFIG, seed=0), build_model(CONFIG, seed=0)
    if head_lr is not None:
        head = {"head.weight": ParamInfo(shape=(CONFIG.vocab_size, CONFIG.model_dim), role="embed")}
        monkeypatch.setattr(optim, "param_shapes", lambda config: param_shapes(config) | head)
        model, twin = untied(model), untied(twin)
    recipe = replace(RECIPE, embed_beta2=0.99, scalar_weight_decay=0.05, head_lr=head_lr or 0.0)
    optimizers = build_optimizers(model, recipe, DistEnv())
    scalars = [p for name, p in twin.named_parameters() if p.ndim == 1 or "mix" in name or "skip" in name]
    groups = [([twin.embed.weight], 0.02, 0.2, 0.99), (scalars, 0.01, 0.05, 0.95)]
    if head_lr is not None:
        groups.append(([twin.head.weight], head_lr or 0.02, 0.2, 0.99))
    references = [
        torch.optim.AdamW(members, lr=lr, weight_decay=decay, betas=(0.9, beta2), eps=1e-6, foreach=False)
        for members, lr, decay, beta2 in groups
    ]
    for step, multiplier in enumerate((1.0, 1.0, 0.5)):
        set_random_grads(model, seed=step)
        set_random_grads(twin, seed=step)
        optimizers.set_rates(lr_multiplier=multiplier, momentum=0.9)
        for reference, (_, peak, _, _) in zip(references, groups, strict=True):
            reference.param_groups[0]["lr"] = peak * multiplier
            reference.step()
        optimizers.step()
    assert len(scalars) == 3 * 4 + 1
    checked = [id(p) for members, _, _, _ in groups for p in members]
    for name, parameter in twin.named_parameters():
        if id(parameter) in checked:
            torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_adamw_is_torchs_fused_one_bit_for_bit() -> None:
    """Through changes of the rate; a parameter without a gradient is left alone."""
    mine, twin = ([torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (5, 7, 3)] for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizer = AdamW([{"params": mine, **settings}], eps=1e-8)
    reference = torch.optim.AdamW([{"params": twin, **settings}], eps=1e-8, fused=True)
    for step, lr in enumerate((0.01, 0.02, 0.0)):
        for a, b in zip(mine[:2], twin[:2], strict=True):
            b.grad = a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
        optimizer.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = lr
        optimizer.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, twin, strict=True))
    assert torch.equal(mine[2], torch.linspace(-1, 1, 3))


def test_training_on_a_cpu_does_not_load_the_compiler() -> None:
    """torch._dynamo takes 2 s to import, which is a third of the shortest trial."""
    program = (
        "import sys, torch\n"
        "from pgolf_model.config import ModelConfig, TrainConfig\n"
        "from pgolf_model.distributed import DistEnv\n"
        "from pgolf_model.model.gpt import build_model\n"
        "from pgolf_model.train.optim import build_optimizers\n"
        "config = ModelConfig(vocab_size=8, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1)\n"
        "model = build_model(config, seed=0)\n"
        "for p in model.parameters(): p.grad = torch.ones_like(p)\n"
        "build_optimizers(model, TrainConfig(), DistEnv()).step()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    root = Path(optim.__file__).resolve().parents[2]
    said = subprocess.run([sys.executable, "-c", program], cwd=root, text=True, capture_output=True, check=False)
    assert said.stdout.strip() == "False", said.stderr


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
        optimizers.set_rates(lr_multiplier=multiplier, momentum=0.91, decay_multiplier=multiplier / 2)
        assert optimizers.muon.lr == 0.03 * multiplier
        assert optimizers.muon.weight_decay == 0.1 * (multiplier / 2)
        assert optimizers.muon.momentum == 0.91
        assert [group["lr"] for group in optimizers.adamw.param_groups] == [0.02 * multiplier, 0.01 * multiplier]
