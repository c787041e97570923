"""Named configurations, and configurations read from TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgolf_model.config import ModelConfig, QuantConfig, RunConfig, TrainConfig
from space.params import look_up, unknown
from space.plain import from_plain, refuse_unknown, to_plain
from space.spaces import named_space

SECTIONS = ("model", "train", "quant", "eval", "budget")


def baseline_2026_03_17() -> RunConfig:
    """The challenge's first baseline: 17,059,912 parameters, 600 s on 8xH100 (its int8 + zlib became SDClip)."""
    return RunConfig()


def loop_demo() -> RunConfig:
    """The baseline with blocks 3, 4 and 5 run three times, longer sequences and the later records' schedule."""
    base = RunConfig()
    return replace(
        base,
        model=ModelConfig(num_layers=11, mlp_mult=3.0, loop_start=3, loop_end=6, loop_repeats=2, qk_gain_init=4.0),
        train=TrainConfig(
            seq_len=2048,
            matrix_lr=0.022,
            embed_lr=0.03,
            scalar_lr=0.02,
            matrix_weight_decay=0.09,
            embed_weight_decay=0.09,
            muon_momentum=0.97,
            warmdown_fraction=0.72,
            grad_clip=0.3,
            ema_decay=0.9965,
        ),
        quant=QuantConfig(embed_bits=7, embed_clip_sigmas=15.0),
        eval=replace(base.eval, seq_len=2048),
    )


def tiny() -> RunConfig:
    """The control of the tiny space: a small baseline that trains in a minute or two on a CPU core."""
    space = named_space("tiny")
    return space.build(space.control)


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "baseline_2026_03_17": baseline_2026_03_17,
    "loop_demo": loop_demo,
    "tiny": tiny,
}


def preset(name: str) -> RunConfig:
    """The configuration called `name`.

    Raises:
        ValueError: there is none; suggests the nearest name.
    """
    return look_up("preset", name, PRESETS)()


def load_config(name_or_path: str) -> RunConfig:
    """A preset by name, or a TOML file with tables [model] [train] [quant] [eval] [budget] and `seed`.

    `preset = "name"` at the top of the file gives the values that the file leaves out; without it they are
    RunConfig's defaults.

    Raises:
        ValueError: no such preset or file, not TOML, an unknown key (with a suggestion) or an impossible
            configuration; names the file.
    """
    if name_or_path in PRESETS:
        return preset(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        if path.suffix == ".toml":
            raise ValueError(f"there is no file {name_or_path}")
        raise ValueError(unknown("preset", name_or_path, PRESETS) + "; a file must end in .toml or exist")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None
    return config_from_tables(data, where=str(path))


def config_from_tables(data: Mapping[str, Any], *, where: str) -> RunConfig:
    """The configuration that parsed TOML describes; `where` is what messages call it."""
    refuse_unknown(data, ["preset", "seed", *SECTIONS], where=where)
    name = data.get("preset")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{where}: preset must be a name, got {name!r}")
    try:
        merged = to_plain(preset(name) if name is not None else RunConfig())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for section in SECTIONS:
        table = data.get(section, {})
        if not isinstance(table, Mapping):
            raise ValueError(f"{where}: expected a table [{section}], got {table!r}")
        merged[section] |= table
    merged["seed"] = data.get("seed", merged["seed"])
    return from_plain(RunConfig, merged, where=where)
