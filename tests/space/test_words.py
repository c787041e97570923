"""Numbers in sentences."""

from __future__ import annotations

import pytest

from space.words import count, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3569, "59 min"), (3571, "1 h 00 min"), (11_100, "3 h 05 min")],
)
def test_a_duration_is_told_in_two_units_at_most(seconds: float, words: str) -> None:
    """Seconds up to a minute and a half, then whole minutes."""
    assert duration(seconds) == words


def test_one_of_a_kind_is_singular() -> None:
    assert [count(n, "trial") for n in (0, 1, 2, 1200)] == ["0 trials", "1 trial", "2 trials", "1,200 trials"]
