"""Quantized tensors <-> the bytes of the artifact: a checksummed container that a hostile file cannot exploit.

Layout: MAGIC, version (1 byte), SHA-256 of the body cut to DIGEST_BYTES, body. The body is the header's length
(little-endian uint16), the header and the streams. The header is JSON under zstd: configs, what each matrix is made of,
codec and length of each stream. The streams are the codes of each role, the factors of low-rank corrections and the
plans of columns where there are any, the float16 scales of each role, the float16 scalars. Names and shapes follow from
the model config (`param_shapes`), and so does every stream's raw length, which is how decompression stays bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf_model.codec.entropy import CodePlane
from pgolf_model.codec.header import MatrixKind, check_kind, check_streams, checked_shapes, kinds_from, noun_from
from pgolf_model.codec.streams import compress, compress_codes, decompress, decompress_codes, zstd_compress
from pgolf_model.config import EvalConfig, ModelConfig, code_limit
from pgolf_model.errors import UserError
from pgolf_model.quant.lowrank import LowRank
from pgolf_model.quant.quantize import PackedTensor, QuantizedTensor, check_names
from pgolf_model.shapes import ParamInfo

MAGIC = b"pgolf"
VERSION = 2
DIGEST_BYTES = 16
MAX_HEADER_BYTES = 2**17


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UnpackedModel:
    """All that the artifact says: enough to build the model and score it."""

    model: ModelConfig
    eval_config: EvalConfig
    tensors: dict[str, PackedTensor]  # in the order of `param_shapes(model)`


# Streams packed before: label -> (their tensors, (codec, blob)). Only streams whose tensors changed are packed again.
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
    shapes = checked_shapes(model)
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
    text = zstd_compress(json.dumps(header, separators=(",", ":"), allow_nan=False).encode(), 19, {})
    body = len(text).to_bytes(2, "little") + text + b"".join(blobs)
    return MAGIC + bytes([VERSION]) + _digest(body) + body


def unpack_model(data: bytes) -> UnpackedModel:
    """The inverse of `pack_model`.

    Raises:
        UserError: not an artifact, of another version, damaged, or with a header that its streams contradict.
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
    shapes = checked_shapes(noun_from(ModelConfig, header["model"]))
    kinds = kinds_from(header["matrices"], shapes)
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
        return compress_codes(planes)
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
    return compress(b"".join(_little_endian(value) for value in values))


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
    return json.loads(decompress("zstd", packed, size), parse_constant=_refuse_constant), bytes(body[end:])


def _unpack_body(header: Any, rest: bytes) -> UnpackedModel:
    """Tensors from the parsed, untrusted header and the streams after it."""
    if not isinstance(header, dict) or header.keys() != {"model", "eval", "matrices", "streams"}:
        raise ValueError("header has the wrong keys")
    model, eval_config = noun_from(ModelConfig, header["model"]), noun_from(EvalConfig, header["eval"])
    shapes = checked_shapes(model)
    kinds = kinds_from(header["matrices"], shapes)
    wanted, streams = stream_names(shapes, kinds), header["streams"]
    check_streams(streams, len(wanted), len(rest))
    codes: dict[str, Tensor] = {}
    halves: dict[str, Tensor] = {}
    lowrank: dict[str, LowRank] = {}
    columns: dict[str, Tensor] = {}
    position = 0
    for (label, names), (codec, length) in zip(wanted, streams, strict=True):
        blob, position = rest[position : position + length], position + length
        if label.endswith("codes"):
            planes = [_plane(kinds[name], shapes[name].shape) for name in names]
            codes |= dict(zip(names, decompress_codes(codec, blob, planes), strict=True))
        elif label == "lowrank":
            lowrank = _unpack_lowrank(codec, blob, {name: (kinds[name], shapes[name].shape) for name in names})
        elif label == "columns":
            widths = [2 * shapes[name].shape[1] for name in names]
            flat = torch.frombuffer(bytearray(decompress(codec, blob, sum(widths))), dtype=torch.int8)
            columns = {name: part.view(2, -1) for name, part in zip(names, torch.split(flat, widths), strict=True)}
        else:
            sizes = {name: _half_shape(shapes[name], kinds.get(name)) for name in names}
            raw = decompress(codec, blob, 2 * sum(map(math.prod, sizes.values())))
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
    flat = np.frombuffer(decompress(codec, blob, total), np.int8)
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


def _refuse_constant(text: str) -> float:
    """JSON's NaN and Infinity."""
    raise ValueError(f"header holds {text}")


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
        check_kind(name, kind, info.shape)
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


def _digest(body: bytes | memoryview) -> bytes:
    """Checksum of the body: against accidents, not against forgery."""
    return hashlib.sha256(body).digest()[:DIGEST_BYTES]
