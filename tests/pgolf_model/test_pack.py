"""The artifact's container: exact inverse, deterministic, and sound on files that are damaged or hostile."""

import json
import lzma
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from pgolf_model.codec.header import checked_value
from pgolf_model.codec.pack import (
    DIGEST_BYTES,
    MAGIC,
    MAX_HEADER_BYTES,
    VERSION,
    PackCache,
    UnpackedModel,
    _digest,
    pack_model,
    stream_bytes,
    unpack_model,
)
from pgolf_model.codec.streams import LZMA_FILTERS
from pgolf_model.config import EvalConfig, ModelConfig, QuantConfig
from pgolf_model.quant.lowrank import LowRank
from pgolf_model.quant.quantize import PackedTensor, QuantizedTensor, code_limit, quantize_state
from pgolf_model.shapes import param_shapes

START = len(MAGIC) + 1 + DIGEST_BYTES  # where the checksummed body begins
TINY = ModelConfig(vocab_size=24, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1)


def random_tensors(model: ModelConfig, bits: Callable[[], int], seed: int) -> dict[str, PackedTensor]:
    """Anything the container must hold: codes up to the limit, any finite float16, groups, trellises, corrections."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, PackedTensor] = {}
    for name, info in param_shapes(model).items():
        if info.role == "scalar":
            tensors[name] = any_halves(rng, info.shape)
            continue
        width = bits()
        rows, cols = info.shape
        spread = rng.integers(0, code_limit(width) + 1)  # narrow and wide codes, all zero included
        codes = rng.integers(-spread, spread + 1, info.shape).astype(np.int8)
        groups = rng.choice([0, 0, *(n for n in range(1, cols + 1) if cols % n == 0)])
        rank, rank_bits = int(rng.integers(1, min(rows, cols) + 1)), int(rng.integers(2, 9))
        low, high = -code_limit(rank_bits), code_limit(rank_bits) + 1
        lowrank = LowRank(
            left=torch.from_numpy(rng.integers(low, high, (rows, rank)).astype(np.int8)),
            right=torch.from_numpy(rng.integers(low, high, (rank, cols)).astype(np.int8)),
            scales=any_halves(rng, (rank,)),
            bits=rank_bits,
        )
        tensors[name] = QuantizedTensor(
            codes=torch.from_numpy(codes),
            scales=any_halves(rng, (rows, groups) if groups else (rows,)).abs(),
            bits=width,
            states=int(rng.choice([1, 1, 4, 8])),
            lowrank=lowrank if rng.random() < 0.3 else None,
            columns=torch.from_numpy(rng.integers(-128, 128, (2, cols)).astype(np.int8))
            if rng.random() < 0.3
            else None,
        )
    return tensors


def any_halves(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform over finite bit patterns: negative zero, subnormals and the largest values included."""
    patterns = rng.integers(0, 0x7C00, shape) | (rng.integers(0, 2, shape) << 15)
    return torch.from_numpy(patterns.astype(np.uint16).view(np.float16))


