"""A study's settings, as they were when it was launched: what must not change under it, and what may."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from pgolf_model.errors import UserError
from search.study.config import STUDY_FILE, StudyConfig
from space.plain import to_plain
from trials.files import read_noun, write_json

FREE_TO_CHANGE = frozenset(
    {
        "engine",
        "folder",
        "trials",
        "keep",
        "keep_min",
        "keep_max",
        "min_promote",
        "race_from",
        "max_infeasible",
        "anomaly_ratio",
        "timeout_seconds",
        "cpus",
        "gpus",
        "gpu_hours",
        "dollars",
        "wall_seconds",
        "reserve",
        "dollars_per_gpu_hour",
    }
)


def absolute(study: StudyConfig) -> StudyConfig:
    """The study with absolute paths: the same study from whichever folder, and however, it is named."""
    return replace(study, data=tuple(str(Path(name).absolute()) for name in study.data), folder=str(study.dir))


def freeze(study: StudyConfig) -> None:
    """Write the study's settings into its folder, or refuse when it was launched with others.

    What may change between launches: the engine, budgets, how many trials are run and promoted, timeouts, resources.
    """
    study.dir.mkdir(parents=True, exist_ok=True)
    path = study.dir / STUDY_FILE
    known = read_noun(StudyConfig, path) if path.exists() else study
    changed = differences(to_plain(known), to_plain(study))
    if changed:
        raise UserError(
            f"study {study.name!r} in {study.dir} was launched with other settings: {'; '.join(changed)}",
            hint="use another name or folder, or put the old settings back",
        )
    if known != study or not path.exists():
        write_json(path, study)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Settings that differ, as `caps.artifact_bytes 16000000 -> 15000000`; those free to change are left out."""
    if path.rpartition(".")[2] in FREE_TO_CHANGE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line for key in new for line in differences(old.get(key), new[key], f"{path}.{key}" if path else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in differences(*pair, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path} {old!r} -> {new!r}"]


def git_commit() -> str:
    """The commit of the checkout this code runs from; empty outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
