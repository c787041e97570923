"""A smooth, nearly additive stand-in for the field: a scaling law in parameters and tokens, bowls in the knobs.

Invented, with the couplings competitors report: bytes tie layers, width, MLP, vocabulary and bits; bigger models take
longer per token, so the best width moves with compute; EMA and small batches look good on a cheap run and bad on a
full one; the learning rate's optimum moves with warmdown and weight decay. Seed noise at full is 0.0007 bpb, twice
that at 1/64 of the compute. About half of random points are over the cap.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar

NAME = "smooth"
CAP_BYTES = 16_000_000
FULL_GPU_SECONDS = 4800.0

SPACE: tuple[Param, ...] = (
    IntParam(name="num_layers", low=6, high=16, tag="throughput_dependent"),
    IntParam(name="model_dim", low=320, high=768, step=64, tag="throughput_dependent"),
    FloatParam(name="mlp_mult", low=1.5, high=5.0, tag="throughput_dependent"),
    IntParam(name="loop_repeats", low=0, high=3, tag="throughput_dependent"),
    IntParam(name="vocab", low=1024, high=16384, log=True, tag="scale_free"),
    IntParam(name="attn_bits", low=4, high=8, tag="scale_free"),
    IntParam(name="mlp_bits", low=4, high=8, tag="scale_free"),
    IntParam(name="embed_bits", low=5, high=8, tag="scale_free"),
    FloatParam(name="clip_scale", low=0.7, high=1.4, log=True, tag="scale_free"),
    FloatParam(name="matrix_lr", low=0.003, high=0.3, log=True, tag="step_dependent"),
    FloatParam(name="embed_lr", low=0.003, high=1.0, log=True, tag="step_dependent"),
    FloatParam(name="scalar_lr", low=0.003, high=0.3, log=True, tag="step_dependent"),
    FloatParam(name="warmdown", low=0.05, high=0.95, tag="step_dependent"),
    FloatParam(name="weight_decay", low=0.005, high=0.3, log=True, tag="step_dependent"),
    FloatParam(name="momentum_gap", low=0.005, high=0.2, log=True, tag="step_dependent"),
    FloatParam(name="ema_gap", low=0.0005, high=0.05, log=True, tag="step_dependent"),
    IntParam(name="batch", low=131_072, high=1_572_864, log=True, tag="throughput_dependent"),
    FloatParam(name="softcap", low=8.0, high=60.0, log=True, tag="scale_free"),
    FloatParam(name="qk_gain", low=1.0, high=8.0, log=True, tag="scale_free"),
    ChoiceParam(name="kv_ratio", options=(1, 2, 4), tag="scale_free"),
)

CONTROL: dict[str, Scalar] = {
    "num_layers": 9, "model_dim": 512, "mlp_mult": 2.0, "loop_repeats": 0, "vocab": 1024, "attn_bits": 6,
    "mlp_bits": 6, "embed_bits": 8, "clip_scale": 1.0, "matrix_lr": 0.04, "embed_lr": 0.05, "scalar_lr": 0.04,
    "warmdown": 0.2, "weight_decay": 0.01, "momentum_gap": 0.05, "ema_gap": 0.01, "batch": 524_288, "softcap": 30.0,
    "qk_gain": 1.5, "kv_ratio": 2,
}  # fmt: skip

BITS = {4: 2.60, 5: 3.00, 6: 3.38, 7: 4.17, 8: 4.74}  # packed bits per weight, about what brotli needs


def _sizes(p: Mapping[str, Scalar]) -> tuple[float, float, float]:
    layers, dim = float(p["num_layers"]), float(p["model_dim"])
    attn = layers * dim**2 * (2 + 2 / float(p["kv_ratio"]))
    mlp = layers * dim**2 * 2 * float(p["mlp_mult"])
    return attn, mlp, float(p["vocab"]) * dim


def predict_bytes(params: Mapping[str, Scalar]) -> float:
    """Exact artifact bytes."""
    attn, mlp, embed = _sizes(params)
    shift = -math.log2(float(params["clip_scale"]))
    bits = attn * (BITS[int(params["attn_bits"])] + shift) + mlp * (BITS[int(params["mlp_bits"])] + shift)
    return math.floor((bits + embed * (BITS[int(params["embed_bits"])] + shift)) / 8 + 120_000)


def bpb(p: Mapping[str, Scalar], fidelity: float) -> float:
    """Noiseless score of a run with `fidelity` of the full compute."""
    attn, mlp, embed = _sizes(p)
    loops = 1 + 0.25 * int(p["loop_repeats"])
    weights = attn + mlp + 0.15 * embed
    effective = (attn + mlp) * loops**0.35 + 0.4 * embed
    tokens = 3.9e9 * fidelity * 36e6 / ((attn + mlp) * loops + 0.3 * embed + 6e6)
    score = 0.72 + 0.60 * (effective / 25e6) ** -0.16 * 0.42 + 0.155 * (tokens / 4e9) ** -0.24
    score -= 0.010 * math.log2(float(p["vocab"]) / 1024) - 0.0016 * math.log2(float(p["vocab"]) / 1024) ** 2

    steps = tokens / float(p["batch"])
    best_lr = math.log(0.045) - 0.9 * (float(p["warmdown"]) - 0.3) - 0.10 * math.log(float(p["weight_decay"]) / 0.02)
    best_lr -= 0.25 * math.log(float(p["model_dim"]) / 512)
    score += 0.009 * (math.log(float(p["matrix_lr"])) - best_lr) ** 2
    score += 0.0025 * (math.log(float(p["embed_lr"]) / 0.06)) ** 2
    score += 0.0015 * (math.log(float(p["scalar_lr"]) / 0.03)) ** 2
    score += 0.018 * (float(p["warmdown"]) - 0.72 + 0.15 * math.log10(1 / fidelity)) ** 2
    score += 0.0020 * (math.log(float(p["weight_decay"]) / 0.08) + 0.25 * math.log(1 / fidelity)) ** 2
    score += 0.0030 * (math.log(float(p["momentum_gap"]) / 0.03)) ** 2
    score += 0.0030 * (math.log(float(p["ema_gap"]) / 0.0025) - 0.5 * math.log(1 / fidelity)) ** 2
    score += 0.0040 * (math.log(float(p["batch"]) / 600_000) + 0.45 * math.log(1 / fidelity)) ** 2
    score += 0.004 * math.exp(-steps / 900)
    score += 0.0016 * (math.log(float(p["softcap"]) / 22)) ** 2 + 0.0025 * (math.log(float(p["qk_gain"]) / 4.2)) ** 2
    score += {1: 0.0, 2: 0.0008, 4: 0.0045}[int(p["kv_ratio"])]
    shift = math.log2(float(p["clip_scale"]))
    for key, share, harm in (("attn_bits", attn, 0.9), ("mlp_bits", mlp, 0.55), ("embed_bits", embed, 2.2)):
        step = 2.0 ** (-(BITS[int(p[key])] - 3.38) + shift)
        score += 0.0062 * harm * share / (weights + 0.85 * embed) * step**2
    return score


def truth(params: Mapping[str, Scalar]) -> float:
    """What a full run measures without noise."""
    return bpb(params, 1.0)


def evaluate(params: Mapping[str, Scalar], *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """One simulated run."""
    stamp = hashlib.sha256(repr(sorted(params.items())).encode()).digest()[:4]
    rng = np.random.default_rng([seed, round(fidelity * 1e6), int.from_bytes(stamp, "big")])
    noise = 0.0007 * fidelity**-0.17
    return {
        "val_bpb": bpb(params, fidelity) + noise * float(rng.standard_normal()),
        "artifact_bytes": predict_bytes(params),
        "train_seconds": 600.0,
        "gpu_seconds": FULL_GPU_SECONDS * fidelity,
    }
