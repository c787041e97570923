"""Codes of quantized matrices <-> bytes: interleaved rANS under an adaptive model that the decoder learns again.

All matrices pass through one coder. A lane is a row on its way along the columns, and one numpy step codes one column
of every lane. A matrix is walked in bands of rows, so a column's scale is known from the bands above; a row's own
scale is learned on its way. The two give the expected magnitude, whose class picks one of the tables of counts, which
start as a bell curve of that width and follow the codes. No table is stored. Matrices whose rows share directions are
shifted by a prediction first (directions.py); the directions are coded as matrices of their own.

Both sides must compute the same bits on any machine: integers, or float64 under + - * / and sqrt alone, each element
by itself or summed in an order that is fixed (sums of whole sixteenths are exact in any order). No BLAS, exp, or log.

Stream: count of bases, (plane, rank, noise) of each, largest code in the tables, final rANS states, 16-bit words in
the order of decoding, one byte for each code at or beyond the largest. Source: https://arxiv.org/abs/1311.2540 (rANS)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pgolf_model.codec.directions import MAX_RANK, Basis, fit_basis, kalman_gains
from pgolf_model.quant.trellis import TRELLIS_POLYNOMIALS

CODE_LIMIT_MAX = 255
SCALE_CLASSES = 40  # expected magnitudes from 0.1 to 80 in steps of 1.19
SHIFT_CLASSES = 4  # quarters of a code, of the predicted mean
PRIOR_CODES = 512  # what the bell curve counts for; 128 and 2048 cost 0.001 bits per weight on 0.5 M weights
CODE_WEIGHT = 256
FORGET_CODES = 1024  # counts of a class when a batch begins weigh at most this much
RANS_LOW = 1 << 24  # states lie in [2**24, 2**40), 5 bytes; 2**16 for 2 bytes less cost 0.008 bits per weight

Matrix = np.ndarray
Coder = Callable[[Matrix, Matrix, Matrix], Matrix]  # (edges, first slot of each lane's table, symbols) -> slots


@dataclass(frozen=True, kw_only=True, slots=True)
class CodePlane:
    """One matrix of codes, coded together with the others."""

    shape: tuple[int, int]
    limit: int  # codes lie in [-limit, limit]
    states: int = 1  # 1 uniform; 4 or 8 dependent quantization: the trellis state along the row joins the context

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or not 1 <= self.limit <= CODE_LIMIT_MAX or self.states not in TRELLIS_POLYNOMIALS:
            raise ValueError(f"no such plane: {self.shape} of codes up to {self.limit}, {self.states} states")


def encode_codes(planes: Sequence[tuple[CodePlane, Matrix]]) -> bytes:
    """Bytes that `decode_codes` turns into the same codes, given the same planes.

    Args:
        planes: with each its codes, integers of `plane.shape`.
    Raises:
        ValueError: codes are not of the shape, or beyond the limit.
    """
    for index, (plane, codes) in enumerate(planes):
        if codes.shape != plane.shape or codes.dtype.kind not in "iu":
            raise ValueError(f"plane {index}: expected integers {plane.shape}, got {codes.dtype} {codes.shape}")
        if max(int(codes.max()), -int(codes.min())) > plane.limit:
            raise ValueError(f"plane {index}: codes are beyond {plane.limit}")
    if not planes:
        return b""
    matrices = [codes for _, codes in planes]
    bases = {i: basis for i, codes in enumerate(matrices[:255]) if (basis := fit_basis(codes))}
    walked = [*matrices, *(basis.directions for basis in bases.values())]
    # Directions are needed before the bytes at the end add to the largest codes.
    limit = max([_table_limit(walked), *(int(_sizes(basis.directions).max()) + 1 for basis in bases.values())])
    steps: list[tuple[Matrix, Matrix]] = []

    def record(edges: Matrix, firsts: Matrix, symbols: Matrix) -> Matrix:
        slots: Matrix = firsts + symbols
        starts = edges[slots]
        steps.append((starts.astype(np.uint16), (edges[slots + 1] - starts - 1).astype(np.uint16)))
        return slots

    lanes = _walk([plane for plane, _ in planes], bases, walked, limit, record, decodes=False)
    states = np.full(lanes, RANS_LOW)
    words: list[Matrix] = []
    while steps:
        starts, widths = (part.astype(np.int64) for part in steps.pop())
        widths += 1
        state = states[: len(starts)]
        full = state >= widths << 24
        words.append(state[full].astype("<u2"))
        state[full] >>= 16
        state += state // widths * (65536 - widths) + starts
    header = [struct.pack("<HBB", i, len(basis.directions), basis.noise) for i, basis in bases.items()]
    rests = [bytes((sizes[sizes >= limit] - limit).astype(np.uint8)) for sizes in map(_sizes, walked)]
    ends = bytes(states.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :5])
    return b"".join([bytes([len(bases)]), *header, bytes([limit - 1]), ends, *reversed(words), *rests])


def decode_codes(planes: Sequence[CodePlane], data: bytes) -> list[Matrix]:
    """The codes, int16, of the planes that `encode_codes` was given.

    Raises:
        ValueError: data is not what `encode_codes` returned for these planes. Not every change is noticed, but memory
            and time are those of the planes and all codes are within their limits.
    """
    if not planes:
        if data:
            raise ValueError(f"expected no codes, got {len(data)} bytes")
        return []
    bases, limit, position = _read_header(planes, data)
    matrices = [np.zeros(plane.shape, np.int16) for plane in planes]
    walked = [*matrices, *(basis.directions for basis in bases.values())]
    lanes = max(bands.num_lanes for bands in _batches(planes, bases))
    if len(data) < position + 5 * lanes:
        raise ValueError(f"codes are cut short: {len(data)} bytes")
    padded = np.zeros((lanes, 8), np.uint8)
    padded[:, :5] = np.frombuffer(data, np.uint8, 5 * lanes, position).reshape(-1, 5)
    states = padded.view("<u8")[:, 0].astype(np.int64)
    position += 5 * lanes
    words = np.frombuffer(data, "<u2", (len(data) - position) // 2, position)
    used = 0

    def read(edges: Matrix, firsts: Matrix, symbols: Matrix) -> Matrix:
        nonlocal used
        state = states[: len(firsts)]
        low = state & 65535
        slots: Matrix = np.searchsorted(edges, edges[firsts] + low, "right") - 1
        starts = edges[slots]
        new = (edges[slots + 1] - starts) * (state >> 16) + low - (starts & 65535)
        empty = np.flatnonzero(new < RANS_LOW)
        more = words[used : used + len(empty)]
        used += len(empty)
        if len(more) < len(empty):
            raise ValueError("codes are cut short")
        new[empty] = new[empty] << 16 | more
        states[: len(firsts)] = new
        return slots

    _walk(planes, bases, walked, limit, read, decodes=True)
    rests = np.frombuffer(data, np.uint8, offset=position + 2 * used).astype(np.int16)
    beyond = [_sizes(codes) == limit for codes in walked]
    if (states != RANS_LOW).any() or sum(int(where.sum()) for where in beyond) != len(rests):
        raise ValueError("codes do not end where they should")
    for codes, where in zip(walked, beyond, strict=True):
        count = int(where.sum())
        codes[where] += np.sign(codes[where]) * rests[:count]
        rests = rests[count:]
    if any(int(_sizes(codes).max()) > plane.limit for plane, codes in zip(planes, matrices, strict=True)):
        raise ValueError("codes are beyond their limit")
    return matrices


def _read_header(planes: Sequence[CodePlane], data: bytes) -> tuple[dict[int, Basis], int, int]:
    """Bases by plane, their directions still zero; the largest code in the tables; where the rANS states begin."""
    bases: dict[int, Basis] = {}
    try:
        for _ in range(data[0]):
            index, rank, noise = struct.unpack_from("<HBB", data, 1 + 4 * len(bases))
            if index in bases or not 1 <= rank <= min(MAX_RANK, planes[index].shape[0]) or not noise:
                raise ValueError(f"plane {index} cannot have a basis of {rank} directions and noise {noise}")
            bases[index] = Basis(np.zeros((rank, planes[index].shape[1]), np.int16), noise)
        position = 2 + 4 * len(bases)
        return bases, data[position - 1] + 1, position
    except (IndexError, struct.error):
        raise ValueError("codes have a damaged header") from None


def coded_bits(plane: CodePlane, codes: Matrix, *, max_codes: int = 1 << 18) -> float:
    """About the bits that `encode_codes` would spend on one plane among others, from rows with `max_codes` codes.

    Walks the rows three times and counts the last, when the scales of columns and then the tables are known, and adds
    what it takes to learn the columns. Some 80 us per column.
    """
    part = codes[:: -(-codes.size // max_codes)]
    rows, cols = part.shape
    basis = fit_basis(codes)
    limit = int(_sizes(codes).max()) + 1
    tables = _Tables(limit, SHIFT_CLASSES if basis else 1, 1 if plane.states == 1 else 3)
    bits: list[float] = []

    def count(edges: Matrix, firsts: Matrix, symbols: Matrix) -> Matrix:
        slots: Matrix = firsts + symbols
        bits.append(16 * rows - float(np.log2(edges[slots + 1] - edges[slots]).sum()))
        return slots

    thrice = CodePlane(shape=(3 * rows, cols), limit=plane.limit, states=plane.states)
    fits = [basis] if basis else []
    _walk_batch(Bands([0], [thrice], 3, rows), fits, [np.tile(part, (3, 1))], limit, tables, count, False)
    learning = cols * (2.5 + 4.5 * sum(len(fit.directions) for fit in fits))
    return float(sum(bits[2 * cols :]) * len(codes) / rows + learning)


class Bands(NamedTuple):
    """Planes of equal width that are walked together, `num_bands` bands of rows one after the other."""

    indices: list[int]
    planes: list[CodePlane]
    num_bands: int
    num_lanes: int  # rows of the largest band


class _Tables:
    """Frequencies of symbols in every context, learned from the symbols seen: `edges` are their running sums."""

    def __init__(self, limit: int, shifts: int, machines: int) -> None:
        offsets = np.arange(-limit, limit + 1)
        means = np.arange(shifts)[:, None] / SHIFT_CLASSES
        widths = _scale_thresholds(SCALE_CLASSES)[:, None, None] * 1.15  # deviations, from the largest mean magnitude
        bell = 1 + (offsets - means) ** 2 / (32 * widths**2 + 1)  # 16th power: Student's t with 31 degrees of freedom
        for _ in range(4):
            bell = bell * bell
        counts = (PRIOR_CODES * CODE_WEIGHT / (2.5 * widths + 0.7) / bell).astype(np.int64) + 1
        self.counts = counts.reshape(-1, len(offsets)).repeat(machines, 0)
        self.shifts, self.machines = shifts, machines
        self.seen = 0
        self.waiting: list[Matrix] = []
        self.num_waiting = 0
        self.learn()

    def learn(self) -> None:
        """Count the symbols that wait and set `edges`: from 2**16 * c to 2**16 * (c + 1) in context c."""
        if self.waiting:
            new = np.bincount(np.concatenate(self.waiting), minlength=self.counts.size)
            self.counts += CODE_WEIGHT * new.reshape(self.counts.shape)
        self.seen += self.num_waiting
        self.waiting, self.num_waiting = [], 0
        contexts, size = self.counts.shape
        sums = self.counts.cumsum(1)
        edges = (sums - self.counts) * (65536 - size) // sums[:, -1:]  # + 1 for every symbol
        edges += np.arange(size) + 65536 * np.arange(contexts)[:, None]
        self.edges = np.append(edges.ravel(), 65536 * contexts)

    def forget(self) -> None:
        """Let the counts so far weigh at most FORGET_CODES codes per context."""
        self.learn()
        self.counts = self.counts // np.maximum(1, self.counts.sum(1) // (FORGET_CODES * CODE_WEIGHT))[:, None] + 1
        self.learn()
        self.seen = 0

    def see(self, slots: Matrix) -> None:
        """Symbols just coded, as indices into `edges`."""
        self.waiting.append(slots)
        self.num_waiting += len(slots)
        if self.num_waiting >= min(8192, 32 + self.seen // 32):
            self.learn()


def _batches(planes: Sequence[CodePlane], bases: Mapping[int, Basis]) -> list[Bands]:
    """Planes by width, those with a basis apart and after all bases, which are planes of their own here."""
    everything = [*planes, *(CodePlane(shape=b.directions.shape, limit=127) for b in bases.values())]
    groups: dict[tuple[bool, bool, int], list[int]] = {}
    for index, plane in enumerate(everything):
        groups.setdefault((index < len(planes), index in bases, plane.shape[1]), []).append(index)
    size = sum(math.prod(plane.shape) for plane in everything)
    batches = []
    for _, indices in sorted(groups.items()):
        group = [everything[i] for i in indices]
        rows = sum(plane.shape[0] for plane in group)
        # A lane costs 3 bytes and a step some 60 us; columns are known only after the first band.
        count = -(-rows // min(1024, max(24, min(size >> 14, rows >> 4))))
        lanes = max(sum(len(_band(plane, band, count)) for plane in group) for band in range(count))
        batches.append(Bands(indices, group, count, lanes))
    return batches


def _band(plane: CodePlane, band: int, count: int) -> range:
    """The plane's rows in a band."""
    return range(plane.shape[0] * band // count, plane.shape[0] * (band + 1) // count)


def _walk(
    planes: Sequence[CodePlane],
    bases: Mapping[int, Basis],
    matrices: Sequence[Matrix],
    limit: int,
    coder: Coder,
    *,
    decodes: bool,
) -> int:
    """Take every code once through `coder`, in the order and the contexts that both sides know; the number of lanes.

    Args:
        matrices: codes of the planes, then directions of the bases; filled in where `decodes`.
    """
    machines = 3 if any(plane.states > 1 for plane in planes) else 1
    tables = _Tables(limit, SHIFT_CLASSES if bases else 1, machines)
    batches = _batches(planes, bases)
    for batch in batches:
        tables.forget()
        fits = [bases[i] for i in batch.indices if i in bases]
        _walk_batch(batch, fits, matrices, limit, tables, coder, decodes)
    return max(batch.num_lanes for batch in batches)


def _walk_batch(
    batch: Bands,
    bases: list[Basis],
    matrices: Sequence[Matrix],
    limit: int,
    tables: _Tables,
    coder: Coder,
    decodes: bool,
) -> None:
    """`_walk` through planes of one width; all of them have a basis, or none."""
    group, size = len(batch.planes), 2 * limit + 1
    cols = batch.planes[0].shape[1]
    thresholds = _scale_thresholds(SCALE_CLASSES - 1)
    by_column, total = np.zeros((cols, group)), np.ones(group)  # sums of magnitudes
    num_rows, num_codes = np.zeros(group), np.ones(group)
    spread = np.zeros(group)  # sum over rows of how far their scale was from what the columns let expect, squared
    taps = np.array([TRELLIS_POLYNOMIALS[plane.states] for plane in batch.planes])
    shift: Matrix | int = 0
    centre: Matrix | int = 0  # prediction in sixteenths of a code
    if bases:
        directions, gains = kalman_gains(bases)
    for band in range(batch.num_bands):
        rows = [_band(plane, band, batch.num_bands) for plane in batch.planes]
        counts = [len(r) for r in rows]
        owner = np.repeat(np.arange(group), counts)
        codes = np.concatenate([matrices[i][r.start : r.stop] for i, r in zip(batch.indices, rows, strict=True)]).T
        codes = np.clip(codes, -limit, limit).astype(np.int16, order="C")
        found, expected, state = np.zeros(len(owner)), np.zeros(len(owner)), np.zeros(len(owner), np.int64)
        h0, h1 = taps[owner].T
        # Bayes: a mean of n magnitudes is off by 0.57 / n of its square, rows differ by the rest of their spread.
        trust = 0.57 / np.clip((spread + 0.1) / (num_rows + 4) - 0.57 / cols, 0.0005, 0.15)[owner]
        if bases:
            factors = np.zeros((directions.shape[2], len(owner)), np.int64)  # in 2**-16
            factors[0] = 65536
        for column in range(cols):
            mean = (total / num_codes * 6 + by_column[column]) / (6 + num_rows)
            usual = mean[owner]
            scale = usual * (trust * usual + found) / (trust * usual + expected)
            contexts = np.searchsorted(thresholds, scale)
            if bases:
                centre = (directions[column][owner].T * factors).sum(0) >> 15
                shift = centre + 2 >> 4
                contexts = contexts * SHIFT_CLASSES + (centre + 2 >> 2 & 3)
            elif tables.shifts > 1:
                contexts = contexts * SHIFT_CLASSES
            if tables.machines > 1:
                contexts = contexts * tables.machines + (state & 1) + (h0 > 0)
            firsts = contexts * size
            slots = coder(tables.edges, firsts, (codes[column] - shift + limit) % size)
            tables.see(slots)
            code = (slots - firsts + shift) % size - limit
            codes[column] = code
            errors = 16 * code - centre
            if bases:
                factors += gains[column][owner].T * errors >> 4
            if tables.machines > 1:
                state = (state ^ (state & 1) * h0 ^ (code & 1) * h1) >> 1
            sizes = abs(errors) / 16
            sums = np.bincount(owner, sizes, group)
            by_column[column] += sums
            total += sums
            num_codes += counts
            found += sizes
            expected += usual
        num_rows += counts
        spread += np.bincount(owner, (found / expected - 1) ** 2, group)
        if decodes:
            for i, r, part in zip(batch.indices, rows, np.split(codes, np.cumsum(counts)[:-1], 1), strict=True):
                matrices[i][r.start : r.stop] = part.T


def _scale_thresholds(count: int) -> Matrix:
    """Expected magnitudes that separate the scale classes. A product, for `pow` is not the same everywhere."""
    return np.cumprod(np.full(count, 1.19)) * 0.08


def _sizes(codes: Matrix) -> Matrix:
    """Magnitudes, int16."""
    return abs(codes.astype(np.int16))


def _table_limit(matrices: Sequence[Matrix]) -> int:
    """The largest code in the tables. A code there or beyond costs a byte more, a table's entry 2**-16 of the codes."""
    sizes = np.sum([np.bincount(_sizes(codes).ravel(), minlength=257) for codes in matrices], 0)
    beyond = sizes[::-1].cumsum()[::-1]
    costs = 8 * beyond + beyond[0] * np.arange(257) * (2 / 45426)
    return int(costs[1:].argmin()) + 1
