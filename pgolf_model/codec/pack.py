"""Quantized tensors <-> the bytes of the artifact: a checksummed container that a hostile file cannot exploit.

Layout: MAGIC, version (1 byte), SHA-256 of the body cut to DIGEST_BYTES, body. The body is the header's length
(little-endian uint16), the header and the streams. The header is JSON under zstd: configs, what each matrix is made of,
codec and length of each stream. The streams are the codes of each role, the factors of low-rank corrections and the
plans of columns if there are any, the float16 scales of each role, the float16 scalars. Names and shapes follow from
the model config (`param_shapes`), and so does every stream's raw length, which is how decompression stays bounded.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf_model.codec.entropy import CodePlane, decode_codes, encode_codes
from pgolf_model.config import BITS_RANGE, EvalConfig, ModelConfig, code_limit
from pgolf_model.errors import UserError
from pgolf_model.quant.lowrank import LowRank
from pgolf_model.quant.quantize import PackedTensor, QuantizedTensor, check_names
from pgolf_model.shapes import ParamInfo, param_shapes

MAGIC = b"pgolf"
VERSION = 2
DIGEST_BYTES = 16
MAX_PARAMS = 2**28  # refused above, before anything is allocated; records have at most 106 M
MAX_VIRTUAL_LAYERS = 4096
MAX_HEADER_BYTES = 2**17
MAX_CODES_PER_BYTE = 2**16  # no codec here packs tighter: what claims to is refused before it is allocated
RACE_BYTES = 2**20  # codecs compete on this much of a stream; the winner compresses all of it
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": RACE_BYTES, "lc": 0, "lp": 1, "pb": 1}]

NounT = TypeVar("NounT")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UnpackedModel:
    """All that the artifact says: enough to build the model and score it."""

    model: ModelConfig
    eval_config: EvalConfig
    tensors: dict[str, PackedTensor]  # in the order of `param_shapes(model)`


class MatrixKind(NamedTuple):
    """What the header says of a matrix beyond its name and shape."""

    bits: int
    states: int
    groups: int  # columns of the scales; 0 when they have one dimension
    rank: int  # of the low-rank correction; 0 without one
    rank_bits: int
    planned: int  # 1 when the columns have an order and gains of their own


# Streams packed before: label -> (what was packed, (codec, blob)). Packing again costs only what has changed.
PackCache = dict[str, tuple[tuple[PackedTensor, ...], tuple[str, bytes]]]


def pack_model(
    model: ModelConfig,
    eval_config: EvalConfig,
    tensors: Mapping[str, PackedTensor],
    *,
    cache: PackCache | None = None,
) -> bytes:
    """The artifact: the same bytes for the same input.

    Args:
        cache: streams of earlier calls, taken when they hold the very same tensors; brought up to date.
    Raises:
        ValueError: the tensors are not those of `model`, or the model is above MAX_PARAMS.
    """
    shapes = _checked_shapes(model)
    _check_tensors(tensors, shapes)
    cache = {} if cache is None else cache
    matrices = {name: item for name, item in tensors.items() if isinstance(item, QuantizedTensor)}
    kinds = {name: _kind_of(matrices[name]) for name in shapes if name in matrices}
    streams, blobs = [], []
    for label, names in stream_names(shapes, kinds):
        parts = tuple(tensors[name] for name in names)
        known = cache.get(label)
        if (
            known is None
            or len(known[0]) != len(parts)
            or any(a is not b for a, b in zip(known[0], parts, strict=True))
        ):
            known = cache[label] = parts, _pack_stream(label, [(kinds.get(n), tensors[n]) for n in names])
        codec, blob = known[1]
        streams.append([codec, len(blob)])
        blobs.append(blob)
    header = {
        "model": asdict(model),
        "eval": asdict(eval_config),
        "matrices": [list(kind) for kind in kinds.values()],
        "streams": streams,
    }
    text = _zstd(json.dumps(header, separators=(",", ":"), allow_nan=False).encode(), 19, {})
    body = len(text).to_bytes(2, "little") + text + b"".join(blobs)
    return MAGIC + bytes([VERSION]) + _digest(body) + body


def unpack_model(data: bytes) -> UnpackedModel:
    """The inverse of `pack_model`.

    Raises:
        ValueError: not an artifact, a newer version, damaged, or declaring what it does not hold.
    """
    start = len(MAGIC) + 1
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f"not a pgolf artifact: it starts with {data[: len(MAGIC)]!r}, expected {MAGIC!r}")
    if len(data) < start + DIGEST_BYTES + 2:
        raise UserError(f"artifact is damaged: only {len(data)} bytes", hint="train or copy it again")
    if data[len(MAGIC)] != VERSION:
        raise UserError(
            f"artifact has version {data[len(MAGIC)]}, this code reads version {VERSION}", hint="update pgolf"
        )
    digest, body = data[start : start + DIGEST_BYTES], memoryview(data)[start + DIGEST_BYTES :]
    if _digest(body) != digest:
        raise UserError(
            f"artifact is damaged: checksum {_digest(body).hex()}, expected {digest.hex()}",
            hint="train or copy it again",
        )
    try:
        header, rest = _split_body(body)
        return _unpack_body(header, rest)
    except (ValueError, RecursionError) as error:
        raise UserError(f"artifact is damaged: {error}", hint="train or copy it again") from None


def stream_bytes(data: bytes) -> dict[str, int]:
    """Bytes of each role (codes and scales), of low-rank corrections, of scalars, of the header; they add up to `data`.

    Args:
        data: what `pack_model` returned.
    """
    header, _ = _split_body(memoryview(data)[len(MAGIC) + 1 + DIGEST_BYTES :])
    shapes = _checked_shapes(_noun_from(ModelConfig, header["model"]))
    kinds = _kinds_from(header["matrices"], shapes)
    found: dict[str, int] = {}
    for (label, _), (_, length) in zip(stream_names(shapes, kinds), header["streams"], strict=True):
        found[label.split()[0]] = found.get(label.split()[0], 0) + length
    return found | {"header": len(data) - sum(found.values())}


def stream_names(shapes: Mapping[str, ParamInfo], kinds: Mapping[str, MatrixKind]) -> list[tuple[str, list[str]]]:
    """(label, tensors) of the streams that hold anything, in their order."""
    roles = {role: [name for name, info in shapes.items() if info.role == role] for role in ("embed", "attn", "mlp")}
    streams = [(f"{role} codes", names) for role, names in roles.items()]
    streams += [("lowrank", [name for name, kind in kinds.items() if kind.rank])]
    streams += [("columns", [name for name, kind in kinds.items() if kind.planned])]
    streams += [(f"{role} scales", names) for role, names in roles.items()]
    return [
        *((label, names) for label, names in streams if names),
        ("scalar", [name for name, info in shapes.items() if info.role == "scalar"]),
    ]


def _pack_stream(label: str, parts: Sequence[tuple[MatrixKind | None, PackedTensor]]) -> tuple[str, bytes]:
    """(codec, blob) of one stream."""
    if label.endswith("codes"):
        planes = []
        for kind, item in parts:
            assert kind is not None
            assert isinstance(item, QuantizedTensor)
            planes.append((_plane(kind, tuple(item.codes.shape)), item.codes.cpu().numpy()))
        return _compress_codes(planes)
    values: list[Tensor] = []
    for _, item in parts:
        if not isinstance(item, QuantizedTensor):
            values.append(item)
        elif label == "lowrank" and item.lowrank is not None:
            values += [item.lowrank.left, item.lowrank.right, item.lowrank.scales.view(torch.int8)]
        elif label == "columns" and item.columns is not None:
            values.append(item.columns)
        else:
            values.append(item.scales)
    return _compress(b"".join(_little_endian(value) for value in values))


def _split_body(body: memoryview) -> tuple[Any, bytes]:
    """The parsed, untrusted header and the streams after it."""
    end = 2 + int.from_bytes(body[:2], "little")
    packed = bytes(body[2:end])
    try:
        size = zstandard.frame_content_size(packed)
    except zstandard.ZstdError as error:
        raise ValueError(f"header does not decompress ({error})") from None
    if not 0 < size <= MAX_HEADER_BYTES:
        raise ValueError(f"header declares {size} bytes, at most {MAX_HEADER_BYTES} are read")
    return json.loads(_decompress("zstd", packed, size), parse_constant=_refuse_constant), bytes(body[end:])


def _unpack_body(header: Any, rest: bytes) -> UnpackedModel:
    """Tensors from the parsed, untrusted header and the streams after it."""
    if not isinstance(header, dict) or header.keys() != {"model", "eval", "matrices", "streams"}:
        raise ValueError("header has the wrong keys")
    model, eval_config = _noun_from(ModelConfig, header["model"]), _noun_from(EvalConfig, header["eval"])
    shapes = _checked_shapes(model)
    kinds = _kinds_from(header["matrices"], shapes)
    wanted, streams = stream_names(shapes, kinds), header["streams"]
    _check_streams(streams, len(wanted), len(rest))
    codes: dict[str, Tensor] = {}
    halves: dict[str, Tensor] = {}
    lowrank: dict[str, LowRank] = {}
    columns: dict[str, Tensor] = {}
    position = 0
    for (label, names), (codec, length) in zip(wanted, streams, strict=True):
        blob, position = rest[position : position + length], position + length
        if label.endswith("codes"):
            planes = [_plane(kinds[name], shapes[name].shape) for name in names]
            codes |= dict(zip(names, _decompress_codes(codec, blob, planes), strict=True))
        elif label == "lowrank":
            lowrank = _unpack_lowrank(codec, blob, {name: (kinds[name], shapes[name].shape) for name in names})
        elif label == "columns":
            widths = [2 * shapes[name].shape[1] for name in names]
            flat = torch.frombuffer(bytearray(_decompress(codec, blob, sum(widths))), dtype=torch.int8)
            columns = {name: part.view(2, -1) for name, part in zip(names, torch.split(flat, widths), strict=True)}
        else:
            sizes = {name: _half_shape(shapes[name], kinds.get(name)) for name in names}
            raw = _decompress(codec, blob, 2 * sum(map(math.prod, sizes.values())))
            flat = _finite_halves(np.frombuffer(raw, "<f2"))
            pieces = torch.split(flat, [math.prod(shape) for shape in sizes.values()])
            halves |= {name: part.reshape(sizes[name]) for name, part in zip(names, pieces, strict=True)}
    tensors: dict[str, PackedTensor] = {}
    for name in shapes:
        tensors[name] = halves[name]
        if name in kinds:
            tensors[name] = QuantizedTensor(
                codes=codes[name],
                scales=halves[name],
                bits=kinds[name].bits,
                states=kinds[name].states,
                lowrank=lowrank.get(name),
                columns=columns.get(name),
            )
    return UnpackedModel(model=model, eval_config=eval_config, tensors=tensors)


def _unpack_lowrank(
    codec: str, blob: bytes, wanted: Mapping[str, tuple[MatrixKind, tuple[int, ...]]]
) -> dict[str, LowRank]:
    """Low-rank factors: left and right as int8, scales as float16, matrix by matrix."""
    total = sum(kind.rank * (shape[0] + shape[1] + 2) for kind, shape in wanted.values())
    flat = np.frombuffer(_decompress(codec, blob, total), np.int8)
    found = {}
    for name, (kind, (rows, cols)) in wanted.items():
        ends = np.cumsum([kind.rank * rows, kind.rank * cols, 2 * kind.rank])
        *parts, flat = np.split(flat, ends)
        left, right, scales = (part.copy() for part in parts)
        if abs(np.concatenate((left, right)).astype(np.int16)).max() > code_limit(kind.rank_bits):
            raise ValueError(f"{name}: low-rank codes do not fit {kind.rank_bits} bits")
        found[name] = LowRank(
            left=torch.from_numpy(left.reshape(rows, kind.rank)),
            right=torch.from_numpy(right.reshape(kind.rank, cols)),
            scales=_finite_halves(scales.view("<f2")),
            bits=kind.rank_bits,
        )
    return found


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
    values = {key: _checked_value(key, known[key], value) for key, value in plain.items()}
    try:
        return cls(**values)
    except (TypeError, ArithmeticError, LookupError) as error:  # a check that did not expect such a value
        raise ValueError(f"{cls.__name__} in the header makes no sense ({error})") from None


def _checked_value(key: str, default: Any, value: Any) -> Any:
    """A value of the default's type: a bounded number, a bool, a short string, or a tuple of them."""
    if isinstance(default, tuple):
        if not isinstance(value, list) or len(value) > MAX_VIRTUAL_LAYERS:
            raise ValueError(f"{key} in the header: expected a list of at most {MAX_VIRTUAL_LAYERS}")
        return tuple(_checked_value(key, default[0] if default else 0, item) for item in value)
    expected = type(default)
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise ValueError(f"{key} in the header: expected {expected.__name__}, got {type(value).__name__}")
    if isinstance(value, (int, float)) and not abs(value) <= 1e9:
        raise ValueError(f"{key} in the header must lie within 1e9 of zero")
    if not isinstance(value, (int, float)) and not (isinstance(value, str) and len(value) <= 64):
        raise ValueError(f"{key} in the header: expected a number or a short text, got {type(value).__name__}")
    return value


