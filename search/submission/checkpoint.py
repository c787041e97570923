"""Find a trained checkpoint, and the config, script and data that it is packed and scored with."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf_model.errors import UserError
from pgolf_model.files import CHECKPOINT_FILE, CONFIG_ENTRY

if TYPE_CHECKING:
    from pgolf_model.config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A checkpoint, with the config, script and data for packing and scoring it."""

    checkpoint: Path
    config: RunConfig
    script: Path | None  # of its trial; None for a checkpoint outside a trial's folder
    data: str  # dataset folder; empty if unknown
    tokenizer: str  # empty if unknown


def find_source(path: Path) -> Source:
    """Return the checkpoint in a trial's folder, or that file itself, with its trial's spec where there is one.

    Raises:
        UserError: there is no checkpoint; says how to get one.
    """
    from trials.files import read_noun
    from trials.spec import SCRIPT_FILE, SPEC_FILE, TrialSpec

    if path.is_dir():
        found = sorted([*path.glob(CHECKPOINT_FILE), *path.glob(f"seed*/{CHECKPOINT_FILE}")])
        if not found:
            raise UserError(f"{path}: no {CHECKPOINT_FILE} in it", hint="train with --keep-checkpoint")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint or trial folder")
    path = path.absolute()
    trial = path.parent.parent
    if (trial / SPEC_FILE).is_file() and (trial / SCRIPT_FILE).is_file():
        spec = read_noun(TrialSpec, trial / SPEC_FILE)
        return Source(
            checkpoint=path,
            config=spec.config,
            script=trial / SCRIPT_FILE,
            data=spec.data_dir,
            tokenizer=spec.tokenizer,
        )
    return Source(checkpoint=path, config=read_config(path), script=None, data="", tokenizer="")


def read_config(checkpoint: Path) -> RunConfig:
    """Return the config that is stored in a checkpoint.

    Raises:
        UserError: the file is no checkpoint; names it.
    """
    from zipfile import BadZipFile

    import numpy as np

    from pgolf_model.config import RunConfig
    from space.plain import from_plain

    try:
        with checkpoint.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            plain = json.loads(bytes(arrays[CONFIG_ENTRY]))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(f"{checkpoint}: not a checkpoint of pgolf ({error})") from None
    return from_plain(RunConfig, plain, where=str(checkpoint))


def changed(config: RunConfig, changes: tuple[str, ...]) -> RunConfig:
    """Return the config with other [quant] settings: each is `KEY=VALUE`, a TOML value or a bare word."""
    import tomllib

    from pgolf_model.config import QuantConfig
    from space.plain import from_plain, to_plain

    plain: dict[str, Any] = to_plain(config.quant)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: expected KEY=VALUE, such as method=gptq")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        plain[key.strip()] = value
    return replace(config, quant=from_plain(QuantConfig, plain, where="--set"))
