"""Knobs of the architecture: sizes, loops, attention, residual stream, embeddings."""

from __future__ import annotations

from space.knobs.groups import Fields, KnobGroup, Scale, Values, nearest_divisor, number, whole
from space.params import ChoiceParam, FloatParam, IntParam, Scalar, When


def shape_knobs(scale: Scale) -> KnobGroup:
    """Depth, width, heads and MLP: with the bits they decide the bytes."""
    params = (
        IntParam(
            name="num_layers",
            low=scale.num_layers[0],
            high=scale.num_layers[1],
            tag="throughput_dependent",
            doc="physical blocks; records used 9 to 11, and never revisited 11 once loops came",
        ),
        IntParam(
            name="model_dim",
            low=scale.model_dim[0],
            high=scale.model_dim[1],
            step=scale.dim_step,
            tag="throughput_dependent",
            doc="residual channels; whole heads, so every value divides; the best width moves with compute",
        ),
        ChoiceParam(
            name="kv_ratio",
            options=(1, 2, 4),
            tag="scale_free",
            doc="query heads per key/value head, moved to the nearest divisor of the heads; 2 in every record",
        ),
        FloatParam(
            name="mlp_mult",
            low=scale.mlp_mult[0],
            high=scale.mlp_mult[1],
            tag="throughput_dependent",
            doc=f"MLP hidden channels / model_dim, rounded to {scale.mlp_granule} channels; 2 to 3 gave -.017 bpb, "
            "3 to 4 -.008 (ternary study)",
        ),
    )

    def fields(values: Values) -> Fields:
        model_dim = whole(values, "model_dim")
        num_heads = model_dim // scale.head_dim
        mlp_dim = scale.mlp_granule * round(number(values, "mlp_mult") * model_dim / scale.mlp_granule)
        return {
            "model.num_layers": whole(values, "num_layers"),
            "model.model_dim": model_dim,
            "model.num_heads": num_heads,
            "model.num_kv_heads": nearest_divisor(num_heads, num_heads / whole(values, "kv_ratio")),
            "model.mlp_mult": mlp_dim / model_dim,
        }

    baseline: dict[str, Scalar] = {
        "num_layers": scale.num_layers_baseline,
        "model_dim": scale.model_dim_baseline,
        "kv_ratio": 2,
        "mlp_mult": 2.0,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def loop_knobs(scale: Scale) -> KnobGroup:
    """Depth recurrence: which blocks run again, and how often."""
    on_loop = When(parent="loop_repeats", values=(1, 2, 3))
    params = (
        IntParam(
            name="loop_repeats",
            low=0,
            high=3,
            tag="throughput_dependent",
            doc="extra passes over the looped blocks; 1 or 2 gave -.003 bpb in every record since 2026-04-03",
        ),
        IntParam(
            name="loop_layers",
            low=1,
            high=scale.max_loop_layers,
            tag="throughput_dependent",
            when=on_loop,
            doc="blocks in the looped range; 2 or 3 in records, looping the whole stack was +.05 bpb",
        ),
        FloatParam(
            name="loop_position",
            low=0.0,
            high=1.0,
            tag="scale_free",
            when=on_loop,
            doc="where the range lies: 0 first blocks, 1 last ones; records loop the middle (.375)",
        ),
    )

    def fields(values: Values) -> Fields:
        start, end = looped_range(values)
        repeats = whole(values, "loop_repeats")
        return {"model.loop_start": start, "model.loop_end": end, "model.loop_repeats": repeats}

    return KnobGroup(params=params, baseline={"loop_repeats": 0}, fields=fields)


def looped_range(values: Values) -> tuple[int, int]:
    """First looped block and one past the last; (0, 0) without loops."""
    if not values["loop_repeats"]:
        return 0, 0
    layers = whole(values, "loop_layers")
    start = round(number(values, "loop_position") * (whole(values, "num_layers") - layers))
    return start, start + layers


def late_loop_knobs() -> KnobGroup:
    """When loops begin, and whether the passes can be told apart."""
    on_loop = When(parent="loop_repeats", values=(1, 2, 3))
    params = (
        FloatParam(
            name="loop_at",
            low=0.0,
            high=0.6,
            tag="throughput_dependent",
            when=on_loop,
            doc="fraction of the run at which loops switch on; .35 to .5 in records, from the start it costs steps",
        ),
        ChoiceParam(
            name="iteration_embeddings",
            options=(False, True),
            tag="scale_free",
            when=on_loop,
            doc="a learned vector per pass, as in the Universal Transformer; in no record",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "train.loop_at": float(values.get("loop_at", 0.0)),
            "model.iteration_embeddings": bool(values.get("iteration_embeddings", False)),
        }

    return KnobGroup(params=params, baseline={}, fields=fields)


def head_knobs() -> KnobGroup:
    """Sharpness of attention and of the output."""
    params = (
        FloatParam(
            name="qk_gain_init",
            low=1.0,
            high=8.0,
            log=True,
            tag="scale_free",
            doc="initial gain on normalised queries; 1.5 at first, 4 to 5.25 in the best records",
        ),
        FloatParam(
            name="logit_softcap",
            low=8.0,
            high=60.0,
            log=True,
            tag="scale_free",
            doc="30 in all but the ternary record, which used 10",
        ),
    )

    def fields(values: Values) -> Fields:
        return {
            "model.qk_gain_init": number(values, "qk_gain_init"),
            "model.logit_softcap": number(values, "logit_softcap"),
        }

    return KnobGroup(params=params, baseline={"qk_gain_init": 1.5, "logit_softcap": 30.0}, fields=fields)


def attention_knobs(scale: Scale) -> KnobGroup:
    """Rotary positions, exclusive self-attention, output gates, values from elsewhere."""
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
        num_layers = whole(values, "num_layers")
        share, table = number(values, "rope_share"), whole(values, "value_embed_dim")
        return {
            "model.rope_dims": 0 if share == 1.0 else max(2, 2 * round(share * scale.head_dim / 2)),
            "model.rope_base": number(values, "rope_base"),
            "model.xsa_layers": round(number(values, "xsa_share") * num_layers),
            "model.attn_gate": values["attn_gate"],
            "model.gate_inputs": int(values.get("gate_inputs", 12)),
            "model.gate_scale": float(values.get("gate_scale", 1.0)),
            "model.value_embed_dim": table,
            "model.value_embed_layers": (num_layers - 2, num_layers - 1) if table else (),
            "model.value_residual": bool(values.get("value_residual", False)),
        }

    baseline: dict[str, Scalar] = {
        "rope_share": 1.0,
        "rope_base": 10_000.0,
        "xsa_share": 0.0,
        "attn_gate": "none",
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
        num_layers, experts = whole(values, "num_layers"), int(values.get("num_experts", 0))
        parallel_start = 0
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
            "model.activation": values["activation"],
            "model.num_experts": experts,
            "model.experts_per_token": experts // 2,
        }

    baseline: dict[str, Scalar] = {
        "ln_scale": False,
        "resid_mix": True,
        "skips": "plain",
        "parallel": "none",
        "activation": "relu2",
        "num_experts": 0,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def embedding_knobs(scale: Scale) -> KnobGroup:
    """What a token's vector is made of."""
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
            "model.smear": values["smear"],
            "model.bigram_buckets": whole(values, "bigram_buckets"),
            "model.bigram_dim": int(values.get("bigram_dim", scale.table_dims[-1])),
            "model.embed_rank": 0 if share >= 0.95 else max(8, 8 * round(share * model_dim / 8)),
            "model.tied": values["tied"],
            "model.embed_init_std": number(values, "embed_init_std"),
            "model.embed_init": values["embed_init"],
            "model.matrix_init": values["matrix_init"],
        }

    baseline: dict[str, Scalar] = {
        "smear": "none",
        "bigram_buckets": 0,
        "embed_rank_share": 1.0,
        "tied": True,
        "embed_init_std": 0.005,
        "embed_init": "normal",
        "matrix_init": "uniform",
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)
