"""The search space: what its parameters accept, what it refuses, and that every point of it can be built."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from pgolf_model import config as nouns
from pgolf_model.config import RunConfig
from pgolf_model.shapes import num_params
from space.knobs.groups import nearest_divisor
from space.knobs.quant import CLIP_SIGMAS
from space.params import ChoiceParam, FloatParam, IntParam, Scalar, Space, When
from space.spaces import SPACES, named_space

SPACE_NAMES = sorted(SPACES)


def point(name: str, seed: int) -> tuple[Space, dict[str, Scalar]]:
    """A random point of a named space."""
    space = named_space(name)
    return space, space.sample(np.random.default_rng(seed))


@pytest.mark.parametrize("name", SPACE_NAMES)
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), vocab_size=st.sampled_from([260, 1024, 8192]))
def test_every_sample_is_a_valid_configuration(name: str, seed: int, vocab_size: int) -> None:
    """A sample validates, builds, keeps its vocabulary, and the configuration's repr evaluates to itself."""
    space, values = point(name, seed)
    space.validate(values)
    config = space.build(values, vocab_size=vocab_size)
    assert config.model.vocab_size == vocab_size
    assert eval(repr(config), vars(nouns).copy()) == config
    assert space.build(values, vocab_size=vocab_size) == config


def completed(space: Space, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """`values` as a point: what is not asked left out, what is missing as in the control or at random."""
    rng, answers = np.random.default_rng(0), dict[str, Scalar]()
    for param in space.params:
        if param.active(answers):
            answers[param.name] = values[param.name] if param.name in values else param.draw(rng)
    return answers


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_every_corner_of_the_shape_knobs_is_valid(name: str) -> None:
    """All sizes, ratios and loops, with the fractional knobs at their ends: nothing is built only to be refused."""
    space = named_space(name)
    knobs = {param.name: param for param in space.params}
    layers, dims, mult, loop = (knobs[k] for k in ("num_layers", "model_dim", "mlp_mult", "loop_layers"))
    assert isinstance(layers, IntParam)
    assert isinstance(dims, IntParam)
    assert isinstance(mult, FloatParam)
    assert isinstance(loop, IntParam)
    combinations = itertools.product(
        range(layers.low, layers.high + 1),
        range(dims.low, dims.high + 1, dims.step),
        (1, 2, 4),
        (mult.low, 2.71828),
        [None, *itertools.product((3,), (loop.low, loop.high), (0.0, 0.6, 1.0))],
    )
    for num_layers, model_dim, kv_ratio, mlp_mult, looped in combinations:
        values = dict(space.control) | {
            "num_layers": num_layers,
            "model_dim": model_dim,
            "kv_ratio": kv_ratio,
            "mlp_mult": mlp_mult,
        }
        if looped:
            repeats, loop_layers, position = looped
            values |= {"loop_repeats": repeats, "loop_layers": loop_layers, "loop_position": position}
        model = space.build(completed(space, values)).model
        assert abs(model.mlp_mult - mlp_mult) * model_dim <= 32 + 1e-9
        assert len(model.virtual_layers) == num_layers + (looped[0] * looped[1] if looped else 0)


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_each_parameter_reaches_the_configuration(name: str) -> None:
    """No knob is dead: changing any one of them, where it is asked, changes what is built."""
    space = named_space(name)
    known = {param.name for param in space.params}
    answers: dict[str, Scalar] = {
        "loop_repeats": 1,
        "loop_layers": 2,
        "loop_position": 0.0,
        "loop_at": 0.1,
        "iteration_embeddings": True,
        "decay": True,
        "weight_decay": 0.05,
        "decay_final": 0.7,
        "ema": True,
        "ema_gap": 0.01,
        "min_lr": 0.1,
        "attn_gate": "sparse",
        "gate_inputs": 8,
        "gate_scale": 1.0,
        "parallel": "routed",
        "parallel_share": 0.5,
        "bigram_dim": 64,
    }
    buckets = next((param for param in space.params if param.name == "bigram_buckets"), None)
    if isinstance(buckets, ChoiceParam):
        answers["bigram_buckets"] = buckets.options[1]
    chosen = dict(space.control) | {name: value for name, value in answers.items() if name in known}
    everything_on = completed(space, chosen)
    rng = np.random.default_rng(0)
    for param in space.params:
        values = everything_on if param.active(everything_on) else dict(space.control)  # some exclude each other
        for _ in range(50):
            changed = completed(space, values | {param.name: param.draw(rng)})
            if space.build(changed) != space.build(values):
                break
        else:
            pytest.fail(f"{param.name} changes nothing")


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_control_and_warm_starts_are_points_of_the_space(name: str) -> None:
    """What a study runs first can be run."""
    space = named_space(name)
    for values in (space.control, *(start.values for start in space.warm_starts)):
        space.build(values)


def test_the_recurrent_control_is_the_challenge_baseline() -> None:
    """The control is the default recipe, parameter for parameter; its two halves have the same bits."""
    space = named_space("recurrent")
    config = space.build(space.control)
    assert num_params(config.model) == 17_059_912
    assert (config.model, config.train, config.eval, config.budget) == (
        RunConfig().model,
        RunConfig().train,
        RunConfig().eval,
        RunConfig().budget,
    )
    assert set(config.quant.attn_bits) == {6}
    assert set(config.quant.attn_clip_sigmas) == {12.85}


def test_the_tiny_control_keeps_the_baseline_recipe() -> None:
    """A small baseline: the same rates, schedule, ratios and bits, only sizes and machine differ."""
    space = named_space("tiny")
    config, base = space.build(space.control), RunConfig()
    for field in ("matrix_lr", "embed_lr", "scalar_lr", "warmdown_fraction", "muon_momentum", "ema_decay", "grad_clip"):
        assert getattr(config.train, field) == getattr(base.train, field)
    assert config.model.num_heads / config.model.num_kv_heads == base.model.num_heads / base.model.num_kv_heads
    assert config.model.mlp_mult == base.model.mlp_mult
    assert config.quant.embed_bits == base.quant.embed_bits


def test_conditions_follow_the_answers() -> None:
    """A looped range is asked for only when something loops, a decay only when weights decay."""
    for seed in range(50):
        _, values = point("recurrent", seed)
        assert ("loop_layers" in values) == ("loop_position" in values) == (values["loop_repeats"] != 0)
        assert ("weight_decay" in values) == values["decay"]
        assert ("ema_gap" in values) == values["ema"]


def with_changes(changes: Mapping[str, Scalar], *, without: str = "") -> dict[str, Scalar]:
    """The tiny control, changed."""
    values = dict(named_space("tiny").control) | dict(changes)
    values.pop(without, None)
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_changes({"matrix_lr": 0.5}), r"matrix_lr must be a number in \[0.01, 0.1\], got 0.5"),
        (with_changes({"matrix_lr": float("nan")}), "matrix_lr must be a number"),
        (with_changes({"matrix_lr": True}), "matrix_lr must be a number"),
        (
            with_changes({"model_dim": 100}),
            r"model_dim must be a whole number in \[64, 192\] in steps of 32, got 100",
        ),
        (with_changes({"num_layers": 3.0}), "num_layers must be a whole number"),
        (with_changes({"kv_ratio": 3}), "kv_ratio must be one of 1, 2, 4, got 3"),
        (with_changes({"kv_ratio": True}), "kv_ratio must be one of 1, 2, 4, got True"),
        (with_changes({"matrix_rl": 0.02}), "unknown parameter of space 'tiny': 'matrix_rl'; did you mean 'matrix_lr'"),
        (with_changes({}, without="embed_lr"), "space 'tiny' needs a value for 'embed_lr'"),
        (with_changes({"loop_repeats": 1, "loop_layers": 2}), "needs a value for 'loop_position'"),
        (with_changes({"loop_layers": 2}), "loop_layers is only for loop_repeats = 1 or 2 or 3, got it with 0"),
    ],
)
def test_a_bad_point_is_refused_by_name(values: dict[str, Scalar], message: str) -> None:
    """The message names the parameter, what it accepts and what came."""
    with pytest.raises(ValueError, match=message):
        named_space("tiny").build(values)


