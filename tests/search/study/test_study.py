"""A study file says everything once, and what it says wrong is named with the fix."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
from refusals import refused

from search.study.config import BUILTIN_STUDIES, Caps, Limits, StartPoint, StudyConfig, load_study
from search.study.freeze import differences, freeze
from space.plain import from_plain, to_plain
from trials.rungs import Rung
from trials.settings import free, is_free

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


RUNG = Rung(name="proxy", trials=4, steps=10)
ONE = StudyConfig(name="s", space="tiny", data=("d",), rungs=(RUNG,))


def test_what_may_change_between_launches() -> None:
    """How much is run and on what may change; caps may not."""
    more = replace(ONE, rungs=(replace(RUNG, trials=9),), cpus=4)
    assert differences(ONE, more) == []
    assert differences(ONE, replace(ONE, caps=Caps(artifact_bytes=5))) == ["caps.artifact_bytes 16000000 -> 5"]


def test_the_settings_that_are_free_to_change_are_these() -> None:
    """Spelled out once more, so that nobody frees a setting by accident: its change would mix two studies in one."""
    found = {cls.__name__: {f.name for f in fields(cls) if is_free(f)} for cls in (StudyConfig, Caps, Limits, Rung)}
    study = {"engine", "folder", "max_infeasible", "anomaly_ratio", "cpus", "gpus", "dollars_per_gpu_hour"}
    limits = {"gpu_hours", "dollars", "wall_seconds", "trials", "reserve"}
    rung = {"trials", "keep", "keep_min", "keep_max", "min_promote", "race_from", "cpus", "gpus", "timeout_seconds"}
    assert found == {"StudyConfig": study, "Caps": set(), "Limits": limits, "Rung": rung}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 3}, "seed 0 -> 3"),
        ({"data": ("e",)}, "data[0] 'd' -> 'e'"),
        ({"data": ("d", "e")}, "data ['d'] -> ['d', 'e']"),
        ({"rungs": (replace(RUNG, steps=20),)}, "rungs[0].steps 10 -> 20"),
        (
            {"points": (StartPoint(label="a", params={"gpus": 1}),)},
            "points [] -> [{'label': 'a', 'params': {'gpus': 1}}]",
        ),
    ],
)
def test_a_frozen_setting_is_named_with_both_values(change: dict[str, object], line: str) -> None:
    """Inside tables and lists too."""
    assert differences(ONE, replace(ONE, **change)) == [line]  # type: ignore[arg-type]


def test_a_new_field_is_frozen_until_it_says_otherwise() -> None:
    """Whoever adds a setting and forgets about launches gets the safe answer; the name of a field says nothing."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Inner:
        cpus: float = 1.0  # the name of a free field of a study

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Noun:
        new: int = 0
        loose: int = free(0)
        inner: Inner = field(default_factory=Inner)

    assert differences(Noun(), Noun(new=1)) == ["new 0 -> 1"]
    assert differences(Noun(), Noun(loose=1)) == []
    assert differences(Noun(), Noun(inner=Inner(cpus=2.0))) == ["inner.cpus 1.0 -> 2.0"]


def test_a_launch_with_other_settings_is_refused_and_one_with_more_trials_is_kept(tmp_path: Path) -> None:
    """The refusal names the setting; the folder holds the settings of the last launch."""
    study = replace(ONE, folder=str(tmp_path))
    freeze(study)
    with refused(r"launched with other settings: seed 0 -> 1$", hint="another name or folder"):
        freeze(replace(study, seed=1))
    more = replace(study, rungs=(replace(RUNG, trials=9),))
    freeze(more)
    assert load_study(str(tmp_path)) == more
