"""The competitors of the search benchmark obey their published rules."""

from __future__ import annotations

import random

import pytest
import search_methods


@pytest.mark.parametrize("seed", range(3))
def test_asha_decides_as_ray_does(seed: int) -> None:
    """60 trials with random scores at three milestones, one after another, against Ray's own bracket."""
    from ray.tune.schedulers.async_hyperband import _Bracket
    from ray.tune.schedulers.trial_scheduler import TrialScheduler

    rng = random.Random(seed)
    bracket = _Bracket(min_t=1, max_t=16, reduction_factor=4, s=0)
    milestones = sorted(milestone for milestone, _ in bracket._rungs)
    ours = {milestone: search_methods.AshaRung(4) for milestone in milestones}

    class Trial:
        def __init__(self, number: int) -> None:
            self.trial_id = str(number)

    for number in range(60):
        for milestone in milestones:
            score = rng.gauss(1.2, 0.1) if rng.random() < 0.9 else 9.0
            said = bracket.on_result(Trial(number), milestone, -score)  # Ray maximises inside
            goes_on = ours[milestone].goes_on(score)
            assert goes_on == (said == TrialScheduler.CONTINUE)
            if not goes_on:
                break


def test_halving_runs_its_brackets() -> None:
    """64 at 1/16, the best 16 at 1/4, the best 4 at full, then a new bracket."""
    from space.params import FloatParam, Space
    from space.spaces import named_space

    space = Space(
        name="s",
        params=(FloatParam(name="x", low=0.0, high=1.0, tag="scale_free"),),
        make_config=named_space("tiny").make_config,
        control={"x": 0.9},
    )
    problem = search_methods.Problem(
        name="s", space=space, evaluate=None, truth=None, predict_bytes=None, cap_bytes=10.0, unit=1.0
    )
    halving = search_methods.Halving(problem, 0, 12.0)
    levels: list[list[float]] = [[], [], []]
    for _ in range(64 + 16 + 4):
        job = halving.next(99.0)
        assert job is not None
        levels[job.level].append(float(job.params["x"]))
        job.result = {"val_bpb": float(job.params["x"]), "artifact_bytes": 1.0}
        halving.finish(job)
    assert [len(level) for level in levels] == [64, 16, 4]
    assert sorted(levels[1]) == sorted(levels[0])[:16]
    assert sorted(levels[2]) == sorted(levels[0])[:4]
    again = halving.next(99.0)
    assert again is not None
    assert again.level == 0
