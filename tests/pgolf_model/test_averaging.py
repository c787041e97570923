"""Averages of weights against sums written out."""

from __future__ import annotations

import pytest
import torch

from pgolf_model.config import ModelConfig, TrainConfig
from pgolf_model.model.gpt import build_model
from pgolf_model.shapes import param_shapes
from pgolf_model.train.averaging import WeightAverage

MODEL = ModelConfig(vocab_size=32, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1)


def test_the_moving_average_forgets_the_initial_weights() -> None:
    """Shares of a debiased average sum to one over the steps taken; after one step it is that step."""
    model = build_model(MODEL, seed=0)
    average = WeightAverage(model, TrainConfig(ema_decay=0.99))
    seen = []
    for step, value in enumerate((3.0, 5.0, 11.0), start=1):
        model.skip_weights.data.fill_(value)
        average.update(step, lr_multiplier=1.0)
        seen.append(float(average.state_dict()["skip_weights"][0, 0]))
    assert seen[0] == 3.0
    assert seen[2] == pytest.approx((0.99**2 * 3 + 0.99 * 5 + 11) / (0.99**2 + 0.99 + 1), rel=1e-6)


def test_the_stochastic_average_is_the_mean_of_every_nth_late_step() -> None:
    """Steps 4, 6 and 8: multiples of two at a multiplier below the start; until then it is the weights themselves."""
    model = build_model(MODEL, seed=0)
    average = WeightAverage(model, TrainConfig(swa_start=0.5, swa_every=2))
    history = []
    for step, multiplier in enumerate((1.0, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02), start=1):
        for i, parameter in enumerate(model.parameters()):
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(97 * step + i)))
        history.append({name: weight.double().clone() for name, weight in model.state_dict().items()})
        average.update(step, lr_multiplier=multiplier)
        if step == 3:
            assert all(torch.equal(w.double(), history[-1][name]) for name, w in average.state_dict().items())
    assert list(average.state_dict()) == list(param_shapes(MODEL))
    for name, weight in average.state_dict().items():
        expected = (history[3][name] + history[5][name] + history[7][name]) / 3
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)


def test_without_an_average_the_weights_are_shipped_and_nothing_is_kept() -> None:
    """Off costs no memory."""
    model = build_model(MODEL, seed=0)
    average = WeightAverage(model, TrainConfig())
    average.update(50, lr_multiplier=0.0)
    assert not average.means
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in average.state_dict().items())
