"""The named spaces: groups of knobs around the 2026-03-17 baseline, at the challenge's scale and at a CPU's.

Ranges, log or linear scales and couplings come from 44 ten-minute records of
https://github.com/openai/parameter-golf; the `doc` of each knob gives the reason. The data decide the vocabulary and
the rung decides batch, budget and seed, so none of these is a knob.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pgolf_model.config import Budget, EvalConfig, RunConfig, TrainConfig
from space.knobs.groups import KnobGroup, Scale, Values, with_fields
from space.knobs.parts import (
    attention_output_knobs,
    embedding_knobs,
    mlp_knobs,
    neighbour_knobs,
    position_knobs,
    residual_knobs,
    value_knobs,
)
from space.knobs.quant import QUANTIZATION, SOLVED, bit_knobs
from space.knobs.recipe import (
    data_knobs,
    decay_knobs,
    ending_knobs,
    muon_knobs,
    rate_knobs,
    schedule_knobs,
    sequence_knobs,
)
from space.knobs.size import head_knobs, late_loop_knobs, loop_knobs, shape_knobs
from space.params import Scalar, Space, WarmStart, look_up
from space.transfer import at_own_width


def challenge_scale() -> Scale:
    """Return the scale of the challenge: 16 MB and 600 s on 8xH100."""
    return Scale(
        head_dim=64,
        mlp_granule=64,
        num_layers=(8, 14),
        model_dim=(384, 768),
        dim_step=64,
        mlp_mult=(2.0, 5.0),
        max_loop_layers=4,
        matrix_bits=(3, 8),
        matrix_lr=(0.01, 0.06),
        embed_lr=(0.01, 0.1),
        scalar_lr=(0.005, 0.05),
        momentum_gap=(0.005, 0.1),
        ema_gap=(0.001, 0.01),
        seq_lens=(1024, 2048, 4096),
        bigram_buckets=(0, 1024, 2048, 4096, 8192, 16384),
        table_dims=(64, 128),
        calibration_tokens=131_072,
        quantizer="trellis8",
        num_layers_baseline=9,
        model_dim_baseline=512,
        fixed=RunConfig(),
    )


def tiny_scale() -> Scale:
    """Return a scale for 2 CPU cores: 100 to 600 steps of 4,096 to 8,192 tokens."""
    return Scale(
        head_dim=32,
        mlp_granule=32,
        num_layers=(2, 6),
        model_dim=(64, 192),
        dim_step=32,
        mlp_mult=(2.0, 4.0),
        max_loop_layers=2,
        matrix_bits=(4, 8),  # short runs at 3 bits lost more than the bytes were worth
        matrix_lr=(0.01, 0.1),  # hundreds of steps want faster rates than thousands
        embed_lr=(0.01, 0.2),
        scalar_lr=(0.005, 0.1),
        momentum_gap=(0.02, 0.2),  # a 0.995 momentum would average over most of the run
        ema_gap=(0.01, 0.1),
        seq_lens=(256,),
        bigram_buckets=(0, 512, 1024, 2048),
        table_dims=(32, 64),
        calibration_tokens=8_192,
        quantizer="trellis4",
        num_layers_baseline=4,
        model_dim_baseline=128,
        fixed=RunConfig(
            train=TrainConfig(
                batch_tokens=4096,
                seq_len=256,
                micro_batch_tokens=2048,  # 9 % faster than 4,096 on one core: the logits stay in the cache
                loader="shuffled",  # a batch of 16 neighbouring windows is one document
                precision="float32",  # 1.3 to 1.5 times as fast as bfloat16 on a CPU without AMX
                compile=False,
            ),
            eval=EvalConfig(seq_len=256, batch_tokens=8192),
            budget=Budget(steps=300),
        ),
    )


def core_groups(scale: Scale) -> tuple[KnobGroup, ...]:
    """Return the groups that every record tuned: sizes, loops, rates, schedule, bits."""
    return (
        shape_knobs(scale),
        loop_knobs(scale),
        head_knobs(),
        sequence_knobs(scale),
        rate_knobs(scale),
        decay_knobs(),
        schedule_knobs(scale),
        bit_knobs(scale),
    )


def all_groups(scale: Scale) -> tuple[KnobGroup, ...]:
    """Return the groups of every element and technique that records used."""
    return (
        shape_knobs(scale),
        loop_knobs(scale),
        late_loop_knobs(),
        head_knobs(),
        position_knobs(scale),
        attention_output_knobs(),
        value_knobs(scale),
        residual_knobs(),
        mlp_knobs(),
        neighbour_knobs(scale),
        embedding_knobs(),
        sequence_knobs(scale),
        data_knobs(scale),
        rate_knobs(scale),
        decay_knobs(),
        schedule_knobs(scale),
        muon_knobs(),
        ending_knobs(),
        bit_knobs(scale),
    )


def make_space(
    name: str, scale: Scale, groups: tuple[KnobGroup, ...], warm_starts: Mapping[str, Mapping[str, Scalar]]
) -> Space:
    """Return the space that asks these groups in order.

    Args:
        warm_starts: label -> values that differ from the control's; knobs that the space does not have are left out.
    """
    control = {name: value for group in groups for name, value in group.baseline.items()}
    params = tuple(param for group in groups for param in group.params)
    known = {param.name for param in params}

    def make_config(values: Values, vocab_size: int) -> RunConfig:
        fields = {name: value for group in groups for name, value in group.fields(values).items()}
        config = with_fields(scale.fixed, {**fields, "model.vocab_size": vocab_size})
        return at_own_width(config, base_dim=scale.model_dim_baseline) if scale.rates_at_baseline_width else config

    def start(label: str, changes: Mapping[str, Scalar]) -> WarmStart:
        values = {key: value for key, value in {**control, **changes}.items() if key in known}
        asked: dict[str, Scalar] = {}
        for param in params:  # a change may switch off a knob that the control has
            if param.name in values and param.active(asked):
                asked[param.name] = values[param.name]
        return WarmStart(label=label, values=asked)

    return Space(
        name=name,
        params=params,
        make_config=make_config,
        control=control,
        warm_starts=tuple(start(label, changes) for label, changes in warm_starts.items()),
    )


# The values on which the records of late March, of April, and the best record of all agree.
MARCH: Mapping[str, Scalar] = {
    QUANTIZATION: SOLVED,
    "num_layers": 11,
    "mlp_mult": 3.0,
    "seq_len": 2048,
    "matrix_lr": 0.025,
    "embed_lr": 0.035,
    "scalar_lr": 0.025,
    "momentum_gap": 0.01,
    "decay": True,
    "weight_decay": 0.04,
    "warmdown_fraction": 0.5,
    "grad_clip": 0.3,
    "ema": True,
    "ema_gap": 0.003,
    "rope_share": 0.25,
    "ln_scale": True,
    "activation": "leaky_relu2",
    "xsa_share": 0.35,
    "smear": "channel",
    "bigram_buckets": 2048,
    "bigram_dim": 128,
    "matrix_init": "orthogonal",
    "momentum_warmup": 0.2,
    "min_lr": 0.0,
    "decay_final": 1.0,
}
APRIL: Mapping[str, Scalar] = {
    **MARCH,
    "mlp_mult": 4.0,
    "loop_repeats": 2,
    "loop_layers": 3,
    "loop_position": 0.375,
    "loop_at": 0.35,
    "iteration_embeddings": False,
    "qk_gain_init": 5.0,
    "matrix_lr": 0.022,
    "embed_lr": 0.03,
    "scalar_lr": 0.02,
    "momentum_gap": 0.03,
    "weight_decay": 0.09,
    "warmdown_fraction": 0.72,
    "ema_gap": 0.0035,
    "xsa_share": 1.0,
    "smear": "none",
    "bigram_buckets": 0,
    "skips": "gated",
    "parallel": "single",
    "parallel_share": 0.36,
    "loader": "shuffled",
    "muon_normalize_rows": True,
    "momentum_warmup": 0.3,
}
FRONTIER: Mapping[str, Scalar] = {
    **APRIL,
    "attn_gate": "sparse",
    "gate_inputs": 12,
    "gate_scale": 0.5,
    "parallel": "routed",
    "parallel_share": 0.27,
    "smear": "gated",
    "loader": "packed",
    "document_attention": True,
    "muon_polynomial": "polar_express",
    "matrix_lr": 0.026,
    "beta2_gap": 0.01,
    "min_lr": 0.1,
    "warmdown_fraction": 0.85,
    "weight_decay": 0.095,
}
LONG_WARMDOWN: Mapping[str, Scalar] = {QUANTIZATION: SOLVED, "warmdown_fraction": 0.6, "grad_clip": 1.0}
SMALL_LOOP: Mapping[str, Scalar] = {
    **LONG_WARMDOWN,
    "loop_repeats": 1,
    "loop_layers": 2,
    "loop_position": 0.5,
    "loop_at": 0.35,
    "iteration_embeddings": False,
    "qk_gain_init": 4.0,
}


def recurrent() -> Space:
    """The challenge with the knobs that every record tuned: sizes, loops, rates, bits."""
    scale = challenge_scale()
    return make_space("recurrent", scale, core_groups(scale), {"march": MARCH, "april": APRIL})


def everything() -> Space:
    """The challenge with every element and technique of the records, also in combinations that no record tried."""
    scale = challenge_scale()
    return make_space("everything", scale, all_groups(scale), {"march": MARCH, "april": APRIL, "frontier": FRONTIER})


def tiny() -> Space:
    """`recurrent` for 2 CPU cores."""
    scale = tiny_scale()
    return make_space("tiny", scale, core_groups(scale), {"long_warmdown": LONG_WARMDOWN, "loop": SMALL_LOOP})


def tiny_everything() -> Space:
    """`everything` for 2 CPU cores."""
    scale = tiny_scale()
    return make_space("tiny_everything", scale, all_groups(scale), {"long_warmdown": LONG_WARMDOWN, "loop": SMALL_LOOP})


SPACES: dict[str, Callable[[], Space]] = {
    "recurrent": recurrent,
    "everything": everything,
    "tiny": tiny,
    "tiny_everything": tiny_everything,
}


def named_space(name: str) -> Space:
    """The space called `name`.

    Raises:
        UserError: there is none; suggests the nearest name.
    """
    return look_up("space", name, SPACES)()
