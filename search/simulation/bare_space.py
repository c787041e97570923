"""Spaces that build nothing, from plain Python data: what a simulated study's file may say it searches.

    SPACE = {
        "num_layers": {"low": 4, "high": 16},  # whole numbers, since both ends are, but for "type": "float"
        "matrix_lr": {"low": 1e-3, "high": 1e-1, "log": True},
        "skips": ["none", "plain", "gated"],  # options without an order
        "gate_inputs": {"low": 4, "high": 64, "when": {"skips": ["gated"]}, "tag": "throughput_dependent"},
    }

Also a list of such tables with a "name" each, parameters of `space.params`, or Optuna's distributions by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError
from space.params import ChoiceParam, FloatParam, IntParam, Param, Space
from space.plain import from_plain
from space.points import complete_point

NAME = "simulated"  # of such a space
FORMS = (
    'a Space, a list of parameters, or a dict by name of parameters, of {"low": ..., "high": ...} with "log", "step", '
    '"when" and "tag" where they are wanted, of [option, ...] or of Optuna distributions'
)
RANGE_KEYS = ("low", "high", "log", "step")


def bare_space(given: object, *, control: object = None) -> Space:
    """The space that plain data describe. Its control is given, or the middle of every range.

    Raises:
        UserError: names the parameter and what was expected.
    """
    if isinstance(given, Space):
        return given
    if isinstance(given, Mapping):
        params = tuple(_param(str(name), what) for name, what in given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        params = tuple(_param("", what) for what in given)
    else:
        params = ()
    if not params:
        raise UserError(f"SPACE must be {FORMS}, got {given!r:.200}")
    if control is not None and not isinstance(control, Mapping):
        raise UserError(f"CONTROL must be a dict of values by parameter, got {control!r:.200}")
    space = Space(
        name=NAME,
        params=params,
        make_config=lambda values, vocab_size: RunConfig(),
        control=complete_point(params, {}) if control is None else dict(control),
    )
    space.validate(space.control)
    return space


def _param(name: str, what: object) -> Param:
    """One parameter; `name` is empty where it is in the table."""
    if isinstance(what, (FloatParam, IntParam, ChoiceParam)):
        if name and what.name != name:
            raise UserError(f"SPACE calls a parameter {name!r} that calls itself {what.name!r}")
        return what
    table = {"name": name, "tag": "scale_free"} | _table(name, what)
    name, when = str(table["name"]), table.get("when")
    if not name:
        raise UserError(f"every table in a list needs a name, got {what!r:.200}")
    if isinstance(when, Mapping) and len(when) == 1:
        ((parent, values),) = when.items()
        table["when"] = {"parent": parent, "values": values if isinstance(values, (list, tuple)) else [values]}
    kind = table.pop("type", None)
    if "options" in table:
        return from_plain(ChoiceParam, table, where=f"SPACE, {name}")
    if not {"low", "high"} <= set(table) or kind not in (None, "int", "float"):
        raise UserError(f"{name}: SPACE must be {FORMS}, got {what!r:.200}")
    if kind != "float" and all(isinstance(table[end], int) for end in ("low", "high")):
        return from_plain(IntParam, table, where=f"SPACE, {name}")
    if "step" in table:
        raise UserError(f"{name}: only whole numbers have a step, got {what!r:.200}", hint="list the options instead")
    return from_plain(FloatParam, table, where=f"SPACE, {name}")


def _table(name: str, what: object) -> dict[str, Any]:
    """A parameter's table, whichever way it was written."""
    if isinstance(what, Mapping):
        return {"options" if key == "choices" else str(key): value for key, value in what.items()}
    if isinstance(what, list):
        return {"options": what}
    if hasattr(what, "choices"):  # Optuna's, which this file need not load
        return {"options": what.choices}
    if all(hasattr(what, key) for key in RANGE_KEYS):
        return {key: getattr(what, key) for key in RANGE_KEYS if getattr(what, key) is not None}
    if isinstance(what, tuple):
        raise UserError(
            f"{name}: {what!r:.100} may be a range or options", hint='write {"low": ..., "high": ...} or [option, ...]'
        )
    raise UserError(f"{name or 'a parameter'}: SPACE must be {FORMS}, got {what!r:.200}")