def _kinds_from(plain: Any, shapes: Mapping[str, ParamInfo]) -> dict[str, MatrixKind]:
    """What each matrix is made of, from untrusted JSON."""
    matrices = {name: info.shape for name, info in shapes.items() if info.role != "scalar"}
    if not isinstance(plain, list) or len(plain) != len(matrices):
        raise ValueError(f"header needs an entry for each of {len(matrices)} matrices")
    kinds = {}
    for (name, shape), entry in zip(matrices.items(), plain, strict=True):
        if not isinstance(entry, list) or [type(value) for value in entry] != [int] * 6:
            raise ValueError(f"{name} in the header: expected six integers")
        kinds[name] = kind = MatrixKind(*entry)
        _check_kind(name, kind, shape)
    return kinds


def _check_kind(name: str, kind: MatrixKind, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a matrix of that shape can be of that kind."""
    rows, cols = shape
    if not BITS_RANGE[0] <= kind.bits <= BITS_RANGE[1]:
        raise ValueError(f"{name}: bits must be in [{BITS_RANGE[0]}, {BITS_RANGE[1]}], got {kind.bits}")
    if kind.states not in (1, 4, 8):
        raise ValueError(f"{name}: states must be 1, 4 or 8, got {kind.states}")
    if not 0 <= kind.groups <= cols or (kind.groups and cols % kind.groups):
        raise ValueError(f"{name}: {kind.groups} groups do not divide {cols} columns")
    if not 0 <= kind.rank <= min(rows, cols) or not (2 <= kind.rank_bits <= 8 if kind.rank else kind.rank_bits == 0):
        raise ValueError(f"{name}: no low-rank correction of rank {kind.rank} and {kind.rank_bits} bits is possible")
    if kind.planned not in (0, 1):
        raise ValueError(f"{name}: planned must be 0 or 1, got {kind.planned}")


def _refuse_constant(text: str) -> float:
    """JSON's NaN and Infinity."""
    raise ValueError(f"header holds {text}")


def _check_streams(streams: Any, count: int, available: int) -> None:
    """Raise ValueError unless `streams` lists `count` [codec, bytes] that fill `available` bytes."""
    if not isinstance(streams, list) or len(streams) != count:
        raise ValueError(f"header must list {count} streams")
    for item in streams:
        if not isinstance(item, list) or [type(field) for field in item] != [str, int] or item[1] < 0:
            raise ValueError("header lists a stream that is not [codec, bytes]")
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
        kind = _kind_of(item)
        _check_kind(name, kind, info.shape)
        if item.scales.dtype != torch.float16 or tuple(item.scales.shape) != _half_shape(info, kind):
            raise ValueError(f"{name}: expected float16 scales, one per row or one row of them per row")
        if not item.scales.isfinite().all():
            raise ValueError(f"{name}: scales hold NaN or infinity")
        plan = item.columns
        if plan is not None and (plan.dtype != torch.int8 or plan.shape != (2, info.shape[1])):
            raise ValueError(f"{name}: expected an int8 plan of shape (2, {info.shape[1]})")
        if max(int(item.codes.max()), -int(item.codes.min())) > code_limit(item.bits):
            raise ValueError(f"{name}: codes do not fit {item.bits} bits")


def _kind_of(item: QuantizedTensor) -> MatrixKind:
    """What the header will say of a matrix."""
    groups = item.scales.shape[1] if item.scales.ndim == 2 else 0
    low, planned = item.lowrank, int(item.columns is not None)
    rank = (low.left.shape[1], low.bits) if low is not None else (0, 0)
    return MatrixKind(item.bits, item.states, groups, *rank, planned)


def _plane(kind: MatrixKind, shape: tuple[int, ...]) -> CodePlane:
    rows, cols = shape
    return CodePlane(shape=(rows, cols), limit=code_limit(kind.bits), states=kind.states)


def _half_shape(info: ParamInfo, kind: MatrixKind | None) -> tuple[int, ...]:
    """Shape of a scalar parameter, or of a matrix' scales."""
    if kind is None:
        return info.shape
    return (info.shape[0], kind.groups) if kind.groups else info.shape[:1]


def _little_endian(values: Tensor) -> bytes:
    """Bytes of an int8 or float16 tensor."""
    array = values.cpu().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _finite_halves(values: np.ndarray) -> Tensor:
    """float16, or ValueError."""
    if not np.isfinite(values).all():
        raise ValueError("a stream holds NaN or infinity")
    return torch.from_numpy(values.astype(np.float16))


def _compress_codes(planes: Sequence[tuple[CodePlane, np.ndarray]]) -> tuple[str, bytes]:
    """(codec, blob) of codes: the entropy coder, unless a byte codec does better, as on long runs."""
    coded = "codes", encode_codes(planes)
    raw = b"".join(codes.tobytes() for _, codes in planes)
    if len(_compress(raw[:RACE_BYTES])[1]) * len(raw) < len(coded[1]) * min(len(raw), RACE_BYTES):
        return min(coded, _compress(raw), key=lambda found: len(found[1]))
    return coded


def _decompress_codes(codec: str, blob: bytes, planes: Sequence[CodePlane]) -> list[Tensor]:
    """Codes of all planes, int8, or ValueError."""
    sizes = [math.prod(plane.shape) for plane in planes]
    if sum(sizes) > MAX_CODES_PER_BYTE * (len(blob) + 1):
        raise ValueError(f"{len(blob)} bytes cannot hold {sum(sizes)} codes")
    if codec == "codes":
        return [torch.from_numpy(codes.astype(np.int8)) for codes in decode_codes(planes, blob)]
    flat = torch.frombuffer(bytearray(_decompress(codec, blob, sum(sizes))), dtype=torch.int8)
    parts = [part.view(plane.shape) for part, plane in zip(torch.split(flat, sizes), planes, strict=True)]
    if any(max(int(p.max()), -int(p.min())) > plane.limit for p, plane in zip(parts, planes, strict=True)):
        raise ValueError("codes are beyond their limit")
    return parts


def _compress(raw: bytes) -> tuple[str, bytes]:
    """(codec, blob) by the codec that does best on the stream's first RACE_BYTES: lzma wins on float16."""
    codecs: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
        ("zstd", lambda data: _zstd(data, 22, {"window_log": 17, "chain_log": 17, "hash_log": 17})),
        ("lzma", lambda data: lzma.compress(data, format=lzma.FORMAT_RAW, filters=LZMA_FILTERS)),
    )
    tried = [compress(raw[:RACE_BYTES]) for _, compress in codecs]
    best = min(range(len(codecs)), key=lambda i: len(tried[i]))
    codec, compress = codecs[best]
    return codec, tried[best] if len(raw) <= RACE_BYTES else compress(raw)


def _zstd(data: bytes, level: int, options: Mapping[str, int]) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=len(data), **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


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
