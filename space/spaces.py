"""The named spaces: one set of knobs around the 2026-03-17 baseline, at the challenge's scale and at a CPU's.

Ranges, log or linear shapes and couplings are judged from 44 ten-minute records of
https://github.com/openai/parameter-golf; each knob's `doc` gives the reason. What the data or the rung fixes
(vocabulary, batch, budget, seed) is no knob.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pgolf_model.config import Budget, EvalConfig, ModelConfig, QuantConfig, RunConfig, TrainConfig
from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, Space, WarmStart, When, look_up

# Clip, in row standard deviations, that goes with a bitwidth. The step is clip / (2**(bits - 1) - 1) and after entropy
# coding only the step costs bytes, so bits and clip are one knob; this table makes every bit worth having. 6, 7 and 8
# are what records use. Below, the records' 12.85 would leave a step of 1.8 deviations at 4 bits (nearly all zeros), so
# the clip shrinks with the levels. For a standard normal weight, from exact integrals:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What differs between the challenge's space and a small one: sizes, ranges that move with them, fixed fields."""

    head_dim: int
    mlp_granule: int  # MLP hidden channels are a multiple of it; divides every model_dim
    num_layers: tuple[int, int]
    model_dim: tuple[int, int]  # multiples of `dim_step`, itself a multiple of head_dim
    dim_step: int
    mlp_mult: tuple[float, float]
    max_loop_layers: int  # at most the fewest layers, so that the looped range always fits
    matrix_bits: tuple[int, int]
    matrix_lr: tuple[float, float]
    embed_lr: tuple[float, float]
    scalar_lr: tuple[float, float]
    momentum_gap: tuple[float, float]
    ema_gap: tuple[float, float]
    seq_lens: tuple[int, ...]  # the first is used when there is no choice
    fixed: RunConfig  # everything that is not searched

    def __post_init__(self) -> None:
        assert self.max_loop_layers <= self.num_layers[0]
        assert self.dim_step % self.head_dim == 0
        assert self.dim_step % self.mlp_granule == 0


def _params(scale: Scale) -> tuple[Param, ...]:
    """The knobs, in the order they are asked."""
    on_loop = When(parent="loop_repeats", values=(1, 2, 3))
    lr, bits = scale.matrix_lr, scale.matrix_bits
    knobs: list[Param] = [
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
    ]
    if len(scale.seq_lens) > 1:
        knobs.append(
            ChoiceParam(
                name="seq_len",
                options=scale.seq_lens,
                tag="throughput_dependent",
                doc="tokens per sequence, in training and in scoring; 1024 to 2048 gave -.021 bpb, to 4096 -.026",
            )
        )
    knobs += [
        FloatParam(
            name="matrix_lr",
            low=lr[0],
            high=lr[1],
            log=True,
            tag="step_dependent",
            doc="Muon; .02 to .026 with a long warmdown, .04 in the baseline; coupled with warmdown and decay",
        ),
        FloatParam(
            name="embed_lr",
            low=scale.embed_lr[0],
            high=scale.embed_lr[1],
            log=True,
            tag="step_dependent",
            doc="AdamW, tied embedding; .03 to .1 in records",
        ),
        FloatParam(
            name="scalar_lr",
            low=scale.scalar_lr[0],
            high=scale.scalar_lr[1],
            log=True,
            tag="step_dependent",
            doc="AdamW, gains and scales; .02 to .04 in records",
        ),
        FloatParam(
            name="momentum_gap",
            low=scale.momentum_gap[0],
            high=scale.momentum_gap[1],
            log=True,
            tag="step_dependent",
            doc="1 - Muon momentum; the optimum moved .05, .01, .03 as steps and rates changed",
        ),
        ChoiceParam(
            name="decay",
            options=(False, True),
            tag="step_dependent",
            doc="whether weights decay; off in the baseline, on in every later record",
        ),
        FloatParam(
            name="weight_decay",
            low=0.01,
            high=0.2,
            log=True,
            tag="step_dependent",
            when=When(parent="decay", values=(True,)),
            doc="matrices and embedding alike (records keep them within 10 %); .04 to .095",
        ),
        FloatParam(
            name="warmdown_fraction",
            low=0.05,
            high=0.95,
            tag="step_dependent",
            doc="share of the run in which the rate falls; .09 grew to .85 over the records",
        ),
        ChoiceParam(
            name="grad_clip",
            options=(0.0, 0.3, 1.0),
            tag="step_dependent",
            doc="global norm; off in the baseline, .3 in every record since 2026-03-20",
        ),
        ChoiceParam(
            name="ema",
            options=(False, True),
            tag="step_dependent",
            doc="whether the moving average of the weights is what ships",
        ),
        FloatParam(
            name="ema_gap",
            low=scale.ema_gap[0],
            high=scale.ema_gap[1],
            log=True,
            tag="step_dependent",
            when=When(parent="ema", values=(True,)),
            doc="1 - decay, so 1 / ema_gap steps are averaged; .003 at 5,000 to 7,000 steps",
        ),
        IntParam(
            name="embed_bits",
            low=5,
            high=8,
            tag="scale_free",
            doc="tied embedding; 8 to 7 cost nothing in records, 6 cost +.048 bpb without GPTQ",
        ),
    ]
    knobs += [
        IntParam(
            name=f"{role}_bits_{depth}",
            low=bits[0],
            high=bits[1],
            tag="scale_free",
            doc=f"{what} of the {'first' if depth == 'early' else 'second'} half of the blocks; see CLIP_SIGMAS",
        )
        for role, what in (("attn", "attention matrices"), ("mlp", "MLP matrices"))
        for depth in ("early", "late")
    ]
    knobs.append(
        FloatParam(
            name="clip_scale",
            low=0.8,
            high=1.25,
            log=True,
            tag="scale_free",
            doc="multiplies every matrix clip: the bytes between one bitwidth and the next",
        )
    )
    return tuple(knobs)


