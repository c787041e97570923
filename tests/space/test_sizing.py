"""The forecast of bytes against the packer itself, and `pgolf size`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pgolf_model.codec.pack import pack_model
from pgolf_model.config import ModelConfig, QuantConfig, RunConfig
from pgolf_model.quant.quantize import quantize_state
from pgolf_model.shapes import num_params, param_shapes
from search.commands.size import size, verdict
from space.forecast.sizing import (
    EMBED_DEFICIT,
    MATRIX_FACTOR,
    code_probabilities,
    entropy_bits,
    estimate_model_bytes,
    normal_code_bytes,
)
from space.knobs.quant import CLIP_SIGMAS
from space.spaces import named_space


def normal_state(model: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights shaped like trained ones: normal rows of different deviations, scalars scattered about 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, info in param_shapes(model).items():
        values = torch.randn(info.shape, generator=generator)
        if info.role == "scalar":
            state[name] = 1 + 0.2 * values
        else:
            state[name] = 0.1 * values * torch.exp(0.3 * torch.randn(info.shape[0], 1, generator=generator))
    return state


def packed_bytes(config: RunConfig, seed: int = 0) -> int:
    """The real artifact's model bytes."""
    tensors = quantize_state(normal_state(config.model, seed), config.model, config.quant)
    return len(pack_model(config.model, config.eval, tensors))


def uniform_bits(bits: int, *, embed_bits: int = 8) -> RunConfig:
    """A small model with one bitwidth for all its matrices."""
    quant = QuantConfig(
        embed_bits=embed_bits,
        attn_bits=(bits,),
        mlp_bits=(bits,),
        embed_clip_sigmas=CLIP_SIGMAS[embed_bits],
        attn_clip_sigmas=(CLIP_SIGMAS[bits],),
        mlp_clip_sigmas=(CLIP_SIGMAS[bits],),
    )
    return RunConfig(model=ModelConfig(num_layers=3, model_dim=128, num_heads=4, num_kv_heads=2), quant=quant)


