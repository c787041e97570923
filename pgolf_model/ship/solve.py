"""Trained weights at a byte budget: rates and errors of every matrix, the plan, the packed artifact, the audit.

The plan comes from tables (`pgolf_model.ship.allocate`), its size from really packing it. A matrix is quantized anew
only when its choice has changed, so meeting a size costs little more than one pass over the matrices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf_model.codec.pack import PackCache, pack_model, stream_bytes
from pgolf_model.config import EvalConfig, RunConfig, code_limit
from pgolf_model.distributed import DistEnv
from pgolf_model.errors import UserError
from pgolf_model.model.gpt import GPT
from pgolf_model.quant.gptq import feedback_factor, hessian_error, plan_columns
from pgolf_model.quant.quantize import (
    CLIP_FLOOR_SIGMAS,
    REACH_STEP_SIGMAS,
    PackedTensor,
    QuantizedTensor,
    check_names,
    column_order,
    dequantize,
    dequantize_state,
    quantize_matrix,
    quantize_rows,
    round_scalars,
)
from pgolf_model.shapes import param_shapes
from pgolf_model.ship.allocate import FILL_TOLERANCE, Filled, PlanLine, RateTable, fill, plan_line
from pgolf_model.ship.calibrate import Calibration, calibration_loss

GRID = np.arange(-18, 9) / 4  # log2 of the step in row deviations, from 0.044 to 4: about 6.5 to 0.3 bits per weight
GPTQ_COARSEST = 1.0  # the same with error feedback: at 4 deviations it made weights several times too large
SAMPLED_WEIGHTS = 2**16  # per matrix, in whole rows: entropies are good to 0.001 bits, tables take seconds
LOSS_TOKENS = 16_384  # calibration tokens on which losses are compared
LOWRANK_BITS = 4
SAFE_BITS, SAFE_CLIP = 8, 20.0  # where staging begins: the atlas' lossless int8
MAX_ROLLBACKS = 6  # per role


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """How one matrix is quantized."""

    bits: int
    clip_sigmas: float  # the step is clip_sigmas / code_limit(bits) row deviations

    @property
    def log_step(self) -> float:
        """log2 of the step in row deviations."""
        return math.log2(self.clip_sigmas / code_limit(self.bits))

    def safer(self) -> Choice:
        """One bit more, spent on a finer step and on a wider clip."""
        return Choice(
            bits=min(SAFE_BITS, self.bits + 1),
            clip_sigmas=max(self.clip_sigmas, min(SAFE_CLIP, 1.5 * self.clip_sigmas)),
        )


Plan = dict[str, Choice]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shipment:
    """One artifact and how it came about."""

    artifact: bytes
    audit: dict[str, Any]  # plain values, ready for JSON


class QuantBench:
    """The weights of one run, quantized at one plan after the other; a function of its arguments and the plan.

    Args:
        state: float32 weights on the CPU.
        calibration: None weighs all errors alike.
        env: its device is where matrices are quantized.
    Raises:
        ValueError: names or shapes differ from the model's, or a scalar cannot be stored; names the tensor.
    """

    def __init__(
        self, state: Mapping[str, Tensor], config: RunConfig, calibration: Calibration | None, env: DistEnv
    ) -> None:
        self.config, self.calibration, self.env = config, calibration, env
        self.shapes = param_shapes(config.model)
        check_names(state, self.shapes)
        self.state, self.scalars = {name: state[name].detach() for name in self.shapes}, {}
        self.cache: dict[str, dict[tuple[Choice, bool], QuantizedTensor]] = {}
        self.pack_cache: PackCache = {}
        self.estimates: dict[str, tuple[QuantizedTensor, float]] = {}
        self.corrected: frozenset[str] = frozenset()  # matrices with a low-rank correction
        self.passes = 0  # matrices quantized so far
        self.bias = 0.0  # bytes by which the last packed artifact was larger than its estimate
        for name, info in self.shapes.items():
            weight = self.state[name]
            if tuple(weight.shape) != info.shape:
                raise ValueError(f"{name}: expected shape {info.shape}, got {tuple(weight.shape)}")
            if info.role == "scalar":
                try:
                    narrow = config.quant.scalar_format == "fp8"
                    self.scalars[name] = round_scalars(weight, "e4m3" if narrow else "float16").cpu().contiguous()
                except UserError as error:
                    raise error.at(name) from None
            else:
                self.cache[name] = {}

    def explicit_plan(self) -> Plan:
        """The plan that the config's bits and clips spell out."""
        quant, layers = self.config.quant, self.config.model.num_layers
        where = {name: (self.shapes[name].role, self.shapes[name].layer, layers) for name in self.cache}
        return {name: Choice(bits=quant.bits(*at), clip_sigmas=quant.clip_sigmas(*at)) for name, at in where.items()}

    def hessian(self, name: str) -> Tensor | None:
        """The inputs' second moments, None where unknown."""
        return None if self.calibration is None else self.calibration.hessians.get(name)

    def weight_of_error(self, name: str) -> float:
        """Nats per unit of error under the Hessian; 1 without calibration."""
        return 1.0 if self.calibration is None else self.calibration.sensitivity[name] / 2

    @cached_property
    def row_factors(self) -> dict[str, Tensor]:
        """(rows,) multiples of the steps of matrices whose rows weigh differently, their geometric mean 1.

        Equal slopes make a row's step the inverse root of its weight, whatever its deviation. On a trained embedding of
        1,024 tokens at 3 bits that cut the loss from 0.122 to 0.022 bpb against steps by deviation; frequent tokens
        count hundreds of times as much as rare ones.
        """
        factors = {}
        for name, weights in (self.calibration.row_weights if self.calibration else {}).items():
            sigma = self.state[name].float().square().mean(1).sqrt()
            is_live = sigma > 0  # rows that never saw a gradient would set the mean of all
            logs = torch.where(is_live, -0.5 * weights.cpu().log() - sigma.clamp_min(1e-12).log(), 0.0)
            logs[is_live] -= logs[is_live].mean()
            factors[name] = logs.exp()
        return factors

    def row_costs(self, name: str) -> Tensor:
        """(rows, 1) weights of a matrix' rows, of mean 1."""
        weights = self.calibration.row_weights.get(name) if self.calibration else None
        return torch.ones(self.shapes[name].shape[0], 1) if weights is None else weights.cpu()[:, None]

    @cached_property
    def tables(self) -> dict[str, RateTable]:
        """Bits and error of every matrix over the grid of steps, from plain rounding of some of its rows.

        With error feedback a column's rounding error counts by the square of the feedback factor's diagonal; entropy
        and squared error are those of plain rounding. What rate-aware or dependent rounding changes is about the same
        for all matrices, so it moves no bits between them; the packed size is measured anyway.
        """
        plan, quant, tables = self.explicit_plan(), self.config.quant, {}
        for name in self.cache:
            weight, bits = self.state[name].float(), plan[name].bits
            limit, (rows, cols) = code_limit(bits), weight.shape
            hessian = self.hessian(name)
            if hessian is None:
                column_cost = np.ones(cols)
            elif quant.method == "round":
                column_cost = hessian.diagonal().double().cpu().numpy()
            else:
                order, gains = hessian.diagonal().argsort(descending=True, stable=True), torch.ones_like(hessian[0])
                if quant.column_plan:  # without its gains a table had an embedding cost 20 times what it does
                    order, gains = column_order(plan_columns(hessian, damping=quant.damping))
                metric = hessian[order][:, order] * gains * gains[:, None]
                column_cost = feedback_factor(metric, quant.damping).diagonal().double().cpu().numpy() ** -2
                order, inverse = order.cpu(), (1 / gains).cpu()
                weight = weight[:, order] * inverse
            chosen = slice(None, None, max(1, rows * cols // SAMPLED_WEIGHTS))
            some, factors = weight[chosen].numpy(), self.row_factors.get(name)
            sigma = np.sqrt(np.square(self.state[name].float()[chosen].numpy()).mean(1, keepdims=True))
            scaled = some / np.where(sigma > 0, sigma, 1)
            # The floors of `row_scales`.
            spread, reach = np.sqrt(np.square(scaled).mean(1, keepdims=True)), abs(scaled).max(1, keepdims=True)
            reach = np.minimum(reach / limit, REACH_STEP_SIGMAS * spread)
            cost = column_cost * np.square(sigma) * self.row_costs(name)[chosen].numpy()
            cost *= self.weight_of_error(name) * rows / len(some)
            # Signs have one best step, the mean magnitude; clipping below one deviation helps nobody.
            widest = GRID[-1] if quant.method == "round" else GPTQ_COARSEST
            allowed = (GRID + math.log2(limit) >= 0) & (widest >= GRID)
            grid = np.array([math.log2(0.798)]) if bits == 1 else GRID[allowed]
            points = []
            for step in np.exp2(grid):
                steps = np.full((len(some), 1), step)
                if factors is not None:
                    steps = step * factors[chosen].numpy()[:, None]
                if factors is not None or (quant.column_plan and hessian is not None and quant.method == "gptq"):
                    steps = np.maximum(steps, np.maximum(spread * min(step, CLIP_FLOOR_SIGMAS / limit), reach))
                points.append(_rate_and_error(scaled, steps, limit, cost, binary=bits == 1))
            tables[name] = RateTable(
                log_steps=grid,
                bits=np.array([rate for rate, _ in points]) * rows * cols,
                errors=np.array([error for _, error in points]),
            )
        return tables

    def plan_at(self, log_steps: Mapping[str, float]) -> Plan:
        """Choices of so large steps, within the config's bits."""
        explicit = self.explicit_plan()
        return {
            name: replace(explicit[name], clip_sigmas=2.0**step * code_limit(explicit[name].bits))
            for name, step in log_steps.items()
        }

    def correct_largest(self, plan: Plan) -> None:
        """Give the low-rank correction to the matrices that the plan hurts most."""
        quant = self.config.quant
        if quant.lowrank_rank and quant.lowrank_tensors:
            errors = {
                name: float(np.interp(plan[name].log_step, table.log_steps, table.errors))
                for name, table in self.tables.items()
            }
            self.corrected = frozenset(sorted(errors, key=errors.__getitem__)[-quant.lowrank_tensors :])

    def quantized(self, name: str, choice: Choice) -> QuantizedTensor:
        """One matrix at its choice; the last three of each matrix are kept."""
        quant, kept, key = self.config.quant, self.cache[name], (choice, name in self.corrected)
        if key not in kept:
            self.passes += 1
            while len(kept) > 2:
                kept.pop(next(iter(kept)))
            weight = self.state[name].to(self.env.device)
            factors = self.row_factors.get(name)
            plain = quant.method == "round" and quant.states == 1 and factors is None
            plain = plain and not (quant.rate_weight or quant.group_size)
            try:
                if plain and not key[1]:
                    codes, scales = quantize_rows(weight, bits=choice.bits, clip_sigmas=choice.clip_sigmas)
                    item = QuantizedTensor(codes=codes, scales=scales, bits=choice.bits)
                else:
                    binary = choice.bits == 1
                    item = quantize_matrix(
                        weight,
                        bits=choice.bits,
                        clip_sigmas=choice.clip_sigmas,
                        hessian=self.hessian(name) if quant.method == "gptq" else None,
                        states=1 if binary else quant.states,
                        rate_weight=0.0 if binary else quant.rate_weight,
                        row_factors=None if factors is None else factors.to(weight.device),
                        group=quant.group(weight.shape[1]),
                        plan=quant.column_plan and quant.method == "gptq" and self.hessian(name) is not None,
                        damping=quant.damping,
                        rank=min(quant.lowrank_rank, *weight.shape) if key[1] else 0,
                        rank_bits=LOWRANK_BITS,
                    )
            except UserError as error:
                raise error.at(name) from None
            low, plan = item.lowrank, item.columns
            kept[key] = replace(
                item,
                codes=item.codes.cpu().contiguous(),
                scales=item.scales.cpu().contiguous(),
                lowrank=low and replace(low, left=low.left.cpu(), right=low.right.cpu(), scales=low.scales.cpu()),
                columns=None if plan is None else plan.cpu().contiguous(),
            )
        return kept[key]

    def estimated_bytes(self, plan: Plan) -> float:
        """The packed plan's bytes as its codes' entropies tell them, off by the last pack's error: packing is slow."""
        total = self.bias
        for name, choice in plan.items():
            item = self.quantized(name, choice)
            known = self.estimates.get(name)
            if known is None or known[0] is not item:
                known = self.estimates[name] = item, _entropy_bytes(item.codes)
            total += known[1]
        return total

    def tensors(self, plan: Plan) -> dict[str, PackedTensor]:
        """What the artifact of a plan holds, in `param_shapes` order."""
        return {name: self.quantized(name, plan[name]) if name in plan else self.scalars[name] for name in self.shapes}

    def artifact(self, plan: Plan) -> bytes:
        """The packed plan."""
        return pack_model(self.config.model, shipped_eval(self.config), self.tensors(plan), cache=self.pack_cache)

    @cached_property
    def model(self) -> GPT:
        """A model to load weights into."""
        return GPT(self.config.model).eval().to(self.env.device)

    def loss(self, state: Mapping[str, Tensor]) -> float:
        """Nats per token of some weights on the first calibration tokens of this rank."""
        assert self.calibration is not None
        batches = self.calibration.batches
        self.model.load_state_dict(dict(state))
        return calibration_loss(self.model, batches[: max(1, LOSS_TOKENS // batches[0][0].numel())], self.env)


def ship(bench: QuantBench, *, target_bytes: int, code_bytes: int) -> Shipment:
    """Quantize and pack: as the config says, or with `target_bytes` such that code and model fill it.

    When a role costs more than `max_loss_jump` on its way down from 8 bits, its steps are made smaller (explicit bits:
    one more) until it does not, and under a target the other roles pay for it.

    Raises:
        ValueError: the weights are not finite, or even the coarsest plan is above the target.
    """
    started, passes = time.perf_counter(), bench.passes
    filled: Filled | None = None
    rollbacks: list[dict[str, Any]] = []
    coarsest: dict[str, float] = {}  # largest log2 step that a role may take; filled by rollbacks
    plan = bench.explicit_plan()
    if target_bytes:
        plan, filled = _fitting_plan(bench, target_bytes, code_bytes, coarsest)
    else:
        bench.correct_largest(plan)
    jumps: dict[str, float] = {}
    if bench.config.quant.max_loss_jump:
        tried: dict[str, int] = {}
        while True:
            jumps = staged_jumps(bench, plan)
            worst = max(jumps, key=jumps.__getitem__)
            tried[worst] = tried.get(worst, 0) + 1
            if jumps[worst] <= bench.config.quant.max_loss_jump or tried[worst] > MAX_ROLLBACKS:
                break
            rollback = {"role": worst, "loss_jump": jumps[worst], "done": True}
            rollbacks.append(rollback)
            corrected = bench.corrected
            try:
                if target_bytes:
                    steps = [c.log_step for name, c in plan.items() if bench.shapes[name].role == worst]
                    plan, filled = _fitting_plan(
                        bench, target_bytes, code_bytes, coarsest := coarsest | {worst: max(steps) - 0.5}
                    )
                else:
                    plan = {
                        name: choice.safer() if bench.shapes[name].role == worst else choice
                        for name, choice in plan.items()
                    }
            except UserError as error:  # the target has no room for it
                rollback |= {"done": False, "why": str(error)}
                bench.corrected = corrected
                break
    artifact = bench.artifact(plan)
    if target_bytes and len(artifact) + code_bytes > target_bytes:
        raise UserError(f"packed {len(artifact) + code_bytes} bytes of code and model, the target is {target_bytes}")
    audit = _audit(bench, plan, artifact, code_bytes=code_bytes, target_bytes=target_bytes)
    audit |= {
        "fill": None if filled is None else {"ended": filled.ended, "packs": filled.tries},
        "loss_jumps": jumps,
        "rollbacks": rollbacks,
        "matrices_quantized": bench.passes - passes,
        "seconds": time.perf_counter() - started,
        "calibration_seconds": bench.calibration.seconds if bench.calibration else 0.0,
    }
    return Shipment(artifact=artifact, audit=audit)


def _fitting_plan(
    bench: QuantBench, target_bytes: int, code_bytes: int, coarsest: Mapping[str, float]
) -> tuple[Plan, Filled]:
    """The plan of the target, no role's steps above what `coarsest` allows it."""
    tables = {}
    for name, table in bench.tables.items():
        fine = table.log_steps <= coarsest.get(bench.shapes[name].role, math.inf)
        fine[0] = True
        tables[name] = RateTable(log_steps=table.log_steps[fine], bits=table.bits[fine], errors=table.errors[fine])
    line: PlanLine = plan_line(tables)
    rows = sum(info.shape[0] for info in bench.shapes.values() if info.role != "scalar")
    guess = 8.0 * (target_bytes - code_bytes) - 6 * rows - 12 * sum(map(torch.numel, bench.scalars.values())) - 8000
    bench.correct_largest(bench.plan_at(line.at(guess)))

    def size_of(bits: float) -> int:
        plan = bench.plan_at(line.at(bits))
        size = code_bytes + len(bench.artifact(plan))
        bench.bias += size - code_bytes - bench.estimated_bytes(plan)
        return size

    packs = 0
    if not bench.bias:
        packs, _ = 1, size_of(guess)
    # Two estimates come near enough nearly always; what does not is left to a search with real sizes alone.
    for _ in range(2):
        try:
            found = fill(
                lambda bits: round(code_bytes + bench.estimated_bytes(bench.plan_at(line.at(bits)))),
                line,
                target=int(target_bytes * (1 - FILL_TOLERANCE / 4)),
                guess=guess,
            )
        except UserError:
            break
        guess, packs = found.bits, packs + 1
        size = size_of(guess)
        if size <= target_bytes and (size >= target_bytes * (1 - FILL_TOLERANCE) or guess >= line.most_bits):
            ended = "within" if size >= target_bytes * (1 - FILL_TOLERANCE) else "finest"
            return bench.plan_at(line.at(guess)), Filled(bits=guess, size=size, tries=packs, ended=ended)
    filled = fill(size_of, line, target=target_bytes, guess=guess)
    return bench.plan_at(line.at(filled.bits)), replace(filled, tries=filled.tries + packs)


def _entropy_bytes(codes: Tensor) -> float:
    """Entropy of codes in rows of about equal mean magnitude, and what learning these costs (space.forecast.sizing)."""
    array = codes.numpy()
    classes = np.rint(4 * np.log2(np.abs(array.astype(np.int16)).mean(1) + 0.05)).astype(np.int64)
    total = 0.27 * len(array)
    for kind in np.unique(classes):
        counts = np.bincount(array[classes == kind].ravel().view(np.uint8), minlength=256)
        shares = counts[counts > 0] / counts.sum()
        total -= counts.sum() / 8 * float((shares * np.log2(shares)).sum())
    return total


def staged_jumps(bench: QuantBench, plan: Plan) -> dict[str, float]:
    """Nats that each role adds on its way from 8 bits to the plan: embedding, attention, MLP, one after the other."""
    safe = Choice(bits=SAFE_BITS, clip_sigmas=SAFE_CLIP)
    weights = {name: tensor.float() for name, tensor in bench.scalars.items()} | {
        name: dequantize(bench.quantized(name, safe)) for name in plan
    }
    before = bench.loss(weights)
    jumps: dict[str, float] = {}
    for role in dict.fromkeys(bench.shapes[name].role for name in plan):
        members = [name for name in plan if bench.shapes[name].role == role]
        weights |= {name: dequantize(bench.quantized(name, plan[name])) for name in members}
        after = bench.loss(weights)
        jumps[role], before = after - before, after
    return jumps


def shipped_eval(config: RunConfig) -> EvalConfig:
    """The artifact's eval config: a proxy's shortcut of scoring fewer tokens is not part of the model."""
    return replace(config.eval, max_tokens=0)


def _audit(bench: QuantBench, plan: Plan, artifact: bytes, *, code_bytes: int, target_bytes: int) -> dict[str, Any]:
    """Where the bytes and the errors are; `bytes` adds up to the artifact."""
    num_params = sum(info.size for info in bench.shapes.values())
    tensors: dict[str, dict[str, Any]] = {}
    for name, choice in plan.items():
        weight, item = bench.state[name].float(), bench.quantized(name, choice)
        error, hessian = dequantize(item) - weight, bench.hessian(name)
        weighted = error * bench.row_costs(name).sqrt()
        damage = hessian_error(weighted, None if hessian is None else hessian.cpu()) * bench.weight_of_error(name)
        tensors[name] = {
            "bits": choice.bits,
            "step_sigmas": round(2.0**choice.log_step, 5),
            "relative_error": float(error.square().sum() / weight.square().sum().clamp_min(1e-30)),
            "error_nats" if bench.calibration else "squared_error": damage,
            **({"lowrank": True} if item.lowrank is not None else {}),
        }
    audit: dict[str, Any] = {
        "target_bytes": target_bytes,
        "artifact_bytes": len(artifact) + code_bytes,
        "model_bytes": len(artifact),
        "code_bytes": code_bytes,
        "bits_per_weight": 8 * len(artifact) / num_params,
        "bytes": stream_bytes(artifact),
        "tensors": tensors,
    }
    if bench.calibration is not None:
        audit |= {
            "loss_before": bench.loss(bench.state),
            "loss_after": bench.loss(dequantize_state(bench.tensors(plan))),
            "predicted_loss_increase": sum(t["error_nats"] for t in tensors.values()),
            "calibration_tokens": bench.calibration.tokens,
            "without_hessian": sorted(set(plan) - set(bench.calibration.hessians)),
        }
    return audit


def _rate_and_error(
    scaled: np.ndarray, steps: np.ndarray, limit: int, cost: np.ndarray, *, binary: bool
) -> tuple[float, float]:
    """Bits per weight of rounded weights, as entropies of rows of about equal steps, and squared error times `cost`."""
    codes = np.sign(scaled) if binary else np.clip(np.rint(scaled / steps), -limit, limit)
    error = float((np.square(scaled - codes * steps) * cost).sum())
    classes = np.unique(np.rint(4 * np.log2(steps[:, 0])), return_inverse=True)[1][:, None]
    counts = np.bincount((codes + limit + (2 * limit + 1) * classes).astype(np.int64).ravel())
    counts = np.pad(counts, (0, -len(counts) % (2 * limit + 1))).reshape(-1, 2 * limit + 1)
    where = np.nonzero(counts)
    shares = counts[where] / counts.sum(1)[where[0]]
    return float(-(counts[where] * np.log2(shares)).sum()) / codes.size, error
