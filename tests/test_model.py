"""The transformer against naive code, its laws, and its initial weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgolf_model.config import ModelConfig
from pgolf_model.layers import SelfAttention, rotary_table
from pgolf_model.model import GPT, build_model
from pgolf_model.shapes import param_shapes

LOOPED = ModelConfig(
    vocab_size=37,
    num_layers=4,
    model_dim=24,
    num_heads=6,
    num_kv_heads=2,
    mlp_mult=1.5,
    loop_start=1,
    loop_end=3,
    loop_repeats=2,
    rope_base=100.0,
)  # eight virtual layers
ODD_DEPTH = ModelConfig(vocab_size=37, num_layers=5, model_dim=16, num_heads=2, num_kv_heads=2, logit_softcap=5.0)
ONE_BLOCK = ModelConfig(vocab_size=37, num_layers=1, model_dim=16, num_heads=4, num_kv_heads=1)


def random_model(config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> GPT:
    """Every parameter away from its initial value, so that no term of the formulas hides behind a zero or a one."""
    model = build_model(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += noise / parameter.shape[-1] ** 0.5 if name.endswith(("out", "down", "up")) else 0.3 * noise
    return model.to(dtype)


def random_ids(config: ModelConfig, *shape: int, seed: int = 3) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def naive_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def naive_rotate(vector: Tensor, position: int, base: float) -> Tensor:
    """Complex rotation of the pairs (i, i + half) of one head at one position."""
    half = len(vector) // 2
    angles = torch.tensor([position * base ** (-2 * i / len(vector)) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(angles), -angles)
    return torch.cat((turned.real, turned.imag))


def naive_attention(weights: dict[str, Tensor], x: Tensor, config: ModelConfig) -> Tensor:
    """One sequence (T, D), one head and one query at a time."""
    size = config.head_dim
    heads = []
    for h in range(config.num_heads):
        g = h * config.num_kv_heads // config.num_heads
        queries = naive_norm(x @ weights["q"][h * size : (h + 1) * size].T)
        keys = naive_norm(x @ weights["k"][g * size : (g + 1) * size].T)
        values = x @ weights["v"][g * size : (g + 1) * size].T
        rows = []
        for t in range(len(x)):
            query = naive_rotate(queries[t], t, config.rope_base) * weights["q_gain"][h]
            scores = [query @ naive_rotate(keys[s], s, config.rope_base) / math.sqrt(size) for s in range(t + 1)]
            rows.append(torch.softmax(torch.stack(scores), 0) @ values[: t + 1])
        heads.append(torch.stack(rows))
    return torch.cat(heads, 1) @ weights["out"].T


def naive_logits(state: dict[str, Tensor], ids: Tensor, config: ModelConfig) -> Tensor:
    """The formulas of atlas B over one sequence."""
    x0 = x = naive_norm(state["embed.weight"][ids])
    order = [*range(config.loop_end)]
    order += [*range(config.loop_start, config.loop_end)] * config.loop_repeats
    order += [*range(config.loop_end, config.num_layers)]
    half, saved = len(order) // 2, []
    for depth, layer in enumerate(order):
        block = {name.split(".", 2)[2]: w for name, w in state.items() if name.startswith(f"blocks.{layer}.")}
        if depth >= half and saved:
            x = x + state["skip_weights"][depth - half] * saved.pop()
        x = block["resid_mix"][0] * x + block["resid_mix"][1] * x0
        attn = {name: block[f"attn.{name}"] for name in ("q", "k", "v", "out", "q_gain")}
        x = x + block["attn_scale"] * naive_attention(attn, naive_norm(x), config)
        hidden = torch.clamp(naive_norm(x) @ block["mlp.up"].T, min=0) ** 2
        x = x + block["mlp_scale"] * (hidden @ block["mlp.down"].T)
        if depth < half:
            saved.append(x)
    return config.logit_softcap * torch.tanh(naive_norm(x) @ state["embed.weight"].T / config.logit_softcap)


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    num_kv_heads = draw(st.integers(1, 4))
    num_heads = num_kv_heads * draw(st.integers(1, 4))
    num_layers = draw(st.integers(1, 12))
    loop_start = draw(st.integers(0, num_layers))
    loop_end = draw(st.integers(loop_start, num_layers))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 65_536)),
        num_layers=num_layers,
        model_dim=num_heads * 2 * draw(st.integers(1, 64)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_mult=draw(st.sampled_from((0.5, 1.0, 2.0, 3.5, 4.0))),
        loop_start=loop_start,
        loop_end=loop_end,
        loop_repeats=draw(st.integers(1, 3)) if loop_end > loop_start else 0,
    )


def test_the_baseline_has_its_published_parameter_count() -> None:
    """17,059,912, the number in the challenge's own log."""
    with torch.device("meta"):
        model = GPT(ModelConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 17_059_912


@given(config=model_configs())
@settings(max_examples=30, deadline=None)
def test_the_state_dict_is_exactly_param_shapes(config: ModelConfig) -> None:
    """Names, shapes and order, for any valid config."""
    with torch.device("meta"):
        state = GPT(config).state_dict()
    expected = {name: info.shape for name, info in param_shapes(config).items()}
    assert list({name: tuple(weight.shape) for name, weight in state.items()}.items()) == list(expected.items())


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_is_an_explicit_softmax_over_the_past(num_heads: int, num_kv_heads: int) -> None:
    """Heads, groups, norms, rotations, gains and the causal mask, one query at a time in float64."""
    config = ModelConfig(num_layers=1, model_dim=num_heads * 6, num_heads=num_heads, num_kv_heads=num_kv_heads)
    generator = torch.Generator().manual_seed(0)
    attention = SelfAttention(config).double()
    for parameter in attention.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 9, config.model_dim, generator=generator, dtype=torch.float64)
    out_scale = torch.randn(config.model_dim, generator=generator, dtype=torch.float64)
    got = attention(x, *rotary_table(9, config.head_dim, base=config.rope_base, like=x), out_scale)
    weights = {name: parameter.detach() for name, parameter in attention.named_parameters()}
    expected = torch.stack([naive_attention(weights, sequence, config) for sequence in x]) * out_scale
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", [LOOPED, ODD_DEPTH, ONE_BLOCK], ids=["looped", "odd_depth", "one_block"])
def test_the_model_equals_its_formulas(config: ModelConfig) -> None:
    """Logits and losses against a naive float64 transcription of atlas B."""
    model = random_model(config, dtype=torch.float64)
    ids, targets = random_ids(config, 2, 7), random_ids(config, 2, 7, seed=4)
    state = model.state_dict()
    expected = torch.stack([naive_logits(state, sequence, config) for sequence in ids])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids), expected, rtol=1e-9, atol=1e-9)
        nats = torch.logsumexp(expected, -1) - expected.gather(-1, targets[..., None])[..., 0]
        torch.testing.assert_close(model.token_losses(ids, targets), nats, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(ids, targets), nats.mean(), rtol=1e-9, atol=1e-9)


