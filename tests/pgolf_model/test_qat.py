"""Rounded forward passes: live under torch.compile, straight through, and gone without a trace."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pgolf_model.config import ModelConfig, QuantConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.quant.quantize import dequantize, dequantize_state, quantize_matrix, quantize_state
from pgolf_model.shapes import param_shapes
from pgolf_model.train.loop import compute_gradients
from pgolf_model.train.qat import WeightRounder, rounded_like_shipped

MODEL = ModelConfig(vocab_size=32, num_layers=4, model_dim=32, num_heads=2, num_kv_heads=1, embed_init_std=1.0)
QUANT = QuantConfig(embed_bits=4, attn_bits=(3, 5), mlp_bits=(2,), mlp_clip_sigmas=(2.0, 3.0, 4.0, 3.0))
RECIPE = TrainConfig(batch_tokens=256, seq_len=32, precision="float32")
IDS = torch.randint(32, (8, 32), generator=torch.Generator().manual_seed(0))


def trained_looking(seed: int = 0) -> GPT:
    """A model whose output projections are not zero."""
    model = build_model(MODEL, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, info in param_shapes(MODEL).items():
        if info.role != "scalar":
            model.get_parameter(name).data.add_(0.1 * torch.randn(info.shape, generator=generator))
    return model


def test_the_forward_pass_sees_what_the_artifact_would_hold() -> None:
    """Every matrix by its role and layer, scalars exact; afterwards every weight is back, bit for bit."""
    model = trained_looking()
    exact = {name: weight.clone() for name, weight in model.state_dict().items()}
    shipped = dequantize_state(quantize_state(exact, MODEL, QUANT))
    rounder = WeightRounder(model, QUANT)
    with rounder.rounded(active=True):
        for name, info in param_shapes(MODEL).items():
            seen = model.get_parameter(name)
            assert torch.equal(seen, exact[name] if info.role == "scalar" else shipped[name]), name
    assert all(torch.equal(weight, exact[name]) for name, weight in model.state_dict().items())
    with rounder.rounded(active=False):
        assert all(torch.equal(weight, exact[name]) for name, weight in model.state_dict().items())


def test_gradients_are_those_at_the_rounded_weights() -> None:
    """Straight through: against a second model that was given the rounded weights."""
    model, twin = trained_looking(), build_model(MODEL, seed=1)
    scalars = [name for name, info in param_shapes(MODEL).items() if info.role == "scalar"]
    shipped = dequantize_state(quantize_state(model.state_dict(), MODEL, QUANT))
    twin.load_state_dict(shipped | {name: model.state_dict()[name] for name in scalars})
    with WeightRounder(model, QUANT).rounded(active=True):
        loss = compute_gradients(model, model, IDS, IDS, RECIPE, DistEnv())
    assert torch.equal(loss, compute_gradients(twin, twin, IDS, IDS, RECIPE, DistEnv()))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, twin.get_parameter(name).grad), name


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.13's own doing
def test_switching_on_changes_the_loss_of_the_same_compiled_graph() -> None:
    """No second compilation, and the switch is not folded away: the record scripts' late QAT was."""
    model = trained_looking()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=False)
    rounder = WeightRounder(model, QUANT)
    losses = []
    for active in (False, False, True, True, False):
        with rounder.rounded(active=active):
            losses.append(float(compute_gradients(model, compiled, IDS, IDS, RECIPE, DistEnv())))
    assert counter.frame_count == 1
    assert losses[0] == losses[1] == losses[4]
    assert losses[2] == losses[3]
    assert abs(losses[2] - losses[0]) > 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_cannot_be_stored_pass_unrounded(value: float) -> None:
    """A diverged run ends as one, not with an error about its weights."""
    model = trained_looking()
    model.blocks[0].mlp.up.data[0, 0] = value
    with WeightRounder(model, QUANT).rounded(active=True):
        seen = model.blocks[0].mlp.up[0, 0].item()
    assert seen != seen or seen == torch.tensor(value).item()


def test_groups_are_rounded_as_they_ship() -> None:
    """With a step per group of columns, training sees what the artifact gives back."""
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    weight[:, 128:] *= 5
    quant = QuantConfig(mlp_bits=(2,), mlp_clip_sigmas=(1.224,), group_size=128)
    shipped = dequantize(quantize_matrix(weight, bits=2, clip_sigmas=1.224, group=128))
    assert torch.equal(rounded_like_shipped(weight, "mlp", 0, num_layers=1, quant=quant), shipped)
