"""Bits for every tensor of an artifact of a given size: equal slopes, then a search for the exact size. Numpy only.

Each tensor has a table of (step, bits, error). On the lower convex hull of (bits, error) the next bit buys less and
less, and bits are spent best when the last bit buys the same everywhere (Lagrange; Shoham and Gersho 1988). A choice of
steps for all tensors is a bit plan. Moving one tensor at a time to its next hull point, in the order of error saved per
bit, passes through all such bit plans: they lie on one line, addressed by their bits. Between two hull points a step is
interpolated, so any size can be met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pgolf_model.errors import UserError

FILL_TOLERANCE = 0.002  # a filled artifact lies within this share below its target
FILL_TRIES = 14  # packs per target; three to five are usual


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RateTable:
    """What one tensor costs at each step it may take."""

    log_steps: np.ndarray  # (n,) log2 of the step, in any unit
    bits: np.ndarray  # (n,) of the whole tensor, as far as it can be told without packing
    errors: np.ndarray  # (n,) in a unit that all tensors share, such as nats

    def hull(self) -> np.ndarray:
        """Indices of the lower convex hull, from fewest bits to least error: bits rise, errors fall ever slower."""
        kept: list[int] = []
        for i in np.lexsort((self.errors, self.bits)):
            if kept and self.errors[i] >= self.errors[kept[-1]]:
                continue
            while len(kept) > 1 and self._slope(kept[-2], kept[-1]) <= self._slope(kept[-1], i):
                kept.pop()
            if kept and self.bits[i] == self.bits[kept[-1]]:  # equal bits were sorted by error
                continue
            kept.append(int(i))
        return np.array(kept)

    def _slope(self, a: int, b: int) -> float:
        """Error saved per bit from point a to b; b has more bits."""
        return float((self.errors[a] - self.errors[b]) / max(self.bits[b] - self.bits[a], 1e-300))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlanLine:
    """All bit plans of equal slopes of some tensors, addressed by their bits."""

    names: tuple[str, ...]
    coarsest: np.ndarray  # (tensors,) log2 steps with the fewest bits
    owner: np.ndarray  # (segments,) the tensor that each segment moves, in order of error saved per bit
    ends: np.ndarray  # (segments,) its log2 step after the segment
    bits: np.ndarray  # (segments + 1,) bits of all tensors before each segment, and after the last

    @property
    def fewest_bits(self) -> float:
        """Bits of the coarsest bit plan."""
        return float(self.bits[0])

    @property
    def most_bits(self) -> float:
        """Bits of the finest bit plan."""
        return float(self.bits[-1])

    def at(self, bits: float) -> dict[str, float]:
        """log2 step of every tensor in the bit plan of so many bits; beyond the line its nearest end."""
        steps = self.coarsest.copy()
        whole = min(int(np.searchsorted(self.bits, bits, side="right")) - 1, len(self.owner))
        if whole > 0:
            steps[self.owner[:whole]] = self.ends[:whole]  # in order: a tensor's last segment wins
        if 0 <= whole < len(self.owner):
            share = (bits - self.bits[whole]) / (self.bits[whole + 1] - self.bits[whole])
            tensor = self.owner[whole]
            steps[tensor] += share * (self.ends[whole] - steps[tensor])
        return dict(zip(self.names, steps.tolist(), strict=True))


def plan_line(tables: Mapping[str, RateTable]) -> PlanLine:
    """The line of bit plans of some tensors.

    Raises:
        ValueError: there is no tensor, or a table holds NaN or infinity.
    """
    if not tables:
        raise ValueError("there is no tensor to allocate bits to")
    names, slopes, owners, ends, gains, coarsest, fewest = tuple(tables), [], [], [], [], [], 0.0
    for i, (name, table) in enumerate(tables.items()):
        if not (np.isfinite(table.bits).all() and np.isfinite(table.errors).all()):
            raise UserError(f"{name}: its rates or errors are not finite", hint="lower the learning rate")
        hull = table.hull()
        gain = np.diff(table.bits[hull])
        slopes.append(-np.diff(table.errors[hull]) / gain)
        owners.append(np.full(len(gain), i))
        ends.append(table.log_steps[hull[1:]])
        gains.append(gain)
        coarsest.append(table.log_steps[hull[0]])
        fewest += float(table.bits[hull[0]])
    order = np.argsort(-np.concatenate(slopes), kind="stable")  # stable: equal slopes stay in hull order
    return PlanLine(
        names=names,
        coarsest=np.array(coarsest),
        owner=np.concatenate(owners)[order],
        ends=np.concatenate(ends)[order],
        bits=fewest + np.concatenate(([0.0], np.cumsum(np.concatenate(gains)[order]))),
    )


def allocate(tables: Mapping[str, RateTable], budgets: Sequence[float]) -> tuple[dict[str, float], ...]:
    """log2 step of every tensor for each number of bits in `budgets`; beyond either end of the line its end."""
    line = plan_line(tables)
    return tuple(line.at(bits) for bits in budgets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """Where a search for a size ended."""

    bits: float  # position on the line
    size: int  # measured there, at most the target
    tries: int
    ended: str  # "within": in the tolerance below the target; "finest": nothing finer; "below": no nearer size found


def fill(
    size_of: Callable[[float], int],
    line: PlanLine,
    *,
    target: int,
    guess: float,
    tolerance: float = FILL_TOLERANCE,
    max_tries: int = FILL_TRIES,
) -> Filled:
    """The bit plan whose measured size lies in [target * (1 - tolerance), target], never above.

    Args:
        size_of: bytes of the packed bit plan at a position of the line; rises with it, but not strictly.
        guess: the position to measure first.
    Raises:
        UserError: even the coarsest bit plan is above the target; names its size.
    """
    floor, aim = target * (1 - tolerance), target * (1 - tolerance / 3)
    fits: tuple[float, int] | None = None  # nearest position below the target, and its size
    over: tuple[float, int] | None = None  # nearest position above it
    best, best_bits = -1, 0.0
    position, tries = min(max(guess, line.fewest_bits), line.most_bits), 0
    while True:
        size, tries = size_of(position), tries + 1
        if size > target:
            over = position, size
            if position <= line.fewest_bits:
                break
        else:
            fits = position, size
            if size > best:
                best, best_bits = size, position
            if size >= floor or position >= line.most_bits:
                break
        if tries >= max_tries and fits:
            break
        if over is None:  # a byte is about 8 bits, near the target one such step suffices
            position = min(position + 8 * (aim - size), line.most_bits)
        elif fits is None:  # ever longer steps down; the coarsest plan is the last
            position = position - 8 * (size - aim) * 1.5 ** (tries - 1) if tries < max_tries else line.fewest_bits
            position = max(position, line.fewest_bits)
        else:
            share = (aim - fits[1]) / (over[1] - fits[1]) if tries % 3 else 0.5
            position = fits[0] + min(max(share, 0.05), 0.95) * (over[0] - fits[0])
    if best < 0:
        raise UserError(f"the smallest artifact is {size} bytes, above the target of {target}", hint="allow fewer bits")
    ended = "within" if best >= floor else "finest" if best_bits >= line.most_bits else "below"
    return Filled(bits=best_bits, size=best, tries=tries, ended=ended)
