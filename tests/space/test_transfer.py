"""Rates at another width: exact where the rule is exact, and what the rule keeps constant, measured on the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pgolf_model.config import ModelConfig, RunConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.model.layers import rms_norm
from pgolf_model.train.optim import build_optimizers
from space.knobs.groups import Scale
from space.presets import PRESETS, preset
from space.spaces import challenge_scale, core_groups, make_space, tiny_scale
from space.transfer import at_own_width


def wide(width: int, **model: object) -> RunConfig:
    """Two blocks with heads of 16 channels."""
    shape = ModelConfig(vocab_size=64, num_layers=2, model_dim=width, num_heads=width // 16, num_kv_heads=width // 32)
    return RunConfig(model=replace(shape, **model), train=TrainConfig(embed_weight_decay=0.1))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_nothing_changes_at_the_width_of_the_tuning(name: str) -> None:
    config = preset(name)
    assert at_own_width(config, base_dim=config.model.model_dim) == config


@given(width=st.sampled_from([32, 64, 96, 256]), base=st.integers(16, 1024), rate=st.floats(1e-4, 1.0))
def test_only_rates_of_the_head_move(width: int, base: int, rate: float) -> None:
    """An untied head alone; a tied table with its deviation, its decay per step unmoved. Nothing else changes."""
    untied = replace(wide(width, tied=False), train=TrainConfig(head_lr=rate, embed_lr=0.07))
    head_lr = at_own_width(untied, base_dim=base).train.head_lr
    assert head_lr * width == pytest.approx(rate * base)
    assert at_own_width(untied, base_dim=base) == replace(untied, train=replace(untied.train, head_lr=head_lr))
    tied = replace(wide(width), train=TrainConfig(embed_lr=rate, embed_weight_decay=0.1))
    moved = at_own_width(tied, base_dim=base)
    assert moved.train.embed_lr * width == pytest.approx(rate * base)
    assert moved.model.embed_init_std * width == pytest.approx(tied.model.embed_init_std * base)
    assert moved.train.embed_lr * moved.train.embed_weight_decay == pytest.approx(rate * 0.1)
    names = ("embed_lr", "embed_weight_decay")
    back = replace(moved.train, **{name: getattr(tied.train, name) for name in names})
    assert replace(moved, model=tied.model, train=back) == tied


def test_an_untied_head_without_a_rate_has_the_embeddings() -> None:
    config = wide(64, tied=False)
    assert at_own_width(config, base_dim=32).train.head_lr == config.train.embed_lr / 2


@pytest.mark.parametrize("make_scale", [challenge_scale, tiny_scale])
def test_spaces_read_their_rates_at_the_baseline_width(make_scale: Callable[[], Scale]) -> None:
    """The control is what it was; another width has the rule's rates, and every other field as without it."""
    scale = make_scale()
    plain = replace(scale, rates_at_baseline_width=False)
    space = make_space("test", scale, core_groups(scale), {})
    before = make_space("test", plain, core_groups(plain), {})
    assert space.build(space.control) == before.build(space.control)
    wider = dict(space.control) | {"model_dim": scale.model_dim[1]}
    assert space.build(wider) == at_own_width(before.build(wider), base_dim=scale.model_dim_baseline)
    assert space.build(wider) != before.build(wider)


class ScaledScores(GPT):
    """The model with muTransfer's output multiplier: scores times `factor`."""

    factor = 1.0

    def scores(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        z = F.linear(self.hidden(ids), self.embed.weight) * self.factor
        cap = self.config.logit_softcap
        return F.cross_entropy((cap * torch.tanh(z / cap)).flatten(0, 1), targets.flatten())


def trained(config: RunConfig, factor: float, *, steps: int) -> tuple[GPT, list[float]]:
    """A few steps on one batch in float64; the losses."""
    model = ScaledScores(config.model)
    model.load_state_dict(build_model(config.model, seed=0).state_dict())
    model.factor = factor
    model.double()
    optimizers = build_optimizers(model, replace(config.train, adam_eps=1e-30), DistEnv())
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(64, (4, 17), generator=generator)
    losses = []
    for _ in range(steps):
        model.zero_grad()
        loss = model.scores(ids[:, :-1], ids[:, 1:])
        torch.autograd.backward(loss)
        optimizers.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("extra", [{}, {"bigram_buckets": 32, "bigram_dim": 8}])
def test_with_a_tied_table_the_rule_is_an_output_multiplier(extra: dict[str, int]) -> None:
    """Training under the rule is training with scores times base / D and the rates as they were: the same losses,
    the same matrices, a table that differs by the factor. Decay included."""
    config = wide(64, **extra)
    ours, losses = trained(at_own_width(config, base_dim=32), 1.0, steps=8)
    theirs, expected = trained(config, 0.5, steps=8)
    assert losses == pytest.approx(expected, rel=1e-7)
    assert losses[-1] < losses[0] - 0.5
    for (name, got), want in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        factor = 0.5 if name in ("embed.weight", "bigram.weight") else 1.0
        torch.testing.assert_close(got, factor * want, rtol=1e-5, atol=1e-9, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_moves_scores_as_far_at_every_width(tied: bool) -> None:
    """One step of the head alone, along its gradient's sign, at 32 and at 256 channels: scores of the right tokens move
    alike under the rule, and eight times as far without it."""

    def moved(config: RunConfig) -> float:
        model = build_model(config.model, seed=0)
        table = model.get_parameter("embed.weight" if tied else "head.weight")
        rate = config.train.embed_lr if tied else config.train.head_lr or config.train.embed_lr
        ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
        x = model.hidden(ids).detach()
        assert torch.allclose(x, rms_norm(x), atol=1e-4)
        before = F.linear(x, table)
        (gradient,) = torch.autograd.grad(F.cross_entropy(before.flatten(0, 1), ids.flatten()), table)
        change = F.linear(x, rate * gradient.sign())
        own = change.flatten(0, 1).gather(1, ids.flatten()[:, None])
        return float(own.abs().mean())

    narrow = moved(wide(32, tied=tied))
    assert moved(at_own_width(wide(256, tied=tied), base_dim=32)) == pytest.approx(narrow, rel=0.25)
    assert moved(wide(256, tied=tied)) == pytest.approx(8 * narrow, rel=0.25)
