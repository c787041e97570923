"""Knobs of a block's parts and of the embeddings."""

from __future__ import annotations

from space.knobs.groups import Fields, KnobGroup, Scale, Values, number, whole
from space.knobs.size import looped_range
from space.params import ChoiceParam, FloatParam, Scalar, When


def position_knobs(scale: Scale) -> KnobGroup:
    """Rotary positions: how much of a head is rotated, and how fast."""
    params = (
        ChoiceParam(
            name="rope_share",
            options=(1.0, 0.5, 0.25, 0.125),
            tag="scale_free",
            doc="rotated part of a head; 1/4 in every record since 2026-03-21",
        ),
        FloatParam(
            name="rope_base",
            low=2e3,
            high=1e5,
            log=True,
            tag="scale_free",
            doc="rotary base frequency; 5,000 against 10,000 was a wash, a constant 22,082 ran in late March",
        ),
    )

    def fields(values: Values) -> Fields:
        share = number(values, "rope_share")
        return {
            "model.rope_dims": 0 if share == 1.0 else max(2, 2 * round(share * scale.head_dim / 2)),
            "model.rope_base": number(values, "rope_base"),
        }

    baseline: dict[str, Scalar] = {
        "rope_share": 1.0,
        "rope_base": 10_000.0,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def attention_output_knobs() -> KnobGroup:
    """Exclusive self-attention, which removes a part of each head's output, and the gate on that output."""
    params = (
        ChoiceParam(
            name="xsa_share",
            options=(0.0, 0.35, 1.0),
            tag="scale_free",
            doc="last part of the blocks with exclusive self-attention; none, 3 or 4, all of 11: monotone better",
        ),
        ChoiceParam(
            name="attn_gate",
            options=("none", "sparse", "dense"),
            tag="scale_free",
            doc="gate on each head's output; sparse equals dense at 44 kB less",
        ),
        ChoiceParam(
            name="gate_inputs",
            options=(8, 12, 16, 24),
            tag="scale_free",
            when=When(parent="attn_gate", values=("sparse",)),
            doc="channels that a sparse gate reads; 12 in records, never swept",
        ),
        FloatParam(
            name="gate_scale",
            low=0.25,
            high=2.0,
            log=True,
            tag="scale_free",
            when=When(parent="attn_gate", values=("sparse",)),
            doc="factor inside the sigmoid of a sparse gate; .5 or 1 in records",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "model.xsa_layers": round(number(values, "xsa_share") * whole(values, "num_layers")),
            "model.attn_gate": values["attn_gate"],
            "model.gate_inputs": int(values.get("gate_inputs", 12)),
            "model.gate_scale": float(values.get("gate_scale", 1.0)),
        }

    baseline: dict[str, Scalar] = {
        "xsa_share": 0.0,
        "attn_gate": "none",
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def value_knobs(scale: Scale) -> KnobGroup:
    """Values of attention from elsewhere: a token table, the first block."""
    params = (
        ChoiceParam(
            name="value_embed_dim",
            options=(0, *scale.table_dims),
            tag="scale_free",
            doc="token table added to the values of the last two blocks; 128 up to 4,096 tokens, then dropped",
        ),
        ChoiceParam(
            name="value_residual",
            options=(False, True),
            tag="scale_free",
            when=When(parent="loop_repeats", values=(0,)),
            doc="mix in the first block's values; +.14 bpb with loops, so asked without them only",
        ),
    )

    def fields(values: Values) -> Fields:
        num_layers, table = whole(values, "num_layers"), whole(values, "value_embed_dim")
        return {
            "model.value_embed_dim": table,
            "model.value_embed_layers": (num_layers - 2, num_layers - 1) if table else (),
            "model.value_residual": bool(values.get("value_residual", False)),
        }

    baseline: dict[str, Scalar] = {
        "value_embed_dim": 0,
        "value_residual": False,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def residual_knobs() -> KnobGroup:
    """How blocks read from and write to the residual stream."""
    params = (
        ChoiceParam(
            name="ln_scale",
            options=(False, True),
            tag="scale_free",
            doc="norm outputs times 1/sqrt(layer + 1); with partial RoPE -.003 bpb",
        ),
        ChoiceParam(
            name="resid_mix",
            options=(True, False),
            tag="scale_free",
            doc="mix the embedding into every block's input; always on in records",
        ),
        ChoiceParam(
            name="skips",
            options=("plain", "gated", "none"),
            tag="scale_free",
            doc="U-Net skips; gated from 2026-03-31 on",
        ),
        ChoiceParam(
            name="parallel",
            options=("none", "single", "lanes", "routed"),
            tag="scale_free",
            doc="attention and MLP side by side in the last blocks; -.0006 to -.002 bpb",
        ),
        FloatParam(
            name="parallel_share",
            low=0.1,
            high=0.6,
            tag="scale_free",
            when=When(parent="parallel", values=("single", "lanes", "routed")),
            doc="last part of the blocks that is parallel; 3 or 4 of 11 in records",
        ),
    )

    def fields(values: Values) -> Fields:
        num_layers, parallel_start = whole(values, "num_layers"), 0
        if values["parallel"] != "none":
            parallel_start = num_layers - max(1, round(number(values, "parallel_share") * num_layers))
            start, end = looped_range(values)
            if values["parallel"] != "single" and start < parallel_start < end:
                parallel_start = start  # two streams cannot begin inside a loop
        return {
            "model.ln_scale": values["ln_scale"],
            "model.resid_mix": values["resid_mix"],
            "model.skips": values["skips"],
            "model.parallel": values["parallel"],
            "model.parallel_start": parallel_start,
        }

    baseline: dict[str, Scalar] = {
        "ln_scale": False,
        "resid_mix": True,
        "skips": "plain",
        "parallel": "none",
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def mlp_knobs() -> KnobGroup:
    """The activation of the MLP, and whether its channels are experts."""
    params = (
        ChoiceParam(
            name="activation",
            options=("relu2", "leaky_relu2", "swiglu"),
            tag="throughput_dependent",
            doc="leaky relu^2 gave -.002 to -.003 bpb; SwiGLU is better per step and slower",
        ),
        ChoiceParam(
            name="num_experts",
            options=(0, 8, 16),
            tag="throughput_dependent",
            when=When(parent="activation", values=("relu2", "leaky_relu2")),
            doc="sigmoid-routed groups of MLP channels (MoEUT), half of them per token; in no record",
        ),
    )

    def fields(values: Values) -> Fields:
        experts = int(values.get("num_experts", 0))
        return {
            "model.activation": values["activation"],
            "model.num_experts": experts,
            "model.experts_per_token": experts // 2,
        }

    baseline: dict[str, Scalar] = {
        "activation": "relu2",
        "num_experts": 0,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def neighbour_knobs(scale: Scale) -> KnobGroup:
    """The share of the token before it in a token's vector."""
    params = (
        ChoiceParam(
            name="smear",
            options=("none", "channel", "gated"),
            tag="scale_free",
            doc="blend in the token before; per channel at 1,024 tokens, gated in the best record",
        ),
        ChoiceParam(
            name="bigram_buckets",
            options=scale.bigram_buckets,
            tag="scale_free",
            doc="hashed table of token pairs; about -.001 bpb per doubling at 1,024 tokens, dropped above 4,096",
        ),
        ChoiceParam(
            name="bigram_dim",
            options=scale.table_dims,
            tag="scale_free",
            when=When(parent="bigram_buckets", values=scale.bigram_buckets[1:]),
            doc="channels of the pair table; 112 to 128 in records",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "model.smear": values["smear"],
            "model.bigram_buckets": whole(values, "bigram_buckets"),
            "model.bigram_dim": int(values.get("bigram_dim", scale.table_dims[-1])),
        }

    baseline: dict[str, Scalar] = {
        "smear": "none",
        "bigram_buckets": 0,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def embedding_knobs() -> KnobGroup:
    """The token table, its rank and its copy as output head, and how weights begin."""
    params = (
        FloatParam(
            name="embed_rank_share",
            low=0.3,
            high=1.0,
            tag="scale_free",
            doc="rank of the embedding over the width, full from .95 on; 1/3 in the ternary record, +.05 at V=1,024",
        ),
        ChoiceParam(
            name="tied",
            options=(True, False),
            tag="scale_free",
            doc="output head shared with the embedding; a head of its own gains .005 bpb and costs its bytes",
        ),
        FloatParam(
            name="embed_init_std",
            low=0.001,
            high=0.05,
            log=True,
            tag="scale_free",
            doc="of the embedding; .005 in every record, never varied",
        ),
        ChoiceParam(
            name="embed_init",
            options=("normal", "overtone"),
            tag="scale_free",
            doc="overtone: singular values fall as k^-1/2; in one record, not isolated",
        ),
        ChoiceParam(
            name="matrix_init",
            options=("uniform", "orthogonal"),
            tag="scale_free",
            doc="of query, key, value and MLP input matrices; orthogonal since 2026-03-19",
        ),
    )

    def fields(values: Values) -> Fields:
        model_dim, share = whole(values, "model_dim"), number(values, "embed_rank_share")
        return {
            "model.embed_rank": 0 if share >= 0.95 else max(8, 8 * round(share * model_dim / 8)),
            "model.tied": values["tied"],
            "model.embed_init_std": number(values, "embed_init_std"),
            "model.embed_init": values["embed_init"],
            "model.matrix_init": values["matrix_init"],
        }

    baseline: dict[str, Scalar] = {
        "embed_rank_share": 1.0,
        "tied": True,
        "embed_init_std": 0.005,
        "embed_init": "normal",
        "matrix_init": "uniform",
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)
