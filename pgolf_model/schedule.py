"""Learning-rate and momentum multipliers: pure functions of progress in [0, 1]."""

from __future__ import annotations


def lr_multiplier(progress: float, *, warmdown_fraction: float, min_lr_fraction: float) -> float:
    """1 until the warmdown, then a straight line to `min_lr_fraction` at the end (atlas C4: no warm-up)."""
    if warmdown_fraction <= 0:
        return 1.0
    left = (1.0 - progress) / warmdown_fraction
    return min(1.0, max(left, min_lr_fraction))


def muon_momentum_at(progress: float, *, start: float, end: float, warmup_fraction: float) -> float:
    """Momentum rises linearly from `start` to `end` over the first `warmup_fraction` of the run."""
    if warmup_fraction <= 0:
        return end
    share = min(1.0, progress / warmup_fraction)
    return (1.0 - share) * start + share * end
