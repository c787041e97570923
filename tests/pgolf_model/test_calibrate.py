"""Calibration: inputs' second moments against naive sums, sensitivities against finite differences, text of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf_model.config import Budget, ModelConfig, QuantConfig, RunConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.shapes import param_shapes
from pgolf_model.ship.calibrate import InputMoments, calibrate, calibration_batches, calibration_loss, generate_tokens

Batch = tuple[Tensor, Tensor]
ALONE = DistEnv()
TINY = ModelConfig(
    vocab_size=31, num_layers=3, model_dim=16, num_heads=2, num_kv_heads=1, loop_start=1, loop_end=2, loop_repeats=2
)


def lively_model(config: ModelConfig = TINY, seed: int = 0) -> GPT:
    """No parameter at its initial zero, so that every path carries a signal."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator) / (4 if "embed" in name else 1))
    return model.eval()


def batches_of(count: int, sequences: int = 2, length: int = 12, vocab: int = 31) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(vocab, (count, sequences, length + 1), generator=generator)
    return [(item[:, :-1], item[:, 1:]) for item in ids]


def naive_moments(
    model: GPT, batches: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """x x^T one input vector at a time, of whatever reaches `F.linear` with multiples of all the weight's rows.

    The weight is found by comparing numbers, not by following it.
    """
    matrices = {n: p.detach() for n, p in model.named_parameters() if param_shapes(model.config)[n].role != "scalar"}
    sums = {name: torch.zeros(w.shape[1], w.shape[1], dtype=torch.float64) for name, w in matrices.items()}
    real: Callable[[Tensor, Tensor], Tensor] = F.linear

    def spy(inputs: Tensor, weight: Tensor) -> Tensor:
        for name, matrix in matrices.items():
            if weight.shape[1] == matrix.shape[1]:  # rows may be scaled, joined with others and in another order
                cosines = F.normalize(matrix, dim=1) @ F.normalize(weight.detach(), dim=1).T
                if (cosines.abs().amax(1) > 1 - 1e-5).all():
                    for x in inputs.detach().reshape(-1, inputs.shape[-1]).double():
                        sums[name] += torch.outer(x, x)
        return real(inputs, weight)

    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", spy)
        for ids, _ in batches:
            model.logits(ids)
    return sums


def test_hessians_are_the_inputs_second_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is seen: scaled outputs, the tied head behind its cap, blocks that run several times."""
    model, batches = lively_model(), batches_of(3)
    found = calibrate(model, batches, ALONE, seed=0)
    matrices = [name for name, info in param_shapes(TINY).items() if info.role != "scalar"]
    assert sorted(found.hessians) == sorted(matrices)
    assert found.tokens == 3 * 2 * 12
    for name, total in naive_moments(model, batches, monkeypatch).items():
        want = total / found.tokens
        if name == "embed.weight":  # more is added for what errors cost where rows are looked up
            lookups = found.hessians[name].double() - want
            assert torch.linalg.eigvalsh(lookups).min() > -1e-4 * lookups.trace() > -torch.inf
            continue
        assert torch.allclose(found.hessians[name].double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max())), name
        assert found.hessian(name, want.shape[0]) is found.hessians[name]
    assert all(p.grad is None for p in model.parameters())


def test_a_weight_is_recognised_through_what_modules_do_to_it() -> None:
    """Scaled, cast, fake-quantized straight-through, and joined with others; never by its look alone."""
    weights = {name: torch.randn(rows, 4, requires_grad=True) for name, rows in (("a", 3), ("b", 5), ("unused", 3))}
    x = torch.randn(2, 6, 4)
    with InputMoments(weights) as seen:
        fake = weights["a"] + ((weights["a"] / 0.5).round() * 0.5 - weights["a"]).detach()
        F.linear(x, (torch.rand(3)[:, None] * fake).to(torch.float64).float())
        F.linear(x, torch.cat([weights["a"], weights["b"] * 2]))
        F.linear(2 * x, weight=weights["b"])
        F.linear(x, torch.randn(3, 4))
    product = x.flatten(0, 1).T @ x.flatten(0, 1)
    assert sorted(seen.sums) == ["a", "b"]
    assert torch.allclose(seen.sums["a"], 2 * product)
    assert torch.allclose(seen.sums["b"], 5 * product)


def test_a_matrix_that_is_never_multiplied_gets_the_identity() -> None:
    found = calibrate(lively_model(), batches_of(1), ALONE, seed=0)
    found.hessians.pop("blocks.0.mlp.up")
    assert torch.equal(found.hessian("blocks.0.mlp.up", 16), torch.eye(16))


def test_sensitivity_predicts_the_loss_of_a_random_error() -> None:
    """Half the sensitivity times the error under the Hessian is what small random errors add to the loss.

    Measured with targets from the model's own distribution, where the loss is at its minimum and its curvature is the
    Gauss-Newton matrix: the expected loss over targets, minus the entropy, is a Kullback-Leibler divergence.
    """
    model, batches = lively_model(), batches_of(4, sequences=16, length=12)
    found = calibrate(model, batches, ALONE, seed=1)
    generator = torch.Generator().manual_seed(5)

    def predictions() -> Tensor:
        with torch.no_grad():
            return torch.cat([model.logits(ids).flatten(0, 1) for ids, _ in batches]).double().log_softmax(-1)

    before = predictions()
    ratios = {}
    for name, weight in ((n, p.detach()) for n, p in model.named_parameters()):
        if param_shapes(TINY)[name].role != "scalar" and not name.endswith((".q", ".k")):
            increases, expected = [], []
            for _ in range(2):
                error = 0.02 * weight.std() * torch.randn(weight.shape, generator=generator)
                with torch.no_grad():
                    weight.add_(error)
                    increases.append(float((before.exp() * (before - predictions())).sum(-1).mean()))
                    weight.sub_(error)
                expected.append(found.sensitivity[name] / 2 * float(((error @ found.hessians[name]) * error).sum()))
            ratios[name] = sum(increases) / sum(expected)
    assert len(ratios) == 13
    assert all(0.3 < ratio < 3 for ratio in ratios.values()), ratios


def test_rows_of_frequent_tokens_weigh_more() -> None:
    """Rows of the embedding weigh as their tokens occur, 1 in the mean and never nothing."""
    generator = torch.Generator().manual_seed(3)
    shares = 1 / torch.arange(1, 32)
    ids = torch.multinomial(shares, 8 * 8 * 13, replacement=True, generator=generator).view(8, 8, 13)
    model = lively_model()
    found = calibrate(model, [(item[:, :-1], item[:, 1:]) for item in ids], ALONE, seed=0)
    assert set(found.row_weights) == {"embed.weight"}
    weights = found.row_weights["embed.weight"]
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights.min()) > 0.01
    assert weights[:3].mean() > 3 * weights[15:].mean()


def test_what_lookups_cost_is_told_from_what_products_cost() -> None:
    """A matrix that is only looked up has the gradients' second moments, naively summed, for its Hessian."""
    table, weight = (torch.randn(rows, 4, requires_grad=True) for rows in (7, 5))
    ids = torch.tensor([[1, 2, 2], [3, 6, 0]])
    with InputMoments({"table": table, "weight": weight}) as seen:
        rows = F.embedding(ids, table)
        used = rows.detach().requires_grad_()
        loss = F.linear(rows, weight).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = torch.autograd.grad(F.linear(used, weight).square().sum(), used)[0].flatten(0, 1)
    assert torch.allclose(seen.lookups["table"], sum(torch.outer(g, g) for g in gradients))  # type: ignore[arg-type]
    assert set(seen.sums) == {"weight"}


def test_calibration_reads_the_training_shards_or_the_models_own_text(tiny_data: Path) -> None:
    """As many tokens as asked for in whole sequences, and never a validation token."""
    config = RunConfig(
        model=replace(TINY, vocab_size=512),
        train=TrainConfig(batch_tokens=256, seq_len=32, micro_batch_tokens=128),
        quant=QuantConfig(calibration_tokens=1000),
        budget=Budget(steps=1),
    )
    model = lively_model(config.model)
    for source in ("train", "generate"):
        quant = replace(config.quant, calibration=source, calibration_tokens=300)  # type: ignore[arg-type]
        batches = calibration_batches(replace(config, quant=quant), model, data=str(tiny_data), env=ALONE)
        assert sum(ids.numel() for ids, _ in batches) == 256  # two of the training's micro batches
        assert all(ids.shape == (4, 32) and torch.equal(ids[:, 1:], targets[:, :-1]) for ids, targets in batches)
    train = b"".join(path.read_bytes() for path in sorted(tiny_data.glob("*train*.bin")))
    window = calibration_batches(config, model, data=str(tiny_data), env=ALONE)[0][0][0]
    assert window.numpy().astype("<u2").tobytes() in train


def test_generated_text_is_a_function_of_the_seed_and_follows_the_model() -> None:
    """A model that always says 5 generates 5."""
    model = lively_model()
    texts = [generate_tokens(model, 3, 9, ALONE, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert texts[0].shape == (3, 9)
    model.logits = lambda ids: F.one_hot(torch.full_like(ids, 5), 31) * 100.0  # type: ignore[method-assign]
    assert (generate_tokens(model, 2, 6, ALONE, seed=0)[:, 1:] == 5).all()


def test_calibration_loss_is_the_mean_over_tokens() -> None:
    model, batches = lively_model(), batches_of(3)
    losses = [float(F.cross_entropy(model.logits(i).detach().flatten(0, 1), t.flatten())) for i, t in batches]
    assert calibration_loss(model, batches, ALONE) == pytest.approx(sum(losses) / 3, rel=1e-5)
