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

from pgolf_model.config import EvalConfig, ModelConfig, QuantConfig
from pgolf_model.pack import (
    DIGEST_BYTES,
    LZMA_FILTERS,
    MAGIC,
    VERSION,
    UnpackedModel,
    _digest,
    _join_codes,
    _split_codes,
    pack_model,
    unpack_model,
)
from pgolf_model.quantize import PackedTensor, QuantizedTensor, code_limit, quantize_state
from pgolf_model.shapes import param_shapes

START = len(MAGIC) + 1 + DIGEST_BYTES  # where the checksummed body begins
TINY = ModelConfig(vocab_size=24, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1)


def random_tensors(model: ModelConfig, bits: Callable[[], int], seed: int) -> dict[str, PackedTensor]:
    """Anything the container must hold: codes up to the limit, any finite float16."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, PackedTensor] = {}
    for name, info in param_shapes(model).items():
        if info.role == "scalar":
            tensors[name] = any_halves(rng, info.shape)
            continue
        width = bits()
        spread = rng.integers(0, code_limit(width) + 1)  # narrow and wide codes, all zero included
        codes = rng.integers(-spread, spread + 1, info.shape).astype(np.int8)
        scales = any_halves(rng, info.shape[:1]).abs()
        tensors[name] = QuantizedTensor(codes=torch.from_numpy(codes), scales=scales, bits=width)
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


def reforge(data: bytes, edit: Callable[[dict[str, Any]], object] | str, extra: bytes = b"") -> bytes:
    """The same artifact with another header (or header text) and a checksum that agrees."""
    end = START + 2 + int.from_bytes(data[START : START + 2], "little")
    header = json.loads(data[START + 2 : end])
    if callable(edit):
        edit(header)
    text = (edit if isinstance(edit, str) else json.dumps(header)).encode()
    body = len(text).to_bytes(2, "little") + text + data[end:] + extra
    return MAGIC + bytes([VERSION]) + _digest(body) + body


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


@settings(deadline=None, max_examples=60)
@given(model=model_configs(), seed=st.integers(0, 2**31), data=st.data())
def test_unpack_is_the_exact_inverse_and_packing_is_deterministic(
    model: ModelConfig, seed: int, data: st.DataObject
) -> None:
    """Configs, codes, scales and scalars come back bit for bit, in state-dict order; the same input packs alike."""
    widths = data.draw(st.lists(st.integers(2, 8), min_size=1, max_size=5))
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
            assert torch.equal(other.codes, item.codes)
            assert same_bits(other.scales, item.scales)
        else:
            assert isinstance(other, torch.Tensor)
            assert same_bits(other, item)
    reordered = dict(reversed(tensors.items()))
    assert pack_model(back.model, back.eval_config, reordered) == packed


@given(peak=st.integers(1, 127), size=st.integers(1, 50), seed=st.integers(0, 999))
def test_every_code_survives_joining(peak: int, size: int, seed: int) -> None:
    """Digits in a byte are lossless for every radix, and any bytes split into codes within the peak."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-peak, peak + 1, size).astype(np.int8)
    raw = _join_codes(codes, peak)
    assert np.array_equal(_split_codes(raw, peak, size), codes)
    noise = _split_codes(rng.bytes(len(raw)), peak, size).astype(int)
    assert np.abs(noise).max() <= peak


def test_a_large_stream_is_packed_whole() -> None:
    """Beyond the part on which codecs compete, nothing is lost."""
    model = ModelConfig(vocab_size=5000, num_layers=1, model_dim=256)
    tensors = random_tensors(model, lambda: 8, seed=3)
    back = unpack_model(pack_model(model, EvalConfig(), tensors)).tensors["embed.weight"]
    want = tensors["embed.weight"]
    assert isinstance(back, QuantizedTensor)
    assert isinstance(want, QuantizedTensor)
    assert torch.equal(back.codes, want.codes)


