"""How far a cheap rung is trusted: measured agreement with intervals, and what its runs can show at all."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladders import STUDY, record
from scipy import stats

from search.ladder.trust import judged_tags, keep_share, proxy_quality, rank_interval, recall_interval, score_pairs
from search.study.config import load_study
from trials.rungs import Rung

RUNG = Rung(name="full", steps=1, keep=0.3, keep_min=0.1, keep_max=0.5)


def pairs_of(n: int, noise: float, seed: int = 0) -> tuple[tuple[float, float], ...]:
    rng = random.Random(seed)
    values = [rng.random() for _ in range(n)]
    return tuple((v, v + rng.gauss(0, noise)) for v in values)


def test_unknown_and_poor_proxies_keep_more_than_good_ones() -> None:
    """Nothing known and no agreement keep the most; agreement keeps less the more pairs show it."""
    assert keep_share(RUNG, ()) == keep_share(RUNG, pairs_of(3, 0.0)) == 0.5
    assert keep_share(RUNG, pairs_of(40, 100.0)) == pytest.approx(0.5, abs=0.02)
    few, many = (keep_share(RUNG, pairs_of(n, 0.05)) for n in (8, 200))
    assert 0.1 <= many < few < 0.5
    assert many < 0.15


@given(pairs=st.lists(st.tuples(st.floats(0.5, 9), st.floats(0.5, 9)), max_size=30))
def test_the_share_stays_between_its_bounds(pairs) -> None:
    assert 0.1 <= keep_share(RUNG, tuple(pairs)) <= 0.5
    rho, low, high = rank_interval(tuple(pairs))
    assert -1 <= low <= high <= 1
    assert rho is None or low - 1e-3 <= rho <= high + 1e-3


def test_an_old_study_keeps_its_share_until_the_proxy_proves_good() -> None:
    assert keep_share(Rung(name="full", steps=1, keep=0.2), ()) == 0.2
    assert keep_share(Rung(name="full", steps=1, keep=0.2), pairs_of(400, 0.001)) == pytest.approx(0.1, abs=0.002)


def test_the_interval_holds_the_truth_nine_times_in_ten() -> None:
    """400 samples of 30 pairs of correlated normals, whose Spearman correlation is known."""
    r = 0.7
    truth = 6 / math.pi * math.asin(r / 2)
    rng, inside = random.Random(1), 0
    for _ in range(400):
        xs = [rng.gauss(0, 1) for _ in range(30)]
        pairs = tuple((x, r * x + (1 - r * r) ** 0.5 * rng.gauss(0, 1)) for x in xs)
        rho, low, high = rank_interval(pairs)
        assert rho == pytest.approx(stats.spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)
        inside += low <= truth <= high
    assert 0.85 <= inside / 400 <= 0.95


def test_recall_is_the_share_of_the_top_quarter_that_was_seen() -> None:
    """Of the upper rung's two best of eight (the last two), the lower rung has one among its two best."""
    pairs = ((0.1, 5.0), (1.0, 4.0), (2.0, 6.0), (3.0, 7.0), (4.0, 8.0), (5.0, 9.0), (0.2, 1.0), (9.0, 2.0))
    recall, low, high = recall_interval(pairs)
    assert recall == 0.5
    assert 0 <= low <= recall <= high <= 1
    assert recall_interval(pairs) == (recall, low, high)
    assert recall_interval(pairs[:3]) == (None, 0.0, 1.0)


def test_pairs_are_the_trials_with_a_score_at_both_rungs() -> None:
    records = (
        record(0, 1.0), record(1, 2.0), record(2, 3.0), record(3, 4.0),
        record(0, 1.5, rung="full", parent=2), record(1, None, rung="full", parent=1),
        record(2, 0.0, rung="full", parent=0, status="diverged"), record(3, 0.7, rung="full", parent=3),
    )  # fmt: skip
    assert score_pairs(records, lower="proxy", upper="full") == ((3.0, 1.5), (4.0, 0.7))
    found = proxy_quality(STUDY, records, lower=STUDY.rungs[0], upper=STUDY.rungs[1])
    assert (found.num_pairs, found.spearman, found.keep) == (2, None, STUDY.rungs[1].most_kept)


def test_a_rung_judges_what_its_runs_can_show() -> None:
    """The real ladder: a smoke run sees scale-free knobs only; an eighth of the GPUs and of the batch, all."""
    smoke, proxy, full, _ = load_study("8xh100.toml").rungs
    assert judged_tags(smoke, proxy) == {"scale_free"}
    assert judged_tags(proxy, full) == {"scale_free", "step_dependent", "throughput_dependent"}
    assert judged_tags(replace(proxy, batch_tokens=131_072), full) == {"scale_free"}, "half the steps"
    short, long = Rung(name="a", steps=100, trials=1), Rung(name="b", steps=100, gpus=1)
    assert judged_tags(short, long) == {"scale_free", "step_dependent"}
