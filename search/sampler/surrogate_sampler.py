"""The proposals of the compute-aware model, from the trials in the Optuna studies of all rungs.

Optuna's trials are the memory: parameters, value, constraints, and the user attributes that `mirror` writes (`status`,
`artifact_bytes`, `gpu_seconds`). A trial that was refused by its forecast of bytes never ran and teaches nothing here:
the model does not propose points that are known not to fit.
The trials do not hold the model's hyperparameters, which are fitted now and then. A file keeps these, so that the
successor of a killed driver proposes what its predecessor would have proposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.surrogate.byte_model import PredictBytes
from search.surrogate.history import Observation
from search.surrogate.proposal import Memory, Proposal, Surrogate
from space.params import Param, Scalar
from trials.files import read_noun, write_json

MEMORY_FILE = "surrogate.json"  # in the study's folder: the model's newest fits
RAN_IN_VAIN = ("failed", "diverged", "timeout")  # statuses of trials that cost GPU-seconds and have no score

TrialKey = tuple[str, int]  # rung, number


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What the model would start next: a new point at a rung, or a known trial (rung, number) at a higher one."""

    rung: str
    parent: TrialKey | None
    proposal: Proposal


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """All measurements of all rungs so far, as the model takes them."""

    keys: list[TrialKey]  # of each run
    runs: list[Observation]  # by rung and number: not in the order in which they were learnt
    costs: tuple[float, ...]  # GPU-seconds of one run at each rung


@dataclass(slots=True)
class _Settled:
    """The first trials of a rung, up to the first that runs: they have ended, so nothing about them will change."""

    count: int = 0
    keys: list[TrialKey] = field(default_factory=list)  # of those that ran
    runs: list[Observation] = field(default_factory=list)
    early: dict[int, Observation] = field(default_factory=dict)  # of the trials from there on

    def add(self, key: TrialKey, seen: Observation | None) -> None:
        """The next trial has ended."""
        self.count += 1
        self.early.pop(key[1], None)
        if seen is not None:
            self.keys.append(key)
            self.runs.append(seen)


class SurrogateSampler:
    """One model for the studies of all rungs, so that a result at one rung counts at the others."""

    def __init__(
        self,
        params: Sequence[Param],
        studies: Mapping[str, optuna.Study],
        computes: Mapping[str, float],
        *,
        cap_bytes: float,
        predict_bytes: PredictBytes | None = None,
        seed: int = 0,
        num_initial: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Set the question, and take up what a predecessor has left in the folder.

        Args:
            studies: by rung, lowest rung first.
            computes: training compute of a run at each of these rungs.
            folder: where the model's memory is kept; nowhere by default.
        """
        self._rungs = tuple(studies)
        self._studies = studies
        self._computes = computes
        self._new: tuple[list[Observation], Proposal] | None = None  # the newest advice, if a new point, with its runs
        self._settled: dict[str, _Settled] = {rung: _Settled() for rung in self._rungs}
        self._costs: dict[str, list[float]] = {rung: [] for rung in self._rungs}
        self._model = Surrogate(
            params,
            [computes[rung] for rung in self._rungs],
            cap_bytes=cap_bytes,
            predict_bytes=predict_bytes,
            seed=seed,
            num_initial=num_initial,
        )
        self._memory_file = None if folder is None else folder / MEMORY_FILE
        if self._memory_file is not None and self._memory_file.exists():
            self._model.recall(read_noun(Memory, self._memory_file))

    def advise(
        self,
        *,
        starts: Sequence[str],
        climbs: Sequence[str],
        remaining: float = math.inf,
        hidden: AbstractSet[TrialKey] = frozenset(),
    ) -> Advice | None:
        """What to start next among new points at `starts` and promotions to `climbs`; None when there is neither.

        Args:
            remaining: GPU-seconds left.
            hidden: trials that are running to Optuna and were never started; they count for nothing.
        """
        known = self.read(hidden=hidden)
        level = {rung: i for i, rung in enumerate(self._rungs)}
        proposal = self._propose(
            known,
            starts=tuple(level[rung] for rung in starts if rung in level),
            climbs=tuple(level[rung] for rung in climbs if rung in level),
            remaining=remaining,
        )
        if proposal is None:
            return None
        self._new = None if proposal.parent is not None or len(starts) > 1 else (known.runs, proposal)
        parent = None if proposal.parent is None else known.keys[proposal.parent]
        return Advice(rung=self._rungs[proposal.level], parent=parent, proposal=proposal)

    def new_point(self, rung: str, *, hidden: AbstractSet[TrialKey] = frozenset()) -> dict[str, Scalar]:
        """The active parameters of the point that the model would start at this rung.

        Args:
            hidden: as in `advise`, and the trial that the point is for.
        """
        known = self.read(hidden=hidden)
        level = self._rungs.index(rung)
        if self._new is not None and self._new[0] == known.runs and self._new[1].level == level:
            return dict(self._new[1].params)
        proposal = self._propose(known, starts=(level,), climbs=())
        assert proposal is not None  # there is a rung to start at
        return dict(proposal.params)

    def read(self, *, hidden: AbstractSet[TrialKey] = frozenset()) -> Known:
        """Every run of every rung but the hidden ones, and what a run costs."""
        keys: list[TrialKey] = []
        runs: list[Observation] = []
        for rung, study in self._studies.items():
            settled, trials = self._settled[rung], study.get_trials(deepcopy=False)
            while settled.count < len(trials) and trials[settled.count].state.is_finished():
                settled.add((rung, settled.count), self._seen(rung, trials[settled.count]))
            keys += settled.keys
            runs += settled.runs
            for trial in trials[settled.count :]:
                key = (rung, trial.number)
                seen = None if key in hidden else self._seen(rung, trial)
                if seen is not None:
                    keys.append(key)
                    runs.append(seen)
        return Known(keys=keys, runs=runs, costs=self._costs_now())

    def _propose(self, known: Known, **options: Any) -> Proposal | None:
        """The model's proposal; new fits are kept for a successor before anybody acts on them."""
        before = self._model.memory
        proposal = self._model.propose(known.runs, costs=known.costs, **options)
        if self._memory_file is not None and self._model.memory != before:
            write_json(self._memory_file, self._model.memory)
        return proposal

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

    def _costs_now(self) -> tuple[float, ...]:
        """The median cost of each rung's runs; a rung that has not run costs what its compute suggests."""
        known = {rung: median(costs) for rung, costs in self._costs.items() if costs}
        rate = median([cost / self._computes[rung] for rung, cost in known.items()]) if known else 1.0
        return tuple(known.get(rung, rate * compute) for rung, compute in self._computes.items())
