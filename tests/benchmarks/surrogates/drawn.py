"""A family of functions drawn by number, to try methods on what nobody has tuned them to: `drawn_0`, `drawn_1`, ...

Every number draws its own space (6 to 26 knobs of all kinds, some conditional), its own optimum, which knobs matter
and how sharply (from kinks over bowls to plateaus), interactions, how far optima move with compute, how much a cheap
run misleads about single configurations, where training diverges, seed noise, how tight the byte cap is, and whether
bytes can be known before a run. Common to all is only what a ladder of complete runs means: a scaling law in size and
compute, bytes that grow with size and bits, a cost proportional to fidelity. Nothing of `search` is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, When

FULL_GPU_SECONDS = 4800.0
CODE_BYTES = 60_000
TAGS = ("scale_free", "step_dependent", "throughput_dependent")

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One parameter's effect: weight * |unit - best - drift * log(1 / fidelity)| ** power."""

    param: Param
    best: float
    drift: float
    weight: float
    power: float
    options: tuple[float, ...] = ()

    def unit(self, params: Mapping[str, Scalar]) -> float:
        """Where the value lies in its range, an option where its table says; nan where a condition leaves it out."""
        if self.param.name not in params:
            return math.nan
        value = params[self.param.name]
        if isinstance(self.param, ChoiceParam):
            return self.options[self.param.options.index(value)]
        low, high, here = float(self.param.low), float(self.param.high), float(value)
        if self.param.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return (here - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Waves:
    """A random smooth function: a sum of cosines with standard deviation `size`."""

    frequencies: Array  # (waves, knobs)
    phases: Array
    size: float

    def __call__(self, x: Array) -> float:
        return self.size * math.sqrt(2 / len(self.phases)) * float(np.cos(self.frequencies @ x + self.phases).sum())


@dataclass(frozen=True, kw_only=True)
class World:
    """One function of the family."""

    knobs: tuple[Knob, ...]  # the bits first, then those that make the size
    num_sizes: int
    pairs: tuple[tuple[int, int, float], ...]
    misleading: Waves  # what runs without compute get wrong
    ripples: Waves  # of the truth
    edge: Array  # training diverges beyond `edge_at` in this direction
    edge_at: float
    noise: float

    def units(self, params: Mapping[str, Scalar]) -> Array:
        """Of every knob; nan where it is left out."""
        return np.array([knob.unit(params) for knob in self.knobs])

    def log_size(self, x: Array) -> float:
        """Log of the weights, relative to the smallest model: up to a factor of 40."""
        return 3.7 * float(x[1 : 1 + self.num_sizes].mean())

    def bytes(self, params: Mapping[str, Scalar]) -> float:
        """Weights times bits, and the code."""
        x = self.units(params)
        return math.floor(CODE_BYTES + 6e5 * math.exp(self.log_size(x)) * (2.6 + 2.2 * x[0]))

    def bpb(self, params: Mapping[str, Scalar], fidelity: float) -> float:
        """Noiseless score; nan where training diverges."""
        x, cheap = self.units(params), math.log(1 / fidelity)
        off = np.array([x[i] - knob.best - knob.drift * cheap for i, knob in enumerate(self.knobs)])
        off[: 1 + self.num_sizes] = 0.0  # those act through the size and the bits
        off, filled = np.nan_to_num(off), np.nan_to_num(x, nan=0.5)
        if float(self.edge @ (filled - 0.5)) > self.edge_at:
            return math.nan
        size = self.log_size(x)
        score = 1.0 + 0.16 * math.exp(-0.45 * size) + 0.035 * math.exp(0.34 * (size - 1.9) + 0.30 * cheap)
        score += 0.03 * 2.0 ** (-7 * x[0])
        score += sum(k.weight * abs(o) ** k.power for k, o in zip(self.knobs, off, strict=True))
        score += sum(strength * off[i] * off[j] for i, j, strength in self.pairs)
        return score + self.ripples(filled) + (1 - math.sqrt(fidelity)) * self.misleading(filled)

    def truth(self, params: Mapping[str, Scalar]) -> float:
        """What a full run measures without noise; inf where it diverges."""
        score = self.bpb(params, 1.0)
        return math.inf if math.isnan(score) else score

    def evaluate(self, params: Mapping[str, Scalar], *, rung: str, fidelity: float, seed: int) -> dict[str, float]:
        """One simulated run."""
        stamp = hashlib.sha256(repr(sorted(params.items())).encode()).digest()[:4]
        rng = np.random.default_rng([seed, round(fidelity * 1e6), int.from_bytes(stamp, "big")])
        return {
            "val_bpb": self.bpb(params, fidelity) + self.noise * fidelity**-0.17 * float(rng.standard_normal()),
            "artifact_bytes": self.bytes(params),
            "train_seconds": 600.0,
            "gpu_seconds": FULL_GPU_SECONDS * fidelity,
        }


def draw(number: int) -> SimpleNamespace:
    """Function `number` of the family, with the names that the modules beside this one define."""
    rng = np.random.default_rng([number, 77])
    params, num_sizes = draw_space(rng)
    num = len(params)
    weights = 0.005 * rng.pareto(1.1, num).clip(0, 12)
    order = rng.permutation(np.arange(1 + num_sizes, num))
    world = World(
        knobs=tuple(
            Knob(
                param=param,
                best=float(rng.uniform(0.15, 0.85)),
                drift=float(rng.normal(0, 0.06) * (rng.random() < 0.4)),
                weight=float(weight),
                power=float(rng.choice([1.0, 2.0, 2.0, 3.0])),
                options=tuple(rng.random(len(param.options))) if isinstance(param, ChoiceParam) else (),
            )
            for param, weight in zip(params, weights, strict=True)
        ),
        num_sizes=num_sizes,
        pairs=tuple(
            (int(i), int(j), float(rng.uniform(-0.9, 0.9) * math.sqrt(weights[i] * weights[j])))
            for i, j in zip(order[::2], order[1::2], strict=False)
        ),
        misleading=draw_waves(rng, num, float(rng.choice([0.001, 0.004, 0.01]))),
        ripples=draw_waves(rng, num, float(rng.choice([0.0, 0.001, 0.003]))),
        edge=rng.normal(0, 1, num) / math.sqrt(num),
        edge_at=float(rng.choice([0.25, 0.45, math.inf])),
        noise=float(rng.choice([0.0004, 0.0007, 0.0015])),
    )
    points = [draw_point(params, rng) for _ in range(400)]
    cap = float(np.quantile([world.bytes(p) for p in points], rng.uniform(0.3, 0.8)))
    fit = sorted((p for p in points if world.bytes(p) <= cap and world.truth(p) < math.inf), key=world.truth)
    return SimpleNamespace(
        SPACE=params,
        CONTROL=fit[len(fit) // 3],  # somebody's honest first attempt
        CAP_BYTES=cap,
        FULL_GPU_SECONDS=FULL_GPU_SECONDS,
        predict_bytes=world.bytes if rng.random() < 0.5 else None,
        evaluate=world.evaluate,
        truth=world.truth,
    )


def draw_space(rng: np.random.Generator) -> tuple[tuple[Param, ...], int]:
    """The bits, two to four knobs that make the size, and others of all kinds; how many make the size."""
    params: list[Param] = [IntParam(name="bits", low=3, high=8, tag="scale_free")]
    num_sizes = int(rng.integers(2, 5))
    for i in range(num_sizes):
        step, low, count = int(rng.choice([1, 2, 64])), int(rng.integers(2, 9)), int(rng.integers(4, 14))
        params.append(
            IntParam(name=f"size{i}", low=low * step, high=(low + count) * step, step=step, tag="throughput_dependent")
        )
    for i in range(int(rng.integers(3, 22))):
        name, tag, kind, when = f"knob{i}", TAGS[rng.integers(3)], rng.random(), None
        parents = [p for p in params if isinstance(p, ChoiceParam) and p.when is None]
        if parents and rng.random() < 0.25:
            parent = parents[rng.integers(len(parents))]
            when = When(parent=parent.name, values=parent.options[:1])
        if kind < 0.5:
            low = float(10.0 ** rng.uniform(-4, 0))
            high = low * float(10.0 ** rng.uniform(0.5, 2.5))
            params.append(FloatParam(name=name, low=low, high=high, log=True, tag=tag, when=when))
        elif kind < 0.65:
            params.append(FloatParam(name=name, low=0.0, high=float(rng.uniform(0.5, 3)), tag=tag, when=when))
        elif kind < 0.8:
            params.append(IntParam(name=name, low=0, high=int(rng.integers(2, 9)), tag=tag, when=when))
        else:
            options = tuple(f"way{k}" for k in range(int(rng.integers(2, 6))))
            params.append(ChoiceParam(name=name, options=options, tag=tag, when=when))
    return tuple(params), num_sizes


def draw_waves(rng: np.random.Generator, num_knobs: int, size: float) -> Waves:
    """Thirty waves, each over a few knobs, about one bend per range."""
    alone = rng.random((30, num_knobs)) < 3 / num_knobs
    return Waves(
        frequencies=rng.normal(0, 4, (30, num_knobs)) * alone, phases=rng.uniform(0, 2 * math.pi, 30), size=size
    )


def draw_point(params: tuple[Param, ...], rng: np.random.Generator) -> dict[str, Scalar]:
    """A random complete point."""
    values: dict[str, Scalar] = {}
    for param in params:
        if param.active(values):
            values[param.name] = param.draw(rng)
    return values
