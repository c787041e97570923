"""The entropy coder: exact, near what the codes hold by other people's measure, and sound on hostile bytes."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from itertools import pairwise

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model.codec import entropy
from pgolf_model.codec.directions import Basis, fit_basis
from pgolf_model.codec.entropy import TRELLIS_POLYNOMIALS, CodePlane, coded_bits, decode_codes, encode_codes

SIGMA = 1 / 0.4145  # codes per deviation at the record's step
LANE_BITS = 40  # a lane's final state


def plane_of(codes: np.ndarray, states: int = 1, limit: int = 127) -> CodePlane:
    rows, cols = codes.shape
    return CodePlane(shape=(rows, cols), limit=limit, states=states)


def rounded(values: np.ndarray, limit: int = 127) -> np.ndarray:
    return np.clip(np.rint(values), -limit, limit).astype(np.int16)


def gaussian(rows: int, cols: int, seed: int = 0, sigma: float = SIGMA) -> np.ndarray:
    return rounded(np.random.default_rng(seed).normal(0, sigma, (rows, cols)))


def low_rank(rows: int, cols: int, rank: int, seed: int = 0) -> np.ndarray:
    """Rows with a common mean and `rank` common directions that hold half of their energy."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 1, (rows, rank)) @ rng.normal(0, rank**-0.5, (rank, cols)) + rng.normal(0, 0.5, cols)
    return rounded(SIGMA * (common + rng.normal(0, 1, (rows, cols))) / 1.5)


def bits_of(codes: np.ndarray, states: int = 1) -> float:
    return 8 * len(encode_codes([(plane_of(codes, states), codes)])) / codes.size


def order_zero(codes: np.ndarray) -> float:
    """Entropy of the codes' own histogram, bits per code."""
    counts = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(counts * np.log2(counts)).sum())


def assert_round_trip(planes: list[tuple[CodePlane, np.ndarray]]) -> bytes:
    data = encode_codes(planes)
    decoded = decode_codes([plane for plane, _ in planes], data)
    assert len(decoded) == len(planes)
    for (plane, codes), found in zip(planes, decoded, strict=True):
        assert found.shape == plane.shape
        assert found.dtype == np.int16
        assert np.array_equal(found, codes)
    return data


@st.composite
def planes_with_codes(draw: st.DrawFn) -> list[tuple[CodePlane, np.ndarray]]:
    """Any mixture: narrow and wide codes, constant ones, a few widths, so that some share a batch."""
    planes = []
    for _ in range(draw(st.integers(1, 5))):
        shape = (draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 7, 19])))
        limit, states = draw(st.integers(1, 255)), draw(st.sampled_from([1, 4, 8]))
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        width = draw(st.sampled_from([0.0, 0.3, 2.0, 20.0, 1e3]))
        codes = rounded(
            rng.normal(0, 1, shape) ** draw(st.sampled_from([1, 3])) * width + draw(st.integers(-9, 9)), limit
        )
        kind = np.int8 if limit < 128 and draw(st.booleans()) else np.int16
        planes.append((CodePlane(shape=shape, limit=limit, states=states), codes.astype(kind)))
    return planes


@settings(max_examples=25, deadline=None)
@given(planes=planes_with_codes())
def test_decoding_gives_the_codes_back(planes: list[tuple[CodePlane, np.ndarray]]) -> None:
    """Lossless for every shape, limit, state machine and mixture."""
    assert_round_trip(planes)


def test_extreme_planes_come_back() -> None:
    """One code, the int8 minimum, both ends of the widest limit, a single row and a single column."""
    corners = np.array([[-255, 255], [255, -255]], np.int16)
    lowest = np.full((3, 2), -128, np.int8)
    column = gaussian(301, 1)
    for codes in (np.zeros((1, 1), np.int8), np.ones((1, 1), np.int8), corners, lowest, column, column.T):
        assert_round_trip([(plane_of(codes, limit=255), codes)])
    assert encode_codes([]) == b""
    assert decode_codes([], b"") == []


