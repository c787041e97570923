"""Shards on their way into the model: reading, batches, validation windows, bytes per token."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model.bytecount import load_tokenizer
from pgolf_model.data import byte_table, check_token_range, count_bytes, train_batches, validation_tokens
from pgolf_model.shards import SHARD_HEADER_BYTES, read_shard, shard_paths
from search.corpus.shards import ShardWriter
from search.corpus.tokenizer import train_tokenizer


def write_shards(folder: Path, tokens: list[int] | np.ndarray, shard_tokens: int = 10**6) -> list[Path]:
    """Tokens as training shards of a folder."""
    with ShardWriter(folder, "train", shard_tokens=shard_tokens) as writer:
        writer.write(np.array(tokens, dtype=np.int64))
    return shard_paths(str(folder), "train")


@given(
    tokens=st.lists(st.integers(0, 65_535), min_size=1, max_size=200),
    shard_tokens=st.integers(1, 64),
    cut=st.integers(0, 200),
)
def test_shards_give_back_the_tokens_written(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], shard_tokens: int, cut: int
) -> None:
    """Whatever the shard size and however the tokens are handed over, reading the shards returns them all."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "train", shard_tokens=shard_tokens) as writer:
        writer.write(np.array(tokens[:cut]))
        writer.write(np.array(tokens[cut:]))
    shards = [read_shard(path) for path in shard_paths(str(folder), "train")]
    assert [int(token) for shard in shards for token in shard] == tokens
    assert all(len(shard) == shard_tokens for shard in shards[:-1])
    assert [info.tokens for info in writer.shards] == [len(shard) for shard in shards]


def test_shard_file_is_the_challenges_format(tmp_path: Path) -> None:
    """256 header words (magic, version, count, zeros) and little-endian uint16 tokens, nothing else."""
    (path,) = write_shards(tmp_path, [1, 258, 65_535])
    raw = path.read_bytes()
    words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 1024, 4)]
    assert words == [20240520, 1, 3] + [0] * 253
    assert raw[1024:] == bytes([1, 0, 2, 1, 255, 255])


