"""Records' architectures as configurations: the parameter counts that their training logs print.

Every count is the `model_params:` line of a log in https://github.com/openai/parameter-golf (records/track_10min_16mb).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pgolf_model.config import ModelConfig
from pgolf_model.shapes import num_params, param_shapes

BASELINE = ModelConfig()
MLP3 = replace(BASELINE, mlp_mult=3.0)
BIGRAM = replace(MLP3, matrix_init="orthogonal", bigram_buckets=4096, smear="channel")
XSA4 = replace(BIGRAM, num_layers=11, bigram_buckets=2048, xsa_layers=4)
VALUES = replace(XSA4, rope_dims=16, ln_scale=True, value_embed_dim=128, value_embed_layers=(9, 10))
LEAKY = replace(VALUES, activation="leaky_relu2", bigram_buckets=1536)
XSA11 = replace(LEAKY, xsa_layers=11, bigram_buckets=3072, bigram_dim=112)
VOCAB4096 = ModelConfig(
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
)
LANES4096 = replace(VOCAB4096, parallel="lanes", parallel_start=7, loop_start=4, loop_end=6, loop_repeats=1)
LOOP45 = replace(
    VOCAB4096,
    vocab_size=8192,
    value_embed_dim=0,
    value_embed_layers=(),
    loop_start=4,
    loop_end=6,
    loop_repeats=2,
)
LANES8192 = replace(LOOP45, qk_gain_init=5.0, parallel="lanes", parallel_start=7)
LOOP345 = replace(LOOP45, loop_start=3, qk_gain_init=5.25, parallel="single", parallel_start=7)
ROUTED = replace(LOOP345, qk_gain_init=5.0, parallel="routed", parallel_start=8, document_attention=True)
DENSE_GATE = replace(ROUTED, attn_gate="dense")
SPARSE_GATE = replace(ROUTED, attn_gate="sparse")
FRONTIER = replace(SPARSE_GATE, gate_scale=0.5, smear="gated")
TERNARY = ModelConfig(
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
)


@pytest.mark.parametrize(
    ("record", "config", "logged"),
    [
        ("2026-03-17_NaiveBaseline", BASELINE, 17_059_912),
        ("2026-03-19_10L_MixedPrecision", replace(BASELINE, num_layers=10), 18_897_488),
        ("2026-03-18_FP16Embed_WD3600", replace(BASELINE, mlp_mult=992 / 512), 16_765_000),
        ("2026-03-19_MLP3x_QAT_Int6_SlidingWindow", MLP3, 21_778_504),
        ("2026-03-20_Int6_MLP3x_SmearGate_BigramHash_MuonWD_SWA", BIGRAM, 22_368_841),
        ("2026-03-20_10L_Int5MLP_MuonWD04_SWA50", replace(BIGRAM, num_layers=10, bigram_buckets=10_240), 25_517_137),
        ("2026-03-20_11L_XSA4_EMA_Int6_MLP3x_WD04_1.1271", XSA4, 26_829_913),
        ("2026-03-22_11L_EMA_GPTQ-lite_warmdown3500_QAT015_1.1233", VALUES, 26_993_756),
        ("2026-03-23_LeakyReLU_LegalTTT_ParallelMuon", LEAKY, 26_928_220),
        ("2026-03-25_ValCalib_GPTQ_XSA_BigramHash3072", XSA11, 27_067_484),
        ("2026-03-29_Loader_FullGPTQ_XSA11_BigramHash2816", replace(XSA11, bigram_buckets=2816), 27_038_812),
        ("2026-04-01_Vocab4096_MLPMult4_WD085", VOCAB4096, 34_401_371),
        ("2026-04-05_SP8192_GPTQ-Embeddings_SDClip_Loop45x2", LOOP45, 35_943_512),
        ("2026-04-08_SP8192_ParallelResid_ScoreFirstTTT", LANES8192, 35_943_513),
        ("2026-04-09_SP8192_3LayerRecur_ParResid_QK525_LegalTTT", LOOP345, 35_944_536),
        ("2026-04-10_VarLenAttn", ROUTED, 35_944_602),
        ("2026-04-19_SP8192_CaseOps_GatedAttn_QuantGate_Loop45_PhasedTTT", DENSE_GATE, 35_989_658),
        ("2026-04-23_SP8192_CaseOps_SparseGate_QuantGate_Loop45_PhasedTTT", SPARSE_GATE, 35_945_658),
        ("2026-04-27_SP8192_LQER_SparseGate_BOSSmearFix_9HpStack_1.0611", FRONTIER, 35_945_671),
    ],
)
def test_a_records_configuration_has_the_logged_parameters(record: str, config: ModelConfig, logged: int) -> None:
    """To the last parameter, so that the sizes behind a forecast are the record's."""
    assert num_params(config) == logged, record


def test_two_logs_count_differently() -> None:
    """The ternary log includes an 8192 x 768 head that is frozen and never read; 04-04 has no skip for the repeats."""
    assert num_params(TERNARY) == 73_685_840 - 8192 * 768
    extra_skips = LANES4096.num_skips - replace(LANES4096, loop_start=0, loop_end=0, loop_repeats=0).num_skips
    assert num_params(LANES4096) == 34_401_372 + extra_skips * 2 * 512


def test_the_frontier_runs_the_published_order() -> None:
    """17 virtual layers; the first eight feed the last eight that can take a skip."""
    assert FRONTIER.virtual_layers == (0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10)
    assert FRONTIER.num_skips == 8
    gates = [info for name, info in param_shapes(FRONTIER).items() if name.endswith("attn.gate")]
    assert [(info.shape, info.role) for info in gates] == [((8, 12), "scalar")] * 11