def test_a_looped_model_equals_its_unrolled_twin() -> None:
    """Looping blocks is running copies of them: same logits, and the gradients of the copies add up."""
    looped = random_model(LOOPED)
    unrolled_config = ModelConfig(
        vocab_size=37,
        num_layers=len(LOOPED.virtual_layers),
        model_dim=24,
        num_heads=6,
        num_kv_heads=2,
        mlp_mult=1.5,
        rope_base=100.0,
    )
    unrolled = GPT(unrolled_config)
    unrolled.embed.load_state_dict(looped.embed.state_dict())
    unrolled.skip_weights.data.copy_(looped.skip_weights)
    for copy, layer in enumerate(LOOPED.virtual_layers):
        unrolled.blocks[copy].load_state_dict(looped.blocks[layer].state_dict())
    ids, targets = random_ids(LOOPED, 3, 11), random_ids(LOOPED, 3, 11, seed=4)
    assert torch.equal(looped.logits(ids), unrolled.logits(ids))
    looped(ids, targets).backward()
    unrolled(ids, targets).backward()
    for layer in range(LOOPED.num_layers):
        copies = [copy for copy, of in enumerate(LOOPED.virtual_layers) if of == layer]
        total = sum(unrolled.get_parameter(f"blocks.{copy}.attn.q").grad for copy in copies)
        torch.testing.assert_close(looped.get_parameter(f"blocks.{layer}.attn.q").grad, total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_later_token_leaves_earlier_logits_alone(autocast: bool) -> None:
    """To the last bit: a score may not depend on what comes after."""
    model = random_model(LOOPED)
    ids = random_ids(LOOPED, 2, 40)
    changed = ids.clone()
    changed[:, 25] = (changed[:, 25] + 1) % LOOPED.vocab_size
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before, after = model.logits(ids), model.logits(changed)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


def test_bfloat16_autocast_stays_near_float32() -> None:
    """Half-precision activations move losses by far less than they differ; losses and gradients stay float32."""
    model = random_model(LOOPED)
    ids, targets = random_ids(LOOPED, 2, 33), random_ids(LOOPED, 2, 33, seed=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.token_losses(ids, targets)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    exact = model.token_losses(ids, targets)
    assert (losses - exact).square().mean().sqrt() < 0.05 * exact.std()


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    """Same seed, same bits, whatever the global generator did; another seed, other bits; the global one is not used."""
    torch.manual_seed(5)
    untouched = torch.get_rng_state()
    first = build_model(LOOPED, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), untouched)
    second, third = build_model(LOOPED, seed=7).state_dict(), build_model(LOOPED, seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.q"], third["blocks.0.attn.q"])


def test_initial_weights_are_the_baselines() -> None:
    """Each parameter's distribution; and the fresh model knows nothing: its loss is ln(vocab_size)."""
    config = ModelConfig(num_layers=3, model_dim=128)
    model = build_model(config, seed=0)
    state = model.state_dict()
    assert state["embed.weight"].std().item() == pytest.approx(config.embed_init_std, rel=0.02)
    for name in ("attn.q", "attn.k", "attn.v", "mlp.up"):
        weight = state[f"blocks.2.{name}"]
        bound = 1 / math.sqrt(128)
        assert weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not state["blocks.1.attn.out"].any()
    assert not state["blocks.1.mlp.down"].any()
    assert torch.equal(state["blocks.0.attn.q_gain"], torch.full((8,), 1.5))
    assert torch.equal(state["blocks.0.resid_mix"], torch.stack((torch.ones(128), torch.zeros(128))))
    for name in ("blocks.0.attn_scale", "blocks.0.mlp_scale", "skip_weights"):
        assert torch.equal(state[name], torch.ones_like(state[name]))
    loss = model(random_ids(config, 2, 64), random_ids(config, 2, 64, seed=4)).item()
    assert loss == pytest.approx(math.log(1024), abs=0.02)


def test_logits_never_pass_the_softcap() -> None:
    """However large the weights."""
    model = random_model(ODD_DEPTH)
    model.embed.weight.data *= 1e4
    assert model.logits(random_ids(ODD_DEPTH, 1, 8)).abs().max().item() <= ODD_DEPTH.logit_softcap


def test_every_parameter_learns() -> None:
    """A random model has a gradient everywhere; torch's own gradient check agrees on a small one."""
    model = random_model(ONE_BLOCK, dtype=torch.float64)
    ids, targets = random_ids(ONE_BLOCK, 1, 4), random_ids(ONE_BLOCK, 1, 4, seed=4)
    names = [name for name, parameter in model.named_parameters() if parameter.numel()]

    def loss(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (ids, targets))

    weights = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)
    model(ids, targets).backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in names)


def test_losses_are_cross_entropies_of_the_logits() -> None:
    """`token_losses` and `logits` describe the same distribution."""
    model = random_model(LOOPED)
    ids, targets = random_ids(LOOPED, 2, 5), random_ids(LOOPED, 2, 5, seed=4)
    expected = F.cross_entropy(model.logits(ids).transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(model.token_losses(ids, targets), expected)