def test_rare_large_codes_cost_bytes_not_tables() -> None:
    """A few outliers far beyond the rest come back and cost at most some bytes each."""
    codes = gaussian(400, 100)
    without = len(assert_round_trip([(plane_of(codes, limit=255), codes)]))
    codes[::80, 7] = [255, -255, 90, -91, 254]
    assert len(assert_round_trip([(plane_of(codes, limit=255), codes)])) < without + 5 * 8


def test_common_directions_are_found_and_pay() -> None:
    """Half of the energy in 3 directions saves most of the half bit per code it is worth; noise gets no basis."""
    codes = low_rank(900, 64, 3)
    data = assert_round_trip([(plane_of(codes), codes), (plane_of(codes[:100], 4), codes[:100])])
    assert data[0] >= 1
    assert bits_of(codes) < order_zero(codes) - 0.3
    assert fit_basis(gaussian(500, 64)) is None


def test_many_planes_with_bases_share_a_walk() -> None:
    """Planes of one width with bases of several ranks decode together."""
    planes = [(plane_of(codes), codes) for codes in (low_rank(700, 32, rank, seed=rank) for rank in (1, 2, 5))]
    assert assert_round_trip(planes)[0] == 3


def test_gaussian_codes_cost_their_entropy() -> None:
    """Within 0.01 bits of the true entropy, and of an independent coder that is told the true distribution."""
    codes = gaussian(1024, 384)
    ours = bits_of(codes)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(
        codes.ravel().astype(np.int32), constriction.stream.model.QuantizedGaussian(-127, 127, 0, SIGMA)
    )
    theirs = coder.num_valid_bits() / codes.size
    edges = [math.erf((k + 0.5) / SIGMA / math.sqrt(2)) for k in range(-40, 41)]
    probabilities = [(b - a) / 2 for a, b in pairwise(edges)]
    true = -sum(p * math.log2(p) for p in probabilities if p > 0)
    assert theirs == pytest.approx(true, abs=0.005)
    assert order_zero(codes) == pytest.approx(true, abs=0.005)
    assert ours == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize("sigma", [0.02, 0.4, 1.0, 6.4, 60.0])
def test_other_steps_cost_their_entropy_too(sigma: float) -> None:
    """From nearly all zeros to 8 bits, the excess stays below 0.02 bits per code, lanes included."""
    codes = gaussian(600, 160, sigma=sigma)
    assert bits_of(codes) < order_zero(codes) + 0.02 + 24 * LANE_BITS / codes.size


def test_column_scales_are_learned() -> None:
    """Columns of different scale cost nearly what a coder told every column's deviation would spend."""
    rng = np.random.default_rng(0)
    sigmas = SIGMA * np.exp(rng.normal(0, 0.4, 160))
    codes = rounded(rng.normal(0, sigmas, (1024, 160)))
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.QuantizedGaussian(-127, 127)
    deviations = np.broadcast_to(sigmas, codes.shape).ravel().astype(np.float64)
    coder.encode_reverse(codes.ravel().astype(np.int32), model, np.zeros(codes.size), deviations)
    told = coder.num_valid_bits() / codes.size
    assert told < order_zero(codes) - 0.1
    assert bits_of(codes) < told + 0.04


def test_row_scales_are_learned() -> None:
    """Rows of different scale, which side information would have to tell, are followed on the way."""
    rng = np.random.default_rng(0)
    codes = rounded(rng.normal(0, 1, (512, 256)) * SIGMA * np.exp(rng.normal(0, 0.5, (512, 1))))
    assert bits_of(codes) < order_zero(codes) - 0.15


def machine_states(codes: np.ndarray, states: int) -> np.ndarray:
    """Which quantizer is active before each code: the parity check h0(D) z = h1(D) p, solved bit by bit."""
    h0, h1 = TRELLIS_POLYNOMIALS[states]
    active = np.zeros(codes.shape, int)
    for row, codes_of_row in enumerate(codes):
        for column in range(codes.shape[1]):
            bit = 0
            for delay in range(1, 4):
                if column >= delay:
                    bit ^= (h0 >> delay & 1) * active[row, column - delay] ^ (h1 >> delay & 1) * (
                        int(codes_of_row[column - delay]) & 1
                    )
            active[row, column] = bit
    return active


