"""A rugged stand-in: conditional parameters, interactions, cliffs, heavy proxy noise, gains that flip with compute.

Invented. Three optimizer families with their own knobs; a learning rate too high for depth, momentum and warm-up
diverges (bpb from 2 to 9, as real logs show); small periodic ripples in every number; a cheap run prefers shallow
models, short windows and EMA. Noise at a proxy is several times that of a full run. Bytes are known only after a run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, When

NAME = "rugged"
CAP_BYTES = 16_000_000
FULL_GPU_SECONDS = 4800.0

_MUON = When(parent="optimizer", values=("muon", "normuon"))
_LOOP = When(parent="loops", values=(1, 2, 3))
_EMA = When(parent="ema", values=(True,))

SPACE: tuple[Param, ...] = (
    IntParam(name="depth", low=6, high=18, tag="throughput_dependent"),
    IntParam(name="dim", low=256, high=896, step=64, tag="throughput_dependent"),
    FloatParam(name="mlp_mult", low=1.0, high=6.0, tag="throughput_dependent"),
    ChoiceParam(name="activation", options=("relu2", "swiglu", "gelu", "leaky2"), tag="scale_free"),
    IntParam(name="loops", low=0, high=3, tag="throughput_dependent"),
    IntParam(name="loop_width", low=1, high=4, tag="throughput_dependent", when=_LOOP),
    FloatParam(name="loop_start", low=0.0, high=0.8, tag="step_dependent", when=_LOOP),
    ChoiceParam(name="optimizer", options=("muon", "normuon", "adamw"), tag="step_dependent"),
    FloatParam(name="lr", low=3e-4, high=0.3, log=True, tag="step_dependent"),
    FloatParam(name="momentum_gap", low=0.005, high=0.3, log=True, tag="step_dependent", when=_MUON),
    IntParam(name="newton_steps", low=2, high=7, tag="throughput_dependent", when=_MUON),
    FloatParam(name="beta2_gap", low=0.001, high=0.3, log=True, tag="step_dependent"),
    FloatParam(name="weight_decay", low=0.001, high=0.5, log=True, tag="step_dependent"),
    FloatParam(name="warmup", low=0.0, high=0.1, tag="step_dependent"),
    FloatParam(name="warmdown", low=0.05, high=0.95, tag="step_dependent"),
    ChoiceParam(name="ema", options=(False, True), tag="step_dependent"),
    FloatParam(name="ema_gap", low=0.0005, high=0.1, log=True, tag="step_dependent", when=_EMA),
    IntParam(name="bits", low=3, high=8, tag="scale_free"),
    IntParam(name="embed_bits", low=4, high=8, tag="scale_free"),
    ChoiceParam(name="vocab", options=(1024, 2048, 4096, 8192), tag="scale_free"),
    ChoiceParam(name="seq_len", options=(512, 1024, 2048, 4096), tag="throughput_dependent"),
    FloatParam(name="dropout", low=0.0, high=0.3, tag="step_dependent"),
    FloatParam(name="grad_clip", low=0.1, high=3.0, log=True, tag="step_dependent"),
    FloatParam(name="init_scale", low=0.2, high=4.0, log=True, tag="scale_free"),
)

CONTROL: dict[str, Scalar] = {
    "depth": 9, "dim": 512, "mlp_mult": 2.0, "activation": "gelu", "loops": 0, "optimizer": "adamw", "lr": 0.003,
    "beta2_gap": 0.05, "weight_decay": 0.01, "warmup": 0.02, "warmdown": 0.2, "ema": False, "bits": 6,
    "embed_bits": 8, "vocab": 1024, "seq_len": 1024, "dropout": 0.05, "grad_clip": 1.0, "init_scale": 1.0,
}  # fmt: skip


def _sizes(p: Mapping[str, Scalar]) -> tuple[float, float]:
    dim, mlp = float(p["dim"]), float(p["mlp_mult"]) * (1.5 if p["activation"] == "swiglu" else 1.0)
    return float(p["depth"]) * dim**2 * (3 + 2 * mlp), float(p["vocab"]) * dim


def artifact_bytes(params: Mapping[str, Scalar]) -> float:
    """Bytes of a finished run."""
    body, embed = _sizes(params)
    return math.floor((body * (0.42 * int(params["bits"]) + 0.95) + embed * 0.62 * int(params["embed_bits"])) / 8 + 9e4)


def _ripple(p: Mapping[str, Scalar]) -> float:
    """Small structure that no smooth model predicts."""
    total = 0.0
    for i, param in enumerate(SPACE):
        if isinstance(param, FloatParam) and param.name in p:
            low, high, value = param.low, param.high, float(p[param.name])
            unit = math.log(value / low) / math.log(high / low) if param.log else (value - low) / (high - low)
            total += 0.0005 * math.sin(2 * math.pi * (1.5 + 0.37 * i) * unit + i)
    return total


def bpb(p: Mapping[str, Scalar], fidelity: float) -> float:
    """Noiseless score; a diverged run gives a large one."""
    body, embed = _sizes(p)
    loops = int(p["loops"])
    looped = loops * int(p.get("loop_width", 0)) / float(p["depth"])
    late = 1 - float(p.get("loop_start", 0.0))
    window = float(p["seq_len"])
    newton = 1 + 0.012 * (int(p["newton_steps"]) - 5) if "newton_steps" in p else 0.95
    flops = body * (1 + looped * late) * newton * (1 + window / 24_000) + 0.25 * embed + 5e6
    tokens = 3.9e9 * fidelity * 40e6 / flops
    effective = body * (1 + 0.5 * min(looped, 1.2) * late) + 0.4 * embed
    score = 0.70 + 0.27 * (effective / 25e6) ** -0.17 + 0.16 * (tokens / 4e9) ** -0.26
    score += 0.02 * math.exp(-float(p["depth"]) * (1 + 0.4 * looped) / 5) + 0.006 * max(0, looped - 0.9) ** 2

    family = str(p["optimizer"])
    centre = {"muon": 0.028, "normuon": 0.02, "adamw": 0.0035}[family]
    score += {"muon": 0.0, "normuon": -0.002, "adamw": 0.02}[family]
    x = math.log(float(p["lr"]) / centre) + 0.35 * math.log(float(p["dim"]) / 512)
    x += 0.8 * (float(p["warmdown"]) - 0.6) + 0.15 * math.log(float(p["weight_decay"]) / 0.05)
    score += 0.010 * x**2 if x < 0 else 0.014 * x**2
    if "momentum_gap" in p:
        score += 0.003 * (math.log(float(p["momentum_gap"]) / 0.04) + 0.25 * x) ** 2
        score += 0.002 * max(0, 5 - int(p["newton_steps"])) ** 2
    score += 0.0012 * math.log(float(p["beta2_gap"]) / (0.02 if family == "normuon" else 0.05)) ** 2
    score += 0.0022 * (math.log(float(p["weight_decay"]) / 0.08) + 0.3 * math.log(1 / fidelity)) ** 2
    score += 0.03 * (float(p["warmdown"]) - 0.75 + 0.2 * math.log10(1 / fidelity)) ** 2
    score += 0.05 * max(0.0, 0.01 - float(p["warmup"])) * 10 + 0.06 * float(p["warmup"])
    if p["ema"]:
        gap = math.log(float(p["ema_gap"]) / 0.003) - 0.8 * math.log(1 / fidelity)
        score += -0.004 + 0.002 * gap**2 - 0.003 * math.log10(1 / fidelity)
    score += (0.03 - 0.02 * math.log10(1 / fidelity)) * float(p["dropout"])
    score += {"relu2": 0.0, "leaky2": -0.0015, "swiglu": 0.001, "gelu": 0.012}[str(p["activation"])]
    score += {512: 0.020, 1024: 0.008, 2048: 0.0, 4096: -0.002}[int(window)] * (1 - 0.3 * math.log10(1 / fidelity))
    score += {1024: 0.022, 2048: 0.013, 4096: 0.004, 8192: 0.0}[int(p["vocab"])]
    score += 0.0015 * math.log(float(p["grad_clip"]) / 0.6) ** 2 + 0.0022 * math.log(float(p["init_scale"])) ** 2
    score += 0.0065 * 4.0 ** (5.5 - int(p["bits"])) * 0.6 + 0.002 * 4.0 ** (6 - int(p["embed_bits"]))
    score += _ripple(p)

    heat = (
        x
        + 0.05 * (float(p["depth"]) * (1 + looped) - 12)
        - 4 * float(p["warmup"])
        - 0.3 * math.log(1 / float(p["grad_clip"]))
    )
    if heat > 1.6:
        score += min(8.0, 0.4 * (math.exp(2 * (heat - 1.6)) - 1) + 0.1)
    return score


def truth(params: Mapping[str, Scalar]) -> float:
    """What a full run measures without noise."""
    return bpb(params, 1.0)


def evaluate(params: Mapping[str, Scalar], *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
    """One simulated run; one in fifty runs of a proxy is an outlier, as on shared machines."""
    stamp = hashlib.sha256(repr(sorted(params.items())).encode()).digest()[:4]
    rng = np.random.default_rng([seed, round(fidelity * 1e6), int.from_bytes(stamp, "big")])
    noise = 0.0007 * fidelity**-0.5
    outlier = 0.01 * float(rng.exponential()) if fidelity < 1 and rng.random() < 0.02 else 0.0
    return {
        "val_bpb": bpb(params, fidelity) + noise * float(rng.standard_normal()) + outlier,
        "artifact_bytes": artifact_bytes(params),
        "train_seconds": 600.0,
        "gpu_seconds": FULL_GPU_SECONDS * fidelity,
    }
