"""The settings of a study, as its TOML file says them: the space, the data, the caps, the ladder of rungs."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pgolf_model.errors import UserError
from space.params import Scalar
from space.plain import from_plain
from trials.files import read_noun
from trials.rungs import Rung
from trials.settings import free
from trials.spec import TrialResult

EngineName = Literal["ray", "local"]
SamplerName = Literal["random", "tpe", "surrogate"]
BUILTIN_STUDIES = Path(__file__).parent / "builtin"
STUDY_FILE = "study.json"  # the study as it was launched, paths absolute


@dataclass(frozen=True, kw_only=True, slots=True)
class Caps:
    """Upper limits of a submission. A trial above one is infeasible, a result that samplers learn from."""

    artifact_bytes: int = 16_000_000  # code and compressed weights, decimal bytes
    train_seconds: float = 600.0
    eval_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("artifact_bytes", "train_seconds", "eval_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")

    def violations(self, *, artifact_bytes: float, train_seconds: float, eval_seconds: float) -> dict[str, float]:
        """Return the relative excess over each cap, feasible when <= 0.

        Keys and their order never change, since Optuna reads constraints by position.
        """
        return {
            "artifact_bytes": artifact_bytes / self.artifact_bytes - 1,
            "train_seconds": train_seconds / self.train_seconds - 1,
            "eval_seconds": eval_seconds / self.eval_seconds - 1,
        }

    def allow(self, result: TrialResult) -> bool:
        """Return whether a finished trial could be submitted."""
        return result.status == "complete" and all(
            run.model_bytes + run.code_bytes <= self.artifact_bytes
            and run.train_seconds <= self.train_seconds
            and run.eval_seconds <= self.eval_seconds
            for run in result.runs
        )

    def measured(self, result: TrialResult) -> dict[str, float]:
        """Return `violations` of a complete result."""
        return self.violations(
            artifact_bytes=result.artifact_bytes, train_seconds=result.train_seconds, eval_seconds=result.eval_seconds
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The `[budget]` table: limits of all trials of a study together; 0 is no limit.

    A start that could cross a limit is refused (search.ladder.budget). It has nothing to do with
    `pgolf_model.config.Budget`, which says when one run ends.
    """

    gpu_hours: float = free(0.0)
    dollars: float = free(0.0)  # at `dollars_per_gpu_hour`
    wall_seconds: float = free(0.0)  # of one launch
    trials: int = free(0)  # over all rungs
    reserve: float = free(0.2)  # share of hours and time for the top rung alone: finalists and their fresh seeds

    def __post_init__(self) -> None:
        for name in ("gpu_hours", "dollars", "wall_seconds", "trials"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.reserve < 1:
            raise UserError(f"reserve must be in [0, 1), got {self.reserve}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StartPoint:
    """A point to try before the sampler's: parameters and the name a report calls it by."""

    label: str
    params: dict[str, Scalar]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """One study. `best` asks for the lowest val_bpb under the caps; `front` for the whole bpb-bytes trade-off.

    Both record val_bpb and bytes of every trial. They are questions of two studies, since they want other samplers.
    """

    name: str
    space: str  # a name in space.spaces
    data: tuple[str, ...]  # dataset folders; several make the tokenizer a searched knob
    rungs: tuple[Rung, ...]
    caps: Caps = field(default_factory=Caps)
    question: Literal["best", "front"] = "best"
    engine: EngineName = free("ray")
    sampler: SamplerName = "surrogate"  # compared by tests/benchmarks/bench_search.py; a front is searched by TPE
    seed: int = 0  # of the sampler; never of a run
    control: bool = True  # run the space's control first and carry it to the top rung
    control_seeds: int = 1  # runs of the control at the first rung, for a noise floor; seeds from a fixed list
    warm_starts: bool = True  # then the space's other known good points
    warm_from: tuple[str, ...] = ()  # folders of earlier studies, and CSV tables with a column per parameter
    warm_top: int = 5  # so many of the best feasible points of each
    points: tuple[StartPoint, ...] = ()  # further points to start from
    sample: bool = True  # then ask the sampler; with false only the points above are tried
    budget: Limits = field(default_factory=Limits)
    anomaly_ratio: float = free(0.9)  # a val_bpb below this share of its rung's best stops the study; 0 never does
    max_infeasible: int = free(200)  # stop after so many forecasts over a cap in a row
    storage: str = ""  # Optuna storage URL; empty is an SQLite file in the study's folder
    folder: str = free("")  # where trials are kept; empty is runs/NAME
    cpus: float = free(0.0)  # CPU cores for the local engine; 0 is every core of the machine
    gpus: float = free(0.0)  # likewise; 0 is every GPU that CUDA_VISIBLE_DEVICES or nvidia-smi shows
    dollars_per_gpu_hour: float = free(2.5)  # 8xH100 at about $20 an hour

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise UserError(f"a study needs a name without '/', got {self.name!r}")
        if not self.data:
            raise UserError("data must name at least one dataset folder")
        if self.control_seeds < 1 or not 0 <= self.anomaly_ratio < 1:
            raise UserError(
                "control_seeds must be at least 1 and anomaly_ratio in [0, 1), got "
                f"{self.control_seeds} and {self.anomaly_ratio}"
            )
        if not self.rungs:
            raise UserError("a study needs at least one [[rungs]] table")
        names = [rung.name for rung in self.rungs]
        if len(set(names)) != len(names):
            raise UserError(f"rung names must be distinct, got {', '.join(names)}")
        if self.rungs[0].trials < 1:
            raise UserError(f"the first rung ({names[0]!r}) must say how many trials it asks for, e.g. trials = 16")
        for rung in self.rungs[1:]:
            if rung.trials:
                raise UserError(
                    f"rung {rung.name!r}: only the first rung sets trials", hint="later ones set keep, min_promote"
                )

    @property
    def dir(self) -> Path:
        """The study's folder: its settings as launched, the storage, one folder per trial."""
        return Path(self.folder or f"runs/{self.name}").absolute()

    def fidelity(self, rung: Rung) -> float:
        """Return the training compute of a run at `rung` relative to one at the top rung."""
        return rung.compute / self.rungs[-1].compute

    def rung(self, name: str) -> Rung:
        """Return the rung called `name`.

        Raises:
            UserError: there is none.
        """
        for rung in self.rungs:
            if rung.name == name:
                return rung
        raise UserError(
            f"study {self.name!r} has no rung {name!r}", hint=f"it has {', '.join(r.name for r in self.rungs)}"
        )

    @property
    def storage_url(self) -> str:
        """Optuna storage URL."""
        return self.storage or f"sqlite:///{self.dir / 'optuna.db'}"


def load_study(source: str) -> StudyConfig:
    """Return the study that `source` names: a TOML file, a study's folder, a built-in file name, or a name in runs/.

    Raises:
        UserError: there is no such study, or a setting is impossible; names the file and the key.
    """
    path = find_study(source)
    if path.name == STUDY_FILE:
        return replace(read_noun(StudyConfig, path), folder=str(path.parent.absolute()))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    if isinstance(data.get("data"), str):
        data["data"] = [data["data"]]
    return from_plain(StudyConfig, data, where=str(path))


def find_study(source: str) -> Path:
    """Return the file behind `source` (see `load_study`)."""
    given = Path(source)
    candidates = [given, given / STUDY_FILE, Path("runs") / source / STUDY_FILE]
    candidates += [BUILTIN_STUDIES / source, BUILTIN_STUDIES / f"{source}.toml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    builtin = ", ".join(path.name for path in builtin_studies().values())
    raise UserError(
        f"no study at {source!r}: expected a TOML file, a study's folder, or one of the built-in {builtin}",
        hint="pgolf list shows what there is",
    )


def builtin_studies() -> dict[str, Path]:
    """The TOML files that come with the driver, by name."""
    return {path.stem: path for path in sorted(BUILTIN_STUDIES.glob("*.toml"))}
