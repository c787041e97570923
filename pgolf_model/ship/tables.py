"""Bits and errors of a matrix at every step it may take, from plain rounding of some of its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgolf_model.config import QuantConfig, code_limit
from pgolf_model.quant.gptq import feedback_factor, plan_columns
from pgolf_model.quant.quantize import CLIP_FLOOR_SIGMAS, REACH_STEP_SIGMAS, column_order
from pgolf_model.ship.allocate import RateTable
from pgolf_model.ship.calibrate import Calibration

GRID = np.arange(-18, 9) / 4  # log2 of the step in row deviations, from 0.044 to 4: about 6.5 to 0.3 bits per weight
GPTQ_COARSEST = 1.0  # the same with error feedback: at 4 deviations it made weights several times too large
SAMPLED_WEIGHTS = 2**16  # per matrix, in whole rows: entropies are good to 0.001 bits, tables take seconds


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeighedMatrix:
    """One trained matrix and what its errors cost."""

    weight: Tensor  # (rows, cols) float32 on the CPU
    hessian: Tensor | None  # (cols, cols) second moments of its inputs; None where they are unknown
    error_cost: float  # nats per unit of error under the Hessian; 1 without calibration
    row_costs: Tensor  # (rows, 1) multiples of that cost, mean 1
    row_factors: Tensor | None  # (rows,) multiples of the step, geometric mean 1; None where all rows weigh alike


def weigh_matrix(name: str, weight: Tensor, calibration: Calibration | None) -> WeighedMatrix:
    """The matrix with what the calibration knows of it; without calibration all errors cost the same.

    Equal slopes make a row's step the inverse root of its weight, whatever its deviation. On a trained embedding of
    1,024 tokens at 3 bits that cut the loss from 0.122 to 0.022 bpb against steps by deviation; frequent tokens count
    hundreds of times as much as rare ones.
    """
    row_weights = None if calibration is None else calibration.row_weights.get(name)
    factors, costs = None, torch.ones(len(weight), 1)
    if row_weights is not None:
        sigma = weight.float().square().mean(1).sqrt()
        is_live = sigma > 0  # rows that never saw a gradient would set the mean of all
        logs = torch.where(is_live, -0.5 * row_weights.cpu().log() - sigma.clamp_min(1e-12).log(), 0.0)
        logs[is_live] -= logs[is_live].mean()
        factors, costs = logs.exp(), row_weights.cpu()[:, None]
    return WeighedMatrix(
        weight=weight.float(),
        hessian=None if calibration is None else calibration.hessians.get(name),
        error_cost=1.0 if calibration is None else calibration.sensitivity[name] / 2,
        row_costs=costs,
        row_factors=factors,
    )


def rate_table(matrix: WeighedMatrix, quant: QuantConfig, bits: int) -> RateTable:
    """Bits and error of the matrix over the grid of steps.

    Entropy and squared error are those of plain rounding. What rate-aware or dependent rounding changes is about the
    same for all matrices, so it moves no bits between them; the packed size is measured anyway.
    """
    (rows, cols), limit = matrix.weight.shape, code_limit(bits)
    visited, column_cost = _visited_columns(matrix, quant)
    chosen = slice(None, None, max(1, rows * cols // SAMPLED_WEIGHTS))
    some, factors = visited[chosen].numpy(), matrix.row_factors
    sigma = np.sqrt(np.square(matrix.weight[chosen].numpy()).mean(1, keepdims=True))
    scaled = some / np.where(sigma > 0, sigma, 1)
    # The floors of `row_scales`.
    spread, reach = np.sqrt(np.square(scaled).mean(1, keepdims=True)), abs(scaled).max(1, keepdims=True)
    reach = np.minimum(reach / limit, REACH_STEP_SIGMAS * spread)
    cost = column_cost * np.square(sigma) * matrix.row_costs[chosen].numpy()
    cost *= matrix.error_cost * rows / len(some)
    has_gains = quant.column_plan and matrix.hessian is not None and quant.method == "gptq"
    grid, points = _grid_of(bits, quant), []
    for step in np.exp2(grid):
        steps = np.full((len(some), 1), step)
        if factors is not None:
            steps = step * factors[chosen].numpy()[:, None]
        if factors is not None or has_gains:
            steps = np.maximum(steps, np.maximum(spread * min(step, CLIP_FLOOR_SIGMAS / limit), reach))
        points.append(_rate_and_error(scaled, steps, limit, cost, binary=bits == 1))
    return RateTable(
        log_steps=grid,
        bits=np.array([rate for rate, _ in points]) * rows * cols,
        errors=np.array([error for _, error in points]),
    )


def _grid_of(bits: int, quant: QuantConfig) -> np.ndarray:
    """log2 of the steps that a matrix of so many bits may take."""
    if bits == 1:  # signs have one best step, the mean magnitude
        return np.array([math.log2(0.798)])
    widest = GRID[-1] if quant.method == "round" else GPTQ_COARSEST
    return GRID[(GRID + math.log2(code_limit(bits)) >= 0) & (widest >= GRID)]  # clips below one deviation help nobody


def _visited_columns(matrix: WeighedMatrix, quant: QuantConfig) -> tuple[Tensor, np.ndarray]:
    """(weight, cost of a squared error in each column), columns in the order and at the gains of the quantizer.

    With error feedback a column's rounding error counts by the square of the feedback factor's diagonal.
    """
    hessian = matrix.hessian
    if hessian is None:
        return matrix.weight, np.ones(matrix.weight.shape[1])
    if quant.method == "round":
        return matrix.weight, hessian.diagonal().double().cpu().numpy()
    order, gains = hessian.diagonal().argsort(descending=True, stable=True), torch.ones_like(hessian[0])
    if quant.column_plan:  # without its gains a table had an embedding cost 20 times what it does
        order, gains = column_order(plan_columns(hessian, damping=quant.damping))
    metric = hessian[order][:, order] * gains * gains[:, None]
    column_cost = feedback_factor(metric, quant.damping).diagonal().double().cpu().numpy() ** -2
    return matrix.weight[:, order.cpu()] * (1 / gains).cpu(), column_cost


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
