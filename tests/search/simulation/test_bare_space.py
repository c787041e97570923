"""A file that knows nothing of us can say what it searches."""

from __future__ import annotations

import re

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.simulation.bare_space import bare_space
from space.params import ChoiceParam, FloatParam, IntParam, Param, When

DEPTH = IntParam(name="depth", low=4, high=16, tag="scale_free")
RATE = FloatParam(name="lr", low=1e-3, high=1e-1, log=True, tag="scale_free")
SKIPS = ChoiceParam(name="skips", options=("none", "gated"), tag="scale_free")
GATE = IntParam(
    name="gate", low=4, high=64, step=4, tag="throughput_dependent", when=When(parent="skips", values=("gated",))
)
GATE_TABLE = {"low": 4, "high": 64, "step": 4, "when": {"skips": ["gated"]}, "tag": "throughput_dependent"}


@pytest.mark.parametrize(
    "given",
    [
        [DEPTH, RATE, SKIPS, GATE],
        {"depth": DEPTH, "lr": RATE, "skips": SKIPS, "gate": GATE},
        {
            "depth": {"low": 4, "high": 16},
            "lr": {"low": 1e-3, "high": 1e-1, "log": True},
            "skips": ["none", "gated"],
            "gate": GATE_TABLE,
        },
        [
            {"name": "depth", "type": "int", "low": 4, "high": 16},
            {"name": "lr", "type": "float", "low": 1e-3, "high": 1e-1, "log": True},
            {"name": "skips", "type": "categorical", "choices": ["none", "gated"]},
            {"name": "gate", **GATE_TABLE, "when": {"skips": "gated"}},
        ],
        {
            "depth": IntDistribution(4, 16),
            "lr": FloatDistribution(1e-3, 1e-1, log=True),
            "skips": CategoricalDistribution(("none", "gated")),
            "gate": GATE,
        },
    ],
)
def test_all_ways_to_write_a_space_say_the_same(given: object) -> None:
    expected: tuple[Param, ...] = (DEPTH, RATE, SKIPS, GATE)
    space = bare_space(given)
    assert space.params == expected
    assert bare_space(space) is space
    assert space.control == {"depth": 10, "lr": pytest.approx(0.01), "skips": "none"}
    assert bare_space(given, control=dict(space.control)).control == space.control


def test_ends_that_are_whole_can_be_those_of_a_real_number() -> None:
    (param,) = bare_space({"x": {"type": "float", "low": 0, "high": 1}}).params
    assert param == FloatParam(name="x", low=0.0, high=1.0, tag="scale_free")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "SPACE must be a Space, a list"),
        (7, "SPACE must be a Space, a list"),
        ("lr", "SPACE must be a Space, a list"),
        ({"a": (4, 16)}, 'a: (4, 16) may be a range or options; write {"low": ..., "high": ...} or [option, ...]'),
        ({"a": {"low": 1}}, "a: SPACE must be"),
        ({"a": 3}, "a: SPACE must be"),
        ({"a": {"low": 1, "high": 3, "lgo": True}}, "SPACE, a: unknown key: 'lgo'"),
        ({"a": {"low": 3, "high": 1}}, "a"),
        ({"a": {"low": 1, "high": "2"}}, "SPACE, a.high: expected float, got '2'"),
        ({"a": FloatDistribution(0, 1, step=0.1)}, "a: only whole numbers have a step"),
        ({"a": {"low": 1, "high": 2, "tag": "free"}}, "SPACE, a.tag: expected one of 'scale_free'"),
        ({"a": {"low": 1, "high": 2, "when": {"b": [1]}}}, "'a' must come after 'b'"),
        ({"b": DEPTH}, "SPACE calls a parameter 'b' that calls itself 'depth'"),
        ([{"low": 1, "high": 2}], "every table in a list needs a name"),
    ],
)
def test_what_is_wrong_is_named(given: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        bare_space(given)


@pytest.mark.parametrize(
    ("control", "said"), [(7, "CONTROL must be a dict"), ({"depth": 99}, "depth"), ({}, "needs a value for 'depth'")]
)
def test_a_control_is_a_point_of_the_space(control: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bare_space([DEPTH], control=control)