def test_gaussian_codes_are_within_two_percent_of_their_entropy() -> None:
    """Six bits at 12.85 sigmas take 3.328 bits by entropy (atlas D4); the atlas' best codec, brotli 11, takes 3.376."""
    model = ModelConfig(vocab_size=2048, num_layers=1, model_dim=512, num_heads=8, num_kv_heads=4)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(info.shape, generator=generator) for name, info in param_shapes(model).items()}
    quant = QuantConfig(embed_bits=6, embed_clip_sigmas=12.85)
    artifact = pack_model(model, EvalConfig(), quantize_state(state, model, quant))
    weights = sum(info.size for info in param_shapes(model).values() if info.role != "scalar")
    scalars = sum(info.size for info in param_shapes(model).values() if info.role == "scalar")
    assert 3.32 < 8 * (len(artifact) - 2 * scalars) / weights < 3.41


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
    with pytest.raises(ValueError, match=r"artifact is damaged: checksum [0-9a-f]{32}, expected .*; train or copy"):
        unpack_model(artifact[:-1] + bytes([artifact[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"not a pgolf artifact: it starts with b'PK\\x03"):
        unpack_model(b"PK\x03\x04" + artifact)
    with pytest.raises(ValueError, match=r"artifact has version 2, this code reads version 1; update pgolf"):
        unpack_model(MAGIC + bytes([2]) + artifact[len(MAGIC) + 1 :])


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
    (_set("model", num_layers=1), "one digit of bits for each of 7 matrices"),
    (_set("model", vocab_size=25), "the config needs|holds"),
    (_set("eval", seq_len=0), "seq_len"),
    (_set("eval", seq_len=None), "expected int, got NoneType"),
    (lambda h: h.update(eval=[]), "unknown keys"),
    (lambda h: h.update(more=1), "wrong keys"),
    (lambda h: h.pop("bits"), "wrong keys"),
    (lambda h: h.update(bits="9" * 13), "digit of bits"),
    (lambda h: h.update(bits="²" * 13), "digit of bits"),
    (lambda h: h.update(bits=list("8888888888888")), "digit of bits"),
    (lambda h: h["streams"].pop(), "must list 5 streams"),
    (lambda h: h.update(streams=None), "must list 5 streams"),
    (lambda h: h["streams"].__setitem__(0, ["zstd", 1.5, 3]), "not .codec, bytes, peak"),
    (lambda h: h["streams"].__setitem__(0, "abc"), "not .codec, bytes, peak"),
    (lambda h: h["streams"][0].__setitem__(1, -5), "not .codec, bytes, peak"),
    (lambda h: h["streams"][0].__setitem__(1, 10**30), "bytes of streams"),
    (lambda h: h["streams"][0].__setitem__(0, "pickle"), "unknown codec 'pickle'"),
    (lambda h: h["streams"][0].__setitem__(2, 0), "declares codes up to 0"),
    (lambda h: h["streams"][1].__setitem__(2, 32), "declares codes up to 32 in 6 bits"),
    ("[" * 60_000, "recursion"),
    ("[" * 20 + "]" * 20, "wrong keys"),
    ("null", "wrong keys"),
    ("{", "artifact is damaged: "),
    ('{"model":{"mlp_mult":1e999},"eval":{},"bits":"","streams":[]}', "mlp_mult in the header must lie"),
    ('{"model":{"num_layers":' + "9" * 5000 + '},"eval":{},"bits":"","streams":[]}', "artifact is damaged: "),
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

    def swap_first(header: dict[str, Any]) -> None:
        header["streams"] = [[codec, len(blob), 1], *([["zstd", 0, 1]] * 3), ["zstd", rest - len(blob), 0]]

    end = START + 2 + int.from_bytes(artifact[START : START + 2], "little")
    forged = artifact[:end] + blob + artifact[end:]
    rest = len(forged) - end
    forged = reforge(forged, swap_first)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="artifact is damaged: a stream"):
            unpack_model(forged)
        assert tracemalloc.get_traced_memory()[1] < 2e6  # lzma's dictionary is 1 MiB
    finally:
        tracemalloc.stop()


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
