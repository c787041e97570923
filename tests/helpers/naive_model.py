"""The architecture's formulas once more, slowly: one sequence, one head and one position at a time, and its configs."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from pgolf_model.config import ModelConfig
from pgolf_model.model.gpt import GPT, build_model

State = dict[str, Tensor]


@st.composite
def small_configs(draw: st.DrawFn, *, max_layers: int = 5) -> ModelConfig:
    """Any valid combination of elements, at a size that takes milliseconds."""
    num_kv_heads = draw(st.sampled_from((1, 2)))
    num_heads = num_kv_heads * draw(st.sampled_from((1, 2)))
    head_dim = draw(st.sampled_from((4, 6)))
    num_layers = draw(st.integers(1, max_layers))
    loop_start = draw(st.integers(0, num_layers))
    loop_end = draw(st.integers(loop_start, num_layers))
    repeats = draw(st.integers(1, 2)) if loop_end > loop_start else 0
    parallel = draw(st.sampled_from(("none", "none", "single", "lanes", "routed")))
    starts = [i for i in range(num_layers) if parallel == "single" or not loop_start < i < loop_end]
    vocab_size = draw(st.sampled_from((11, 37)))
    value_layers = draw(st.sets(st.integers(0, num_layers - 1)))
    num_experts = draw(st.sampled_from((0, 0, 2, 4)))
    flag = st.booleans()
    out_norm = draw(flag)
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        model_dim=num_heads * head_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_mult=2.0 if num_experts else draw(st.sampled_from((1.0, 2.0))),
        loop_start=loop_start,
        loop_end=loop_end,
        loop_repeats=repeats,
        rope_base=100.0,
        rope_dims=draw(st.sampled_from((0, 2, 4))),
        ln_scale=draw(flag),
        activation=draw(st.sampled_from(("relu2", "leaky_relu2", "swiglu"))),
        resid_mix=draw(flag),
        skips=draw(st.sampled_from(("plain", "gated", "none"))),
        xsa_layers=0 if out_norm else draw(st.integers(0, num_layers)),
        out_norm=out_norm,
        value_embed_dim=3 if value_layers else 0,
        value_embed_layers=tuple(value_layers),
        value_residual=draw(flag),
        smear=draw(st.sampled_from(("none", "channel", "gated"))),
        bigram_buckets=draw(st.sampled_from((0, 2, 13))),
        bigram_dim=5,
        embed_rank=draw(st.sampled_from((0, 3))),
        embed_buckets=draw(st.sampled_from((0, 13))) if vocab_size == 37 else draw(st.sampled_from((0, 7))),
        tied=draw(flag),
        vocab_bias=draw(flag),
        embed_init=draw(st.sampled_from(("normal", "overtone"))),
        matrix_init=draw(st.sampled_from(("uniform", "orthogonal"))),
        attn_gate=draw(st.sampled_from(("none", "dense", "sparse"))),
        gate_inputs=draw(st.integers(1, num_heads * head_dim)),
        gate_scale=draw(st.sampled_from((0.5, 1.0))),
        parallel=parallel,
        parallel_start=draw(st.sampled_from(starts or [0])),
        iteration_embeddings=draw(flag) and repeats > 0,
        num_experts=num_experts,
        experts_per_token=draw(st.integers(1, num_experts)) if num_experts else 0,
        document_attention=draw(flag),
        bos_id=draw(st.sampled_from((1, 5))),
    )


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


def naive_rotate(vector: Tensor, position: int, config: ModelConfig) -> Tensor:
    """Complex rotation of the pairs (i, i + half) of one head's first channels at one position."""
    size = config.rope_dims or config.head_dim
    half = size // 2
    angles = torch.tensor([position * config.rope_base ** (-2 * i / size) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(vector[:half], vector[half:size]) * torch.polar(torch.ones_like(angles), -angles)
    return torch.cat((turned.real, turned.imag, vector[size:]))


def naive_past(ids: Tensor, t: int, config: ModelConfig) -> list[int]:
    """Positions that position t attends to."""
    begins = [s for s in range(t + 1) if ids[s] == config.bos_id]
    return list(range(begins[-1] if config.document_attention and begins else 0, t + 1))


def naive_attention(w: State, x: Tensor, ids: Tensor, values: Tensor, layer: int, config: ModelConfig) -> Tensor:
    """One sequence (T, D), one head and one query at a time; `values` are (T, C)."""
    size, group = config.head_dim, config.num_heads // config.num_kv_heads
    heads = []
    for h in range(config.num_heads):
        g = h // group
        queries = naive_norm(x @ w["q"][h * size : (h + 1) * size].T)
        keys = naive_norm(x @ w["k"][g * size : (g + 1) * size].T)
        own = values[:, g * size : (g + 1) * size]
        rows = []
        for t in range(len(x)):
            query = naive_rotate(queries[t], t, config) * w["q_gain"][h]
            past = naive_past(ids, t, config)
            scores = [query @ naive_rotate(keys[s], s, config) / math.sqrt(size) for s in past]
            y = torch.softmax(torch.stack(scores), 0) @ own[past]
            if layer >= config.num_layers - config.xsa_layers:
                y = y - (y @ own[t]) / (own[t] @ own[t]) * own[t]
            if config.attn_gate != "none":
                read = x[t] if config.attn_gate == "dense" else x[t, : config.gate_inputs]
                y = y / (1 + torch.exp(-config.gate_scale * (w["gate"][h] @ read)))
            rows.append(y)
        heads.append(torch.stack(rows))
    y = torch.cat(heads, 1)
    return (naive_norm(y) if config.out_norm else y) @ w["out"].T


def naive_mlp(w: State, x: Tensor, config: ModelConfig) -> Tensor:
    hidden = x @ w["up"].T
    if config.activation == "swiglu":
        gate = x @ w["gate"].T
        hidden = hidden * gate / (1 + torch.exp(-gate))
    else:
        hidden = torch.where(hidden > 0, hidden, (0.5 if config.activation == "leaky_relu2" else 0.0) * hidden) ** 2
    if "router" in w:
        width = config.mlp_dim // config.num_experts
        for t in range(len(x)):
            scores = [1 / (1 + math.exp(-float(w["router"][e] @ x[t]))) for e in range(config.num_experts)]
            best = sorted(range(config.num_experts), key=lambda e: -scores[e])[: config.experts_per_token]
            for e in range(config.num_experts):
                hidden[t, e * width : (e + 1) * width] *= scores[e] if e in best else 0.0
    return (naive_norm(hidden) if config.out_norm else hidden) @ w["down"].T


def naive_token_rows(state: State, config: ModelConfig) -> Tensor:
    """The token table (V, W), row by row."""
    weight, rows = state["embed.weight"], config.embed_buckets
    if not rows:
        return weight
    quotients = next(q for q in range(1, rows) if q * (rows - q) >= config.vocab_size)
    remainders = rows - quotients
    return torch.stack(
        [weight[t % remainders] + weight[remainders + t // remainders] for t in range(config.vocab_size)]
    )


def naive_embedding(state: State, ids: Tensor, config: ModelConfig) -> Tensor:
    x = naive_token_rows(state, config)[ids]
    if config.embed_rank:
        x = x @ state["embed.proj"].T
    tokens = ids.tolist()
    is_first = [t == 0 or token == config.bos_id for t, token in enumerate(tokens)]
    if config.bigram_buckets:
        last = config.bigram_buckets - 1
        hashed = [0, *(2654435761 * a ^ 2246822519 * b for a, b in pairwise(tokens))]
        rows = [last if first else h % last for first, h in zip(is_first, hashed, strict=True)]
        x = x + state["bigram.scale"] * (state["bigram.weight"][rows] @ state["bigram.proj"].T)
    if config.smear == "gated":
        gate = torch.sigmoid(x[:, : config.gate_inputs] @ state["smear.gate"][0])
        x = torch.stack(
            [x[t] if is_first[t] else x[t] + state["smear.scale"] * gate[t] * x[t - 1] for t in range(len(x))]
        )
    x = naive_norm(x)
    if config.smear == "channel":
        gate = torch.sigmoid(state["smear.gate"])
        x = torch.stack([(1 - gate) * x[t] + (0 if is_first[t] else gate * x[t - 1]) for t in range(len(x))])
    return x


def naive_logits(state: State, ids: Tensor, config: ModelConfig, *, looping: bool = True) -> Tensor:
    """The formulas of the records over one sequence of ids, (T, V)."""
    x0 = x = naive_embedding(state, ids, config)
    lane: Tensor | None = None
    first_values: Tensor | None = None
    repeats = config.loop_repeats if looping else 0
    order = [*range(config.loop_end)]
    order += [*range(config.loop_start, config.loop_end)] * repeats
    order += [*range(config.loop_end, config.num_layers)]
    half, saved = len(order) // 2, []
    for depth, layer in enumerate(order):
        block = {name.split(".", 2)[2]: w for name, w in state.items() if name.startswith(f"blocks.{layer}.")}
        attn = {name.removeprefix("attn."): w for name, w in block.items() if name.startswith("attn.")}
        mlp = {name.removeprefix("mlp."): w for name, w in block.items() if name.startswith("mlp.")}
        scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        if depth >= half and saved and config.skips != "none":
            skip = state["skip_weights"][depth - half] * saved.pop()
            if config.skips == "gated":
                gate = torch.sigmoid(state["skip_gates"][depth - half])
                x = gate * x + (1 - gate) * skip
            else:
                x = x + skip
        if config.iteration_embeddings and config.loop_start <= layer < config.loop_end:
            x = x + state["iteration_embeddings"][depth - config.loop_start]
            lane = None if lane is None else lane + state["iteration_embeddings"][depth - config.loop_start]
        mixed = block["resid_mix"][0] * x + block["resid_mix"][1] * x0 if config.resid_mix else x
        read = scale * naive_norm(mixed)
        values = read @ attn["v"].T
        if layer in config.value_embed_layers:
            table = state["value_embed.weight"][ids] @ state["value_embed.proj"].T
            values = values + attn["value_embed_scale"] * state["value_embed.scale"] * table
        if config.value_residual:
            first_values = values if first_values is None else first_values
            values = attn["value_mix"][0] * first_values + attn["value_mix"][1] * values
        a = block["attn_scale"] * naive_attention(attn, read, ids, values, layer, config)
        is_parallel = config.parallel != "none" and layer >= config.parallel_start
        if not is_parallel:
            x = mixed + a
            x = x + block["mlp_scale"] * naive_mlp(mlp, scale * naive_norm(x), config)
        elif config.parallel == "single":
            x = mixed + a + block["mlp_scale"] * naive_mlp(mlp, read, config)
        else:
            lane = x if lane is None else lane
            m = block["mlp_scale"] * naive_mlp(mlp, scale * naive_norm(lane), config)
            if config.parallel == "lanes":
                x, lane = mixed + a, lane + m
            else:
                keep, write = state["lane_keep"][layer], state["lane_write"][layer]
                x, lane = (keep[i] * s + write[0, i] * a + write[1, i] * m for i, s in enumerate((x, lane)))
        if depth < half:
            saved.append(x)
    if lane is not None:
        share = state["lane_mix"] if config.parallel == "lanes" else 0.5
        x = share * x + (1 - share) * lane
    x = naive_norm(x)
    if config.embed_rank:
        x = x @ state["head.proj"].T
    scores = x @ (naive_token_rows(state, config) if config.tied else state["head.weight"]).T
    if config.vocab_bias:
        scores = scores + state["head.bias"]
    return config.logit_softcap * torch.tanh(scores / config.logit_softcap)
