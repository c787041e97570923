"""The search methods that `bench_search.py` compares, behind one seam: `next()` names a run, `finish()` hears of it.

Every method starts with the control and counts the same GPU-seconds. A configuration whose bytes are known to be over
the cap before a run costs nothing, as in the driver; one whose bytes are only measured has been paid for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from search.sampler.mirror import distribution
from search.surrogate.history import Observation
from search.surrogate.proposal import Surrogate
from space.params import Scalar, Space

MAX_REFUSED = 400  # forecasts over the cap in a row before any point is taken


@dataclass(kw_only=True)
class Job:
    """One run: asked, then filled in."""

    params: dict[str, Scalar]
    level: int
    handle: Any = None
    result: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A benchmark function with its ladder."""

    name: str
    space: Space
    evaluate: Any
    truth: Any
    predict_bytes: Any  # or None
    cap_bytes: float
    unit: float  # GPU-seconds of a full run

    def is_good(self, result: Mapping[str, float] | None) -> bool:
        """Whether a run ended with a score, and under the cap."""
        return bool(result) and math.isfinite(result["val_bpb"]) and result["artifact_bytes"] <= self.cap_bytes

    def fits(self, params: Mapping[str, Scalar]) -> bool:
        """Whether the bytes, where they can be known, are under the cap."""
        return self.predict_bytes is None or self.predict_bytes(params) <= self.cap_bytes


class Method(Protocol):
    """What the simulated engine drives."""

    fidelities: tuple[float, ...]

    def next(self, remaining: float) -> Job | None: ...
    def finish(self, job: Job) -> None: ...


class Random:
    """Random feasible points at full."""

    fidelities: tuple[float, ...] = (1.0,)

    def __init__(self, problem: Problem, seed: int, units: float) -> None:
        self.problem, self.rng, self.first = problem, np.random.default_rng(seed), True

    def draw(self) -> dict[str, Scalar]:
        """The control, then random points that fit."""
        if self.first:
            self.first = False
            return dict(self.problem.space.control)
        for _ in range(MAX_REFUSED):
            params = self.problem.space.sample(self.rng)
            if self.problem.fits(params):
                break
        return params

    def next(self, remaining: float) -> Job | None:
        return Job(params=self.draw(), level=0)

    def finish(self, job: Job) -> None:
        pass


