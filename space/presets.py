"""Named configurations, and configurations read from TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError, unknown
from space.params import look_up
from space.plain import from_plain, refuse_unknown, to_plain
from space.records import (
    baseline_2026_03_17,
    binary_2026_03_24,
    frontier_2026_04_27,
    loop_2026_04_05,
    loop_2026_04_09,
    ternary_2026_03_24,
    vocab4096_2026_04_01,
    wide_loop,
)
from space.spaces import named_space

SECTIONS = ("model", "train", "quant", "eval", "budget")


def tiny() -> RunConfig:
    """The control of the tiny space: a small baseline that trains in a minute or two on a CPU core."""
    space = named_space("tiny")
    return space.build(space.control)


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "baseline_2026_03_17": baseline_2026_03_17,
    "vocab4096_2026_04_01": vocab4096_2026_04_01,
    "loop_2026_04_05": loop_2026_04_05,
    "loop_2026_04_09": loop_2026_04_09,
    "frontier_2026_04_27": frontier_2026_04_27,
    "ternary_2026_03_24": ternary_2026_03_24,
    "binary_2026_03_24": binary_2026_03_24,
    "wide_loop": wide_loop,
    "tiny": tiny,
}


def preset(name: str) -> RunConfig:
    """The configuration called `name`.

    Raises:
        UserError: there is none; suggests the nearest name.
    """
    return look_up("preset", name, PRESETS)()


def load_config(name_or_path: str) -> RunConfig:
    """Return a preset by name, or the configuration in a TOML file.

    The file has tables [model] [train] [quant] [eval] [budget] and `seed`; [budget] is the run's, not a study's.

    `preset = "name"` at the top of the file gives the values that the file leaves out; without it they are
    RunConfig's defaults.

    Raises:
        UserError: no such preset or file, not TOML, an unknown key (with a suggestion) or an impossible
            configuration; names the file.
    """
    if name_or_path in PRESETS:
        return preset(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        if path.suffix == ".toml":
            raise UserError(f"there is no file {name_or_path}")
        raise unknown("preset", name_or_path, PRESETS)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    return config_from_tables(data, where=str(path))


def config_from_tables(data: Mapping[str, Any], *, where: str) -> RunConfig:
    """Return the configuration that parsed TOML describes; error messages call it `where`."""
    refuse_unknown(data, ["preset", "seed", *SECTIONS], where=where)
    name = data.get("preset")
    if name is not None and not isinstance(name, str):
        raise UserError(f"{where}: preset must be a name, got {name!r}")
    try:
        merged = to_plain(preset(name) if name is not None else RunConfig())
    except UserError as error:
        raise error.at(where) from None
    for section in SECTIONS:
        table = data.get(section, {})
        if not isinstance(table, Mapping):
            raise UserError(f"{where}: expected a table [{section}], got {table!r}")
        merged[section] |= table
    merged["seed"] = data.get("seed", merged["seed"])
    return from_plain(RunConfig, merged, where=where)
