"""How far a rung may be trusted: which knobs it can judge at all, and how well it has ranked the promoted trials.

Every knob has a tag (`space.params.Tag`). A rung can judge `scale_free` knobs always. It can judge `step_dependent`
knobs when its runs take as many steps as those of the rung above, and `throughput_dependent` knobs when its runs also
train for as many seconds: then a knob that makes a step slower costs as many steps there as it would above.
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

TOP_SHARE = 0.25  # recall is about the best quarter of the pairs
BOOTSTRAPS = 300
Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyQuality:
    """Agreement between a rung and the one above, over trials with a score at both; intervals are 90 %.

    Only the better part of `lower` is promoted, so this is lower than the agreement over all trials would be. It is
    the agreement among the trials that promotion has to tell apart.
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
    keep: float  # share of lower's results that is promoted, given this agreement


def proxy_quality(study: StudyConfig, records: Sequence[TrialRecord], *, lower: Rung, upper: Rung) -> ProxyQuality:
    """The agreement between two neighbouring rungs, so far."""
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
    """Share of the rung below that is promoted: `most_kept` while nothing is known, `least_kept` at perfect agreement.

    Linear in the lower end of the rank correlation's interval: with few pairs or poor agreement more is promoted, with
    many pairs that agree less.
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
