"""One stream of an artifact <-> its bytes: codes through the entropy coder, other values through zstd or LZMA."""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf_model.codec.entropy import CodePlane, decode_codes, encode_codes

MAX_CODES_PER_BYTE = 2**16  # no codec here packs tighter; a stream that claims to is refused before memory is allocated
RACE_BYTES = 2**20  # codecs compete on this much of a stream; the winner compresses all of it
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": RACE_BYTES, "lc": 0, "lp": 1, "pb": 1}]


def compress_codes(planes: Sequence[tuple[CodePlane, np.ndarray]]) -> tuple[str, bytes]:
    """(codec, blob) of codes: the entropy coder, unless a byte codec does better, as on long runs."""
    coded = "codes", encode_codes(planes)
    raw = b"".join(codes.tobytes() for _, codes in planes)
    if len(compress(raw[:RACE_BYTES])[1]) * len(raw) < len(coded[1]) * min(len(raw), RACE_BYTES):
        return min(coded, compress(raw), key=lambda found: len(found[1]))
    return coded


def decompress_codes(codec: str, blob: bytes, planes: Sequence[CodePlane]) -> list[Tensor]:
    """Codes of all planes, int8, or ValueError."""
    sizes = [math.prod(plane.shape) for plane in planes]
    if sum(sizes) > MAX_CODES_PER_BYTE * (len(blob) + 1):
        raise ValueError(f"{len(blob)} bytes cannot hold {sum(sizes)} codes")
    if codec == "codes":
        return [torch.from_numpy(codes.astype(np.int8)) for codes in decode_codes(planes, blob)]
    flat = torch.frombuffer(bytearray(decompress(codec, blob, sum(sizes))), dtype=torch.int8)
    parts = [part.view(plane.shape) for part, plane in zip(torch.split(flat, sizes), planes, strict=True)]
    if any(max(int(p.max()), -int(p.min())) > plane.limit for p, plane in zip(parts, planes, strict=True)):
        raise ValueError("codes are beyond their limit")
    return parts


def compress(raw: bytes) -> tuple[str, bytes]:
    """(codec, blob) by the codec that does best on the stream's first RACE_BYTES: lzma wins on float16."""
    codecs: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
        ("zstd", lambda data: zstd_compress(data, 22, {"window_log": 17, "chain_log": 17, "hash_log": 17})),
        ("lzma", lambda data: lzma.compress(data, format=lzma.FORMAT_RAW, filters=LZMA_FILTERS)),
    )
    tried = [compress(raw[:RACE_BYTES]) for _, compress in codecs]
    best = min(range(len(codecs)), key=lambda i: len(tried[i]))
    codec, compress = codecs[best]
    return codec, tried[best] if len(raw) <= RACE_BYTES else compress(raw)


def decompress(codec: str, blob: bytes, size: int) -> bytes:
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


def zstd_compress(data: bytes, level: int, options: Mapping[str, int]) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=len(data), **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)
