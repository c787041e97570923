"""Cross-entropy of a soft-capped head without the whole table of logits.

Shape suffixes: N tokens, D model channels, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def softcapped_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float, chunk_tokens: int
) -> Tensor:
    """Cross-entropy in nats of each target under logits = c tanh(x W^T / c), (N,), float32 at least.

    Logits exist for `chunk_tokens` tokens at a time and are computed a second time for the gradient. Products take the
    ambient autocast's dtype, else the tensors' own, as `F.linear` does.
    """
    products = _in_product_dtype(x_ND, weight_VD / softcap)
    losses: Tensor = _TokenLosses.apply(*products, targets_N, softcap, chunk_tokens)  # type: ignore[no-untyped-call]
    return losses


def mean_softcapped_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float, chunk_tokens: int
) -> Tensor:
    """The mean of `softcapped_cross_entropy`, a scalar.

    When gradients are wanted they are computed along with each chunk's losses: no logits are computed twice.
    """
    products = _in_product_dtype(x_ND, weight_VD / softcap)
    loss: Tensor = _MeanLoss.apply(*products, targets_N, softcap, chunk_tokens)  # type: ignore[no-untyped-call]
    return loss


class _TokenLosses(torch.autograd.Function):
    """Losses of all tokens; the weight comes divided by the softcap."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float, chunk: int) -> Tensor:
        ctx.save_for_backward(x_ND, weight_VD, targets_N)
        ctx.softcap, ctx.chunk = softcap, chunk
        parts = zip(torch.split(x_ND, chunk), torch.split(targets_N, chunk), strict=True)
        return torch.cat([_chunk_losses(x_CD, weight_VD, targets_C, softcap)[0] for x_CD, targets_C in parts])

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, targets_N = ctx.saved_tensors
        grad_x_ND, grad_weight_VD = torch.empty_like(x_ND), torch.zeros_like(weight_VD, dtype=grad_N.dtype)
        chunks = [torch.split(tensor, ctx.chunk) for tensor in (x_ND, targets_N, grad_x_ND, grad_N)]
        for x_CD, targets_C, grad_x_CD, grad_C in zip(*chunks, strict=True):
            _, tanh_CV, shares_CV = _chunk_losses(x_CD, weight_VD, targets_C, ctx.softcap)
            grad_CV = _chunk_gradient(tanh_CV, shares_CV, targets_C).mul_(grad_C[:, None] * ctx.softcap)
            _add_products(grad_CV, x_CD, weight_VD, grad_x_CD, grad_weight_VD)
        return grad_x_ND, grad_weight_VD.to(weight_VD.dtype), None, None, None


class _MeanLoss(torch.autograd.Function):
    """The mean over all tokens, its gradients computed on the way; the weight comes divided by the softcap."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float, chunk: int) -> Tensor:
        total = torch.zeros((), device=x_ND.device, dtype=torch.promote_types(x_ND.dtype, torch.float32))
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        if wanted:
            grad_x_ND, grad_weight_VD = torch.empty_like(x_ND), torch.zeros_like(weight_VD, dtype=total.dtype)
            ctx.save_for_backward(grad_x_ND, grad_weight_VD)
            ctx.scale, ctx.dtype = softcap / len(x_ND), weight_VD.dtype
        for start in range(0, len(x_ND), chunk):
            x_CD, targets_C = x_ND[start : start + chunk], targets_N[start : start + chunk]
            losses_C, tanh_CV, shares_CV = _chunk_losses(x_CD, weight_VD, targets_C, softcap)
            total += losses_C.sum()
            if wanted:
                grad_CV = _chunk_gradient(tanh_CV, shares_CV, targets_C)
                _add_products(grad_CV, x_CD, weight_VD, grad_x_ND[start : start + chunk], grad_weight_VD)
        return total / len(x_ND)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        scale = grad * ctx.scale
        return (grad_x_ND * scale).to(grad_x_ND.dtype), (grad_weight_VD * scale).to(ctx.dtype), None, None, None


def _in_product_dtype(x_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that a matrix product would take."""
    kind = x_ND.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(x_ND.dtype, weight_VD.dtype)
    return x_ND.to(dtype), weight_VD.to(dtype)


def _chunk_losses(x_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, softcap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (C,), the logits divided by the softcap (C, V), and the shares that softmax gives them (C, V)."""
    z_CV = F.linear(x_CD, weight_VD)
    tanh_CV = z_CV.to(torch.promote_types(z_CV.dtype, torch.float32)).tanh_()
    highest_C1 = tanh_CV.amax(1, keepdim=True)
    shares_CV = (tanh_CV - highest_C1).mul_(softcap).exp_()
    sums_C1 = shares_CV.sum(1, keepdim=True)
    losses_C1 = sums_C1.log() + softcap * (highest_C1 - tanh_CV.gather(1, targets_C[:, None]))
    return losses_C1[:, 0], tanh_CV, shares_CV.div_(sums_C1)


def _chunk_gradient(tanh_CV: Tensor, shares_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Derivative of the losses by x W^T, (C, V); overwrites its arguments."""
    shares_CV.scatter_add_(1, targets_C[:, None], -torch.ones_like(shares_CV[:, :1]))
    return shares_CV.mul_(tanh_CV.square_().neg_().add_(1.0))


def _add_products(grad_CV: Tensor, x_CD: Tensor, weight_VD: Tensor, out_CD: Tensor, sum_VD: Tensor) -> None:
    """Put grad W into `out_CD` and add grad^T x to `sum_VD`."""
    grad_CV = grad_CV.to(x_CD.dtype)
    torch.mm(grad_CV, weight_VD, out=out_CD)
    if sum_VD.dtype == x_CD.dtype:
        sum_VD.addmm_(grad_CV.T, x_CD)
    else:
        sum_VD += grad_CV.T @ x_CD
