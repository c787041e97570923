"""Knobs of depth and width: how many blocks, how wide, which run again; the sharpness of attention and output."""

from __future__ import annotations

from space.knobs.groups import Fields, KnobGroup, Scale, Values, nearest_divisor, number, whole
from space.params import ChoiceParam, FloatParam, IntParam, Scalar, When


def shape_knobs(scale: Scale) -> KnobGroup:
    """Depth, width, heads and MLP. Together with the bitwidths they decide the bytes."""
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
    """Return the first looped block and one past the last; (0, 0) without loops."""
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