class Halving(Random):
    """Synchronous successive halving of random points, eta 4, bracket after bracket."""

    fidelities = (1 / 16, 1 / 4, 1.0)
    eta, size = 4, 64

    def __init__(self, problem: Problem, seed: int, units: float) -> None:
        super().__init__(problem, seed, units)
        self.queue: list[Job] = []
        self.running: list[Job] = []
        self.rung: list[Job] = []
        self.level = -1

    def next(self, remaining: float) -> Job | None:
        if not self.queue:
            if self.running:
                return None
            self._advance()
        job = self.queue.pop(0)
        self.running.append(job)
        return job

    def _advance(self) -> None:
        done = sorted(
            (j for j in self.rung if self.problem.is_good(j.result)),
            key=lambda j: j.result["val_bpb"] if j.result else math.inf,
        )
        if self.level < 0 or self.level + 1 == len(self.fidelities) or not done:
            self.level = 0
            points = [self.draw() for _ in range(self.size)]
        else:
            self.level += 1
            points = [j.params for j in done[: max(1, len(self.rung) // self.eta)]]
        self.queue = [Job(params=p, level=self.level) for p in points]
        self.rung = list(self.queue)

    def finish(self, job: Job) -> None:
        self.running.remove(job)


class AshaRung:
    """The rule of `ray.tune.schedulers.ASHAScheduler` at one milestone, for a score that is minimised.

    A result at the milestone goes on unless it is worse than the best 1/eta quantile of the results recorded there
    before it (numpy's linear percentile, as Ray's `_Bracket.cutoff`); the first one always goes on.
    """

    def __init__(self, eta: float) -> None:
        self.eta, self.recorded = eta, []  # type: ignore[var-annotated]

    def goes_on(self, score: float) -> bool:
        """Record a score; whether its trial continues."""
        cutoff = None if not self.recorded else -float(np.nanpercentile(self.recorded, (1 - 1 / self.eta) * 100))
        self.recorded.append(-score)
        return cutoff is None or score <= cutoff


class Asha(Random):
    """Random points under ASHA's stopping rule, eta 4: each milestone is a complete run of that size."""

    fidelities = (1 / 16, 1 / 4, 1.0)

    def __init__(self, problem: Problem, seed: int, units: float) -> None:
        super().__init__(problem, seed, units)
        self.rungs = [AshaRung(4) for _ in self.fidelities[:-1]]
        self.going_on: list[Job] = []

    def next(self, remaining: float) -> Job | None:
        if self.going_on:
            return self.going_on.pop()
        return Job(params=self.draw(), level=0)

    def finish(self, job: Job) -> None:
        assert job.result is not None
        good = self.problem.is_good(job.result)
        if job.level + 1 < len(self.fidelities) and good and self.rungs[job.level].goes_on(job.result["val_bpb"]):
            self.going_on.append(Job(params=job.params, level=job.level + 1))


class Tpe:
    """Optuna's TPE on full runs only: multivariate, grouped, constant liar; refused points are told PRUNED."""

    fidelities: tuple[float, ...] = (1.0,)
    objectives = 1

    def __init__(self, problem: Problem, seed: int, units: float) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.problem, self.seed, self.first = problem, seed, True
        self.study = self._study(seed)

    def _study(self, seed: int) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            single: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}
            sampler = optuna.samplers.TPESampler(seed=seed, **(single if self.objectives == 1 else {}))
            return optuna.create_study(directions=["minimize"] * self.objectives, sampler=sampler)

    def next(self, remaining: float) -> Job | None:
        return self.ask(self.study, 0)

    def ask(self, study: optuna.Study, level: int) -> Job:
        """The control, then what the sampler says and fits."""
        if self.first:
            self.first = False
            study.enqueue_trial(dict(self.problem.space.control))
        for _ in range(MAX_REFUSED):
            trial = study.ask()
            params: dict[str, Scalar] = {}
            for param in self.problem.space.params:
                if param.active(params):
                    params[param.name] = trial._suggest(param.name, distribution(param))
            if self.problem.fits(params):
                break
            trial.set_constraint("bytes", self.problem.predict_bytes(params) / self.problem.cap_bytes - 1)
            study.tell(trial, state=TrialState.PRUNED)
        return Job(params=params, level=level, handle=(study, trial))

    def finish(self, job: Job) -> None:
        assert job.result is not None
        study, trial = job.handle
        trial.set_constraint("bytes", job.result["artifact_bytes"] / self.problem.cap_bytes - 1)
        if not math.isfinite(job.result["val_bpb"]):
            study.tell(trial, state=TrialState.FAIL)
            return
        study.tell(trial, [job.result["val_bpb"], job.result["artifact_bytes"]][: self.objectives])


class TpeTwoObjectives(Tpe):
    """Optuna's default sampler for (val_bpb, artifact_bytes) under the cap."""

    objectives = 2


class TpeTwoStage(Tpe):
    """TPE on 1/8 proxies for a third of the budget, its best run at full, then TPE at full that has seen those."""

    fidelities = (1 / 8, 1.0)
    share, keep = 1 / 3, 0.25

    def __init__(self, problem: Problem, seed: int, units: float) -> None:
        super().__init__(problem, seed, units)
        self.proxies = self._study(seed + 1)
        self.num_proxies = max(8, round(self.share * units / self.fidelities[0]))
        self.asked = 0
        self.done: list[Job] = []
        self.queue: list[dict[str, Scalar]] | None = None

    def next(self, remaining: float) -> Job | None:
        if self.asked < self.num_proxies:
            self.asked += 1
            return self.ask(self.proxies, 0)
        if len(self.done) < self.num_proxies:
            return None
        if self.queue is None:
            fit = [j for j in self.done if self.problem.is_good(j.result)]
            fit.sort(key=lambda j: j.result["val_bpb"] if j.result else math.inf)
            self.queue = [j.params for j in fit[: max(2, round(self.keep * len(fit) * self.fidelities[0] * 4))]]
        if not self.queue:
            return self.ask(self.study, 1)
        params = self.queue.pop(0)
        distributions = {p.name: distribution(p) for p in self.problem.space.params if p.name in params}
        self.study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        frozen = self.study.get_trials(deepcopy=False)[-1]
        return Job(params=params, level=1, handle=(self.study, optuna.trial.Trial(self.study, frozen._trial_id)))

    def finish(self, job: Job) -> None:
        super().finish(job)
        if job.level == 0:
            self.done.append(job)


class Ours:
    """search.surrogate.proposal, both parts: which configuration, and which rung."""

    fidelities: tuple[float, ...] = (1 / 8, 1.0)
    starts: tuple[int, ...] = (0,)

    def __init__(self, problem: Problem, seed: int, units: float) -> None:
        self.problem, self.history, self.jobs = problem, [], []  # type: ignore[var-annotated]
        self.costs = [problem.unit * f for f in self.fidelities]
        self.model = Surrogate(
            problem.space.params,
            self.fidelities,
            cap_bytes=problem.cap_bytes,
            predict_bytes=problem.predict_bytes,
            seed=seed,
        )
        self.place: dict[int, int] = {}

    def next(self, remaining: float) -> Job | None:
        if not self.history:
            params, level = dict(self.problem.space.control), 0
        else:
            proposal = self.model.propose(self.history, costs=self.costs, starts=self.starts, remaining=remaining)
            assert proposal is not None
            params, level = proposal.params, proposal.level
        job = Job(params=params, level=level)
        self.place[id(job)] = len(self.history)
        self.jobs.append(job)
        self.history.append(Observation(params=params, level=level, running=True))
        return job

    def finish(self, job: Job) -> None:
        assert job.result is not None
        bpb, size = job.result["val_bpb"], job.result["artifact_bytes"]
        seen = Observation(params=job.params, level=job.level)  # it diverged
        if math.isfinite(bpb):
            fits = size <= self.problem.cap_bytes
            seen = replace(seen, val_bpb=bpb, artifact_bytes=size, feasible=fits)
        self.history[self.place[id(job)]] = seen


class OursAnywhere(Ours):
    """New configurations may also start at full."""

    starts = (0, 1)


class OursFullOnly(Ours):
    """The same model without proxies: what the compute axis adds."""

    fidelities = (1.0,)


class OursThreeRungs(Ours):
    """The same model with a still cheaper rung."""

    fidelities = (1 / 32, 1 / 8, 1.0)
    starts = (0, 1)


METHODS: dict[str, type] = {
    "random": Random,
    "tpe": Tpe,
    "tpe-mo": TpeTwoObjectives,
    "tpe-2stage": TpeTwoStage,
    "sha": Halving,
    "asha": Asha,
    "ours": Ours,
    "ours-any": OursAnywhere,
    "ours-full": OursFullOnly,
    "ours-3": OursThreeRungs,
}
