"""Freeze a study's settings at its first launch, and refuse a later launch with others."""

from __future__ import annotations

import subprocess
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

from pgolf_model.errors import UserError
from search.study.config import STUDY_FILE, StudyConfig
from space.plain import to_plain
from trials.files import read_noun, write_json
from trials.settings import is_free


def absolute(study: StudyConfig) -> StudyConfig:
    """Return the study with absolute paths, so that it is equal from whichever folder it is launched."""
    return replace(study, data=tuple(str(Path(name).absolute()) for name in study.data), folder=str(study.dir))


def freeze(study: StudyConfig) -> None:
    """Write the study's settings into its folder; raise UserError if it was launched with other frozen settings.

    Fields declared with `free` may change between launches: the engine, budgets, how many trials are run and promoted,
    timeouts, resources.
    """
    study.dir.mkdir(parents=True, exist_ok=True)
    path = study.dir / STUDY_FILE
    known = read_noun(StudyConfig, path) if path.exists() else study
    changed = differences(known, study)
    if changed:
        raise UserError(
            f"study {study.name!r} in {study.dir} was launched with other settings: {'; '.join(changed)}",
            hint="use another name or folder, or put the old settings back",
        )
    if known != study or not path.exists():
        write_json(path, study)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Return the frozen settings that differ, as lines such as `caps.artifact_bytes 16000000 -> 15000000`.

    A field of a noun is frozen unless it was declared with `trials.settings.free`.
    """
    if is_dataclass(old) and type(old) is type(new):
        return [
            line
            for f in fields(old)
            if not is_free(f)
            for line in differences(getattr(old, f.name), getattr(new, f.name), f"{path}.{f.name}" if path else f.name)
        ]
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in differences(*pair, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path} {to_plain(old)!r} -> {to_plain(new)!r}"]


def git_commit() -> str:
    """Return the commit of the checkout that this code runs from; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
