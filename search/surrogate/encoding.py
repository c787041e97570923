"""Points of a space as numbers, for a model of the objective and a generator of candidates.

Two views of a point. *Units*: one number in [0, 1] per parameter, the place of its value (`FloatParam.place`), NaN
where a condition leaves the parameter out; the generators of candidates move here. *Features*: the columns that a
kernel compares; a number parameter is its unit, a choice is one column per option (one column for two options), and a
condition on a number parameter adds an on/off column. Everything is vectorised over points, with a loop over
parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from space.params import ChoiceParam, FloatParam, IntParam, Param, Scalar, When

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
INACTIVE_FEATURE = 0.5  # of a parameter that a condition leaves out: the middle, nearest to every value on average


class Encoder:
    """Translations between values, units and features for one tuple of parameters."""

    def __init__(self, params: Sequence[Param]) -> None:
        """Lay out the feature columns."""
        self.params = tuple(params)
        self._index = {param.name: i for i, param in enumerate(self.params)}
        self._steps = np.array([_num_values(param) for param in self.params])
        self._log_ints = [i for i, p in enumerate(self.params) if isinstance(p, IntParam) and p.log]
        self._conditional = [i for i, param in enumerate(self.params) if param.when is not None]
        self._switches = self._conditions_on_numbers()
        sources: list[int] = []  # of each column: the parameter it is made of
        options: list[int] = []  # and the option it stands for; -1 for a number
        for i, param in enumerate(self.params):
            count = len(param.options) if isinstance(param, ChoiceParam) else 0
            columns = [-1] if count in (0, 2) else list(range(count)) if count > 2 else []
            sources += [i] * len(columns)
            options += columns
        self._sources, self._options = np.array(sources, dtype=int), np.array(options, dtype=int)
        self.groups = np.array([*sources, *(len(self.params) + i for i in range(len(self._switches)))], dtype=int)
        self.num_groups = len(self.params) + len(self._switches)
        self.tags = tuple(param.tag for param in self.params) + ("throughput_dependent",) * len(self._switches)

    def units(self, points: Sequence[Mapping[str, Scalar]]) -> Array:
        """(points, parameters) units of complete points; NaN where a parameter is absent.

        Values outside a range are moved to its end: an enqueued or older trial may hold such.
        """
        table = np.full((len(points), len(self.params)), np.nan)
        for row, values in enumerate(points):
            for i, param in enumerate(self.params):
                if param.name in values:
                    table[row, i] = param.place(values[param.name])
        return table

    def snap(self, units: Array) -> Array:
        """Units of the nearest points that exist: whole numbers whole, inactive parameters NaN, active ones filled."""
        filled = np.minimum(np.maximum(np.where(np.isnan(units), 0.5, units), 0.0), 1.0)
        stepped = (np.minimum(np.floor(filled * self._steps), self._steps - 1) + 0.5) / np.maximum(self._steps, 1)
        snapped = np.where(self._steps > 0, stepped, filled)
        for i in self._log_ints:
            snapped[:, i] = _snap_log(cast(IntParam, self.params[i]), filled[:, i])
        for i in self._conditional:
            when = cast(When, self.params[i].when)
            parent = self._index[when.parent]
            snapped[~self._holds(snapped[:, parent], parent, when.values), i] = np.nan
        return snapped

    def values(self, units: Array) -> dict[str, Scalar]:
        """The point behind one row of snapped units."""
        return {
            param.name: param.at(float(unit))
            for param, unit in zip(self.params, units, strict=True)
            if not math.isnan(unit)
        }

    def features(self, units: Array) -> Array:
        """(points, columns) features of snapped units.

        Different options of a choice are at distance 1 from each other, like the ends of a range.
        """
        absent = np.isnan(units)
        filled = np.where(absent, INACTIVE_FEATURE, units)[:, self._sources]
        counts = self._steps[self._sources]
        chosen = np.where(absent[:, self._sources], -1, np.floor(filled * counts))
        two_options = np.where(absent[:, self._sources], INACTIVE_FEATURE, chosen)
        is_two = np.array([isinstance(self.params[i], ChoiceParam) for i in self._sources], dtype=bool)
        numbers = np.where(is_two, two_options, filled)
        columns = np.where(self._options < 0, numbers, (chosen == self._options) * math.sqrt(0.5))
        return np.concatenate([columns, (~absent[:, list(self._switches)]).astype(float)], axis=1)

    def _holds(self, unit: Array, parent: int, wanted: Sequence[Scalar]) -> NDArray[np.bool_]:
        """Whether the parent's value is among the wanted ones, per point; never where the parent is inactive."""
        param = self.params[parent]
        distinct, inverse = np.unique(unit, return_inverse=True)
        holds = [not math.isnan(u) and param.at(float(u)) in wanted for u in distinct]
        return np.array(holds, dtype=bool)[inverse]

    def _conditions_on_numbers(self) -> tuple[int, ...]:
        """One parameter per distinct condition whose parent is no choice (a choice's own columns already tell)."""
        first: dict[tuple[str, tuple[Scalar, ...]], int] = {}
        for i, param in enumerate(self.params):
            if param.when is not None and not isinstance(self.params[self._index[param.when.parent]], ChoiceParam):
                first.setdefault((param.when.parent, param.when.values), i)
        return tuple(first.values())


def _num_values(param: Param) -> int:
    """How many evenly spread values a parameter has; 0 where they are not counted or not even."""
    if isinstance(param, ChoiceParam):
        return len(param.options)
    if isinstance(param, FloatParam) or param.log:
        return 0
    return param.count


def _snap_log(param: IntParam, unit: Array) -> Array:
    """`param.place(param.at(unit))` of many units at once."""
    low, high = math.log(param.low - 0.5), math.log(param.high + 0.5)
    number = np.clip(np.rint(np.exp(low + unit * (high - low))), param.low, param.high)
    return np.asarray((np.log(number) - low) / (high - low))