@pytest.mark.parametrize("states", [4, 8])
def test_the_active_quantizer_is_a_context(states: int) -> None:
    """Codes whose zero is rarer under the second quantizer cost the conditional entropy, found by a naive machine."""
    rng = np.random.default_rng(states)
    codes = np.zeros((400, 100), np.int16)
    for column in range(codes.shape[1]):
        active = machine_states(codes[:, : column + 1][:, -40:], states)[:, -1] if column < 40 else None
        if active is None:
            codes = codes[:, :40]
            break
        drawn = rounded(rng.normal(0, 1.5, 400))
        again = rounded(rng.normal(0, 1.5, 400))
        codes[:, column] = np.where((active == 1) & (drawn == 0), again, drawn)
    active = machine_states(codes, states)
    assert 0.3 < active.mean() < 0.7
    conditional = sum(order_zero(codes[active == k]) * (active == k).mean() for k in (0, 1))
    assert conditional < order_zero(codes) - 0.01
    with_states, without = bits_of(codes, states), bits_of(codes)
    overhead = 24 * LANE_BITS / codes.size
    assert with_states < without - 0.008
    assert with_states < conditional + overhead + 0.04


def test_small_models_pay_little_for_lanes_and_learning() -> None:
    """Half a million codes in 12 matrices: at most 0.3 % above the entropy."""
    matrices = [
        gaussian(*shape, seed=i) for i, shape in enumerate([(1024, 128)] + [(128, 128), (256, 128), (128, 256)] * 4)
    ]
    data = encode_codes([(plane_of(codes), codes) for codes in matrices])
    entropy_bits = sum(order_zero(codes) * codes.size for codes in matrices)
    assert 8 * len(data) < entropy_bits * 1.003


def test_same_codes_same_bytes() -> None:
    """The stream is a function of the codes."""
    codes = low_rank(300, 32, 2)
    assert encode_codes([(plane_of(codes), codes)]) == encode_codes([(plane_of(codes), codes.copy())])


