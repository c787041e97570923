"""Tables of tokens and token pairs: who shares a row with whom."""

from __future__ import annotations

from collections import Counter
from math import isqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pgolf_model.config import ModelConfig
from pgolf_model.model.embed import TokenEmbedding, bigram_ids


@given(vocab_size=st.integers(6, 1500), data=st.data())
@settings(max_examples=60, deadline=None)
def test_shared_rows_tell_all_tokens_apart(vocab_size: int, data: st.DataObject) -> None:
    """Every token is another pair of rows, and every row is used."""
    fewest = isqrt(4 * vocab_size - 1) + 1
    rows = data.draw(st.integers(fewest, vocab_size - 1))
    embed = TokenEmbedding(ModelConfig(vocab_size=vocab_size, embed_buckets=rows))
    embed.weight = nn.Parameter(torch.eye(rows))
    table = embed.table().detach()
    assert table.sum(1).eq(2).all()
    assert len({tuple(row.nonzero().flatten().tolist()) for row in table}) == vocab_size
    assert table.any(0).all()
    assert torch.equal(embed(torch.arange(vocab_size)[None])[0], table)


def test_pairs_spread_over_the_buckets() -> None:
    """All pairs of 96 tokens in 512 buckets: none is empty or has twice its share; order counts."""
    ids = torch.tensor([[a, b] for a in range(96) for b in range(96)])
    hashed = bigram_ids(ids, buckets=513, bos_id=-1)[:, 1].tolist()
    counts = Counter(hashed)
    assert set(counts) == set(range(512))
    assert max(counts.values()) < 2 * len(hashed) / 512
    same = sum(
        bigram_ids(torch.tensor([[a, b, a]]), buckets=513, bos_id=-1)[0, 1:].unique().numel() == 1
        for a in range(40)
        for b in range(a)
    )
    assert same < 10


@pytest.mark.parametrize(("bos_id", "expected_last"), [(-1, [0]), (7, [0, 2, 3])])
def test_the_last_bucket_is_for_tokens_without_a_pair(bos_id: int, expected_last: list[int]) -> None:
    """Position 0, and where a document begins."""
    hashed = bigram_ids(torch.tensor([[3, 4, 7, 7, 5, 3, 4]]), buckets=9, bos_id=bos_id)[0].tolist()
    assert [i for i, bucket in enumerate(hashed) if bucket == 8] == expected_last
    assert hashed[1] == hashed[6]
