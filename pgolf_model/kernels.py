"""Attention kernels behind one function: PyTorch's fused ones, and FlexAttention for packed documents on a GPU.

Shape suffixes: B sequences, T positions, H query heads, G key-value heads, K channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
