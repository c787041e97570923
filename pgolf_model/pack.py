"""Quantized tensors <-> the bytes of the artifact: a checksummed container that a hostile file cannot exploit.

Layout: MAGIC, version (1 byte), SHA-256 of the body cut to DIGEST_BYTES, body. The body is the header's length
(little-endian uint16), the header (JSON: configs, one digit of bits per matrix, codec and length of each stream) and
the streams: codes, one stream per (role, bits); float16 scales; float16 scalars. Names and shapes follow from the
model config (`param_shapes`), and so does every stream's raw length, which is how decompression stays bounded.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf_model.config import BITS_RANGE, EvalConfig, ModelConfig, code_limit
from pgolf_model.quantize import PackedTensor, QuantizedTensor, check_names
from pgolf_model.shapes import ParamInfo, param_shapes

MAGIC = b"pgolf"
VERSION = 1
DIGEST_BYTES = 16
MAX_PARAMS = 2**28  # refused above, before anything is allocated; records have at most 106 M
MAX_VIRTUAL_LAYERS = 4096
RACE_BYTES = 2**20  # codecs compete on this much of a stream; the winner compresses all of it
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": RACE_BYTES, "lc": 0, "lp": 1, "pb": 1}]

NounT = TypeVar("NounT")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UnpackedModel:
    """All that the artifact says: enough to build the model and score it."""

    model: ModelConfig
    eval_config: EvalConfig
    tensors: dict[str, PackedTensor]  # in the order of `param_shapes(model)`


def pack_model(model: ModelConfig, eval_config: EvalConfig, tensors: Mapping[str, PackedTensor]) -> bytes:
    """The artifact: the same bytes for the same input.

    Raises:
        ValueError: the tensors are not those of `model`, or the model is above MAX_PARAMS.
    """
    shapes = _checked_shapes(model)
    _check_tensors(tensors, shapes)
    matrices = {name: item for name, item in tensors.items() if isinstance(item, QuantizedTensor)}
    bits = [matrices[name].bits for name, info in shapes.items() if info.role != "scalar"]
    streams: list[list[str | int]] = []
    blobs: list[bytes] = []

    def add(raw: bytes, peak: int) -> None:
        codec, blob = _compress(raw)
        streams.append([codec, len(blob), peak])
        blobs.append(blob)

    for names in _code_groups(shapes, bits):
        codes = np.concatenate([matrices[name].codes.cpu().numpy().ravel() for name in names])
        peak = max(1, int(codes.max()), -int(codes.min()))
        add(_join_codes(codes, peak), peak)
    for half in _half_groups(shapes):
        values = [matrices[name].scales if name in matrices else tensors[name] for name in half]
        add(b"".join(_half_bytes(value) for value in values), 0)  # type: ignore[arg-type]

    header = {"model": asdict(model), "eval": asdict(eval_config), "bits": "".join(map(str, bits)), "streams": streams}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    body = len(text).to_bytes(2, "little") + text + b"".join(blobs)
    return MAGIC + bytes([VERSION]) + _digest(body) + body


def unpack_model(data: bytes) -> UnpackedModel:
    """The inverse of `pack_model`.

    Raises:
        ValueError: not an artifact, a newer version, damaged, or declaring what it does not hold.
    """
    start = len(MAGIC) + 1
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"not a pgolf artifact: it starts with {data[: len(MAGIC)]!r}, expected {MAGIC!r}")
    if len(data) < start + DIGEST_BYTES + 2:
        raise ValueError(f"artifact is damaged: only {len(data)} bytes; train or copy it again")
    if data[len(MAGIC)] != VERSION:
        raise ValueError(f"artifact has version {data[len(MAGIC)]}, this code reads version {VERSION}; update pgolf")
    digest, body = data[start : start + DIGEST_BYTES], memoryview(data)[start + DIGEST_BYTES :]
    if _digest(body) != digest:
        raise ValueError(
            f"artifact is damaged: checksum {_digest(body).hex()}, expected {digest.hex()}; train or copy it again"
        )
    end = 2 + int.from_bytes(body[:2], "little")
    try:
        header = json.loads(bytes(body[2:end]), parse_constant=_refuse_constant)
        return _unpack_body(header, bytes(body[end:]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"artifact is damaged: {error}; train or copy it again") from None


def _unpack_body(header: Any, rest: bytes) -> UnpackedModel:
    """Tensors from the parsed, untrusted header and the streams after it."""
    if not isinstance(header, dict) or header.keys() != {"model", "eval", "bits", "streams"}:
        raise ValueError("header has the wrong keys")
    model, eval_config = _noun_from(ModelConfig, header["model"]), _noun_from(EvalConfig, header["eval"])
    shapes = _checked_shapes(model)
    digits, streams = header["bits"], header["streams"]
    matrices = [name for name, info in shapes.items() if info.role != "scalar"]
    allowed = {str(bits) for bits in range(BITS_RANGE[0], BITS_RANGE[1] + 1)}
    if not isinstance(digits, str) or len(digits) != len(matrices) or not allowed.issuperset(digits):
        raise ValueError(f"header needs one digit of bits for each of {len(matrices)} matrices")
    bits = dict(zip(matrices, map(int, digits), strict=True))
    groups = _code_groups(shapes, list(bits.values()))
    _check_streams(streams, len(groups) + 2, len(rest))

    codes: dict[str, Tensor] = {}
    halves: dict[str, Tensor] = {}
    position = 0
    for i, names in enumerate([*groups, *_half_groups(shapes)]):
        codec, length, peak = streams[i]
        blob, position = rest[position : position + length], position + length
        if i < len(groups):
            if not 1 <= peak <= code_limit(bits[names[0]]):
                raise ValueError(f"stream {i} declares codes up to {peak} in {bits[names[0]]} bits")
            size = sum(shapes[name].size for name in names)
            flat = _split_codes(_decompress(codec, blob, -(-size // _codes_per_byte(peak))), peak, size)
            wanted, found = {name: shapes[name].shape for name in names}, codes
        else:
            wanted = {name: shapes[name].shape if name not in bits else shapes[name].shape[:1] for name in names}
            raw = _decompress(codec, blob, 2 * sum(map(math.prod, wanted.values())))
            flat, found = np.frombuffer(raw, "<f2").astype(np.float16), halves
            if not np.isfinite(flat).all():
                raise ValueError(f"stream {i} holds NaN or infinity")
        parts = torch.split(torch.from_numpy(flat), [math.prod(shape) for shape in wanted.values()])
        for (name, shape), part in zip(wanted.items(), parts, strict=True):
            found[name] = part.reshape(shape)
    tensors: dict[str, PackedTensor] = {
        name: QuantizedTensor(codes=codes[name], scales=halves[name], bits=bits[name]) if name in bits else halves[name]
        for name in shapes
    }
    return UnpackedModel(model=model, eval_config=eval_config, tensors=tensors)


def _checked_shapes(model: ModelConfig) -> dict[str, ParamInfo]:
    """`param_shapes` of a config that may be hostile: bounded before it is built."""
    if model.num_layers * (1 + model.loop_repeats) > MAX_VIRTUAL_LAYERS:
        raise ValueError(f"at most {MAX_VIRTUAL_LAYERS} virtual layers can be packed, got {model.num_layers} looped")
    shapes = param_shapes(model)
    size = sum(info.size for info in shapes.values())
    if size > MAX_PARAMS:
        raise ValueError(f"at most {MAX_PARAMS} parameters can be packed, got {size}")
    return shapes


def _noun_from(cls: type[NounT], plain: Any) -> NounT:
    """A config from untrusted JSON: known keys and the defaults' types only; fields newer than the file default."""
    known = {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(plain, dict) or not known.keys() >= plain.keys():
        raise ValueError(f"{cls.__name__} in the header has unknown keys")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    for key, value in plain.items():
        expected = type(known[key])
        if expected is tuple and type(value) is tuple and {*map(type, value)} <= {int}:
            continue  # of layers, whose range the config checks
        if expected is tuple or (type(value) is not expected and not (expected is float and type(value) is int)):
            raise ValueError(f"{key} in the header: expected {expected.__name__}, got {type(value).__name__}")
        if isinstance(value, (int, float)) and not abs(value) <= 1e9:
            raise ValueError(f"{key} in the header must lie within 1e9 of zero")
    return cls(**plain)


def _refuse_constant(text: str) -> float:
    """JSON's NaN and Infinity."""
    raise ValueError(f"header holds {text}")


def _check_streams(streams: Any, count: int, available: int) -> None:
    """Raise ValueError unless `streams` lists `count` [codec, bytes, peak] that fill `available` bytes."""
    if not isinstance(streams, list) or len(streams) != count:
        raise ValueError(f"header must list {count} streams")
    for item in streams:
        if not isinstance(item, list) or [type(field) for field in item] != [str, int, int] or item[1] < 0:
            raise ValueError("header lists a stream that is not [codec, bytes, peak]")
    if sum(item[1] for item in streams) != available:
        raise ValueError(f"header lists {sum(item[1] for item in streams)} bytes of streams, found {available}")


def _check_tensors(tensors: Mapping[str, PackedTensor], shapes: Mapping[str, ParamInfo]) -> None:
    """Raise ValueError, naming the tensor, unless `tensors` can be stored and read back exactly."""
    check_names(tensors, shapes)
    for name, info in shapes.items():
        item = tensors[name]
        if info.role == "scalar":
            if isinstance(item, QuantizedTensor) or item.dtype != torch.float16 or item.shape != info.shape:
                raise ValueError(f"{name}: expected float16 of shape {info.shape}")
            if not item.isfinite().all():
                raise ValueError(f"{name}: holds NaN or infinity")
            continue
        if not isinstance(item, QuantizedTensor) or item.codes.dtype != torch.int8 or item.codes.shape != info.shape:
            raise ValueError(f"{name}: expected int8 codes of shape {info.shape}")
        if item.scales.dtype != torch.float16 or item.scales.shape != info.shape[:1]:
            raise ValueError(f"{name}: expected {info.shape[0]} float16 scales")
        if not item.scales.isfinite().all():
            raise ValueError(f"{name}: scales hold NaN or infinity")
        limit = code_limit(item.bits) if BITS_RANGE[0] <= item.bits <= BITS_RANGE[1] else 0
        if max(int(item.codes.max()), -int(item.codes.min())) > limit or not limit:
            raise ValueError(f"{name}: codes do not fit {item.bits} bits")


def _code_groups(shapes: Mapping[str, ParamInfo], bits: list[int]) -> list[list[str]]:
    """Matrices that share a stream: one role, one bitwidth. `bits` has one entry per matrix."""
    groups: dict[tuple[str, int], list[str]] = {}
    matrices = [(name, info.role) for name, info in shapes.items() if info.role != "scalar"]
    for (name, role), width in zip(matrices, bits, strict=True):
        groups.setdefault((role, width), []).append(name)
    return list(groups.values())


def _half_groups(shapes: Mapping[str, ParamInfo]) -> list[list[str]]:
    """Names behind the two float16 streams: matrices' scales, scalars."""
    return [[name for name, info in shapes.items() if (info.role == "scalar") is scalar] for scalar in (False, True)]


def _half_bytes(values: Tensor) -> bytes:
    """Little-endian float16."""
    return values.cpu().numpy().astype("<f2").tobytes()


def _codes_per_byte(peak: int) -> int:
    """How many codes in [-peak, peak] one byte holds as digits: 5 for ternary, 3 for |code| <= 2, 2 up to 7."""
    return int(math.log(256.5, 2 * peak + 1))


def _join_codes(codes: np.ndarray, peak: int) -> bytes:
    """Flat int8 codes in [-peak, peak] as bytes. Several codes per byte bring zstd's Huffman nearer the entropy."""
    radix, count = 2 * peak + 1, _codes_per_byte(peak)
    digits = np.zeros(-(-codes.size // count) * count, np.uint8)
    digits[: codes.size] = codes.view(np.uint8) + np.uint8(peak)  # wraps to [0, 2 * peak]
    weights = (radix ** np.arange(count)).astype(np.uint8)
    joined: np.ndarray = (digits.reshape(-1, count) * weights).sum(1, dtype=np.uint8)
    return joined.tobytes()


def _split_codes(raw: bytes, peak: int, size: int) -> np.ndarray:
    """The inverse of `_join_codes`; any bytes give codes in [-peak, peak]."""
    radix, count = 2 * peak + 1, _codes_per_byte(peak)
    weights = (radix ** np.arange(count)).astype(np.uint8)
    digits = np.frombuffer(raw, np.uint8)[:, None] // weights % np.uint8(radix)
    return (digits - np.uint8(peak)).view(np.int8).reshape(-1)[:size]


def _compress(raw: bytes) -> tuple[str, bytes]:
    """(codec, blob) by the codec that does best on the stream's first RACE_BYTES.

    Gaussian codes: Huffman without matches is smallest and fastest; zstd 22 wins on codes with long runs, lzma on
    float16. A window above 2**17 made zstd 22 larger and 6 times slower.
    """
    huffman = {"strategy": zstandard.STRATEGY_FAST, "window_log": 17, "hash_log": 6, "min_match": 7, "target_length": 0}
    searched = {"window_log": 17, "chain_log": 17, "hash_log": 17}

    def zstd(data: bytes, level: int, options: dict[str, int]) -> bytes:
        parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=len(data), **options)
        return zstandard.ZstdCompressor(compression_params=parameters).compress(data)

    codecs: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
        ("zstd", lambda data: zstd(data, 1, huffman)),
        ("zstd", lambda data: zstd(data, 22, searched)),
        ("lzma", lambda data: lzma.compress(data, format=lzma.FORMAT_RAW, filters=LZMA_FILTERS)),
    )
    tried = [compress(raw[:RACE_BYTES]) for _, compress in codecs]
    best = min(range(len(codecs)), key=lambda i: len(tried[i]))
    codec, compress = codecs[best]
    return codec, tried[best] if len(raw) <= RACE_BYTES else compress(raw)


def _decompress(codec: str, blob: bytes, size: int) -> bytes:
    """Exactly `size` bytes, or ValueError: never allocates more, whatever the blob declares."""
    try:
        if codec == "zstd":
            declared = zstandard.frame_content_size(blob)
            if declared != size:
                raise ValueError(f"a stream declares {declared} bytes, the config needs {size}")
            raw = zstandard.ZstdDecompressor().decompress(blob, max_output_size=size, allow_extra_data=False)
        elif codec == "lzma":
            decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=LZMA_FILTERS)
            raw = decoder.decompress(blob, max_length=size + 1)
            if not decoder.eof or decoder.unused_data:
                raise ValueError("a stream is not whole")
        else:
            raise ValueError(f"unknown codec {codec!r}")
    except (zstandard.ZstdError, lzma.LZMAError) as error:
        raise ValueError(f"a stream does not decompress ({error})") from None
    if len(raw) != size:
        raise ValueError(f"a stream holds {len(raw)} bytes, the config needs {size}")
    return raw


def _digest(body: bytes | memoryview) -> bytes:
    """Checksum of the body: against accidents, not against forgery."""
    return hashlib.sha256(body).digest()[:DIGEST_BYTES]
