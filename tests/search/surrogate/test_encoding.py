"""Points survive the translation to numbers and back, conditions and all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.surrogate.candidates import mutate, random_points
from search.surrogate.encoding import INACTIVE_FEATURE, Encoder
from space.params import ChoiceParam, FloatParam, IntParam, Space, When
from space.spaces import named_space

PARAMS = (
    FloatParam(name="lr", low=1e-4, high=1e-1, log=True, tag="step_dependent"),
    FloatParam(name="mult", low=-2.0, high=3.0, tag="scale_free"),
    IntParam(name="dim", low=256, high=768, step=64, tag="throughput_dependent"),
    IntParam(name="vocab", low=3, high=4000, log=True, tag="scale_free"),
    IntParam(name="loops", low=0, high=3, tag="throughput_dependent"),
    IntParam(name="width", low=1, high=4, tag="throughput_dependent", when=When(parent="loops", values=(1, 2, 3))),
    ChoiceParam(name="kind", options=("a", "b", "c"), tag="scale_free"),
    ChoiceParam(name="ema", options=(False, True), tag="step_dependent"),
    FloatParam(name="gap", low=0.1, high=0.9, tag="step_dependent", when=When(parent="ema", values=(True,))),
    FloatParam(name="deep", low=0.0, high=1.0, tag="step_dependent", when=When(parent="width", values=(2,))),
    ChoiceParam(name="only", options=(7,), tag="scale_free"),
)
SPACE = Space(name="s", params=PARAMS, make_config=named_space("tiny").make_config, control={})
ENCODER = Encoder(PARAMS)


@given(seed=st.integers(0, 10_000))
def test_values_survive_units_and_back(seed: int) -> None:
    """Whole numbers and choices exactly, real numbers to rounding; the point is one of the space's."""
    values = SPACE.sample(np.random.default_rng(seed))
    back = ENCODER.values(ENCODER.snap(ENCODER.units([values]))[0])
    SPACE.validate(back)
    assert back.keys() == values.keys()
    for name, value in values.items():
        assert back[name] == pytest.approx(value) if isinstance(value, float) else back[name] == value
        assert type(back[name]) is type(value)


@pytest.mark.parametrize("name", ["tiny", "recurrent"])
def test_every_snapped_row_is_a_point_of_the_space(name: str) -> None:
    space = named_space(name)
    encoder = Encoder(space.params)
    rng = np.random.default_rng(0)
    rows = random_points(encoder, 100, rng)
    rows = np.concatenate([rows, mutate(encoder, rows, rng)])
    for row in rows:
        space.validate(encoder.values(row))
    np.testing.assert_array_equal(encoder.snap(rows), rows)


def test_random_rows_give_every_whole_number_its_share() -> None:
    """Steps and choices evenly; on a log scale as `Space.sample` does."""
    rows = random_points(ENCODER, 8000, np.random.default_rng(0))
    points = [ENCODER.values(row) for row in rows]
    dims = [p["dim"] for p in points]
    assert all(dims.count(d) == pytest.approx(8000 / 9, rel=0.15) for d in range(256, 769, 64))
    rng = np.random.default_rng(1)
    small = sum(SPACE.sample(rng)["vocab"] < 10 for _ in range(4000)) / 4000
    assert sum(p["vocab"] < 10 for p in points) / 8000 == pytest.approx(small, abs=0.03)


def test_options_are_equally_far_apart_and_inactive_is_in_the_middle() -> None:
    base = {"lr": 1e-3, "mult": 0.0, "dim": 256, "vocab": 50, "loops": 0, "ema": False, "only": 7}
    a, b, c = (ENCODER.features(ENCODER.units([{**base, "kind": k}]))[0] for k in "abc")
    assert np.linalg.norm(a - b) == pytest.approx(1.0)
    assert np.linalg.norm(b - c) == pytest.approx(1.0)
    gap = [i for i, g in enumerate(ENCODER.groups) if ENCODER.groups[i] == 8]
    assert a[gap] == [INACTIVE_FEATURE]


def test_columns_share_lengthscales_by_parameter() -> None:
    """Three options are three columns of one group; one option is no column; a condition on a number adds a switch."""
    assert (ENCODER.groups == 6).sum() == 3
    assert (ENCODER.groups == 10).sum() == 0
    assert ENCODER.num_groups == len(PARAMS) + 2  # loops in (1, 2, 3); width = 2
    assert len(ENCODER.tags) == ENCODER.num_groups


def test_mutation_moves_something_and_keeps_most() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(random_points(ENCODER, 1, rng), 300, axis=0)
    moved = ~np.isclose(np.nan_to_num(mutate(ENCODER, rows, rng)), np.nan_to_num(rows))
    assert moved.any(1).mean() > 0.8  # a small step of a whole number may round back
    assert moved.mean() < 0.5


def test_a_value_outside_the_range_counts_as_its_end() -> None:
    """As an enqueued point of an older, wider space may have."""
    unit = ENCODER.units([{"lr": 5.0, "dim": 64}])[0]
    assert unit[0] == 1.0
    assert ENCODER.values(ENCODER.snap(unit[None])[0])["dim"] == 256
