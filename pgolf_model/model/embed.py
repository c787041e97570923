"""From token ids to the stream and from the stream to scores: tables of tokens and token pairs, and the smear.

Shape suffixes: B sequences, T positions, D model channels, V vocabulary, W width of a table (D unless projected).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf_model.config import ModelConfig


class TokenEmbedding(nn.Module):
    """One row per token, projected to D where the table is narrower.

    With fewer rows than tokens, token t has the sum of two rows: a remainder's and a quotient's. Unlike hashing, this
    gives every token a pair of its own and needs no constants. Small ids are the frequent tokens of a BPE vocabulary;
    they share their remainder row with rare tokens only.
    """

    weight: nn.Parameter
    proj: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rows, vocab_size = config.embed_buckets, config.vocab_size
        # The largest number of remainder rows that leaves enough quotient rows.
        self.remainders = max((r for r in range(1, rows) if r * (rows - r) >= vocab_size), default=0)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The given tokens, (B, T, D)."""
        x_BTW = self.rows(ids_BT)
        return F.linear(x_BTW, self.proj) if self.config.embed_rank else x_BTW

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the given tokens, (..., W)."""
        if not self.remainders:
            return F.embedding(ids, self.weight)
        quotients = self.remainders + ids // self.remainders
        return F.embedding(ids % self.remainders, self.weight) + F.embedding(quotients, self.weight)

    def table(self) -> Tensor:
        """Rows of all tokens, (V, W)."""
        if not self.remainders:
            return self.weight
        return self.rows(torch.arange(self.config.vocab_size, device=self.weight.device))


class OutputHead(nn.Module):
    """The two factors of the scores: the last stream, and one row per token."""

    proj: nn.Parameter
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x_BTD: Tensor, embed: TokenEmbedding) -> tuple[Tensor, Tensor]:
        """(B, T, W) and (V, W), float32; a bias is one more channel, which is 1 in the stream."""
        if self.config.embed_rank:
            x_BTD = F.linear(x_BTD, self.proj)
        weight_VW: Tensor = embed.table() if self.config.tied else self.weight
        if self.config.vocab_bias:
            x_BTD = torch.cat((x_BTD, x_BTD.new_ones(*x_BTD.shape[:2], 1)), -1)
            weight_VW = torch.cat((weight_VW, self.bias[:, None]), -1)
        return x_BTD, weight_VW


class ProjectedTable(nn.Module):
    """scale * proj(row of an id)."""

    weight: nn.Parameter
    proj: nn.Parameter
    scale: nn.Parameter

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T, channels of the projection)."""
        x_BTD = F.linear(F.embedding(ids_BT, self.weight), self.proj)
        return self.scale.to(x_BTD.dtype) * x_BTD


class Smear(nn.Module):
    """Blend each token's embedding with the one before it, which is zero for the first token of a document.

    channel: (1 - g) x + g x_before with g = sigmoid(gate) per channel; gated: x + scale sigmoid(gate . x) x_before, the
    gate reading the first `gate_inputs` channels.
    """

    gate: nn.Parameter
    scale: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """x_BTD are the embeddings of ids_BT."""
        before_BTD = F.pad(x_BTD[:, :-1], (0, 0, 1, 0)) * (ids_BT != self.config.bos_id)[..., None]
        if self.config.smear == "channel":
            return torch.lerp(x_BTD, before_BTD, torch.sigmoid(self.gate).to(x_BTD.dtype))
        gate_BT1 = torch.sigmoid(F.linear(x_BTD[..., : self.gate.shape[1]], self.gate))
        return torch.addcmul(x_BTD, self.scale.to(x_BTD.dtype) * gate_BT1, before_BTD)


def bigram_ids(ids_BT: Tensor, *, buckets: int, bos_id: int) -> Tensor:
    """A bucket for every (token before, token), hashed; the first token of a sequence or document has the last."""
    pairs_BT = (2654435761 * F.pad(ids_BT[:, :-1], (1, 0)) ^ 2246822519 * ids_BT) % (buckets - 1)
    is_first_BT = ids_BT == bos_id
    is_first_BT[:, 0] = True
    return pairs_BT.masked_fill(is_first_BT, buckets - 1)