def test_an_unknown_space_gets_a_suggestion() -> None:
    """A typo in a study file is told from a missing space."""
    with refused(r"unknown space: 'tinny'", hint=r"did you mean 'tiny'\?"):
        named_space("tinny")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FloatParam(name="x", tag="scale_free", low=1.0, high=1.0), "low must be below high"),
        (lambda: FloatParam(name="x", tag="scale_free", low=0.0, high=1.0, log=True), "must start above 0"),
        (lambda: IntParam(name="x", tag="scale_free", low=1, high=4, step=2), "a multiple of step"),
        (lambda: IntParam(name="x", tag="scale_free", low=1, high=5, step=2, log=True), "needs step 1"),
        (lambda: ChoiceParam(name="x", tag="scale_free", options=(1, 1)), "distinct"),
    ],
)
def test_an_impossible_parameter_is_refused(make: object, message: str) -> None:
    """A space cannot be written down wrongly."""
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_a_condition_must_refer_to_an_earlier_parameter() -> None:
    """Questions are asked in order, so an answer must exist before anything depends on it."""
    child = FloatParam(name="x", tag="scale_free", low=0.0, high=1.0, when=When(parent="y", values=(1,)))
    with pytest.raises(ValueError, match="'x' must come after 'y'"):
        Space(name="s", params=(child,), make_config=lambda values, vocab_size: RunConfig(), control={})


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.001, 1e6), seed=st.integers(0, 2**32))
def test_log_draws_stay_in_range(low: float, factor: float, seed: int) -> None:
    """exp(log(x)) may miss x by one ulp; a draw never leaves its range for it."""
    param = FloatParam(name="x", tag="scale_free", low=low, high=low * factor, log=True)
    param.check(param.draw(np.random.default_rng(seed)))
    count = IntParam(name="n", tag="scale_free", low=1, high=max(2, round(factor)), log=True)
    count.check(count.draw(np.random.default_rng(seed)))


@given(number=st.integers(1, 64), ratio=st.sampled_from([1, 2, 4]))
def test_nearest_divisor_divides_and_is_nearest(number: int, ratio: int) -> None:
    """By brute force over all divisors, distance measured as a ratio."""
    found, target = nearest_divisor(number, number / ratio), number / ratio

    def off(divisor: int) -> float:
        return max(divisor / target, target / divisor)

    assert number % found == 0
    assert off(found) <= min(off(d) for d in range(1, number + 1) if number % d == 0) * (1 + 1e-12)


def test_every_bit_refines_the_step() -> None:
    """One more bit always means a smaller step, so bitwidths are ordered by size and by error."""
    steps = [CLIP_SIGMAS[bits] / (2 ** (bits - 1) - 1) for bits in range(2, 9)]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == len(steps)
