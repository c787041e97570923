"""Records of the challenge as configurations: named points that a study can start from and be compared with.

Sizes, rates and schedules are those that a record's log prints. Parameter counts equal the log's exactly
(tests/space/test_param_counts.py). Quantization is ours: GPTQ at the record's bits and clips, in our container. What a
record does at evaluation (sliding windows, test-time training) is left out.
Source: https://github.com/openai/parameter-golf, folders of the dates in the names.
"""

from __future__ import annotations

from dataclasses import replace

from pgolf_model.config import Budget, EvalConfig, ModelConfig, QuantConfig, RunConfig, TrainConfig

_SCORED_AT_2048 = EvalConfig(seq_len=2048)
_GPTQ = QuantConfig(method="gptq", calibration_tokens=131_072)


def baseline_2026_03_17() -> RunConfig:
    """17,059,912 parameters. Left out: its int8 rows with percentile clips and zlib; ours are 6 bits and SDClip."""
    return RunConfig()


def vocab4096_2026_04_01() -> RunConfig:
    """34,401,371 parameters, 4,096 tokens, MLP 4x. Left out: its selective pruning and byte shuffle with brotli."""
    return RunConfig(
        model=ModelConfig(
            vocab_size=4096,
            num_layers=11,
            mlp_mult=4.0,
            qk_gain_init=4.0,
            rope_dims=16,
            ln_scale=True,
            activation="leaky_relu2",
            skips="gated",
            xsa_layers=11,
            value_embed_dim=128,
            value_embed_layers=(9, 10),
            matrix_init="orthogonal",
        ),
        train=TrainConfig(
            batch_tokens=786_432,
            seq_len=2048,
            loader="strided",
            matrix_lr=0.02,
            embed_lr=0.03,
            scalar_lr=0.02,
            matrix_weight_decay=0.085,
            embed_weight_decay=0.085,
            scalar_weight_decay=0.02,
            muon_momentum=0.99,
            muon_momentum_start=0.92,
            muon_momentum_warmup=0.25,
            grad_clip=0.3,
            warmdown_fraction=0.667,
            ema_decay=0.997,
            reserve_seconds=10.0,
        ),
        quant=_GPTQ,
        eval=_SCORED_AT_2048,
    )


def loop_2026_04_05() -> RunConfig:
    """35,943,512 parameters, 8,192 tokens, blocks 4 and 5 three times from half of the run on."""
    base = vocab4096_2026_04_01()
    return replace(
        base,
        model=replace(
            base.model,
            vocab_size=8192,
            value_embed_dim=0,
            value_embed_layers=(),
            loop_start=4,
            loop_end=6,
            loop_repeats=2,
        ),
        train=replace(base.train, loader="shuffled", muon_normalize_rows=True, muon_momentum_warmup=0.3, loop_at=0.5),
    )


def loop_2026_04_09() -> RunConfig:
    """35,944,536 parameters, blocks 3 to 5 three times, parallel from block 7. Left out: its test-time training."""
    base = loop_2026_04_05()
    return replace(
        base,
        model=replace(base.model, loop_start=3, qk_gain_init=5.25, parallel="single", parallel_start=7),
        train=replace(
            base.train,
            matrix_lr=0.022,
            matrix_weight_decay=0.095,
            warmdown_fraction=0.72,
            ema_decay=0.9965,
            loop_at=0.35,
        ),
    )


def frontier_2026_04_27() -> RunConfig:
    """35,945,671 parameters, the best record's model and recipe.

    Left out: CaseOps tokens, test-time training, its column- and row-sorted lrzip streams (ours: entropy coder).
    """
    base = loop_2026_04_09()
    return replace(
        base,
        model=replace(
            base.model,
            qk_gain_init=5.0,
            parallel="routed",
            parallel_start=8,
            document_attention=True,
            attn_gate="sparse",
            gate_scale=0.5,
            smear="gated",
        ),
        train=replace(
            base.train,
            loader="packed",
            matrix_lr=0.026,
            muon_momentum=0.97,
            muon_polynomial="polar_express",
            adam_beta2=0.99,
            warmdown_fraction=0.85,
            min_lr_fraction=0.1,
            reserve_seconds=5.0,
        ),
        quant=replace(
            _GPTQ,
            embed_bits=7,
            embed_clip_sigmas=14.0,
            attn_clip_sigmas=(13.0,),
            mlp_clip_sigmas=(11.5,),
            lowrank_rank=4,
            lowrank_tensors=3,
        ),
    )


def ternary_2026_03_24() -> RunConfig:
    """67,394,384 trainable parameters, 10 x 768, weights -1, 0, 1 with a scale per 128, rounded in every forward pass.

    The record's log counts an 8,192 x 768 head more, which is frozen and never read. Left out: YaRN (neutral), the
    polynomial softcap, the z-loss, the temperature at scoring.
    """
    return RunConfig(
        model=ModelConfig(
            vocab_size=8192,
            num_layers=10,
            model_dim=768,
            mlp_mult=4.0,
            rope_base=5000.0,
            qk_gain_init=2.25,
            logit_softcap=10.0,
            embed_rank=254,
            vocab_bias=True,
            out_norm=True,
        ),
        train=TrainConfig(
            matrix_lr=0.04,
            embed_lr=0.02,
            scalar_lr=0.02,
            muon_iterations=3,
            muon_momentum_warmup=0.08,
            warmdown_fraction=0.2,
            qat_start=0.0,
        ),
        quant=QuantConfig(
            embed_bits=8,
            attn_bits=(2,),
            mlp_bits=(2,),
            attn_clip_sigmas=(1.224,),  # the step of least squared error for three levels
            mlp_clip_sigmas=(1.224,),
            group_size=128,
            scalar_format="fp8",
        ),
    )


def binary_2026_03_24() -> RunConfig:
    """15 x 768 with weights -1 and 1, trained for 50,000 steps: no ten-minute record, and kept as a point of the space.

    Left out: the parts that the ternary preset leaves out, and the asymmetric split of its skips.
    """
    base = ternary_2026_03_24()
    return replace(
        base,
        model=replace(base.model, num_layers=15, smear="channel"),
        quant=replace(
            base.quant,
            attn_bits=(1,),
            mlp_bits=(1,),
            attn_clip_sigmas=(0.798,),  # the mean magnitude
            mlp_clip_sigmas=(0.798,),
        ),
        budget=Budget(steps=50_000),
    )


def wide_loop() -> RunConfig:
    """Two very wide blocks run five times: wide and shallow recurrence, which no record has tried at this size."""
    base = loop_2026_04_09()
    return replace(
        base,
        model=replace(
            base.model,
            num_layers=2,
            model_dim=1024,
            num_heads=16,
            num_kv_heads=8,
            xsa_layers=2,
            parallel="none",
            parallel_start=0,
            loop_start=0,
            loop_end=2,
            loop_repeats=4,
            iteration_embeddings=True,
        ),
    )
