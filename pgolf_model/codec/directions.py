"""Directions that the rows of a matrix share, and the filter that predicts a row's next code from them.

Trained embeddings have a few strong directions: rows = mean + factors @ directions + noise (probabilistic PCA, Tipping
& Bishop 1999). Where it pays, the encoder stores the directions and both sides run a Kalman filter per row: from the
codes so far it estimates the row's factors and predicts the next code. On embeddings of 1024 x 128 trained for minutes
12 directions of 6 bits saved 0.35 bits per weight, directions included.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

MAX_RANK = 16  # 12 to 24 were equally good, 6 cost 0.001 bits per weight on whole models of 0.5 M weights
DIRECTION_STEPS = 8  # stored in eighths of a code
DIRECTION_BITS = 7.0  # bits that an entry must save: about 4.5 to store it, the rest against fitting noise


class Basis(NamedTuple):
    """Directions that the rows of a plane share."""

    directions: np.ndarray  # (rank, cols) in steps of 1 / DIRECTION_STEPS code; the first is the mean of the rows
    noise: int  # deviation of the codes from what the directions explain, in quarters of a code


def fit_basis(codes: np.ndarray) -> Basis | None:
    """The directions that save more bits than they cost; None where there are none.

    All columns are brought to one scale first: a column of large codes is no direction, and the coder learns its scale.
    """
    rows, cols = codes.shape
    sample = codes[:: -(-rows // 2048)].astype(np.float32)
    widths = np.sqrt(np.square(sample).mean(0)) + 0.01
    sample /= widths
    mean = sample.mean(0)
    centred = sample - mean
    count = min(MAX_RANK - 1, len(sample), cols)
    axes = centred[:count].T
    for _ in range(6):
        axes = np.linalg.qr(centred.T @ (centred @ axes))[0]
    powers, turn = np.linalg.eigh(axes.T @ (centred.T @ (centred @ axes)) / len(sample))
    powers, axes = powers[::-1].clip(0), axes @ turn[:, ::-1]
    total = float(np.square(sample).sum()) / len(sample)
    best, basis = 0.0, None
    for rank in range(1, count + 2):
        rest = total - float(mean @ mean) - float(powers[: rank - 1].sum())
        if rest <= cols / 1000:
            break
        noise = rest / cols
        # Counted on the sample alone: there, directions of pure noise seem to save more than they would on all rows.
        saved = (
            len(sample) / 2 * (cols * math.log2(total / rest) - float(np.log2(1 + powers[: rank - 1] / noise).sum()))
        )
        if saved - rank * cols * DIRECTION_BITS > best:
            best = saved - rank * cols * DIRECTION_BITS
            steps = np.vstack([mean, (axes * np.sqrt(powers)).T[: rank - 1]]) * widths * DIRECTION_STEPS
            deviation = 4 * float(noise * np.square(widths).mean()) ** 0.5
            basis = Basis(np.rint(steps).clip(-127, 127).astype(np.int16), min(255, max(1, round(deviation))))
    return basis


def kalman_gains(bases: list[Basis]) -> tuple[np.ndarray, np.ndarray]:
    """(cols, planes, rank) directions and Kalman gains: what an error of one code adds to each factor, in 2**-16.

    A row's factors begin as independent standard normals, except the first, which is 1.
    """
    rank = max(len(basis.directions) for basis in bases)
    directions = np.stack([np.pad(b.directions, ((0, rank - len(b.directions)), (0, 0))) for b in bases])
    directions = directions.astype(np.int64).transpose(2, 0, 1)
    noise = np.array([basis.noise for basis in bases]) / 4
    covariance = np.eye(rank).repeat(len(bases), 0).reshape(rank, len(bases), rank)
    covariance[0] = 0
    gains = []
    for direction in directions / DIRECTION_STEPS:
        spread = sum(covariance[j] * direction[:, j, None] for j in range(rank))
        variance = sum(spread[:, j] * direction[:, j] for j in range(rank)) + noise**2
        gain = spread / variance[:, None]
        covariance = covariance - gain.T[:, :, None] * spread
        gains.append(np.rint(gain * 65536).astype(np.int64))
    return directions, np.stack(gains)