CONFIGS = {
    **{f"{bits} bits": uniform_bits(bits, embed_bits=max(4, bits)) for bits in range(2, 9)},
    **{
        f"tiny sample {seed}": named_space("tiny").build(named_space("tiny").sample(np.random.default_rng(seed)))
        for seed in range(4)
    },
    "mixed depths": replace(
        uniform_bits(6), quant=QuantConfig(attn_bits=(5, 6), mlp_bits=(4, 7, 4), mlp_clip_sigmas=(5.0, 15.0, 4.0))
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_forecast_meets_the_packer_on_normal_weights(config: RunConfig) -> None:
    """Without the corrections for what training does to weights, the forecast is within 0.6 % of the real bytes."""
    estimate, actual = estimate_model_bytes(config), packed_bytes(config)
    normal = normal_code_bytes(config.model, config.quant)
    untrained = estimate.model_bytes + EMBED_DEFICIT.central * config.model.vocab_size / 8
    untrained += (1 - MATRIX_FACTOR.central) * (normal["attn"] + normal["mlp"])
    assert untrained == pytest.approx(actual, rel=0.006)
    assert estimate.low < actual < estimate.high


def test_the_forecast_meets_the_packer_at_the_baseline_width() -> None:
    """One of the challenge baseline's nine layers: the central forecast, corrections included, is within 2 %."""
    config = RunConfig(model=ModelConfig(num_layers=1))
    assert estimate_model_bytes(config).model_bytes == pytest.approx(packed_bytes(config), rel=0.02)


@pytest.mark.parametrize("name", ["tiny", "recurrent"])
def test_an_estimate_adds_up(name: str) -> None:
    """Roles sum to the total, which lies inside its interval; parameters are counted by the model's own shapes."""
    space = named_space(name)
    for seed in range(20):
        config = space.build(space.sample(np.random.default_rng(seed)))
        estimate = estimate_model_bytes(config)
        assert sum(estimate.by_role.values()) == estimate.model_bytes
        assert estimate.low < estimate.model_bytes < estimate.high
        assert estimate.num_params == num_params(config.model)
        assert estimate.bits_per_param == pytest.approx(8 * estimate.model_bytes / estimate.num_params)


def test_more_bits_weigh_more() -> None:
    """Each bitwidth, with the clip the space gives it, costs more bytes than the one below."""
    sizes = [estimate_model_bytes(uniform_bits(bits)).model_bytes for bits in range(2, 9)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


def test_loops_cost_only_their_skips() -> None:
    """Running blocks again stores nothing but a skip weight per extra pair of virtual layers."""
    plain = ModelConfig(num_layers=6)
    looped = replace(plain, loop_start=2, loop_end=4, loop_repeats=2)
    extra = estimate_model_bytes(RunConfig(model=looped)).model_bytes
    extra -= estimate_model_bytes(RunConfig(model=plain)).model_bytes
    assert 0 < extra < 2 * (looped.num_skips - plain.num_skips) * plain.model_dim


@given(step=st.floats(0.05, 3.0), limit=st.integers(1, 127))
def test_code_probabilities_are_those_of_rounding(step: float, limit: int) -> None:
    """They sum to one, are symmetric, and the middle one is the chance of a weight within half a step of zero."""
    probs = code_probabilities(step, limit)
    assert len(probs) == 2 * limit + 1
    assert sum(probs) == pytest.approx(1)
    assert probs == pytest.approx(probs[::-1], abs=1e-12)
    assert probs[limit] == pytest.approx(math.erf(step / 2 / math.sqrt(2)))


@pytest.mark.parametrize("target", [200_000, 300_000, 400_000])
def test_a_target_is_the_forecast(target: int) -> None:
    """What the quantizer fills needs no other forecast; the code's bytes count against it."""
    quant = QuantConfig(embed_bits=8, attn_bits=(8,), mlp_bits=(8,), target_bytes=target)
    config = replace(uniform_bits(8), quant=quant)
    estimate = estimate_model_bytes(config, code_bytes=20_000)
    assert 0.995 * (target - 20_000) <= estimate.low <= estimate.model_bytes <= estimate.high <= target - 20_000
    assert sum(estimate.by_role.values()) == estimate.model_bytes


def test_a_target_beyond_what_the_bits_allow_is_not_believed() -> None:
    """Nothing is as small as 1 kB; ternary codes cannot fill a megabyte."""
    small = replace(uniform_bits(8), quant=QuantConfig(target_bytes=1_000))
    assert estimate_model_bytes(small).low > 10_000
    large = replace(uniform_bits(8), quant=QuantConfig(attn_bits=(2,), mlp_bits=(2,), target_bytes=1_000_000))
    assert estimate_model_bytes(large).high < 300_000


def test_the_entropy_at_the_records_clip() -> None:
    """6 bits at 12.85 deviations: 3.328 bits per weight, log2(sigma / step) + 2.047 for a fine step."""
    assert entropy_bits(code_probabilities(12.85 / 31, 31)) == pytest.approx(3.328, abs=5e-4)


def test_size_prints_one_json_document() -> None:
    """`pgolf size --json`: model and code add up to the artifact, inside its interval."""
    done = CliRunner().invoke(size, ["baseline_2026_03_17", "--json"], catch_exceptions=False)
    facts = json.loads(done.stdout)
    assert facts["num_params"] == 17_059_912
    assert facts["artifact_bytes"] == facts["model_bytes"] + facts["code_bytes"]
    assert facts["artifact_bytes_low"] < facts["artifact_bytes"] < facts["artifact_bytes_high"]
    assert facts["code_bytes"] > 0


def test_size_prints_a_table() -> None:
    """Without --json the same numbers are for people."""
    done = CliRunner().invoke(size, ["tiny"], catch_exceptions=False)
    for word in ("embed", "attn", "mlp", "model_bytes", "code_bytes", "artifact_bytes", "16,000,000"):
        assert word in done.stdout


def test_size_never_loads_torch() -> None:
    """It answers in well under half a second, which torch's import alone would take."""
    code = "import sys\nfrom search.commands.size import size\nsize(['tiny'], standalone_mode=False)\n"
    code += "print({'torch', 'numpy', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(80, 90, "fits, 10 to spare"), (95, 105, "may or may not fit"), (110, 120, "is 10 too large")],
)
def test_verdict_says_how_an_interval_lies_to_the_cap(low: int, high: int, expected: str) -> None:
    """Below, across or above."""
    assert verdict(low, high, 100).startswith(expected)
