"""The events that an engine yields as they happen, for displays: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from trials.spec import TrialResult, TrialSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A trial was given to a worker."""

    spec: TrialSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A trial ended and its result is told."""

    spec: TrialSpec
    result: TrialResult


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened for a moment; a display may refresh what it reads from folders."""


Event = Started | Finished | Tick