def tiny_artifact(model: ModelConfig = TINY) -> bytes:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(info.shape, generator=generator) for name, info in param_shapes(model).items()}
    return pack_model(model, EvalConfig(seq_len=16, batch_tokens=64), quantize_state(state, model, QuantConfig()))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal patterns: tells -0.0 from 0.0."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.int16), b.view(torch.int16))


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The parsed header and the streams."""
    end = START + 2 + int.from_bytes(data[START : START + 2], "little")
    return json.loads(zstandard.decompress(data[START + 2 : end])), data[end:]


def sealed(packed_header: bytes, streams: bytes) -> bytes:
    """An artifact whose checksum agrees with whatever it holds."""
    body = len(packed_header).to_bytes(2, "little") + packed_header + streams
    return MAGIC + bytes([VERSION]) + _digest(body) + body


def reforge(data: bytes, edit: Callable[[dict[str, Any]], object] | str) -> bytes:
    """The same artifact with another header (or header text) and a checksum that agrees."""
    header, streams = header_of(data)
    if callable(edit):
        edit(header)
    return sealed(zstandard.compress((edit if isinstance(edit, str) else json.dumps(header)).encode()), streams)


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    num_kv_heads = draw(st.integers(1, 3))
    num_heads = num_kv_heads * draw(st.integers(1, 2))
    num_layers = draw(st.integers(1, 4))
    start = draw(st.integers(0, num_layers - 1))
    repeats = draw(st.integers(0, 2))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 40)),
        num_layers=num_layers,
        model_dim=num_heads * draw(st.sampled_from([2, 4])),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        mlp_mult=draw(st.sampled_from([0.5, 1.0, 3.5])),
        loop_start=start if repeats else 0,
        loop_end=draw(st.integers(start + 1, num_layers)) if repeats else 0,
        loop_repeats=repeats,
        rope_base=draw(st.floats(1.0, 1e6)),
        embed_init_std=draw(st.floats(1e-6, 1.0)),
    )


@settings(deadline=None, max_examples=25)
@given(model=model_configs(), seed=st.integers(0, 2**31), data=st.data())
def test_unpack_is_the_exact_inverse_and_packing_is_deterministic(
    model: ModelConfig, seed: int, data: st.DataObject
) -> None:
    """Configs, codes, scales and scalars come back bit for bit, in state-dict order; the same input packs alike."""
    widths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    turn = iter(range(10**6))
    tensors = random_tensors(model, lambda: widths[next(turn) % len(widths)], seed)
    eval_config = EvalConfig(seq_len=data.draw(st.integers(1, 99)), batch_tokens=data.draw(st.integers(99, 10**6)))
    packed = pack_model(model, eval_config, tensors)
    back = unpack_model(packed)
    assert back.model == model
    assert back.eval_config == eval_config
    assert list(back.tensors) == list(param_shapes(model))
    for name, item in tensors.items():
        other = back.tensors[name]
        if isinstance(item, QuantizedTensor):
            assert isinstance(other, QuantizedTensor)
            assert other.bits == item.bits
            assert other.states == item.states
            assert torch.equal(other.codes, item.codes)
            assert same_bits(other.scales, item.scales)
            assert (other.lowrank is None) == (item.lowrank is None)
            assert (other.columns is None) == (item.columns is None)
            if item.columns is not None and other.columns is not None:
                assert torch.equal(other.columns, item.columns)
            if item.lowrank is not None and other.lowrank is not None:
                assert other.lowrank.bits == item.lowrank.bits
                assert torch.equal(other.lowrank.left, item.lowrank.left)
                assert torch.equal(other.lowrank.right, item.lowrank.right)
                assert same_bits(other.lowrank.scales, item.lowrank.scales)
        else:
            assert isinstance(other, torch.Tensor)
            assert same_bits(other, item)
    reordered = dict(reversed(tensors.items()))
    assert pack_model(back.model, back.eval_config, reordered) == packed
    found = stream_bytes(packed)
    assert sum(found.values()) == len(packed)
    assert {"embed", "attn", "mlp", "scalar", "header"} <= set(found)


def test_packing_again_costs_only_what_changed() -> None:
    """With a cache, streams of the very same tensors are taken over; the bytes are those of packing afresh."""
    first = random_tensors(TINY, lambda: 6, seed=1)
    second = {**first, "blocks.1.mlp.up": random_tensors(TINY, lambda: 3, seed=2)["blocks.1.mlp.up"]}
    cache: PackCache = {}
    for tensors in (first, second, first):
        before = dict(cache)
        assert pack_model(TINY, EvalConfig(), tensors, cache=cache) == pack_model(TINY, EvalConfig(), tensors)
        if before:
            changed = {label for label, known in cache.items() if before.get(label) is not known}
            assert {"mlp codes", "mlp scales"} <= changed <= {"mlp codes", "mlp scales", "lowrank", "columns"}


@pytest.mark.parametrize(("spread", "race"), [(0, 70_000), (5, 4_000)])
def test_a_stream_longer_than_the_race_is_packed_whole(spread: int, race: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the part on which codecs compete, nothing is lost, whether bytes or codes are compressed."""
    monkeypatch.setattr("pgolf_model.codec.streams.RACE_BYTES", race)
    model = ModelConfig(vocab_size=24, num_layers=2, model_dim=96, num_heads=2, num_kv_heads=1)
    tensors = random_tensors(model, lambda: 8, seed=3)
    want = tensors["blocks.0.mlp.up"]
    assert isinstance(want, QuantizedTensor)
    for item in tensors.values():
        if isinstance(item, QuantizedTensor):
            item.codes.copy_(torch.randint(-spread, spread + 1, item.codes.shape))
    artifact = pack_model(model, EvalConfig(), tensors)
    assert header_of(artifact)[0]["streams"][2][0] in (("codes",) if spread else ("zstd", "lzma"))
    back = unpack_model(artifact).tensors["blocks.0.mlp.up"]
    assert isinstance(back, QuantizedTensor)
    assert torch.equal(back.codes, want.codes)


