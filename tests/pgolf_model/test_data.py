"""Shards on their way into the model: reading, batches, validation windows, bytes per token."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from pgolf_model.data.batches import TrainingWindows, byte_table, check_token_range, count_bytes, validation_tokens
from pgolf_model.data.bytecount import load_tokenizer
from pgolf_model.data.shards import SHARD_HEADER_BYTES, read_shard, shard_paths
from pgolf_model.data.windows import window_starts
from search.corpus.shard_writer import ShardWriter
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
    with refused(r"no validation shards match .*", hint=r"build them with `pgolf data build`"):
        shard_paths(str(tmp_path), "val")


def all_ranks(paths: list[Path], world_size: int, **options) -> list[TrainingWindows]:
    """The readers of every rank of a world."""
    return [TrainingWindows(paths, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def global_batch(ranks: list[TrainingWindows], num_windows: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What all ranks read together, in rank order."""
    batch = [rank.next_batch(num_windows // len(ranks), seq_len) for rank in ranks]
    inputs, targets = (torch.cat(parts) for parts in zip(*batch, strict=True))
    assert inputs.shape == targets.shape == (num_windows, seq_len)
    return inputs, targets


@settings(max_examples=40)
@given(
    num_tokens=st.integers(17, 90),
    shard_tokens=st.integers(5, 40),
    world_size=st.sampled_from([1, 2, 4]),
    seq_lens=st.lists(st.sampled_from([1, 2, 4]), min_size=8, max_size=8),
)
def test_ranks_partition_the_stream(
    tmp_path_factory: pytest.TempPathFactory, num_tokens: int, shard_tokens: int, world_size: int, seq_lens: list[int]
) -> None:
    """All ranks together read consecutive tokens, across shard ends and around the corpus; targets are one ahead."""
    paths = write_shards(tmp_path_factory.mktemp("shards"), np.arange(num_tokens), shard_tokens)
    ranks = all_ranks(paths, world_size, loader="sequential", batch_tokens=16)
    position = 0
    for seq_len in seq_lens:  # also when the windows' length changes
        inputs, targets = global_batch(ranks, 16 // seq_len, seq_len)
        expected = torch.arange(position, position + 17) % num_tokens
        assert torch.equal(inputs.reshape(-1), expected[:-1])
        assert torch.equal(targets.reshape(-1), expected[1:])
        position += 16


@pytest.mark.parametrize("loader", ["shuffled", "strided"])
@settings(max_examples=40)
@given(
    num_windows=st.integers(8, 30),
    tail=st.integers(1, 2),
    world_size=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31 - 1),
)
def test_mixed_windows_are_each_read_once_a_pass_whatever_the_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, loader: str, num_windows: int, tail: int, world_size: int, seed: int
) -> None:
    """No window twice, none left out, and all ranks together read what one alone would."""
    paths = write_shards(tmp_path_factory.mktemp("shards"), np.arange(2 * num_windows + tail), 7)
    options = {"loader": loader, "batch_tokens": 16, "seed": seed}
    ranks, alone = all_ranks(paths, world_size, **options), all_ranks(paths, 1, **options)
    firsts: list[int] = []
    for _ in range(12):
        inputs, targets = global_batch(ranks, 8, 2)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(targets - inputs, torch.ones_like(inputs))
        assert torch.equal(inputs, global_batch(alone, 8, 2)[0])
        firsts += inputs[:, 0].tolist()
    passes = []
    while firsts:  # one pass after the other; its phase says how many windows it has
        phase = firsts[0] % 2
        corpus_windows = (2 * num_windows + tail - 1 - phase) // 2
        assert loader == "strided" or phase == 0
        passes.append(firsts[:corpus_windows])
        firsts = firsts[corpus_windows:]
        if len(passes[-1]) == corpus_windows:
            assert sorted(passes[-1]) == [phase + 2 * i for i in range(corpus_windows)]
    assert loader == "strided" or passes[0] != passes[1][: len(passes[0])]


def test_strided_windows_come_from_everywhere_at_once() -> None:
    """Any 20 windows in a row leave no gap of three times the mean distance: each batch mixes all shards."""
    shards = [np.zeros(5_000, dtype="<u2")] * 3
    starts = window_starts("strided", shards, seq_len=10, position=0, generator=np.random.default_rng(0))
    visited = np.array(list(itertools.islice(starts, 1_499)))
    for at in range(0, 1_400, 50):
        batch = np.sort(visited[at : at + 20])
        gaps = np.diff([*batch, batch[0] + 15_000])
        assert gaps.max() < 3 * 15_000 / 20
    assert list(itertools.islice(starts, 50)) != visited[:50].tolist()


def naive_packing(stream: list[int], seq_len: int) -> list[int]:
    """Starts of one shard's packed windows, from a list of its documents."""
    begins = [i for i, token in enumerate(stream) if token == 1]
    ends = [*begins[1:], len(stream)]
    starts, at = [], begins[0] if begins else 0
    while at + seq_len < len(stream):
        starts.append(at)
        at += seq_len
        for begin, end in zip(begins, ends, strict=False):
            if begin < at < end and end - begin <= seq_len:
                at = end
    return starts


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=10, max_size=40),
    shard_tokens=st.integers(20, 300),
    world_size=st.sampled_from([1, 2, 4]),
)
def test_packed_windows_start_where_documents_do(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard_tokens: int, world_size: int
) -> None:
    """Or go on with a document longer than a window; against a packer that knows the documents."""
    stream = [token for i, n in enumerate([*lengths, 14]) for token in [1] + [2 + i] * (n - 1)]
    paths = write_shards(tmp_path_factory.mktemp("shards"), stream, shard_tokens)
    ranks = all_ranks(paths, world_size, loader="packed", batch_tokens=16)
    expected = [
        offset + start
        for offset in range(0, len(stream), shard_tokens)
        for start in naive_packing(stream[offset : offset + shard_tokens], 5)
    ]
    windows = itertools.cycle((stream[at : at + 5], stream[at + 1 : at + 6]) for at in expected)
    for _ in range(20):
        for inputs, targets in zip(*global_batch(ranks, 4, 5), strict=True):
            assert (inputs.tolist(), targets.tolist()) == next(windows)
            assert inputs[0] == 1 or [*lengths, 14][inputs[0] - 2] > 5


