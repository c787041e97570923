"""How much a cheap rung may be trusted: what it can judge at all, and how well it has ranked what was promoted so far.

Knobs come with tags (DESIGN idea 4). A rung judges `scale_free` knobs always, `step_dependent` ones when its runs take
as many steps as the rung's above, and `throughput_dependent` ones when besides its steps take as long: then a knob that
slows a step down pays for it there as it would above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import atanh, ceil, sqrt, tanh
from typing import TYPE_CHECKING

from pgolf_model.config import TrainConfig
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord
from search.study.statistics import Z90, spearman
from space.params import Tag
from trials.rungs import Rung

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP_SHARE = 0.25  # "the top" whose recall is shown: a quarter of the pairs
BOOTSTRAPS = 300
Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyQuality:
    """Agreement between a rung and the one above, over trials with a score at both; intervals are 90 %.

    Only the better part of `lower` is promoted, so this understates the agreement over all trials; it is the agreement
    among those that promotion has to tell apart.
    """

    lower: str
    upper: str
    num_pairs: int
    spearman: float | None  # None below three pairs, or when all are tied
    spearman_low: float
    spearman_high: float
    recall: float | None  # share of upper's top quarter that is in lower's
    recall_low: float
    recall_high: float
    keep: float  # share of lower's results that goes up, given all this


def proxy_quality(study: StudyConfig, records: Sequence[TrialRecord], *, lower: Rung, upper: Rung) -> ProxyQuality:
    """What is known about one step of the ladder."""
    pairs = score_pairs(records, lower=lower.name, upper=upper.name)
    rho, low, high = rank_interval(pairs)
    recall, recall_low, recall_high = recall_interval(pairs)
    return ProxyQuality(
        lower=lower.name,
        upper=upper.name,
        num_pairs=len(pairs),
        spearman=rho,
        spearman_low=low,
        spearman_high=high,
        recall=recall,
        recall_low=recall_low,
        recall_high=recall_high,
        keep=keep_share(upper, pairs),
    )


def keep_share(rung: Rung, pairs: Pairs) -> float:
    """Share of the rung below that goes up: `most_kept` while nothing is known, `least_kept` when the proxy is perfect.

    Linear in the lower end of the rank correlation's interval: few pairs or poor agreement promote more, many pairs
    that agree promote less.
    """
    _, low, _ = rank_interval(pairs)
    return rung.most_kept - (rung.most_kept - rung.least_kept) * min(1.0, max(0.0, low))


def score_pairs(records: Sequence[TrialRecord], *, lower: str, upper: str) -> Pairs:
    """(score at `lower`, score at `upper`) of every trial that completed at both, in order of `upper`'s numbers."""
    above = sorted(
        (r.spec.number, r.spec.parent, r.result.val_bpb)
        for r in records
        if r.spec.rung == upper and r.spec.parent is not None and r.status == "complete" and r.result
    )
    if not above:
        return ()
    parents = {parent for _, parent, _ in above}
    below = {
        r.spec.number: r.result.val_bpb
        for r in records
        if r.spec.number in parents and r.spec.rung == lower and r.status == "complete" and r.result
    }
    return tuple((below[parent], score) for _, parent, score in above if parent in below)


@lru_cache(maxsize=64)
def rank_interval(pairs: Pairs) -> tuple[float | None, float, float]:
    """Spearman's rho with its 90 % interval: Fisher's z with Bonett and Wright's variance; (-1, 1) below four pairs."""
    rho = spearman([a for a, _ in pairs], [b for _, b in pairs])
    if rho is None or len(pairs) < 4:
        return rho, -1.0, 1.0
    inside = min(max(rho, -0.9999), 0.9999)
    half = Z90 * sqrt((1 + inside**2 / 2) / (len(pairs) - 3))
    return rho, tanh(atanh(inside) - half), tanh(atanh(inside) + half)


@lru_cache(maxsize=64)
def recall_interval(pairs: Pairs) -> tuple[float | None, float, float]:
    """Share of the upper rung's top quarter that the lower rung's top quarter holds; 90 % by bootstrap over pairs."""
    if len(pairs) < 4:
        return None, 0.0, 1.0
    import numpy as np

    scores = np.array(pairs)
    rng = np.random.default_rng(len(pairs))  # the same pairs, the same interval
    draws = np.sort(_recalls(scores[rng.integers(len(pairs), size=(BOOTSTRAPS, len(pairs)))]))
    low, high = (float(draws[int(share * BOOTSTRAPS)]) for share in (0.05, 0.95))
    return float(_recalls(scores[None])[0]), low, high


def judged_tags(lower: Rung, upper: Rung) -> frozenset[Tag]:
    """The tags of knobs whose effect at `upper` a run at `lower` can show."""
    judged: set[Tag] = {"scale_free"}
    if same_steps(lower, upper):
        judged.add("step_dependent")
        if lower.seconds and lower.seconds == upper.seconds:
            judged.add("throughput_dependent")
    return frozenset(judged)


def same_steps(lower: Rung, upper: Rung) -> bool:
    """Whether runs at both take as many steps: the same number, or the same clock with the batch cut like the GPUs."""
    if lower.steps or upper.steps:
        return lower.steps == upper.steps and lower.seconds == upper.seconds
    default = TrainConfig().batch_tokens
    share = [(r.batch_tokens or default) / max(r.gpus, 1.0) for r in (lower, upper)]
    return lower.seconds == upper.seconds and abs(share[0] / share[1] - 1) < 0.01


def _recalls(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws,) recall in each of (draws, pairs, 2) scores; ties go to the earlier pair."""
    import numpy as np

    top = ceil(TOP_SHARE * scores.shape[1])
    best = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(best, np.argsort(scores, axis=1, kind="stable")[:, :top], True, axis=1)
    return np.asarray(best.all(2).sum(1) / top)
