"""Commands that a study suggests, as a user would type them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from search.study.config import StudyConfig

WORLD_FILE = "world.json"  # in the folder of a simulated study: the Python file behind it and its hash


def study_argument(study: StudyConfig) -> str:
    """Return how commands name the study: by name if it lies in runs/, by its folder otherwise."""
    return study.name if study.dir == Path("runs", study.name).absolute() else str(study.dir)


def search_command(study: StudyConfig, *options: str) -> str:
    """Return the shell command that goes on with a study; for a simulated one it names the simulation's file."""
    file = simulated_with(study)
    simulate = ("--simulate", file) if file else ()
    return shlex.join(["pgolf", "search", study_argument(study), *simulate, *options])


def judge_command(study: StudyConfig, trial_id: str, verdict: str) -> str:
    """The shell command that accepts or rejects a suspicious trial."""
    return shlex.join(["pgolf", "judge", study_argument(study), trial_id, verdict])


def is_simulated(study: StudyConfig) -> bool:
    """Return whether the study was simulated, so that its trials have no artifacts."""
    return (study.dir / WORLD_FILE).exists()


def simulated_with(study: StudyConfig) -> str:
    """Return the Python file behind a simulated study; empty for a real one."""
    path = study.dir / WORLD_FILE
    return str(json.loads(path.read_text(encoding="utf-8")).get("file", "FILE.py")) if path.exists() else ""


def export_command(study: StudyConfig, trial_id: str) -> str:
    """Return the shell command that turns a trial into a submission folder."""
    out = f"submissions/{study.name}-{trial_id.replace('/', '-')}"
    return shlex.join(["pgolf", "export", study_argument(study), "--trial", trial_id, "--out", out])
