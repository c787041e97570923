"""Statistics that several rooms share: fronts, hypervolume, rank correlation, t-test."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

Z90 = 1.6449  # deviations from the mean within which 90 % of a normal lie


def non_dominated(pairs: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Return the indices of the pairs that no other pair dominates, in order of the first number; lower is better.

    A pair dominates another if it is lower in one number and not higher in the other. Equal pairs are both kept.
    """
    front: list[int] = []
    lowest, last = inf, None
    for i in sorted(range(len(pairs)), key=lambda i: pairs[i]):
        if pairs[i][1] < lowest or pairs[i] == last:
            front.append(i)
            lowest, last = pairs[i][1], pairs[i]
    return tuple(front)


def hypervolume(front: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area between `front` and `reference`; lower is better, and points beyond the reference add nothing."""
    area, floor = 0.0, reference[1]
    for x, y in sorted(front):
        if x < reference[0] and y < floor:
            area += (reference[0] - x) * (floor - y)
            floor = y
    return area


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the rank correlation, ties at their mean rank; None below three pairs or if one side is constant."""
    if len(first) != len(second):
        raise ValueError(f"spearman needs sequences of one length, got {len(first)} and {len(second)}")
    if len(first) < 3:
        return None
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) + 1) / 2
    spread = sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value from 1, ties at their mean rank."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for i in order[start:end]:
            ranks[i] = (start + 1 + end) / 2
        start = end
    return ranks


def t_test_p(mean: float, standard_error: float, degrees_of_freedom: float) -> float:
    """Return the chance of a mean at least this far above 0 if the true mean is 0: one-sided Student t."""
    if standard_error == 0:
        return 0.0 if mean > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(degrees_of_freedom, -mean / standard_error))