def test_gaussian_codes_are_near_their_entropy() -> None:
    """Six bits at 12.85 sigmas take 3.328 bits by entropy; brotli at level 11 takes 3.376."""
    model = ModelConfig(vocab_size=512, num_layers=1, model_dim=256, num_heads=8, num_kv_heads=4)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(info.shape, generator=generator) for name, info in param_shapes(model).items()}
    quant = QuantConfig(embed_bits=6, embed_clip_sigmas=12.85)
    found = stream_bytes(pack_model(model, EvalConfig(), quantize_state(state, model, quant)))
    weights = sum(info.size for info in param_shapes(model).values() if info.role != "scalar")
    assert 3.32 < 8 * sum(found[role] for role in ("embed", "attn", "mlp")) / weights < 3.40


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(mask: int) -> None:
    """No single damaged byte, wherever it is, yields a model."""
    artifact = tiny_artifact()
    for i in range(len(artifact)):
        broken = bytearray(artifact)
        broken[i] ^= mask
        with pytest.raises(ValueError, match=r"not a pgolf artifact|artifact has version|artifact is damaged"):
            unpack_model(bytes(broken))


def test_every_truncation_and_appended_bytes_are_noticed() -> None:
    """A copy that stopped early, at any byte, or that has more at its end is refused."""
    artifact = tiny_artifact()
    for broken in (*(artifact[:i] for i in range(len(artifact))), artifact + b"\0"):
        with pytest.raises(ValueError, match=r"not a pgolf artifact|artifact is damaged"):
            unpack_model(broken)