def test_an_interrupted_write_leaves_no_shard(tmp_path: Path) -> None:
    """An exception between two writes drops the unfinished shard, temporary file included."""

    def interrupted() -> None:
        with ShardWriter(tmp_path, "train") as writer:
            writer.write(np.arange(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-2], r"expected 1044 bytes for 10 tokens, got 1042; fetch or build the shard again"),
        (lambda raw: raw + b"\0", r"expected 1044 bytes for 10 tokens, got 1045"),
        (lambda raw: raw[:100], r"expected a header of 1024 bytes, got 100 bytes"),
        (lambda raw: b"\1" + raw[1:], r"expected shard magic 20240520, got"),
        (lambda raw: raw[:4] + b"\2" + raw[5:], r"expected shard version 1, got 2"),
        (lambda raw: raw[:8] + bytes(4) + raw[12:SHARD_HEADER_BYTES], r"expected at least 1 token"),
        (lambda raw: raw[:8] + b"\xff" * 4 + raw[12:], r"expected at least 1 token, the header says -1"),
    ],
)
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, damage, message: str) -> None:
    """Every kind of damage is told apart, and the message names the file and what to do."""
    (path,) = write_shards(tmp_path, list(range(10)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        read_shard(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ValueError, match="no such shard"):
        read_shard(tmp_path / "missing.bin")


def test_shard_paths_finds_a_directory_a_glob_and_a_file(tmp_path: Path) -> None:
    """Shards come in order, byte sidecars are left out, and finding nothing says how to get some."""
    paths = write_shards(tmp_path, list(range(10)), shard_tokens=4)
    (tmp_path / "fineweb_train_bytes_000000.bin").write_bytes(b"")
    assert [path.name for path in paths] == [f"fineweb_train_{i:06d}.bin" for i in range(3)]
    assert shard_paths(str(tmp_path / "fineweb_train_*"), "val") == paths
    assert shard_paths(str(paths[1]), "val") == [paths[1]]
    with pytest.raises(ValueError, match=r"no validation shards match .*; build them with `pgolf data build`"):
        shard_paths(str(tmp_path), "val")


@settings(max_examples=40)
@given(
    num_tokens=st.integers(17, 90),
    shard_tokens=st.integers(5, 40),
    world_size=st.sampled_from([1, 2, 4]),
    seq_len=st.sampled_from([1, 2, 4]),
)
def test_ranks_partition_the_stream(
    tmp_path_factory: pytest.TempPathFactory, num_tokens: int, shard_tokens: int, world_size: int, seq_len: int
) -> None:
    """All ranks together read consecutive tokens, across shard ends and around the corpus; targets are one ahead."""
    paths = write_shards(tmp_path_factory.mktemp("shards"), np.arange(num_tokens), shard_tokens)
    ranks = [
        train_batches(paths, batch_tokens=16, seq_len=seq_len, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    position = 0
    for _ in range(8):
        batch = [next(rank) for rank in ranks]
        assert all(inputs.shape == (16 // world_size // seq_len, seq_len) for inputs, _ in batch)
        expected = torch.arange(position, position + 17) % num_tokens
        assert torch.equal(torch.cat([inputs.reshape(-1) for inputs, _ in batch]), expected[:-1])
        assert torch.equal(torch.cat([targets.reshape(-1) for _, targets in batch]), expected[1:])
        position += 16


@settings(max_examples=40)
@given(
    num_windows=st.integers(8, 30),
    tail=st.integers(1, 2),
    world_size=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31 - 1),
)
def test_shuffled_windows_are_each_read_once_a_pass_whatever_the_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, num_windows: int, tail: int, world_size: int, seed: int
) -> None:
    paths = write_shards(tmp_path_factory.mktemp("shards"), np.arange(2 * num_windows + tail), 7)
    ranks = [
        train_batches(paths, batch_tokens=16, seq_len=2, rank=rank, world_size=world_size, loader="shuffled", seed=seed)
        for rank in range(world_size)
    ]
    corpus_windows = (2 * num_windows + tail - 1) // 2
    firsts: list[int] = []
    for _ in range(6):
        for inputs, targets in (next(rank) for rank in ranks):
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            assert torch.equal(targets - inputs, torch.ones_like(inputs))
            firsts += (inputs[:, 0] // 2).tolist()
    for start in range(0, len(firsts) - corpus_windows + 1, corpus_windows):
        assert sorted(firsts[start : start + corpus_windows]) == list(range(corpus_windows))
    alone = train_batches(paths, batch_tokens=16, seq_len=2, rank=0, world_size=1, loader="shuffled", seed=seed)
    assert firsts[:8] == (next(alone)[0][:, 0] // 2).tolist()


def test_batches_that_cannot_be_made_are_refused_at_the_call(tmp_path: Path) -> None:
    """Before training starts: a batch that does not divide over ranks, and a corpus smaller than one batch."""
    paths = write_shards(tmp_path, np.arange(16))
    with pytest.raises(ValueError, match=r"divisible by world_size \* seq_len, got 12 and 2 \* 4"):
        train_batches(paths, batch_tokens=12, seq_len=4, rank=0, world_size=2)
    with pytest.raises(ValueError, match="the training shards hold 16 tokens, one batch needs 17"):
        train_batches(paths, batch_tokens=16, seq_len=4, rank=0, world_size=2)


@pytest.mark.parametrize(("num_tokens", "kept"), [(5, 5), (8, 5), (9, 9), (12, 9)])
def test_validation_is_cut_to_whole_windows(tmp_path: Path, num_tokens: int, kept: int) -> None:
    """floor((N - 1) / seq_len) windows and one token more, concatenated over shards."""
    tokens = validation_tokens(write_shards(tmp_path, np.arange(num_tokens), shard_tokens=3), seq_len=4)
    assert tokens.to(torch.int64).tolist() == list(range(kept))


def test_validation_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    """There would be nothing to score."""
    with pytest.raises(ValueError, match="hold 4 tokens, one window needs 5"):
        validation_tokens(write_shards(tmp_path, np.arange(4)), seq_len=4)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int64])
def test_a_token_beyond_the_vocabulary_is_named(dtype: torch.dtype) -> None:
    """Both for validation tokens and for training batches; the largest valid id passes."""
    tokens = torch.tensor([1, 511, 40_000]).to(dtype)
    with pytest.raises(
        ValueError, match="some/shards: token id 40000 does not fit vocab_size 512; the shards come from a larger"
    ):
        check_token_range(tokens, 512, "some/shards")
    check_token_range(tokens, 40_001, "some/shards")


SENTENCES = [
    "The quick brown fox jumps over 13 lazy dogs.",
    "Größe, naïve café, 東京 and 🙂 need more than one byte a letter.",
    "  leading and   repeated spaces\nand lines",
    "I",
    "x = f(y) ** 2  # comment",
]


def test_byte_counts_are_the_utf8_sizes_of_the_text(tiny_data: Path) -> None:
    """Summed over a stream with BOS before each document, they are the UTF-8 bytes of the decoded documents."""
    model = str(tiny_data / "tokenizer.model")
    tokenizer = load_tokenizer(model)
    encoded = [tokenizer.encode(text) for text in SENTENCES]
    stream = torch.tensor([token for ids in encoded for token in (tokenizer.bos_id(), *ids)])
    counts = count_bytes(byte_table(model, 512), stream[:-1], stream[1:])
    assert counts.dtype == torch.int64
    assert counts.shape == stream[1:].shape
    assert int(counts.sum()) == sum(len(tokenizer.decode(ids).encode("utf-8")) for ids in encoded)


def test_byte_rule_piece_by_piece(tiny_data: Path) -> None:
    """Against the rule spelled out in plain Python: control 0, byte piece 1, a space only after a real token."""
    model = str(tiny_data / "tokenizer.model")
    tokenizer = load_tokenizer(model)
    bos, word = tokenizer.bos_id(), tokenizer.piece_to_id("▁the")
    table = byte_table(model, 512)
    for token, previous in itertools.product(range(tokenizer.vocab_size()), (bos, word)):
        piece = tokenizer.id_to_piece(token)
        if tokenizer.is_control(token) or tokenizer.is_unknown(token):
            expected = 0
        elif tokenizer.is_byte(token):
            expected = 1
        else:
            expected = len(piece.replace("▁", " ").encode()) - (piece[0] == "▁" and previous == bos)
        assert int(count_bytes(table, torch.tensor([previous]), torch.tensor([token]))) == expected, piece


def test_table_is_padded_with_boundaries_and_never_cut(tiny_data: Path) -> None:
    """A vocabulary rounded up is fine: the extra ids count nothing; one too small is an error."""
    model = str(tiny_data / "tokenizer.model")
    table = byte_table(model, 600)
    assert table.base_bytes.shape == (600,)
    assert bool(table.is_boundary[512:].all())
    assert int(table.base_bytes[512:].sum()) == 0
    with pytest.raises(ValueError, match="has 512 pieces, vocab_size is 511; set vocab_size to at least 512"):
        byte_table(model, 511)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    """Missing and damaged models say what was expected."""
    (tmp_path / "bad.model").write_bytes(b"not a model")
    for name in ("bad.model", "missing.model"):
        with pytest.raises(ValueError, match="not a SentencePiece model"):
            byte_table(str(tmp_path / name), 512)


def test_a_tokenizer_without_the_bare_space_is_refused(tmp_path: Path) -> None:
    """Training text without any space gives no U+2581 piece, and space bytes would be miscounted."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_tokenizer(["abcabc" * 50, "bcabca" * 50], vocab_size=265))
    with pytest.raises(ValueError, match=r"no bare space piece \(U\+2581\)"):
        byte_table(str(path), 300)