def test_packed_windows_go_on_with_another_length(tmp_path: Path) -> None:
    """From the next document, not from the first one."""
    paths = write_shards(tmp_path, [1, 2, 3, 4] * 20)
    windows = TrainingWindows(paths, loader="packed", batch_tokens=8)
    assert windows.next_batch(2, 4)[0].tolist() == [[1, 2, 3, 4]] * 2
    assert windows.position == 8
    assert windows.next_batch(1, 6)[0].tolist() == [[1, 2, 3, 4, 1, 2]]
    assert windows.position == 14
    assert windows.next_batch(1, 6)[0].tolist() == [[1, 2, 3, 4, 1, 2]]
    assert windows.position == 22  # 8 + 6 cuts a document of four: on to the next one, at 16


def test_batches_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    """A corpus smaller than one batch, and shards of which none holds a packed window."""
    paths = write_shards(tmp_path, np.arange(16), shard_tokens=4)
    with pytest.raises(ValueError, match="the training shards hold 16 tokens, one batch needs 17"):
        TrainingWindows(paths, loader="sequential", batch_tokens=16)
    with refused("no training shard holds a window of 5 tokens", hint="lower seq_len"):
        TrainingWindows(paths, loader="packed", batch_tokens=8).next_batch(2, 4)


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
    with refused("some/shards: token id 40000 does not fit vocab_size 512", hint="the shards come from a larger"):
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
    with refused("has 512 pieces, vocab_size is 511", hint="set vocab_size to at least 512"):
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
