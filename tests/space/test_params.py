"""A value's place in its range, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from space.params import ChoiceParam, FloatParam, IntParam, Param, share_of_range

PARAMS: tuple[Param, ...] = (
    FloatParam(name="plain", low=-2.0, high=3.0, tag="scale_free"),
    FloatParam(name="log", low=1e-4, high=1e-1, log=True, tag="scale_free"),
    IntParam(name="steps", low=256, high=768, step=64, tag="scale_free"),
    IntParam(name="log_int", low=3, high=4000, log=True, tag="scale_free"),
    ChoiceParam(name="kind", options=("a", True, 1, 2.5), tag="scale_free"),
)


@pytest.mark.parametrize("param", PARAMS, ids=lambda param: param.name)
@given(seed=st.integers(0, 1000))
def test_a_value_is_found_again_at_its_place(param: Param, seed: int) -> None:
    value = param.draw(np.random.default_rng(seed))
    place = param.place(value)
    assert 0 <= place <= 1
    back = param.at(place)
    assert back == pytest.approx(value, rel=1e-12) if isinstance(value, float) else back == value
    assert type(back) is type(value)


def test_places_of_a_decade_are_where_pencil_and_paper_put_them() -> None:
    """Two of three decades are 2/3 of the way; a value beyond the range counts as its end."""
    rate = PARAMS[1]
    assert rate.place(1e-2) == pytest.approx(2 / 3)
    assert rate.place(5.0) == 1.0
    assert rate.at(0.5) == pytest.approx(10**-2.5)
    assert share_of_range(2, 12, 5, log=False) == 0.3
    assert share_of_range(2, 32, 8, log=True) == pytest.approx(0.5)


def test_whole_numbers_and_options_own_equal_parts() -> None:
    """Nine widths: the first owns [0, 1/9), its middle is 1/18. On a log scale n owns the interval around log n."""
    width, vocab, kind = PARAMS[2], PARAMS[3], PARAMS[4]
    assert width.place(256) == pytest.approx(1 / 18)
    assert [width.at(x) for x in (0.0, 0.11, 0.12, 1.0)] == [256, 256, 320, 768]
    edge = math.log(3.5 / 2.5) / math.log(4000.5 / 2.5)
    assert (vocab.at(edge - 1e-9), vocab.at(edge + 1e-9)) == (3, 4)
    assert [kind.place(option) for option in ("a", True, 1, 2.5)] == [0.125, 0.375, 0.625, 0.875]
    with pytest.raises(ValueError, match="kind must be one of"):
        kind.place("z")
