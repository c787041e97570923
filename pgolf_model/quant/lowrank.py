"""A small correction of a quantized matrix: the product of two thin integer matrices (LQER).

Measured on a trained 6x256 model (4 matrices of block 3, output error under held-out inputs), rank 4 at 4 bits, its
bytes counted: it saved 0.13 bits per weight with GPTQ at 3 bits and 0.29 with GPTQ on ternary codes, and lost 0.07
with plain rounding and 0.05 with dependent quantization and a column plan, which leave a white residual. Rank 2
was better than 4 except on ternary codes.

Source: https://arxiv.org/abs/2402.02446
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf_model.config import code_limit

FACTOR_CLIP_SIGMAS = {2: 1.2, 3: 2.0, 4: 2.7, 5: 3.2, 6: 3.6, 7: 4.0, 8: 4.3}  # least squared error of Gaussian codes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LowRank:
    """The matrix `(left * scales) @ right`."""

    left: Tensor  # (rows, rank) int8
    right: Tensor  # (rank, cols) int8
    scales: Tensor  # (rank,) float16, the product of both steps
    bits: int  # 2..8, bounds both factors' codes


def lowrank_values(item: LowRank) -> Tensor:
    """(rows, cols) float32."""
    return (item.left.float() * item.scales.float()) @ item.right.float()


def fit_lowrank(residual: Tensor, factor: Tensor | None, *, rank: int, bits: int) -> LowRank:
    """The product of rank `rank` nearest to `residual`, its factors rounded to `bits`.

    Args:
        residual: (rows, cols) weights minus what their codes say.
        factor: `feedback_factor` of the inputs, to be near in the outputs; None is near in the weights.
    Raises:
        ValueError: rank above the matrix' own, or bits outside 2..8.
    """
    if not 1 <= rank <= min(residual.shape) or bits not in FACTOR_CLIP_SIGMAS:
        raise ValueError(f"rank must be in [1, {min(residual.shape)}] and bits in [2, 8], got {rank} and {bits}")
    residual, limit = residual.double(), code_limit(bits)

    def rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of each column and their steps."""
        steps = (matrix.square().mean(0).sqrt() * (FACTOR_CLIP_SIGMAS[bits] / limit)).clamp_min(1e-30)
        return (matrix / steps).round().clamp(-limit, limit), steps

    seen = residual
    if factor is not None:  # with H = M M', M = inverse of factor: the output error of E is the norm of E M
        seen = torch.linalg.solve_triangular(factor.double(), residual, upper=True, left=False)
    left, _ = rounded(torch.linalg.svd(seen, full_matrices=False).U[:, :rank])
    right = torch.linalg.lstsq(left, residual).solution  # the best partner of the codes, whatever the metric
    right, steps = rounded(right.T)
    return LowRank(left=left.to(torch.int8), right=right.T.to(torch.int8).contiguous(), scales=steps.half(), bits=bits)
