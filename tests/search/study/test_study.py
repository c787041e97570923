"""A study file says everything once, and what it says wrong is named with the fix."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from search.study.config import BUILTIN_STUDIES, Caps, StudyConfig, load_study
from search.study.freeze import differences
from space.plain import from_plain, to_plain
from trials.rungs import Rung

TEXT = """
name = "mine"
space = "tiny"
data = "somewhere"
[[rungs]]
name = "proxy"
trials = 4
steps = 10
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(BUILTIN_STUDIES.glob("*.toml")), ids=lambda p: p.stem)
def test_built_in_studies_load_by_name_and_survive_json(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from runs/, where a study of that name may lie
    study = load_study(path.name)
    assert study == load_study(path.stem)
    assert from_plain(StudyConfig, json.loads(json.dumps(to_plain(study)))) == study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps", "stepps"), "unknown key: 'stepps'; did you mean 'steps'?"),
        (("trials = 4", ""), "must say how many trials"),
        (("steps = 10", ""), "a budget needs steps or seconds"),
        (("steps = 10", 'steps = "ten"'), r"rungs[0].steps: expected int, got 'ten'"),
        (('name = "mine"', ""), "missing key: name"),
        (('name = "mine"', 'name = "a/b"'), "without '/'"),
        (('space = "tiny"', 'space = "tiny"\nengine = "slurm"'), "expected one of 'ray', 'local', got 'slurm'"),
        (("steps = 10", "seconds = 9\ngpus = 0.5"), "must be in steps, not seconds"),
        (("steps = 10", "steps = 10\ngpus = 1.5"), "must be whole"),
        (("[[rungs]]", "[caps]\nartifact_bytes = 0\n[[rungs]]"), "artifact_bytes must be positive"),
        (("[[rungs]]", "[[rungs"), "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_study(write(tmp_path, TEXT.replace(*change)))
    assert "mine.toml" in str(error.value)


def test_a_study_that_is_not_there_is_answered_with_what_is() -> None:
    with pytest.raises(ValueError, match=r"no study at 'dmeo'.*demo\.toml"):
        load_study("dmeo")


def test_what_may_change_between_launches() -> None:
    rung = Rung(name="proxy", trials=4, steps=10)
    one = StudyConfig(name="s", space="tiny", data=("d",), rungs=(rung,))
    more = StudyConfig(name="s", space="tiny", data=("d",), rungs=(Rung(name="proxy", trials=9, steps=10),), cpus=4)
    other = StudyConfig(name="s", space="tiny", data=("d",), rungs=(rung,), caps=Caps(artifact_bytes=5))
    assert differences(to_plain(one), to_plain(more)) == []
    assert differences(to_plain(one), to_plain(other)) == ["caps.artifact_bytes 16000000 -> 5"]