def test_damage_foreign_files_and_newer_versions_are_told_apart() -> None:
    """The message names the cause and the way out."""
    artifact = tiny_artifact()
    with refused(r"artifact is damaged: checksum [0-9a-f]{32}, expected .*", hint=r"train or copy"):
        unpack_model(artifact[:-1] + bytes([artifact[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"not a pgolf artifact: it starts with b'PK\\x03"):
        unpack_model(b"PK\x03\x04" + artifact)
    with refused(r"artifact has version 3, this code reads version 2", hint=r"update pgolf"):
        unpack_model(MAGIC + bytes([3]) + artifact[len(MAGIC) + 1 :])


def _set(section: str, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[section].update(values)


HOSTILE: list[tuple[Callable[[dict[str, Any]], object] | str, str]] = [
    (_set("model", model_dim=2**29, num_heads=8), "at most 268435456 parameters"),
    (_set("model", num_layers=10**9), "virtual layers"),
    (_set("model", loop_end=1, loop_repeats=10**9), "virtual layers"),
    (_set("model", loop_end=1, loop_repeats=10**400), "loop_repeats in the header must lie within 1e9"),
    (_set("model", mlp_mult=1e308), "mlp_mult in the header must lie"),
    (_set("model", mlp_mult=1e9), "at most 268435456 parameters"),
    (_set("model", mlp_mult=float("nan")), "header holds NaN"),
    (_set("model", rope_base=float("-inf")), "header holds -Infinity"),
    (_set("model", num_layers="2"), "num_layers in the header: expected int, got str"),
    (_set("model", num_layers=True), "expected int, got bool"),
    (_set("model", num_layers=2.0), "expected int, got float"),
    (_set("model", num_layers=-1), "num_layers must be at least 1"),
    (_set("model", num_heads=3), "num_heads"),
    (_set("model", __class__="os.system"), "unknown keys"),
    (_set("model", num_layers=1), "an entry for each of 7 matrices"),
    (_set("model", vocab_size=25), "the config needs|holds|codes"),
    (
        _set("model", vocab_size=65_536, model_dim=4096, num_heads=2, num_layers=2, mlp_mult=0.01171875),
        "cannot hold|damaged",
    ),
    (_set("eval", seq_len=0), "seq_len"),
    (_set("eval", seq_len=None), "expected int, got NoneType"),
    (lambda h: h.update(eval=[]), "unknown keys"),
    (lambda h: h.update(more=1), "wrong keys"),
    (lambda h: h.pop("matrices"), "wrong keys"),
    (lambda h: h.update(matrices="9" * 13), "entry for each of 13 matrices"),
    (lambda h: h["matrices"].pop(), "entry for each of 13 matrices"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 0]), "embed.weight in the header: expected six integers"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 0, 0, 0, False]), "expected six integers"),
    (lambda h: h["matrices"].__setitem__(0, [9, 1, 0, 0, 0, 0]), r"embed.weight: bits must be in \[1, 8\], got 9"),
    (lambda h: h["matrices"].__setitem__(0, [8, 2, 0, 0, 0, 0]), "states must be 1, 4 or 8, got 2"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 3, 0, 0, 0]), "3 groups do not divide 8 columns"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 10**9, 0, 0, 0]), "groups do not divide"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 0, 10**9, 4, 0]), "no low-rank correction of rank 1000000000"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 0, 2, 0, 0]), "no low-rank correction of rank 2 and 0 bits"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 0, 2, 4, 0]), "must list 8 streams"),
    (lambda h: h["matrices"].__setitem__(0, [8, 1, 0, 0, 0, 2]), "planned must be 0 or 1, got 2"),
    (lambda h: h["streams"].pop(), "must list 7 streams"),
    (lambda h: h.update(streams=None), "must list 7 streams"),
    (lambda h: h["streams"].__setitem__(0, ["zstd", 1.5]), "not .codec, bytes"),
    (lambda h: h["streams"].__setitem__(0, "abc"), "not .codec, bytes"),
    (lambda h: h["streams"][0].__setitem__(1, -5), "not .codec, bytes"),
    (lambda h: h["streams"][0].__setitem__(1, 10**30), "bytes of streams"),
    (lambda h: h["streams"][0].__setitem__(0, "pickle"), "unknown codec 'pickle'"),
    ("[" * 60_000, "recursion"),
    (" " * (MAX_HEADER_BYTES + 1), "header declares 131073 bytes"),
    ("", "header declares 0 bytes"),
    ("[" * 20 + "]" * 20, "wrong keys"),
    ("null", "wrong keys"),
    ("{", "artifact is damaged: "),
    ('{"model":{"mlp_mult":1e999},"eval":{},"matrices":[],"streams":[]}', "mlp_mult in the header must lie"),
    ('{"model":{"num_layers":' + "9" * 5000 + '},"eval":{},"matrices":[],"streams":[]}', "artifact is damaged: "),
]


@pytest.mark.parametrize(("edit", "message"), HOSTILE)
def test_a_hostile_header_is_refused_fast_and_small(
    edit: Callable[[dict[str, Any]], object] | str, message: str
) -> None:
    """A header that lies under a valid checksum is a ValueError before it costs memory or time."""
    forged = reforge(tiny_artifact(), edit)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            unpack_model(forged)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 2


def bombs() -> list[tuple[str, bytes]]:
    """Streams that decompress to far more, or to less, than any tiny model needs."""
    zeros = bytes(8_000_000)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    return [
        ("zstd", zstandard.compress(zeros)),
        ("zstd", unsized),
        ("zstd", zstandard.compress(b"")),
        ("zstd", b"\x28\xb5\x2f\xfd\xc0" + (2**62).to_bytes(8, "little") + bytes(9)),  # declares 2**62 bytes
        ("zstd", b"junk"),
        ("lzma", lzma.compress(zeros, format=lzma.FORMAT_RAW, filters=LZMA_FILTERS)),
        ("lzma", lzma.compress(b"", format=lzma.FORMAT_RAW, filters=LZMA_FILTERS)),
        ("lzma", b"\xff\xffjunk"),
    ]