def _make_config(scale: Scale, values: Mapping[str, Scalar], vocab_size: int) -> RunConfig:
    """The RunConfig of one point of `_params(scale)`; whole numbers are made whole here, so every point is valid."""

    def number(name: str) -> float:
        return float(values[name])

    def whole(name: str) -> int:
        return int(values[name])

    fixed = scale.fixed
    num_layers, model_dim = whole("num_layers"), whole("model_dim")
    num_heads = model_dim // scale.head_dim
    mlp_dim = scale.mlp_granule * round(number("mlp_mult") * model_dim / scale.mlp_granule)
    loop_start = loop_end = 0
    if values["loop_repeats"]:
        loop_start = round(number("loop_position") * (num_layers - whole("loop_layers")))
        loop_end = loop_start + whole("loop_layers")
    model = ModelConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=nearest_divisor(num_heads, num_heads / whole("kv_ratio")),
        mlp_mult=mlp_dim / model_dim,
        loop_start=loop_start,
        loop_end=loop_end,
        loop_repeats=whole("loop_repeats"),
        rope_base=fixed.model.rope_base,
        qk_gain_init=number("qk_gain_init"),
        logit_softcap=number("logit_softcap"),
        embed_init_std=fixed.model.embed_init_std,
    )
    seq_len = int(values.get("seq_len", scale.seq_lens[0]))
    weight_decay = float(values.get("weight_decay", 0.0))
    train = replace(
        fixed.train,
        seq_len=seq_len,
        matrix_lr=number("matrix_lr"),
        embed_lr=number("embed_lr"),
        scalar_lr=number("scalar_lr"),
        matrix_weight_decay=weight_decay,
        embed_weight_decay=weight_decay,
        muon_momentum=1.0 - number("momentum_gap"),
        grad_clip=number("grad_clip"),
        warmdown_fraction=number("warmdown_fraction"),
        ema_decay=1.0 - number("ema_gap") if values["ema"] else 0.0,
    )
    clip = number("clip_scale")
    attn_bits = (whole("attn_bits_early"), whole("attn_bits_late"))
    mlp_bits = (whole("mlp_bits_early"), whole("mlp_bits_late"))
    quant = QuantConfig(
        embed_bits=whole("embed_bits"),
        attn_bits=attn_bits,
        mlp_bits=mlp_bits,
        embed_clip_sigmas=CLIP_SIGMAS[whole("embed_bits")],
        attn_clip_sigmas=tuple(clip * CLIP_SIGMAS[b] for b in attn_bits),
        mlp_clip_sigmas=tuple(clip * CLIP_SIGMAS[b] for b in mlp_bits),
    )
    scoring = EvalConfig(seq_len=seq_len, batch_tokens=fixed.eval.batch_tokens)
    return RunConfig(model=model, train=train, quant=quant, eval=scoring, budget=fixed.budget, seed=fixed.seed)


