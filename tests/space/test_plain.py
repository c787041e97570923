"""Nouns to and from JSON: exact round trips for every noun that is written to a file, and errors that help."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf_model import config as nouns
from pgolf_model.config import Budget, EvalConfig, ModelConfig, QuantConfig, RunConfig, TrainConfig
from space.plain import from_plain, to_plain
from space.spaces import SPACES, named_space
from trials.rungs import Rung
from trials.spec import SeedRun, TrialResult, TrialSpec

POSITIVE = st.floats(min_value=1e-12, max_value=1e12)
FRACTION = st.floats(min_value=0.0, max_value=1.0)
BYTES = st.integers(0, 2**40)
TEXT = st.text(max_size=20)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False), TEXT)

budgets = st.builds(Budget, steps=st.integers(1, 10**6), seconds=st.floats(0, 1e6))
quants = st.builds(
    QuantConfig,
    embed_bits=st.integers(2, 8),
    attn_bits=st.lists(st.integers(2, 8), min_size=1, max_size=4).map(tuple),
    mlp_bits=st.lists(st.integers(2, 8), min_size=1, max_size=4).map(tuple),
    embed_clip_sigmas=POSITIVE,
    attn_clip_sigmas=st.lists(POSITIVE, min_size=1, max_size=4).map(tuple),
    mlp_clip_sigmas=st.lists(POSITIVE, min_size=1, max_size=4).map(tuple),
)
trains = st.builds(
    TrainConfig,
    matrix_lr=POSITIVE,
    adam_eps=POSITIVE,
    grad_clip=st.floats(0, 100),
    warmdown_fraction=FRACTION,
    ema_decay=st.floats(0, 1, exclude_max=True),
    precision=st.sampled_from(["float32", "bfloat16"]),
    compile=st.booleans(),
)
models = st.tuples(st.sampled_from(sorted(SPACES)), st.integers(0, 2**32)).map(
    lambda pair: named_space(pair[0]).build(named_space(pair[0]).sample(np.random.default_rng(pair[1]))).model
)
configs = st.builds(
    RunConfig,
    model=models,
    train=trains,
    quant=quants,
    eval=st.builds(EvalConfig, seq_len=st.integers(1, 4096)),
    budget=budgets,
    seed=st.integers(0, 2**31 - 1),
)
rungs = st.builds(
    Rung,
    name=st.sampled_from(["smoke", "proxy", "full"]),
    steps=st.integers(1, 10**6),
    seconds=st.floats(0, 1e5),
    keep=st.floats(0.01, 1.0),
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4, unique=True).map(tuple),
    cpus=st.floats(0, 64),
)
specs = st.builds(
    TrialSpec,
    study=TEXT,
    rung=TEXT,
    number=st.integers(0, 10**6),
    parent=st.none() | st.integers(0, 10**6),
    params=st.dictionaries(TEXT, SCALARS, max_size=5),
    config=configs,
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3).map(tuple),
    data_dir=TEXT,
    tokenizer=TEXT,
    predicted_bytes=BYTES,
)
seed_runs = st.builds(
    SeedRun,
    seed=st.integers(0, 2**31 - 1),
    val_bpb=POSITIVE,
    val_loss=POSITIVE,
    pre_quant_val_bpb=POSITIVE,
    model_bytes=BYTES,
    train_seconds=POSITIVE,
    eval_seconds=POSITIVE,
    total_seconds=POSITIVE,
    artifact_sha256=TEXT,
)
results = st.builds(
    TrialResult,
    status=st.sampled_from(["complete", "diverged", "failed", "timeout", "infeasible"]),
    runs=st.lists(seed_runs, min_size=1, max_size=3).map(tuple),
    error=TEXT,
    seconds=st.floats(0, 1e6),
    versions=st.dictionaries(TEXT, TEXT, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(noun=st.one_of(configs, rungs, specs, results))
def test_every_noun_survives_json(noun: Any) -> None:
    """What is written to a file is what is read back, floats bit for bit."""
    text = json.dumps(to_plain(noun), allow_nan=False)
    back = from_plain(type(noun), json.loads(text))
    assert back == noun
    assert repr(back) == repr(noun)  # == takes 1 for 1.0 and True


@settings(max_examples=50, deadline=None)
@given(config=configs)
def test_every_config_evaluates_to_itself(config: RunConfig) -> None:
    """The exported script holds its config as a repr, so a repr must be the value."""
    assert eval(repr(config), vars(nouns).copy()) == config


def test_missing_keys_take_their_defaults() -> None:
    """A table lists what differs."""
    assert from_plain(RunConfig, {"model": {"num_layers": 3}}) == RunConfig(model=ModelConfig(num_layers=3))


def test_whole_numbers_are_fine_for_floats() -> None:
    """TOML writers leave out the point; the value is a float all the same."""
    budget = from_plain(Budget, {"seconds": 600})
    assert (budget, type(budget.seconds)) == (Budget(seconds=600.0), float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"modle": {}}, r"RunConfig: unknown key: 'modle'; did you mean 'model'\?"),
        ({"model": {"num_layer": 9}}, r"RunConfig\.model: unknown key: 'num_layer'; did you mean 'num_layers'\?"),
        ({"zzzz": 1}, "unknown key: 'zzzz'; known: model, train"),
        ({"seed": "1"}, r"RunConfig\.seed: expected int, got '1'"),
        ({"seed": True}, r"RunConfig\.seed: expected int, got True"),
        ({"seed": 1.0}, r"RunConfig\.seed: expected int, got 1\.0"),
        ({"model": 3}, r"RunConfig\.model: expected a table, got 3"),
        ({"quant": {"attn_bits": 6}}, r"RunConfig\.quant\.attn_bits: expected a list, got 6"),
        ({"quant": {"attn_bits": [6, "5"]}}, r"attn_bits\[1\]: expected int, got '5'"),
        ({"train": {"precision": "fp8"}}, "expected one of 'float32', 'bfloat16', got 'fp8'"),
        ({"train": {"matrix_lr": "fast"}}, r"train\.matrix_lr: expected float, got 'fast'"),
        ({"quant": {"embed_bits": 9}}, r"RunConfig\.quant: embed_bits must be in \[1, 8\], got 9"),
    ],
)
def test_bad_data_is_refused_by_its_place(data: dict[str, Any], message: str) -> None:
    """The message says where the value is, what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        from_plain(RunConfig, data)


def test_a_missing_required_key_is_named() -> None:
    """A noun without a default for a key cannot be guessed."""
    plain = to_plain(replace(Rung(name="proxy", steps=1)))
    del plain["name"]
    with pytest.raises(ValueError, match=r"\[rungs\.0\]: missing key: name"):
        from_plain(Rung, plain, where="[rungs.0]")
