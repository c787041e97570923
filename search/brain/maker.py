"""From a point of the space to a trial at a rung: its configuration, script, data and forecast of bytes.

The brain knows no datasets and no scripts; it is given a maker. `ScriptMaker` makes trials that really train;
`search.simulation.maker` has one whose trials are calls of a Python function.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError
from search.bundle.script import bundle
from search.corpus.dataset import Dataset, dataset_fingerprint, open_dataset, refuse_incomparable
from search.study.config import StudyConfig
from search.study.next_steps import WORLD_FILE
from space.forecast.sizing import estimate_model_bytes
from space.knobs.quant import at_cap
from space.params import ChoiceParam, Scalar, Space
from space.spaces import named_space
from trials.files import write_json
from trials.rungs import Rung

DATASETS_FILE = "datasets.json"  # in the study's folder: dataset folder -> hash of its tokenizer and shards
DATA_KNOB = "data"  # the searched dataset, when a study has several


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A point at a rung, ready to be written as a trial's folder."""

    config: RunConfig  # first seed
    script: bytes = field(default=b"", repr=False)  # train_gpt.py; empty where nothing is trained
    data_dir: str = ""
    tokenizer: str = ""
    predicted_bytes: int = 0  # of the artifact, code included; 0 when only a run can tell
    predicted_low: int = 0
    predicted_high: int = 0


class Maker(Protocol):
    """Turns points into trials. `make` is a pure function: the same point and rung give the same trial."""

    @property
    def space(self) -> Space:
        """The space that is searched."""

    @property
    def predict_bytes(self) -> Callable[[Mapping[str, Scalar]], float] | None:
        """Artifact bytes of a point, in milliseconds; None where only a run can tell."""

    def make(self, rung: Rung, params: Mapping[str, Scalar], seed: int) -> Made:
        """The trial of a point at a rung; `seed` is its first."""

    def script(self, config: RunConfig) -> bytes:
        """The script of a configuration that was changed after `make`."""

    def freeze(self, folder: Path) -> None:
        """Note in the study's folder which data or file its trials depend on; raise UserError when that has changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptMaker:
    """Real trials: each trains the script that would ship, on one of the study's datasets."""

    study: str
    space: Space
    datasets: Mapping[str, Dataset]  # by the name the `data` knob has for them
    cap_bytes: int  # the size that trials with a solved quantization fill

    @property
    def predict_bytes(self) -> Callable[[Mapping[str, Scalar]], float]:
        """The size estimate, with the code bytes of the control's script: others differ by some tens of bytes."""
        vocab_size = next(iter(self.datasets.values())).manifest.vocab_size
        code_bytes = len(bundle(self.space.build(self.space.control, vocab_size=vocab_size)))

        def artifact_bytes(params: Mapping[str, Scalar]) -> float:
            _, config = self._built(params)
            return float(estimate_model_bytes(config, code_bytes=code_bytes).model_bytes + code_bytes)

        return artifact_bytes

    def make(self, rung: Rung, params: Mapping[str, Scalar], seed: int) -> Made:
        """Build the configuration, bundle its script, forecast its bytes."""
        dataset, config = self._built(params)
        config = rung.apply(config, seed)
        targets = tuple(int(share * self.cap_bytes) for share in rung.curve)
        config = replace(config, quant=replace(config.quant, curve_bytes=targets))
        script = bundle(config)
        estimate = estimate_model_bytes(config, code_bytes=len(script))
        return Made(
            config=config,
            script=script,
            data_dir=str(dataset.folder),
            tokenizer=str(dataset.tokenizer),
            predicted_bytes=estimate.model_bytes + len(script),
            predicted_low=estimate.low + len(script),
            predicted_high=estimate.high + len(script),
        )

    def _built(self, params: Mapping[str, Scalar]) -> tuple[Dataset, RunConfig]:
        """A point's dataset and configuration, of no rung yet."""
        dataset = self.datasets[str(params.get(DATA_KNOB, next(iter(self.datasets))))]
        config = self.space.build(params, vocab_size=dataset.manifest.vocab_size)
        return dataset, at_cap(config, params, self.cap_bytes)

    def script(self, config: RunConfig) -> bytes:
        """The script that would ship."""
        return bundle(config)

    def freeze(self, folder: Path) -> None:
        """Remember which data the study is about, or refuse when a dataset folder holds other data by now."""
        if (folder / WORLD_FILE).exists():
            raise UserError(
                f"the study in {folder} is a simulation",
                hint=(f"go on with it by --simulate FILE.py, the file named in its {WORLD_FILE}"),
            )
        path = folder / DATASETS_FILE
        now = {str(d.folder): dataset_fingerprint(d.manifest) for d in self.datasets.values()}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        for name, fingerprint in now.items():
            if known.get(name) != fingerprint:
                raise UserError(
                    f"the dataset in {name} is not the one study {self.study!r} was launched on, so its scores would "
                    "not be comparable",
                    hint="put the old data back or start a study under another name",
                )
        write_json(path, now)


def script_maker(study: StudyConfig) -> ScriptMaker:
    """The maker of a study whose trials train.

    Raises:
        UserError: a dataset is missing, damaged, or not comparable with the others, or there is no such space.
    """
    datasets = {name: open_dataset(name) for name in study.data}
    refuse_incomparable(list(datasets.values()))
    return ScriptMaker(
        study=study.name, space=study_space(study), datasets=datasets, cap_bytes=study.caps.artifact_bytes
    )


def study_space(study: StudyConfig) -> Space:
    """The study's named space, with the dataset as one more knob when there are several."""
    space = named_space(study.space)
    if len(study.data) == 1:
        return space
    knob = ChoiceParam(name=DATA_KNOB, options=study.data, tag="scale_free", doc="dataset, and so the tokenizer")
    first = {DATA_KNOB: study.data[0]}
    starts = tuple(replace(start, values={**first, **start.values}) for start in space.warm_starts)
    return replace(space, params=(knob, *space.params), control={**first, **space.control}, warm_starts=starts)