def nearest_divisor(number: int, target: float) -> int:
    """The divisor of `number` nearest to `target` in ratio; the larger of two equally near."""
    divisors = [d for d in range(number, 0, -1) if number % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / target)))


# The recipe of the challenge's first baseline as a point, without the two sizes that differ between scales.
_BASELINE: dict[str, Scalar] = {
    "kv_ratio": 2,
    "mlp_mult": 2.0,
    "loop_repeats": 0,
    "qk_gain_init": 1.5,
    "logit_softcap": 30.0,
    "matrix_lr": 0.04,
    "embed_lr": 0.05,
    "scalar_lr": 0.04,
    "momentum_gap": 0.05,
    "decay": False,
    "warmdown_fraction": 0.09,
    "grad_clip": 0.0,
    "ema": False,
    "embed_bits": 8,
    "attn_bits_early": 6,
    "attn_bits_late": 6,
    "mlp_bits_early": 6,
    "mlp_bits_late": 6,
    "clip_scale": 1.0,
}


def recurrent() -> Space:
    """The challenge: 16 MB and 600 s on 8xH100, around the 2026-03-17 baseline, with loops and mixed bitwidths."""
    scale = Scale(
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
        fixed=RunConfig(),
    )
    control = {"num_layers": 9, "model_dim": 512, "seq_len": 1024} | _BASELINE
    # What the records of late March and of April converged on, as far as this model can express it.
    march: dict[str, Scalar] = control | {
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
    }
    april: dict[str, Scalar] = march | {
        "mlp_mult": 4.0,
        "loop_repeats": 2,
        "loop_layers": 3,
        "loop_position": 0.375,
        "qk_gain_init": 5.0,
        "matrix_lr": 0.022,
        "embed_lr": 0.03,
        "scalar_lr": 0.02,
        "momentum_gap": 0.03,
        "weight_decay": 0.09,
        "warmdown_fraction": 0.72,
        "ema_gap": 0.0035,
        "embed_bits": 7,
    }
    return _space(
        "recurrent", scale, control, WarmStart(label="march", values=march), WarmStart(label="april", values=april)
    )


def tiny() -> Space:
    """The same knobs for 2 CPU cores: 100 to 600 steps of 4,096 to 8,192 tokens."""
    fixed = RunConfig(
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
    )
    scale = Scale(
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
        fixed=fixed,
    )
    control = {"num_layers": 4, "model_dim": 128} | _BASELINE
    long_warmdown: dict[str, Scalar] = control | {"warmdown_fraction": 0.6, "grad_clip": 1.0}
    loop: dict[str, Scalar] = long_warmdown | {
        "loop_repeats": 1,
        "loop_layers": 2,
        "loop_position": 0.5,
        "qk_gain_init": 4.0,
        "embed_bits": 7,
    }
    return _space(
        "tiny",
        scale,
        control,
        WarmStart(label="long_warmdown", values=long_warmdown),
        WarmStart(label="loop", values=loop),
    )


def _space(name: str, scale: Scale, control: Mapping[str, Scalar], *warm_starts: WarmStart) -> Space:
    """One construction for every scale."""
    return Space(
        name=name,
        params=_params(scale),
        make_config=partial(_make_config, scale),
        control=control,
        warm_starts=warm_starts,
    )


SPACES: dict[str, Callable[[], Space]] = {"recurrent": recurrent, "tiny": tiny}


def named_space(name: str) -> Space:
    """The space called `name`.

    Raises:
        ValueError: there is none; suggests the nearest name.
    """
    return look_up("space", name, SPACES)()
