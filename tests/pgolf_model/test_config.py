"""What a ModelConfig refuses, and what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from naive_model import small_configs

from pgolf_model.codec.pack import pack_model, unpack_model
from pgolf_model.config import EvalConfig, ModelConfig, QuantConfig, RunConfig
from pgolf_model.model.gpt import build_model
from pgolf_model.quant.quantize import dequantize_state, quantize_state
from space.plain import from_plain, to_plain

LOOP = {"num_layers": 6, "loop_start": 2, "loop_end": 5, "loop_repeats": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "relu"}, "activation must be one of relu2, leaky_relu2, swiglu, got 'relu'"),
        ({"parallel": "two"}, "parallel must be one of none, single, lanes, routed, got 'two'"),
        ({"rope_dims": 66}, "rope_dims must be in [0, 64], got 66"),
        ({"rope_dims": 15}, "rope_dims must be even, got 15; 0 turns all 64 channels"),
        ({"xsa_layers": 10}, "xsa_layers must be in [0, 9], got 10"),
        ({"value_embed_dim": 16}, "must be set together, got 16 and ()"),
        ({"value_embed_layers": (1,)}, "must be set together, got 0 and (1,)"),
        ({"value_embed_dim": 16, "value_embed_layers": (1, 1)}, "each layer once"),
        ({"value_embed_dim": 16, "value_embed_layers": (1, 9)}, "value_embed_layers must be in [0, 8], got (1, 9)"),
        ({"bigram_buckets": 1}, "bigram_buckets must be 0 or at least 2, got 1"),
        ({"bigram_dim": 0}, "bigram_dim must be in [1, inf], got 0"),
        ({"embed_rank": 513}, "embed_rank must be in [0, 512], got 513"),
        ({"embed_buckets": 1024}, "embed_buckets must be in [0, 1023], got 1024"),
        ({"embed_buckets": 63}, "embed_buckets can tell at most embed_buckets**2 / 4 tokens apart, got 63"),
        ({"attn_gate": "sparse", "gate_inputs": 513}, "gate_inputs must be in [1, 512], got 513"),
        ({"smear": "gated", "gate_inputs": 0}, "gate_inputs must be in [1, 512], got 0"),
        ({"gate_scale": 0.0}, "gate_scale must be positive and finite, got 0.0"),
        ({"parallel": "single", "parallel_start": 9}, "parallel_start must be in [0, 8], got 9"),
        ({**LOOP, "parallel": "lanes", "parallel_start": 3}, "two streams cannot begin inside a loop"),
        ({**LOOP, "parallel": "routed", "parallel_start": 4}, "got parallel_start 4 in [2, 5)"),
        ({"iteration_embeddings": True}, "iteration_embeddings tell the passes of a loop apart, got no loop"),
        ({"num_experts": 8}, "experts_per_token must be in [1, 8], got 0"),
        ({"experts_per_token": 2}, "experts_per_token must be in [0, 0], got 2"),
        ({"num_experts": 3, "experts_per_token": 1}, "must be divisible by num_experts, got 1024 and 3"),
        ({"document_attention": True, "bos_id": -1}, "bos_id must be in [0, 1023], got -1"),
        ({"bos_id": -2}, "bos_id must be in [-1, inf], got -2"),
        ({"out_norm": True, "xsa_layers": 1}, "out_norm and xsa_layers exclude each other"),
    ],
)
def test_impossible_models_are_refused(fields: dict[str, Any], message: str) -> None:
    """With what was expected, what came, and what to do."""
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig(**fields)


def test_streams_may_split_at_the_edges_of_a_loop() -> None:
    for start in (0, 2, 5):
        ModelConfig(**LOOP, parallel="routed", parallel_start=start)
    ModelConfig(**LOOP, parallel="single", parallel_start=3)


@given(config=small_configs())
@settings(max_examples=30, deadline=None)
def test_every_config_survives_text_and_the_artifact(config: ModelConfig) -> None:
    """repr, JSON-like dicts, and quantize -> pack -> unpack -> load with every element's tensors."""
    assert eval(repr(config), {"ModelConfig": ModelConfig}) == config
    run = RunConfig(model=config)
    assert from_plain(RunConfig, to_plain(run)) == run
    packed = quantize_state(build_model(config, seed=0).state_dict(), config, QuantConfig(attn_bits=(4, 6)))
    unpacked = unpack_model(pack_model(config, EvalConfig(), packed))
    assert unpacked.model == config
    build_model(config, seed=1).load_state_dict(dequantize_state(unpacked.tensors))