@pytest.mark.parametrize("which", range(8))
def test_a_decompression_bomb_stays_small(which: int) -> None:
    """A stream never takes more memory than the config needs, whatever it declares."""
    codec, blob = bombs()[which]
    artifact = tiny_artifact()

    header, streams = header_of(artifact)
    header["streams"][0] = [codec, len(blob)]
    forged = sealed(
        zstandard.compress(json.dumps(header).encode()), blob + streams[header_of(artifact)[0]["streams"][0][1] :]
    )
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="artifact is damaged: a stream"):
            unpack_model(forged)
        assert tracemalloc.get_traced_memory()[1] < 2e6  # lzma's dictionary is 1 MiB
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 5))
def test_flipped_bits_under_a_valid_checksum_never_do_worse_than_value_error(data: st.DataObject, seed: int) -> None:
    """A forger can seal anything: what comes back is a refusal, or a model whose tensors keep their bounds."""
    tensors = random_tensors(TINY, lambda: 4, seed)
    body = bytearray(pack_model(TINY, EvalConfig(), tensors)[START:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    del body[data.draw(st.integers(len(body) // 2, len(body))) :]
    try:
        back = unpack_model(MAGIC + bytes([VERSION]) + _digest(bytes(body)) + bytes(body))
    except ValueError:
        return
    pack_model(back.model, back.eval_config, back.tensors)


def test_values_from_a_header_have_the_types_of_the_defaults() -> None:
    """Whatever fields a config gets: numbers, flags, words, and tuples of them."""
    assert checked_value("a", (1, 2), [3, 4, 5]) == (3, 4, 5)
    assert checked_value("a", (0.5,), [1, 2.5]) == (1, 2.5)
    assert checked_value("a", (), [3, 1]) == (3, 1)  # an empty default: layers
    assert checked_value("a", "plain", "other") == "other"
    assert checked_value("a", False, True) is True
    for default, value in (
        ((1,), 3), ((1,), ["3"]), ((1,), [1.5]), ((1,), [True]), ((1,), [[1]]), ((), [[1]]), ((), ["x"]),
        ((), [True]), ((), [None]), ((), [{}]),
        ((1,), [0] * 5000), ("plain", 3), ("plain", "x" * 100), (False, 1), (3, True), (0.5, False), (0.5, "1"),
        ((1,), [10**12]), (None, None),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="a in the header"):
            checked_value("a", default, value)


def test_a_header_older_than_a_field_takes_its_default() -> None:
    """An artifact written before a config field existed stays readable."""
    back = unpack_model(reforge(tiny_artifact(), lambda header: header["model"].pop("rope_base")))
    assert back.model == TINY


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("embed.weight", torch.zeros(24, 8).half(), "embed.weight: expected int8 codes"),
        ("skip_weights", torch.zeros(1, 8), "skip_weights: expected float16"),
        ("skip_weights", torch.zeros(2, 8).half(), r"skip_weights: expected float16 of shape \(1, 8\)"),
        ("skip_weights", torch.full((1, 8), float("nan")).half(), "skip_weights: holds NaN"),
        ("unheard_of", torch.zeros(1).half(), "unexpected .'unheard_of'"),
    ],
)
def test_tensors_that_could_not_be_read_back_are_not_packed(name: str, wrong: torch.Tensor, message: str) -> None:
    """The packer refuses, by name, what the unpacker would refuse."""
    unpacked: UnpackedModel = unpack_model(tiny_artifact())
    with pytest.raises(ValueError, match=message):
        pack_model(unpacked.model, unpacked.eval_config, {**unpacked.tensors, name: wrong})


def test_codes_wider_than_their_bits_are_not_packed() -> None:
    """Eight-bit codes in a tensor that says four bits."""
    unpacked = unpack_model(tiny_artifact())
    wide = QuantizedTensor(codes=torch.full((24, 8), 9, dtype=torch.int8), scales=torch.ones(24).half(), bits=4)
    with pytest.raises(ValueError, match=r"embed.weight: codes do not fit 4 bits"):
        pack_model(unpacked.model, unpacked.eval_config, {**unpacked.tensors, "embed.weight": wide})
