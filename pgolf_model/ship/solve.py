"""From trained weights to an artifact of a given size: the bit plan that fills it, rollbacks of what hurts, the audit.

Bit plans come from tables (`pgolf_model.ship.allocate`); their sizes from really packing them.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pgolf_model.codec.pack import stream_bytes
from pgolf_model.errors import UserError
from pgolf_model.quant.gptq import hessian_error
from pgolf_model.quant.quantize import dequantize, dequantize_state
from pgolf_model.ship.allocate import FILL_TOLERANCE, Filled, RateTable, fill, plan_line
from pgolf_model.ship.bench import SAFE_BITS, SAFE_CLIP, BitPlan, QuantBench

MAX_ROLLBACKS = 6  # per role


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shipment:
    """One artifact and how it came about."""

    artifact: bytes
    audit: dict[str, Any]  # plain values, ready for JSON


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Solution:
    """A bit plan and how it was found."""

    plan: BitPlan
    filled: Filled | None = None  # None without a target
    loss_jumps: Mapping[str, float]  # role -> nats; empty without a limit on them
    rollbacks: tuple[dict[str, Any], ...] = ()


def ship(bench: QuantBench, *, target_bytes: int, code_bytes: int) -> Shipment:
    """Quantize and pack: as the config says, or with `target_bytes` such that code and model fill it.

    When a role costs more than `max_loss_jump` on its way down from 8 bits, its steps are made smaller (explicit bits:
    one more) until it does not, and under a target the other roles pay for it.

    Raises:
        UserError: the weights are not finite, or even the coarsest bit plan is above the target.
    """
    started, passes = time.perf_counter(), bench.passes
    found = _solve(bench, target_bytes, code_bytes)
    artifact = bench.artifact(found.plan)
    if target_bytes and len(artifact) + code_bytes > target_bytes:
        raise UserError(f"packed {len(artifact) + code_bytes} bytes of code and model, the target is {target_bytes}")
    audit = _audit(bench, found.plan, artifact, code_bytes=code_bytes, target_bytes=target_bytes)
    audit |= {
        "fill": None if found.filled is None else {"ended": found.filled.ended, "packs": found.filled.tries},
        "loss_jumps": found.loss_jumps,
        "rollbacks": list(found.rollbacks),
        "matrices_quantized": bench.passes - passes,
        "seconds": time.perf_counter() - started,
        "calibration_seconds": bench.calibration.seconds if bench.calibration else 0.0,
    }
    return Shipment(artifact=artifact, audit=audit)


def _solve(bench: QuantBench, target_bytes: int, code_bytes: int) -> _Solution:
    """The bit plan for the target or of the config's bits, rolled back where a role costs more than `max_loss_jump`."""
    limit, filled = bench.config.quant.max_loss_jump, None
    coarsest: dict[str, float] = {}  # largest log2 step that a role may take; filled by rollbacks
    if target_bytes:
        plan, filled = _fitting_plan(bench, target_bytes, code_bytes, coarsest)
    else:
        plan = bench.explicit_plan()
        plan |= {name: replace(plan[name], is_corrected=True) for name in bench.most_hurt(plan)}
    jumps: dict[str, float] = {}
    rollbacks: list[dict[str, Any]] = []
    tried: Counter[str] = Counter()
    while limit:
        jumps = staged_jumps(bench, plan)
        worst = max(jumps, key=jumps.__getitem__)
        tried[worst] += 1
        if jumps[worst] <= limit or tried[worst] > MAX_ROLLBACKS:
            break
        rollbacks.append({"role": worst, "loss_jump": jumps[worst], "done": True})
        members = [name for name in plan if bench.shapes[name].role == worst]
        if not target_bytes:
            plan = plan | {name: plan[name].safer() for name in members}
            continue
        coarsest[worst] = max(plan[name].log_step for name in members) - 0.5
        try:
            plan, filled = _fitting_plan(bench, target_bytes, code_bytes, coarsest)
        except UserError as error:  # the target has no room for it
            rollbacks[-1] |= {"done": False, "why": str(error)}
            break
    return _Solution(plan=plan, filled=filled, loss_jumps=jumps, rollbacks=tuple(rollbacks))


def _fitting_plan(
    bench: QuantBench, target_bytes: int, code_bytes: int, coarsest: Mapping[str, float]
) -> tuple[BitPlan, Filled]:
    """The bit plan of the target, no role's steps above what `coarsest` allows it."""
    tables = {}
    for name, table in bench.tables.items():
        fine = table.log_steps <= coarsest.get(bench.shapes[name].role, math.inf)
        fine[0] = True
        tables[name] = RateTable(log_steps=table.log_steps[fine], bits=table.bits[fine], errors=table.errors[fine])
    line = plan_line(tables)
    rows = sum(info.shape[0] for info in bench.shapes.values() if info.role != "scalar")
    guess = 8.0 * (target_bytes - code_bytes) - 6 * rows - 12 * sum(map(torch.numel, bench.scalars.values())) - 8000
    corrected = bench.most_hurt(bench.plan_at(line.at(guess)))

    def plan_of(bits: float) -> BitPlan:
        return bench.plan_at(line.at(bits), corrected)

    def size_of(bits: float) -> int:
        return code_bytes + bench.packed_bytes(plan_of(bits))

    packs = 0
    if not bench.has_packed:
        packs, _ = 1, size_of(guess)
    # Two estimates nearly always come near enough; otherwise a search with real sizes alone follows.
    for _ in range(2):
        try:
            found = fill(
                lambda bits: round(code_bytes + bench.estimated_bytes(plan_of(bits))),
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
            return plan_of(guess), Filled(bits=guess, size=size, tries=packs, ended=ended)
    filled = fill(size_of, line, target=target_bytes, guess=guess)
    return plan_of(filled.bits), replace(filled, tries=filled.tries + packs)


def staged_jumps(bench: QuantBench, plan: BitPlan) -> dict[str, float]:
    """Nats that each role adds on its way from 8 bits to the bit plan: embedding, attention, MLP, in turn."""
    weights = {name: tensor.float() for name, tensor in bench.scalars.items()} | {
        name: dequantize(bench.quantized(name, replace(choice, bits=SAFE_BITS, clip_sigmas=SAFE_CLIP)))
        for name, choice in plan.items()
    }
    before = bench.loss(weights)
    jumps: dict[str, float] = {}
    for role in dict.fromkeys(bench.shapes[name].role for name in plan):
        members = [name for name in plan if bench.shapes[name].role == role]
        weights |= {name: dequantize(bench.quantized(name, plan[name])) for name in members}
        after = bench.loss(weights)
        jumps[role], before = after - before, after
    return jumps


def _audit(bench: QuantBench, plan: BitPlan, artifact: bytes, *, code_bytes: int, target_bytes: int) -> dict[str, Any]:
    """Where the bytes and the errors are; `bytes` adds up to the artifact."""
    num_params = sum(info.size for info in bench.shapes.values())
    tensors: dict[str, dict[str, Any]] = {}
    for name, choice in plan.items():
        matrix, item = bench.matrices[name], bench.quantized(name, choice)
        error, hessian = dequantize(item) - matrix.weight, matrix.hessian
        weighted = error * matrix.row_costs.sqrt()
        damage = hessian_error(weighted, None if hessian is None else hessian.cpu()) * matrix.error_cost
        tensors[name] = {
            "bits": choice.bits,
            "step_sigmas": round(2.0**choice.log_step, 5),
            "relative_error": float(error.square().sum() / matrix.weight.square().sum().clamp_min(1e-30)),
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
