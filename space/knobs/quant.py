"""Knobs of quantization: a solver that fills the byte cap, or bits and clips by role and depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace

from pgolf_model.config import QuantConfig, RunConfig
from space.knobs.groups import Fields, KnobGroup, Scale, Values, number, whole
from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, When

# The clip, in row standard deviations, of each bitwidth. The step is clip / (2**(bits - 1) - 1), and after entropy
# coding only the step costs bytes. So bits and clip are one knob, and with this table every bit buys a smaller step.
# The clips of 6, 7 and 8 bits are the records'. At 4 bits the records' 12.85 would leave a step of 1.8 deviations,
# which rounds nearly all weights to zero, so below 6 bits the clip falls with the levels. For a standard normal
# weight, from exact integrals:
#
#     bits             2      3      4      5      6      7      8
#     clip             1.5    3      5      8      12.85  15     20
#     step             1.50   1.00   0.71   0.53   0.41   0.24   0.16
#     entropy, bits    1.45   2.10   2.56   2.97   3.33   4.12   4.72
#     squared error    .213   .084   .042   .024   .014   .005   .002
#
# At none of them would more levels at the same entropy have a lower error (2 bits: .236, 3 bits: .084): no clip cuts
# too much. The least error of 3 levels, .190 at 1.22, costs 1.54 bits.
CLIP_SIGMAS: dict[int, float] = {2: 1.5, 3: 3.0, 4: 5.0, 5: 8.0, 6: 12.85, 7: 15.0, 8: 20.0}


QUANTIZATION = "quantization"  # the knob that decides whether the solver or other knobs choose the bitwidths
SOLVED = "solved"
EXPLICIT = When(parent=QUANTIZATION, values=("explicit",))
# Settings of solved trials. At equal divergence from the trained model and 2.7 bits per weight, 8 states and planned
# columns needed 0.58 bits per weight less than GPTQ with uniform steps (a 6 x 256 model, one run).
SOLVER = QuantConfig(
    embed_bits=8,
    attn_bits=(8,),
    mlp_bits=(8,),
    method="gptq",
    column_plan=True,
    rate_weight=0.1,
)


def at_cap(config: RunConfig, values: Mapping[str, Scalar], cap_bytes: int) -> RunConfig:
    """Return `config` with `cap_bytes` of code and model as its target, if its knobs leave the bytes to the solver."""
    if values.get(QUANTIZATION) != SOLVED:
        return config
    return replace(config, quant=replace(config.quant, target_bytes=cap_bytes))


def bit_knobs(scale: Scale) -> KnobGroup:
    """Solver or given bits; then bits of the embedding, and of attention and MLP matrices in each half of the depth."""
    params: tuple[Param, ...] = (
        ChoiceParam(
            name=QUANTIZATION,
            options=(SOLVED, "explicit"),
            tag="scale_free",
            doc="solved: GPTQ on a trellis, steps by equal slope, fills the cap; explicit: rounding at given bits",
        ),
        IntParam(
            name="embed_bits",
            low=5,
            high=8,
            tag="scale_free",
            when=EXPLICIT,
            doc="tied embedding; 8 to 7 cost nothing in records, 6 cost +.048 bpb without GPTQ",
        ),
        *_bits_of_blocks(scale),
        FloatParam(
            name="clip_scale",
            low=0.8,
            high=1.25,
            log=True,
            tag="scale_free",
            when=EXPLICIT,
            doc="multiplies every matrix clip: the bytes between one bitwidth and the next",
        ),
    )

    def fields(values: Values) -> Fields:
        if values[QUANTIZATION] == SOLVED:
            by_scale = {"quant.calibration_tokens": scale.calibration_tokens, "quant.quantizer": scale.quantizer}
            return {f"quant.{f.name}": getattr(SOLVER, f.name) for f in dataclass_fields(SOLVER)} | by_scale
        clip, embed_bits = number(values, "clip_scale"), whole(values, "embed_bits")
        attn_bits = (whole(values, "attn_bits_early"), whole(values, "attn_bits_late"))
        mlp_bits = (whole(values, "mlp_bits_early"), whole(values, "mlp_bits_late"))
        return {
            "quant.embed_bits": embed_bits,
            "quant.attn_bits": attn_bits,
            "quant.mlp_bits": mlp_bits,
            "quant.embed_clip_sigmas": CLIP_SIGMAS[embed_bits],
            "quant.attn_clip_sigmas": tuple(clip * CLIP_SIGMAS[b] for b in attn_bits),
            "quant.mlp_clip_sigmas": tuple(clip * CLIP_SIGMAS[b] for b in mlp_bits),
        }

    baseline: dict[str, Scalar] = {
        QUANTIZATION: "explicit",
        "embed_bits": 8,
        "attn_bits_early": 6,
        "attn_bits_late": 6,
        "mlp_bits_early": 6,
        "mlp_bits_late": 6,
        "clip_scale": 1.0,
    }
    return KnobGroup(params=params, baseline=baseline, fields=fields)


def _bits_of_blocks(scale: Scale) -> tuple[IntParam, ...]:
    """Return knobs for the bits of attention and MLP matrices, in the first and in the second half of the blocks."""
    low, high = scale.matrix_bits
    return tuple(
        IntParam(
            name=f"{role}_bits_{depth}",
            low=low,
            high=high,
            tag="scale_free",
            when=EXPLICIT,
            doc=f"{what} of the {'first' if depth == 'early' else 'second'} half of the blocks; see CLIP_SIGMAS",
        )
        for role, what in (("attn", "attention matrices"), ("mlp", "MLP matrices"))
        for depth in ("early", "late")
    )
