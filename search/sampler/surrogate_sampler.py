"""The compute-aware model as an Optuna sampler: it proposes for one rung's study from what all rungs have measured.

Optuna's trials are the memory: parameters, value, constraints, and the user attributes that `sampler.Sampler` writes
(`status`, `artifact_bytes`, `gpu_seconds`). A trial that was refused by its forecast never ran and teaches nothing
here: the model does not propose what is known not to fit.
What the trials do not say, the hyperparameters that were fitted some results ago, is kept in a file: a successor of a
killed driver proposes what its predecessor would have proposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.surrogate.byte_model import Forecast
from search.surrogate.history import Level, Observation
from search.surrogate.proposal import Memory, Proposal, Surrogate
from space.params import Param
from trials.files import read_noun, write_json

MEMORY_FILE = "surrogate.json"  # in the study's folder: the model's newest fits
RAN_IN_VAIN = ("failed", "diverged", "timeout")  # statuses of trials that cost GPU-seconds and have no score


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What the model would start next: a new point at a rung, or a known trial (rung, number) at a higher one."""

    rung: str
    parent: tuple[str, int] | None
    proposal: Proposal


@dataclass(slots=True)
class _Settled:
    """The first trials of a rung, up to the first that runs: they have ended, so nothing about them will change."""

    count: int = 0
    keys: list[tuple[str, int]] = field(default_factory=list)  # of those that ran
    runs: list[Observation] = field(default_factory=list)
    early: dict[int, Observation] = field(default_factory=dict)  # of the trials from there on

    def add(self, key: tuple[str, int], seen: Observation | None) -> None:
        """The next trial has ended."""
        self.count += 1
        self.early.pop(key[1], None)
        if seen is not None:
            self.keys.append(key)
            self.runs.append(seen)


