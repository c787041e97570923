"""Attention kernels behind one function: a FlashAttention package's where one is installed, else PyTorch's fused ones.

Packed documents use FlexAttention on a GPU: FlashAttention's `varlen` form takes one length per document, so every
batch would have tensors of other shapes and compile again.

Shape suffixes: B sequences, T positions, H query heads, G key-value heads, K channels of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

DocumentMask = Tensor | BlockMask


def attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, mask: DocumentMask | None) -> Tensor:
    """Causal softmax attention, (B, T, H, K); query head h reads key-value head h * G // H.

    Args:
        mask: from `document_mask`, or None for plain causal attention.
    """
    if mask is None and q_BTHK.is_cuda:
        y_BTHK = flash_attention(q_BTHK, k_BTGK, v_BTGK)
        if y_BTHK is not None:
            return y_BTHK
    q_BHTK, k_BGTK, v_BGTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    grouped = q_BTHK.shape[2] != k_BTGK.shape[2]
    if mask is None:
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)
    elif isinstance(mask, Tensor):
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, enable_gqa=grouped)
    else:
        # FlexAttention is only fast compiled: by the torch.compile around the model, else by its own.
        kernel: Any = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
        y_BHTK = kernel(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=grouped)
    return y_BHTK.transpose(1, 2)


def flash_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor | None:
    """What an installed FlashAttention computes, None when there is none for this GPU, dtype or size of heads."""
    if q_BTHK.dtype.itemsize != 2 or q_BTHK.shape[-1] not in range(8, 257, 8):
        return None
    package = flash_package(q_BTHK.device)
    if not package:
        return None
    y: Any = sys.modules[package].flash_attn_func(q_BTHK, k_BTGK, v_BTGK, causal=True)
    y_BTHK: Tensor = y[0] if isinstance(y, tuple) else y  # some releases of version 3 add log sums
    return y_BTHK


def flash_package(device: torch.device) -> str:
    """`imported_package` for a GPU.

    Code that compiles a model marks this function first with `torch.compiler.assume_constant_result`. As a decorator
    here, that would load the compiler, in 2 s, also where nothing is ever compiled.
    """
    return imported_package(torch.cuda.get_device_capability(device)[0])


@cache
def imported_package(generation: int) -> str:
    """The name of FlashAttention 3 (Hopper: 9) or 2 (Ampere to Hopper), imported, or "" when neither is usable.

    Both have query head h read key-value head h * G // H and divide scores by sqrt(K), as PyTorch does.
    Source: https://github.com/Dao-AILab/flash-attention
    """
    for package, generations in (("flash_attn_interface", (9,)), ("flash_attn", (8, 9))):
        if generation in generations:
            with suppress(ImportError, AttributeError):  # absent, built for another PyTorch, or something else
                import_module(package).flash_attn_func  # noqa: B018
                return package
    return ""


def document_mask(ids_BT: Tensor, bos_id: int) -> DocumentMask:
    """Which positions see which: earlier ones, and themselves, of the document that the last `bos_id` began."""
    documents_BT = (ids_BT == bos_id).cumsum(1)
    if ids_BT.is_cuda:
        return flex_mask(documents_BT)
    return (documents_BT[:, None, :, None] == documents_BT[:, None, None, :]).tril()


def flex_mask(documents_BT: Tensor) -> BlockMask:
    """The same for FlexAttention, which skips blocks in which nothing is seen."""

    def sees(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents_BT[b, query] == documents_BT[b, key])

    num_sequences, seq_len = documents_BT.shape
    return create_block_mask(sees, num_sequences, None, seq_len, seq_len, device=documents_BT.device)


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention as one kernel."""
    kernel: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return kernel