def test_stream_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes made of integers, and a basis given by hand, yield the bytes that other machines must decode.

    The digests pin the format: a change of the model must come with a new artifact version.
    """
    seeds = np.arange(96 * 32, dtype=np.uint64) * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
    bits = (seeds >> np.uint64(33)) ^ (seeds >> np.uint64(45))
    codes = sum((bits >> np.uint64(k) & np.uint64(3)).astype(np.int16) for k in range(0, 12, 2)).reshape(96, 32) - 9
    planes = [(plane_of(codes, states), codes) for states in (1, 4, 8)]
    digests = [hashlib.sha256(assert_round_trip(planes)).hexdigest()[:16]]
    hand = Basis(np.arange(-32, 32, dtype=np.int16).reshape(2, 32) % 13 - 6, 9)
    monkeypatch.setattr(entropy, "fit_basis", lambda codes: hand)
    digests.append(hashlib.sha256(assert_round_trip(planes)).hexdigest()[:16])
    assert digests == ["d56fee62eba3c5e5", "dd0c33c25cd824f8"]


DAMAGED = [(plane_of(codes), codes) for codes in (low_rank(300, 16, 1), gaussian(30, 20))]
assert encode_codes(DAMAGED)[0] == 1  # with a basis
DAMAGED_BYTES = encode_codes(DAMAGED)


def decode_or_refuse(data: bytes, kinds: list[CodePlane]) -> None:
    try:
        decoded = decode_codes(kinds, data)
    except ValueError:
        return
    for plane, codes in zip(kinds, decoded, strict=True):
        assert codes.shape == plane.shape
        assert abs(codes).max() <= plane.limit


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, len(DAMAGED_BYTES) - 1), bit=st.integers(0, 7))
def test_flipped_bits_are_refused_or_harmless(position: int, bit: int) -> None:
    """ValueError, or codes within their limits; never another exception, warning or loop."""
    data = bytearray(DAMAGED_BYTES)
    data[position] ^= 1 << bit
    decode_or_refuse(bytes(data), [plane for plane, _ in DAMAGED])


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=60) | st.integers(0, 9).map(lambda n: np.random.default_rng(n).bytes(3000)))
def test_any_bytes_are_refused_or_harmless(data: bytes) -> None:
    """Noise is no way to crash the decoder."""
    decode_or_refuse(data, [plane for plane, _ in DAMAGED])
    decode_or_refuse(bytes([1, 0, 0, 16, 1]) + data, [plane for plane, _ in DAMAGED])


def test_cut_and_lengthened_streams_are_refused() -> None:
    """Every cut, and bytes after the end."""
    kinds = [plane for plane, _ in DAMAGED]
    for end in (*range(40), *range(40, len(DAMAGED_BYTES), 211), len(DAMAGED_BYTES) - 1):
        with pytest.raises(ValueError, match="codes"):
            decode_codes(kinds, DAMAGED_BYTES[:end])
    for extra in (b"\0", b"ab"):
        with pytest.raises(ValueError, match="codes do not end"):
            decode_codes(kinds, DAMAGED_BYTES + extra)
    with pytest.raises(ValueError, match="expected no codes, got 1 bytes"):
        decode_codes([], b"\0")


def test_codes_beyond_the_declared_limit_are_refused() -> None:
    """A stream decoded under a smaller limit does not smuggle larger codes in."""
    codes = gaussian(60, 40)
    data = encode_codes([(plane_of(codes), codes)])
    with pytest.raises(ValueError, match="codes are beyond"):
        decode_codes([plane_of(codes, limit=3)], data)


def test_wrong_input_is_refused() -> None:
    """Shapes, kinds and limits of what is to be coded."""
    codes = gaussian(4, 3)
    with pytest.raises(ValueError, match=r"plane 0: expected integers \(4, 3\), got float64 \(4, 3\)"):
        encode_codes([(plane_of(codes), codes.astype(float))])
    with pytest.raises(ValueError, match=r"plane 1: expected integers \(4, 3\), got int16 \(3, 4\)"):
        encode_codes([(plane_of(codes), codes), (plane_of(codes), codes.T)])
    with pytest.raises(ValueError, match="plane 0: codes are beyond 127"):
        encode_codes([(plane_of(codes), codes + np.int16(200))])
    for shape, limit, states in (((0, 3), 1, 1), ((3, 3), 0, 1), ((3, 3), 256, 1), ((3, 3), 1, 2)):
        with pytest.raises(ValueError, match="no such plane"):
            CodePlane(shape=shape, limit=limit, states=states)


def test_decoding_allocates_what_the_planes_need() -> None:
    """Some ten times the codes' own memory and the tables, for sound and for hostile streams."""
    codes = gaussian(3000, 4)
    data = encode_codes([(plane_of(codes), codes)])
    hostile = bytes([1, 0, 0, 16, 255]) + data[1:]
    for stream in (data, hostile):
        tracemalloc.start()
        decode_or_refuse(stream, [plane_of(codes)])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 * codes.size + 2_000_000


@pytest.mark.parametrize(
    ("codes", "states"),
    [
        (gaussian(600, 128), 1),
        (gaussian(900, 128, sigma=0.6), 4),
        (rounded(gaussian(800, 128) * np.exp(np.random.default_rng(0).normal(0, 0.4, 128))), 1),
        (low_rank(900, 96, 4), 1),
        (gaussian(2000, 300), 1),
    ],
    ids=["gaussian", "trellis", "columns", "low rank", "sampled"],
)
def test_coded_bits_foretells_the_size(codes: np.ndarray, states: int) -> None:
    """Within 0.5 % of the stream, lanes left out."""
    plane = plane_of(codes, states)
    lanes = max(batch.num_lanes for batch in entropy._batches([plane], {}))
    actual = 8 * len(encode_codes([(plane, codes)])) - LANE_BITS * lanes
    assert coded_bits(plane, codes) == pytest.approx(actual, rel=0.005)


def test_noise_has_no_directions_even_when_sampled() -> None:
    """Fitted to a part of the rows, noise would seem to have directions worth storing for all of them."""
    assert fit_basis(gaussian(8192, 256)) is None