class SurrogateSampler(optuna.samplers.BaseSampler):
    """One sampler for all rungs' studies, so that what it learns at one rung it knows at the others."""

    def __init__(
        self,
        params: Sequence[Param],
        distributions: Mapping[str, BaseDistribution],
        computes: Mapping[str, float],
        *,
        cap_bytes: float,
        forecast: Forecast | None = None,
        seed: int = 0,
        num_initial: int = 0,
        folder: Path | None = None,
        ghosts: Mapping[str, int] | None = None,
    ) -> None:
        """Set the question; `watch` then says which study is which rung.

        Args:
            distributions: of every parameter, as they are suggested.
            computes: training compute of a run at each rung, by name, lowest rung first.
            folder: where the model's memory is kept; nowhere by default.
            ghosts: rung -> a trial that was entered and never started; it counts for nothing. Read at every proposal.
        """
        self._rungs = tuple(computes)
        self._computes = computes
        self._distributions = dict(distributions)
        self._studies: dict[str, optuna.Study] = {}
        self._new: tuple[list[Observation], Proposal] | None = None  # a new point that was advised, from what runs
        self._settled: dict[str, _Settled] = {rung: _Settled() for rung in self._rungs}
        self._costs: dict[str, list[float]] = {rung: [] for rung in self._rungs}
        self._independent = optuna.samplers.RandomSampler(seed=seed)
        self._ghosts = {} if ghosts is None else ghosts
        self._model = Surrogate(
            params, self._levels(), cap_bytes=cap_bytes, forecast=forecast, seed=seed, num_initial=num_initial
        )
        self._memory_file = None if folder is None else folder / MEMORY_FILE
        if self._memory_file is not None and self._memory_file.exists():
            self._model.recall(read_noun(Memory, self._memory_file))

    def watch(self, rung: str, study: optuna.Study) -> None:
        """Take in a rung's study, and sample for it."""
        self._studies[rung] = study
        study.sampler = self

    def _propose(self, runs: Sequence[Observation], **options: Any) -> Proposal | None:
        """The model's proposal; new fits are kept for a successor before anybody acts on them."""
        before = self._model.memory
        proposal = self._model.propose(runs, **options)
        if self._memory_file is not None and self._model.memory != before:
            write_json(self._memory_file, self._model.memory)
        return proposal

    def advise(self, *, starts: Sequence[str], climbs: Sequence[str], remaining: float = math.inf) -> Advice | None:
        """What to start next among new points at `starts` and promotions to `climbs`; None when there is neither.

        Args:
            remaining: GPU-seconds left.
        """
        keys, runs = self._history()
        index = {rung: i for i, rung in enumerate(self._rungs)}
        proposal = self._propose(
            runs,
            starts=tuple(index[rung] for rung in starts if rung in index),
            climbs=tuple(index[rung] for rung in climbs if rung in index),
            remaining=remaining,
        )
        if proposal is None:
            return None
        self._new = None if proposal.parent is not None or len(starts) > 1 else (runs, proposal)
        parent = None if proposal.parent is None else keys[proposal.parent]
        return Advice(rung=self._rungs[proposal.level], parent=parent, proposal=proposal)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter: a proposal is a whole configuration."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The active parameters of the model's proposal for this study's rung."""
        rung = next(name for name, watched in self._studies.items() if watched.study_name == study.study_name)
        _, runs = self._history(without=(rung, trial.number))
        level = self._rungs.index(rung)
        if self._new is not None and self._new[0] == runs and self._new[1].level == level:
            return dict(self._new[1].params)
        proposal = self._propose(runs, starts=(level,), climbs=())
        assert proposal is not None  # there is a rung to start at
        return dict(proposal.params)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that no proposal had: none of the space's."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _history(self, without: tuple[str, int] | None = None) -> tuple[list[tuple[str, int]], list[Observation]]:
        """Every run of every rung with its (rung, number), by rung and number: not in the order it was learnt in."""
        keys: list[tuple[str, int]] = []
        runs: list[Observation] = []
        for rung, study in self._studies.items():
            settled, trials = self._settled[rung], study.get_trials(deepcopy=False)
            while settled.count < len(trials) and trials[settled.count].state.is_finished():
                settled.add((rung, settled.count), self._seen(rung, trials[settled.count]))
            keys += settled.keys
            runs += settled.runs
            for trial in trials[settled.count :]:
                key = (rung, trial.number)
                hidden = key == without or self._ghosts.get(rung) == trial.number
                seen = None if hidden else self._seen(rung, trial)
                if seen is not None:
                    keys.append(key)
                    runs.append(seen)
        self._model.levels = self._levels()
        return keys, runs

    def _seen(self, rung: str, trial: FrozenTrial) -> Observation | None:
        """`_observation`, made once for a trial that runs and once when it has ended."""
        early, finished = self._settled[rung].early, trial.state.is_finished()
        known = early.get(trial.number)
        if known is not None and (not known.running or (not finished and known.params == trial.params)):
            return known
        seen = self._observation(trial, self._rungs.index(rung))
        if seen is not None:
            early[trial.number] = seen
            if finished and trial.user_attrs.get("gpu_seconds"):
                self._costs[rung].append(float(trial.user_attrs["gpu_seconds"]))
        return seen

    def _observation(self, trial: FrozenTrial, level: int) -> Observation | None:
        """A trial as the model sees it; None when it never ran."""
        params = dict(trial.params)
        if not trial.state.is_finished():
            return Observation(params=params, level=level, running=True) if params else None
        feasible = all(excess <= 0 for excess in trial.constraints.values())
        size = trial.user_attrs.get("artifact_bytes")
        if trial.state == TrialState.COMPLETE:
            return Observation(
                params=params,
                level=level,
                val_bpb=float(trial.values[0]),
                artifact_bytes=None if size is None else float(size),
                feasible=feasible,
            )
        if trial.user_attrs.get("status") in RAN_IN_VAIN and params:
            return Observation(params=params, level=level)
        return None

    def _levels(self) -> tuple[Level, ...]:
        """Cost and compute of each rung; a rung that has not run costs what its compute suggests."""
        known = {rung: median(costs) for rung, costs in self._costs.items() if costs}
        rate = median([cost / self._computes[rung] for rung, cost in known.items()]) if known else 1.0
        return tuple(
            Level(cost=known.get(rung, rate * compute), compute=compute) for rung, compute in self._computes.items()
        )
