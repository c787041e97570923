"""TrialSpec and TrialResult: what a trial is told and what it answers, as files that outlive every process."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean
from typing import Literal, TypeVar

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError
from space.params import Scalar

T = TypeVar("T")
Status = Literal["complete", "diverged", "failed", "timeout", "infeasible"]

Fault = Literal["", "script", "oom", "signal", "timeout", "lost"]  # what went wrong outside of the configuration

EXIT_UNFINISHED = 75  # of a worker that stopped without a result: nobody waits for it, or the folder is taken

STOP_FILE = "stop"  # in a trial's folder: its worker is to leave; how a driver reaches workers on other machines
SPEC_FILE = "spec.json"
RESULT_FILE = "result.json"
SCRIPT_FILE = "train_gpt.py"
LOG_FILE = "train.log"
WORKER_LOG = "worker.log"  # in the trial's folder: what the worker itself had to say


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """One configuration at one rung, self-contained: everything the worker needs besides the script next to it."""

    study: str
    rung: str
    number: int  # trial number in the rung's Optuna study
    parent: int | None = None  # number in the rung below that this trial was promoted from
    label: str = ""  # "control", or the warm start it came from; empty when sampled
    params: dict[str, Scalar]  # what the sampler said
    config: RunConfig  # what the space and the rung made of it, first seed
    seeds: tuple[int, ...]
    data_dir: str  # absolute path of the shards
    tokenizer: str  # absolute path of the SentencePiece model
    cpus: float = 1.0
    gpus: float = 0.0
    processes: int = 1  # torchrun ranks
    timeout_seconds: float = 3600.0  # per seed
    git_commit: str = ""  # of the code that made the script, where it is known
    predicted_bytes: int = 0  # forecast of artifact_bytes, made before training
    predicted_low: int = 0  # 90 % interval of the forecast
    predicted_high: int = 0
    general_forecast: tuple[int, ...] = ()  # low, central, high before the study's runs corrected it; empty: the above
    keep_checkpoint: bool = False  # leave the trained weights beside the artifact, for `pgolf quantize`
    attempt: int = 1  # above 1 after a fault: a worker that died, ran out of memory or out of time
    earlier_seconds: float = 0.0  # what the attempts before cost, without the seeds that they finished
    seeds_done: int = 0  # leading seeds that ran before `seeds` grew or a fault: their results are kept

    @property
    def trial_id(self) -> str:
        """`rung/0007`: also the trial's folder inside the study's."""
        return f"{self.rung}/{self.number:04d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRun:
    """What one seed's run measured, read from the metrics the shipped script wrote."""

    seed: int
    val_bpb: float  # of the unpacked artifact
    val_loss: float  # nats per token, of the unpacked artifact
    pre_quant_val_bpb: float  # of the trained weights
    model_bytes: int
    code_bytes: int
    steps: int
    tokens_seen: int
    num_params: int
    train_seconds: float
    eval_seconds: float  # of scoring the artifact, unpacking included
    total_seconds: float  # the whole process
    peak_memory_bytes: int
    artifact_sha256: str
    device: str = ""  # GPU or CPU it ran on; runs on different ones are not compared within a rung
    curve: tuple[tuple[int, float], ...] = ()  # (artifact_bytes, val_bpb) of the same weights packed to other sizes

    def __post_init__(self) -> None:
        for name in ("val_bpb", "val_loss", "pre_quant_val_bpb"):
            if not isfinite(getattr(self, name)):
                raise UserError(f"{name} must be finite, got {getattr(self, name)}")
        if not all(size > 0 and isfinite(bpb) for size, bpb in self.curve):
            raise UserError(f"curve must hold (bytes, finite val_bpb), got {self.curve}")

    @property
    def artifact_bytes(self) -> int:
        """What the cap counts."""
        return self.model_bytes + self.code_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """How a trial ended. A crash, a timeout and a divergence are results too, with `error` saying why.

    `infeasible` is a configuration whose forecast broke a cap: it was never run and cost nothing.
    `fault` is what somebody saw go wrong: "script", it raised or left no metrics; "oom", it or a rank of it ran out of
    memory; "signal" ended it; "timeout", its time ran out; "lost", its worker left no result. It is empty where nothing
    went wrong but the configuration, and in results written before there were faults.
    """

    status: Status
    runs: tuple[SeedRun, ...] = ()  # one per finished seed; all of them when complete
    fault: Fault = ""
    error: str = ""
    seconds: float = 0.0  # wall time of the trial, all seeds
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status == "complete" and not self.runs:
            raise UserError("a complete result needs at least one run")

    @property
    def val_bpb(self) -> float:
        """Mean over seeds; what is compared. (Nearly all results have one seed, and a driver asks very often.)"""
        return self.runs[0].val_bpb if len(self.runs) == 1 else fmean(run.val_bpb for run in self.runs)

    @property
    def artifact_bytes(self) -> int:
        """The largest of the seeds' artifacts, so that feasible means feasible for every seed."""
        return max(run.artifact_bytes for run in self.runs)

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """The runs' curves as one: size by size the largest artifact and the mean score; empty unless all have one."""
        columns = zip(*(run.curve for run in self.runs), strict=False)
        return tuple((max(size for size, _ in points), fmean(bpb for _, bpb in points)) for points in columns)

    @property
    def train_seconds(self) -> float:
        """The slowest seed's training."""
        return max(run.train_seconds for run in self.runs)

    @property
    def eval_seconds(self) -> float:
        """The slowest seed's evaluation."""
        return max(run.eval_seconds for run in self.runs)
