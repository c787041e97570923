"""The transformer against naive code, its laws, and its initial weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_model import naive_logits, random_ids, random_model, small_configs
from torch import Tensor

from pgolf_model.config import ModelConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.shapes import param_shapes
from pgolf_model.train.optim import build_optimizers

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
FRONTIER = replace(
    LOOPED,
    num_layers=5,
    rope_dims=2,
    ln_scale=True,
    activation="leaky_relu2",
    skips="gated",
    xsa_layers=5,
    smear="gated",
    attn_gate="sparse",
    gate_inputs=4,
    parallel="routed",
    parallel_start=3,
    document_attention=True,
)  # the elements of the best record
EVERYTHING_ELSE = replace(
    FRONTIER,
    activation="swiglu",
    value_embed_dim=6,
    value_embed_layers=(1, 4),
    value_residual=True,
    smear="channel",
    bigram_buckets=29,
    bigram_dim=8,
    embed_rank=12,
    embed_buckets=16,
    tied=False,
    vocab_bias=True,
    attn_gate="dense",
    parallel="lanes",
    iteration_embeddings=True,
    num_experts=6,
    experts_per_token=2,
)
CONFIGS = {
    "looped": LOOPED,
    "odd_depth": ODD_DEPTH,
    "one_block": ONE_BLOCK,
    "frontier": FRONTIER,
    "everything_else": EVERYTHING_ELSE,
}


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


@given(config=st.one_of(model_configs(), small_configs(max_layers=12)))
@settings(max_examples=60, deadline=None)
def test_the_state_dict_is_exactly_param_shapes(config: ModelConfig) -> None:
    """Names, shapes and order, for any valid config; and the initial weights fill all of it."""
    with torch.device("meta"):
        state = GPT(config).state_dict()
    expected = {name: info.shape for name, info in param_shapes(config).items()}
    assert list({name: tuple(weight.shape) for name, weight in state.items()}.items()) == list(expected.items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_model_equals_its_formulas(config: ModelConfig) -> None:
    """Logits and losses against a naive float64 transcription of the formulas."""
    model = random_model(config, dtype=torch.float64)
    ids, targets = random_ids(config, 2, 7), random_ids(config, 2, 7, seed=4)
    ids[1, 3] = config.bos_id
    state = model.state_dict()
    expected = torch.stack([naive_logits(state, sequence, config) for sequence in ids])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids), expected, rtol=1e-8, atol=1e-8)
        nats = torch.logsumexp(expected, -1) - expected.gather(-1, targets[..., None])[..., 0]
        torch.testing.assert_close(model.token_losses(ids, targets), nats, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(model(ids, targets), nats.mean(), rtol=1e-8, atol=1e-8)


@given(config=small_configs(), looping=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_combination_of_elements_equals_its_formulas(config: ModelConfig, looping: bool) -> None:
    """The elements do not disturb each other."""
    model = random_model(config, dtype=torch.float64)
    model.set_looping(looping)
    ids = random_ids(config, 1, 7)
    with torch.no_grad():
        expected = naive_logits(model.state_dict(), ids[0], config, looping=looping)
        torch.testing.assert_close(model.logits(ids)[0], expected, rtol=1e-7, atol=1e-7)


@given(config=small_configs())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_combination_of_elements_trains(config: ModelConfig) -> None:
    """From its own initial weights: a finite loss, and a finite gradient for every parameter."""
    model = build_model(config, seed=0)
    loss = model(random_ids(config, 2, 8), random_ids(config, 2, 8, seed=4))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_a_looped_model_equals_its_unrolled_twin() -> None:
    """Looping blocks is running copies of them: same logits, and the gradients of the copies add up."""
    looped = random_model(LOOPED)
    unrolled_config = replace(LOOPED, num_layers=len(LOOPED.virtual_layers), loop_start=0, loop_end=0, loop_repeats=0)
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


@pytest.mark.parametrize("config", [LOOPED, FRONTIER], ids=["looped", "frontier"])
def test_an_inactive_loop_is_the_model_without_loops(config: ModelConfig) -> None:
    """On the leading skip weights and gates; and switching it on changes the output and back."""
    model = random_model(config)
    plain_config = replace(config, loop_start=0, loop_end=0, loop_repeats=0)
    plain = GPT(plain_config)
    state = model.state_dict()
    for name in ("skip_weights", "skip_gates"):
        if name in state:
            state[name] = state[name][: plain_config.num_skips]
    plain.load_state_dict(state)
    ids = random_ids(config, 2, 9)
    active = model.logits(ids)
    model.set_looping(False)
    assert torch.equal(model.logits(ids), plain.logits(ids))
    assert not torch.allclose(model.logits(ids), active)
    model.set_looping(True)
    assert torch.equal(model.logits(ids), active)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_later_token_leaves_earlier_logits_alone(config: ModelConfig, autocast: bool) -> None:
    """To the last bit: a score may not depend on what comes after."""
    model = random_model(config)
    ids = random_ids(config, 2, 40)
    changed = ids.clone()
    changed[:, 25] = (changed[:, 25] + 1) % config.vocab_size
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before, after = model.logits(ids), model.logits(changed)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


@given(config=small_configs(), position=st.integers(1, 9), token=st.integers(0, 10))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_combination_of_elements_looks_ahead(config: ModelConfig, position: int, token: int) -> None:
    """Replacing a token, also by one that begins a document, changes nothing before it."""
    model = random_model(config, dtype=torch.float64)
    ids = random_ids(config, 1, 10)
    changed = ids.clone()
    changed[:, position] = token
    with torch.no_grad():
        before, after = model.logits(ids)[:, :position], model.logits(changed)[:, :position]
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


@given(config=small_configs(), lengths=st.lists(st.integers(1, 5), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_documents_in_a_row_are_scored_as_if_alone(config: ModelConfig, lengths: list[int]) -> None:
    """With document attention neither attention nor smear nor token pairs reach into the document before."""
    config = replace(config, document_attention=True)
    model = random_model(config, dtype=torch.float64)
    documents = []
    for seed, length in enumerate(lengths):
        body = random_ids(config, length, seed=seed)
        documents.append(torch.cat((torch.tensor([config.bos_id]), body[body != config.bos_id])))
    with torch.no_grad():
        packed = model.logits(torch.cat(documents)[None])[0]
        alone = torch.cat([model.logits(document[None])[0] for document in documents])
    torch.testing.assert_close(packed, alone, rtol=1e-7, atol=1e-7)


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


@pytest.mark.parametrize("config", [FRONTIER, EVERYTHING_ELSE], ids=["frontier", "everything_else"])
def test_elements_keep_the_autocast_dtype(config: ModelConfig) -> None:
    """The residual stream stays bfloat16 whatever is switched on, and so do the sums that each element adds."""
    model = random_model(config)
    dtypes: set[torch.dtype] = set()
    for block in model.blocks:
        block.attn.register_forward_hook(lambda _module, _args, out: dtypes.add(out.dtype))
        block.mlp.register_forward_hook(lambda _module, args, _out: dtypes.add(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.hidden(random_ids(config, 2, 9))
    assert dtypes == {torch.bfloat16}
    assert hidden.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("config", [FRONTIER, EVERYTHING_ELSE], ids=["frontier", "everything_else"])
def test_the_model_compiles_into_one_graph(config: ModelConfig) -> None:
    """No element makes torch.compile fall back to Python; switching the loop compiles a second graph."""
    torch.compiler.reset()
    model = random_model(config)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    ids = random_ids(config, 2, 9)
    for active in (True, False):
        model.set_looping(active)
        torch.testing.assert_close(compiled(ids, ids), model(ids, ids))


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


def test_initial_weights_of_the_elements_are_the_records() -> None:
    """Gates at a half, lanes kept at 1.1, small tables; and a fresh model with all of them still knows nothing."""
    state = build_model(EVERYTHING_ELSE, seed=0).state_dict()
    values = {
        "bigram.weight": 0.0,
        "bigram.scale": 0.05,
        "value_embed.scale": 0.1,
        "blocks.1.attn.value_embed_scale": 1.0,
        "blocks.0.attn.value_mix": 0.5,
        "blocks.0.attn.gate": 0.0,
        "smear.gate": 0.0,
        "skip_gates": 0.0,
        "skip_weights": 1.0,
        "lane_mix": 0.5,
        "iteration_embeddings": 0.0,
        "head.weight": 0.0,
        "head.bias": 0.0,
    }
    for name, value in values.items():
        assert torch.equal(state[name], torch.full_like(state[name], value)), name
    routed = build_model(FRONTIER, seed=0).state_dict()
    assert torch.equal(routed["lane_keep"], torch.full((5, 2), 1.1))
    assert torch.equal(routed["lane_write"], torch.ones(5, 2, 2))
    assert not routed["smear.scale"].any()
    assert state["value_embed.weight"].std().item() == pytest.approx(0.01, rel=0.15)
    for name in (
        "embed.proj",
        "head.proj",
        "bigram.proj",
        "value_embed.proj",
        "blocks.1.mlp.gate",
        "blocks.1.mlp.router",
    ):
        assert state[name].std().item() == pytest.approx((3 * state[name].shape[1]) ** -0.5, rel=0.25), name
    for config in (FRONTIER, EVERYTHING_ELSE):
        loss = build_model(config, seed=0)(random_ids(config, 4, 64), random_ids(config, 4, 64, seed=4)).item()
        assert loss == pytest.approx(math.log(37), abs=0.02)


def test_orthogonal_and_overtone_weights_have_the_spectrum_they_say() -> None:
    """All singular values of a matrix are 1; those of the token table fall as rank ** -0.5 from the same largest."""
    config = replace(LOOPED, matrix_init="orthogonal", embed_init="overtone")
    state, normal = build_model(config, seed=3).state_dict(), build_model(LOOPED, seed=3).state_dict()
    for name in ("blocks.0.attn.q", "blocks.1.attn.k", "blocks.2.mlp.up"):
        singular = torch.linalg.svdvals(state[name])
        torch.testing.assert_close(singular, torch.ones_like(singular), rtol=1e-5, atol=1e-5)
    singular = torch.linalg.svdvals(state["embed.weight"])
    largest = torch.linalg.svdvals(normal["embed.weight"])[0]
    torch.testing.assert_close(singular, largest / torch.arange(1, 25).sqrt(), rtol=1e-4, atol=1e-7)
    assert not state["blocks.0.attn.out"].any()


def test_logits_never_pass_the_softcap() -> None:
    """However large the weights."""
    model = random_model(ODD_DEPTH)
    model.embed.weight.data *= 1e4
    assert model.logits(random_ids(ODD_DEPTH, 1, 8)).abs().max().item() <= ODD_DEPTH.logit_softcap


@pytest.mark.parametrize("config", [ONE_BLOCK, FRONTIER, EVERYTHING_ELSE], ids=["one_block", "frontier", "others"])
def test_every_parameter_learns(config: ModelConfig) -> None:
    """A random model has a gradient everywhere; torch's own gradient check agrees."""
    model = random_model(config, dtype=torch.float64)
    ids, targets = random_ids(config, 1, 6), random_ids(config, 1, 6, seed=4)
    names = [name for name, parameter in model.named_parameters() if parameter.numel()]

    def loss(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (ids, targets))

    weights = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)
    model(ids, targets).backward()
    assert [name for name in names if not model.get_parameter(name).grad.abs().sum() > 0] == []


@pytest.mark.parametrize("config", [FRONTIER, EVERYTHING_ELSE], ids=["frontier", "everything_else"])
def test_every_element_trains_with_the_optimizers(config: ModelConfig) -> None:
    """Muon and AdamW take every parameter, and forty steps on one batch learn most of it by heart."""
    model = build_model(config, seed=0)
    optimizers = build_optimizers(model, TrainConfig(matrix_lr=0.02, embed_lr=0.02, scalar_lr=0.02), DistEnv())
    ids = random_ids(config, 4, 17)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for step in range(40):
        model.set_looping(step >= 10)
        model.zero_grad(set_to_none=True)
        loss = model(ids[:, :-1], ids[:, 1:])
        torch.autograd.backward(loss)
        optimizers.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(37), abs=0.02)
    assert losses[-1] < 0.5 * losses[0]
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)


def test_losses_are_cross_entropies_of_the_logits() -> None:
    """`token_losses` and `logits` describe the same distribution."""
    model = random_model(LOOPED)
    ids, targets = random_ids(LOOPED, 2, 5), random_ids(LOOPED, 2, 5, seed=4)
    expected = F.cross_entropy(model.logits(ids).transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(model.token_losses(ids, targets), expected)
