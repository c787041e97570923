"""What a point of the space becomes at a rung: configuration, script, data and a forecast of its bytes.

The brain knows no datasets and no scripts; it is given a maker. `ScriptMaker` makes the trials that really train,
`search.simulate` has one whose trials are a Python function.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pgolf_model.config import RunConfig
from search.bundle import bundle
from search.commands import WORLD_FILE
from search.corpus.check import quick_check
from search.corpus.manifest import TOKENIZER_FILE, Manifest, check_comparable
from search.study import StudyConfig
from space.params import ChoiceParam, Space
from space.quant_knobs import at_cap
from space.sizing import estimate_model_bytes
from space.spaces import named_space
from trials.rungs import Rung
from trials.spec import Scalar, write_json

DATASETS_FILE = "datasets.json"  # in the study's folder: dataset folder -> hash of its tokenizer and shards
DATA_KNOB = "data"  # the searched dataset, when a study has several


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A point at a rung, ready to be written as a trial's folder."""

    config: RunConfig  # first seed
    script: bytes = field(default=b"", repr=False)  # train_gpt.py; empty where nothing is trained
    data_dir: str = ""
    tokenizer: str = ""
    predicted_bytes: int = 0  # of the artifact, code included; 0 when nobody can say
    predicted_low: int = 0
    predicted_high: int = 0


class Maker(Protocol):
    """Turns points into trials. `make` is a pure function: the same point and rung give the same trial."""

    @property
    def space(self) -> Space:
        """What is searched."""

    @property
    def forecast(self) -> Callable[[Mapping[str, Scalar]], float] | None:
        """Artifact bytes of a point, in milliseconds; None where only a run can tell."""

    def make(self, rung: Rung, params: Mapping[str, Scalar], seed: int) -> Made:
        """The trial of a point at a rung; `seed` is its first."""

    def script(self, config: RunConfig) -> bytes:
        """The script of a configuration that was changed after `make`."""

    def freeze(self, folder: Path) -> None:
        """Remember in the study's folder what trials rest on, or raise ValueError when that has changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One dataset folder and what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model next to the shards."""
        return self.folder / TOKENIZER_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptMaker:
    """Real trials: each trains the script that would ship, on one of the study's datasets."""

    study: str
    space: Space
    datasets: Mapping[str, Dataset]  # by the name the `data` knob has for them
    cap_bytes: int  # what trials that solve for their bytes fill

    @property
    def forecast(self) -> Callable[[Mapping[str, Scalar]], float]:
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
            raise ValueError(
                f"the study in {folder} is a simulation; go on with it by --simulate FILE.py, the file named in its "
                f"{WORLD_FILE}"
            )
        path = folder / DATASETS_FILE
        now = {str(d.folder): _fingerprint(d.manifest) for d in self.datasets.values()}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        for name, fingerprint in now.items():
            if known.get(name) != fingerprint:
                raise ValueError(
                    f"the dataset in {name} is not the one study {self.study!r} was launched on, so its scores would "
                    "not be comparable; put the old data back or start a study under another name"
                )
        write_json(path, now)


def script_maker(study: StudyConfig) -> ScriptMaker:
    """The maker of a study whose trials train.

    Raises:
        ValueError: a dataset is missing, damaged, or not comparable with the others, or there is no such space.
    """
    datasets = {name: open_dataset(name) for name in study.data}
    _refuse_incomparable(list(datasets.values()))
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


def open_dataset(name: str) -> Dataset:
    """The dataset in folder `name`.

    Raises:
        ValueError: there is none, with the commands that make one.
    """
    folder = Path(name).absolute()
    if not folder.is_dir():
        raise ValueError(
            f"no dataset at {name}: build one with `pgolf data build --docs FILE... --out {name}` or download the "
            f"challenge's with `pgolf data fetch --out {name}`"
        )
    return Dataset(folder=folder, manifest=quick_check(folder))


def _fingerprint(manifest: Manifest) -> str:
    """Hash of the tokenizer and of every shard, in order."""
    parts = [manifest.tokenizer_sha256, *(shard.sha256 for shard in manifest.shards)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _refuse_incomparable(datasets: Sequence[Dataset]) -> None:
    """Tokenizers are searched together only when they score the same text."""
    for other in datasets[1:]:
        check_comparable(datasets[0].manifest, other.manifest)
