"""Parameters that can be searched, with conditions and tags, and the space that turns their values into a RunConfig.

A space is walked in order, and whether a parameter is asked depends on earlier answers only. So a define-by-run sampler
such as Optuna's can fill it, and this package need not import Optuna:

    for param in space.params:
        if param.active(values):
            values[param.name] = ask(param)
    config = space.build(values, vocab_size=1024)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError, unknown

if TYPE_CHECKING:  # only for annotations: without the import `pgolf size` and `--help` start 0.1 s sooner
    import numpy as np

T = TypeVar("T")
Scalar = bool | int | float | str

# Which runs can judge a knob. A `scale_free` knob has the same best value in a cheap and in a full run; that of a
# `step_dependent` knob moves with the number of steps. A `throughput_dependent` knob changes how many steps fit into
# the time limit, so that only runs on the full run's hardware can judge it. In the challenge, gains in training knobs
# that were found on one GPU became losses on eight.
Tag = Literal["scale_free", "step_dependent", "throughput_dependent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class When:
    """A condition: the parameter is asked only if `parent` was asked and answered with one of `values`."""

    parent: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseParam:
    """The fields that all kinds of parameters share. `doc` is one line: unit, reason for the range, source."""

    name: str
    tag: Tag
    doc: str = ""
    when: When | None = None

    def active(self, values: Mapping[str, Scalar]) -> bool:
        """Whether this parameter is asked, given the answers so far."""
        if self.when is None:
            return True
        return self.when.parent in values and values[self.when.parent] in self.when.values


@dataclass(frozen=True, kw_only=True, slots=True)
class FloatParam(BaseParam):
    """A real number in [low, high]; with `log` its logarithm is spread evenly."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.name, self.low, self.high, log=self.log)

    def check(self, value: Scalar) -> None:
        """Raise UserError unless `value` is a number in the range."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            raise UserError(f"{self.name} must be a number in [{self.low:g}, {self.high:g}], got {value!r}")

    def draw(self, rng: np.random.Generator) -> float:
        """Return a random value, uniform, or log-uniform with `log`."""
        if not self.log:
            return float(rng.uniform(self.low, self.high))
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)  # exp(log(x)) may miss x by one ulp


@dataclass(frozen=True, kw_only=True, slots=True)
class IntParam(BaseParam):
    """A whole number low, low + step, ..., high; `log` (with step 1 only) spreads the logarithm evenly."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __post_init__(self) -> None:
        _check_range(self.name, self.low, self.high, log=self.log)
        if self.step < 1 or (self.high - self.low) % self.step:
            raise UserError(
                f"{self.name}: high must be low plus a multiple of step, got [{self.low}, {self.high}] by {self.step}"
            )
        if self.log and self.step != 1:
            raise UserError(f"{self.name}: a log range needs step 1, got {self.step}")

    def check(self, value: Scalar) -> None:
        """Raise UserError unless `value` is a whole number of the range."""
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int or not self.low <= int(value) <= self.high or (int(value) - self.low) % self.step:
            by = f" in steps of {self.step}" if self.step > 1 else ""
            raise UserError(f"{self.name} must be a whole number in [{self.low}, {self.high}]{by}, got {value!r}")

    def draw(self, rng: np.random.Generator) -> int:
        """Return a random value, uniform, or with `log` log-uniform: rounded from [low - 0.5, high + 0.5)."""
        if not self.log:
            return self.low + self.step * int(rng.integers((self.high - self.low) // self.step + 1))
        value = round(math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceParam(BaseParam):
    """One of a few options without an order."""

    options: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.options or len({(type(o), o) for o in self.options}) != len(self.options):
            raise UserError(f"{self.name}: options must be distinct and not empty, got {self.options}")

    def check(self, value: Scalar) -> None:
        """Raise UserError unless `value` is one of the options; True is not 1 here."""
        if not any(type(value) is type(option) and value == option for option in self.options):
            raise UserError(f"{self.name} must be one of {', '.join(map(repr, self.options))}, got {value!r}")

    def draw(self, rng: np.random.Generator) -> Scalar:
        """Return a random option, all equally likely."""
        return self.options[int(rng.integers(len(self.options)))]


Param = FloatParam | IntParam | ChoiceParam


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmStart:
    """A known good point to try early, and the name that reports call it by."""

    label: str
    values: Mapping[str, Scalar]


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Parameters in the order they are asked, and the pure function that turns their values into a RunConfig.

    `make_config(values, vocab_size)` must accept every combination that the parameters allow, so that no sampled point
    is rejected. All other points are compared with `control`.
    """

    name: str
    params: tuple[Param, ...]
    make_config: Callable[[Mapping[str, Scalar], int], RunConfig]
    control: Mapping[str, Scalar]
    warm_starts: tuple[WarmStart, ...] = ()

    def __post_init__(self) -> None:
        earlier: set[str] = set()
        for param in self.params:
            if param.name in earlier:
                raise UserError(f"space {self.name!r} has two parameters called {param.name!r}")
            if param.when is not None and param.when.parent not in earlier:
                raise UserError(f"{param.name!r} must come after {param.when.parent!r}, on which it depends")
            earlier.add(param.name)

    def validate(self, values: Mapping[str, Scalar]) -> None:
        """Raise UserError, naming the parameter, unless `values` is a complete point of this space."""
        known = {param.name: param for param in self.params}
        for name in values:
            if name not in known:
                raise unknown(f"parameter of space {self.name!r}", name, known)
        for param in self.params:
            if not param.active(values):
                if param.name in values:
                    assert param.when is not None  # an unconditional parameter is always active
                    allowed = " or ".join(map(repr, param.when.values))
                    raise UserError(
                        f"{param.name} is only for {param.when.parent} = {allowed}, got it with "
                        f"{values.get(param.when.parent)!r}",
                        hint="leave it out",
                    )
            elif param.name not in values:
                raise UserError(f"space {self.name!r} needs a value for {param.name!r}")
            else:
                param.check(values[param.name])

    def build(self, values: Mapping[str, Scalar], *, vocab_size: int = 1024) -> RunConfig:
        """Return the configuration of a point.

        Args:
            vocab_size: of the study's tokenizer. The data decides it, so it is no parameter.
        Raises:
            UserError: `values` is not a complete point of this space.
        """
        self.validate(values)
        return self.make_config(values, vocab_size)

    def sample(self, rng: np.random.Generator) -> dict[str, Scalar]:
        """Return a random point: every parameter uniform on its own scale, in order."""
        values: dict[str, Scalar] = {}
        for param in self.params:
            if param.active(values):
                values[param.name] = param.draw(rng)
        return values


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return `table[name]`; raise UserError with the nearest known name if there is none.

    Args:
        kind: name of an entry in the message, such as "space".
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def _check_range(name: str, low: float, high: float, *, log: bool) -> None:
    """Raise UserError unless low < high are finite, and above 0 for a log scale."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{name}: low must be below high, got [{low}, {high}]")
    if log and low <= 0:
        raise UserError(f"{name}: a log range must start above 0, got {low}")
