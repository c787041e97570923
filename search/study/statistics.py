"""Statistics that several rooms share: fronts, hypervolume, rank correlation, t-test."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def non_dominated(pairs: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the pairs that no other pair beats in one number while matching it in the other; lower is better.

    Equal pairs do not beat each other. In order of the first number.
    """
    front: list[int] = []
    lowest, last = inf, None
    for i in sorted(range(len(pairs)), key=lambda i: pairs[i]):
        if pairs[i][1] < lowest or pairs[i] == last:
            front.append(i)
            lowest, last = pairs[i][1], pairs[i]
    return tuple(front)


def hypervolume(front: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area dominated by `front` and bounded by `reference`, both numbers minimised; points beyond it add nothing."""
    area, floor = 0.0, reference[1]
    for x, y in sorted(front):
        if x < reference[0] and y < floor:
            area += (reference[0] - x) * (floor - y)
            floor = y
    return area


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, ties sharing their mean rank; None below three pairs or when one side is all tied."""
    if len(first) != len(second):
        raise ValueError(f"spearman needs sequences of one length, got {len(first)} and {len(second)}")
    if len(first) < 3:
        return None
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) + 1) / 2
    spread = sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
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


Z90 = 1.6449  # two-sided 90 % of a normal


def t_test_p(mean: float, standard_error: float, degrees_of_freedom: float) -> float:
    """Chance of a mean at least this far above 0 if the truth is 0: one-sided Student t."""
    if standard_error == 0:
        return 0.0 if mean > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(degrees_of_freedom, -mean / standard_error))
