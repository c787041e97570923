"""GPTQ: round a matrix column by column so that its outputs change least, given what its inputs look like.

With H the inputs' second moments and H^-1 = U'U, U upper triangular, the output error of codes chosen from left to
right is a plain sum over columns, (error_j / U_jj)**2, once every column's error has moved the columns to its right.
So any rule that rounds one row from left to right fits in: nearest, rate-aware, or dependent quantization.
Source: https://arxiv.org/abs/2210.17323
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf_model.errors import UserError
from pgolf_model.quant.trellis import code_bits, search_block

ROW_CHUNK = 512  # rows searched at once on a CPU: survivors stay in its cache
LOOKAHEAD = 24  # columns beyond a block that the search sees before it decides the block
GAIN_POWER = 0.5  # of the ideal gain of a column's step that is used
RATE_SAMPLE = (512, 64)  # rows x columns of the sample from which bits per code are estimated


def gptq(
    weight: Tensor,
    hessian: Tensor | None,
    *,
    steps: Tensor,
    limit: int,
    states: int = 1,
    rate_weight: float = 0.0,
    damping: float = 0.01,
    block: int = 64,
    binary: bool = False,
    sort: bool | None = None,
) -> Tensor:
    """Codes that keep `weight @ inputs`: error feedback from column to column, weighing errors against bits.

    Args:
        weight: (rows, cols), finite.
        hessian: (cols, cols), inputs' @ inputs summed over calibration tokens, at any scale; None weighs all columns
            alike and has no feedback.
        steps: (rows,), or (rows, groups) with one step per group of cols / groups columns.
        limit: largest code.
        states: 1 rounds each weight alone, 4 and 8 are dependent quantization.
        rate_weight: error that one bit is worth, in squared spacings (the step, or twice the step if states > 1) of
            a column of mean sensitivity. 0 is nearest; 0.1155 = ln(4)/12 is the slope of fine uniform rounding.
        damping: fraction of the mean diagonal added to the diagonal of H.
        block: columns whose feedback is applied at once to the rest; also the length of a search.
        binary: codes are -1 and 1, without zero.
        sort: visit the columns by falling diagonal of H; by default with one state only, because the reader must walk
            the states in the same order. See `plan_columns`.
    Returns:
        (rows, cols) int8 or, above 127, int16.
    """
    rows, cols = weight.shape
    device = weight.device
    order = torch.arange(cols, device=device)
    if hessian is None:
        factor = torch.eye(cols, device=device)
    else:
        if states == 1 if sort is None else sort:
            order = hessian.diagonal().argsort(descending=True, stable=True)
        factor = feedback_factor(hessian[order][:, order], damping)
        factor *= factor.diagonal().pow(-2).mean().sqrt()  # a column of mean sensitivity costs error**2
    steps = steps.float().reshape(rows, -1)
    steps = steps.repeat_interleave(cols // steps.shape[1], 1)[:, order]
    weight = weight.float()[:, order]
    price = rate_weight * steps.square().mean(1) * (1 if states == 1 else 4)
    bits = torch.zeros(2, limit + 1, device=device)
    if rate_weight:
        bits = _estimate_bits(weight / steps, states=states, limit=limit, rate_weight=rate_weight)
    codes = torch.empty(rows, cols, dtype=torch.int8 if limit < 128 else torch.int16, device=device)
    for lines in torch.split(torch.arange(rows, device=device), rows if device.type == "cuda" else ROW_CHUNK):
        rest, state = weight[lines], torch.zeros_like(lines)
        for start in range(0, cols, block):
            stop = min(start + block, cols)
            span = slice(start, stop + (LOOKAHEAD if states > 1 else 0))
            found = search_block(
                rest[:, span],
                factor[span, span],
                state,
                steps=steps[lines, span],
                bits=bits,
                states=states,
                rate_weight=price[lines],
                keep=stop - start,
                binary=binary,
            )
            state = found.state
            codes[lines[:, None], order[start:stop]] = found.codes.to(codes.dtype)
            rest[:, stop:] -= found.errors @ factor[start:stop, stop:]
    return codes


def feedback_factor(hessian: Tensor, damping: float) -> Tensor:
    """(cols, cols) float32 upper triangular U with U'U the inverse of the damped H; computed in float64.

    Columns that saw no input (a zero diagonal even when damped) count 1.
    Raises:
        UserError: H is not finite, or not positive definite even when damped.
    """
    hessian = hessian.double()
    if not hessian.isfinite().all():
        raise UserError("the calibration inputs hold NaN or infinity", hint="lower the learning rate")
    diagonal = hessian.diagonal() + damping * hessian.diagonal().mean()
    hessian = hessian.diagonal_scatter(torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)))
    # The Cholesky factor of H turned by 180 degrees, turned back, is upper triangular: H = M M', so U = M^-1.
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if failed:
        raise UserError(f"the Hessian is not positive definite with damping {damping}", hint="use a larger one")
    identity = torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor.float()


def plan_columns(hessian: Tensor, *, damping: float = 0.01) -> Tensor:
    """(2, cols) int8: class of each column, visited in rising order, and its gain in quarter octaves.

    Both are for the reader too. Visiting sensitive columns first leaves their errors more columns to hide in; classes
    are half octaves of the damped diagonal, as good as the diagonal itself and about 3 bits each. A column whose
    rounding error costs d = 1 / U_jj**2 deserves a step proportional to d**-0.5 (reverse water-filling) where many bits
    are spent and everything is coded ideally; half of that exponent was as good or better when measured.
    """
    diagonal = hessian.diagonal() + damping * hessian.diagonal().mean()
    diagonal = diagonal.log2().nan_to_num(neginf=-60.0, posinf=60.0)
    classes = ((diagonal.max() - diagonal) * 2).round().clamp(0, 127)
    order = classes.argsort(stable=True)
    spread = feedback_factor(hessian[order][:, order], damping).diagonal().log2()
    gains = torch.empty_like(classes)
    gains[order] = ((spread - spread.mean()) * (4 * GAIN_POWER)).round().clamp(-40, 40)
    return torch.stack([classes, gains]).to(torch.int8)


def hessian_error(error: Tensor, hessian: Tensor | None) -> float:
    """Summed squared change of the outputs when weights change by `error`, (rows, cols)."""
    error = error.double()
    return float((error.square() if hessian is None else error @ hessian.double() * error).sum())


def _estimate_bits(target: Tensor, *, states: int, limit: int, rate_weight: float) -> Tensor:
    """(2, limit + 1) bits of codes in the rate-aware codes of a sample of `target` (in steps): a fixed point."""
    rows, cols = RATE_SAMPLE
    flat = target.flatten()
    cols = min(cols, len(flat))
    rows = min(rows, len(flat) // cols, max(64, len(flat) // (4 * cols)))  # four passes: no more than one over all
    sample = flat[torch.arange(rows * cols, device=flat.device) * (len(flat) // (rows * cols))].view(rows, cols)
    ones, state = torch.ones_like(sample), torch.zeros(rows, dtype=torch.long, device=flat.device)
    price = torch.full_like(sample[:, 0], rate_weight * (1 if states == 1 else 4))
    bits = torch.zeros(2, limit + 1, device=flat.device)
    lone = torch.eye(cols, device=flat.device)
    for _ in range(4):
        found = search_block(sample, lone, state, steps=ones, bits=bits, states=states, rate_weight=price, keep=cols)
        bits = code_bits(found.codes, states, limit)
    return bits
