"""The papers of a submission folder: its claims in `submission.json`, and their origin in `provenance.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from pgolf_model.errors import UserError
from search.corpus.shard_writer import file_sha256
from space.params import Scalar
from space.plain import from_plain

T = TypeVar("T")

SUBMISSION_FILE = "submission.json"
PROVENANCE_FILE = "provenance.json"
READABLE_FILE = "train_gpt_readable.py"
README_FILE = "README.md"
REQUIREMENTS_FILE = "requirements.txt"
MADE_BY = "pgolf export"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedEntry:
    """One seed in `submission.json`, under the names records use."""

    val_bpb: float
    val_loss: float  # nats per token
    pre_quant_val_bpb: float
    artifact_bytes: int
    bytes_model: int
    bytes_code: int
    steps: int
    train_time_s: float
    eval_time_s: float
    artifact_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """`submission.json`, with the keys of the challenge's records and more.

    Scores are means over the seeds; bytes are those of the files in the folder.
    """

    author: str
    github_id: str
    name: str
    blurb: str
    date: str  # ISO
    track: str
    val_loss: float
    val_bpb: float
    val_bpb_std: float | None  # sample standard deviation over the seeds; None with one seed
    pre_quant_val_bpb: float
    bytes_total: int
    bytes_code: int
    bytes_model: int
    bytes_cap: int  # of the study
    artifact_seed: int  # the seed whose artifact lies in the folder
    artifact_sha256: str
    seeds: tuple[int, ...]
    seed_results: dict[str, SeedEntry]  # by seed
    num_params: int
    step_stop: int  # optimizer steps of the shipped seed
    wallclock_seconds: float  # training, slowest seed
    eval_time_seconds: float  # slowest seed
    hardware: str
    pytorch_version: str
    compliance: dict[str, bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """A file that the score depends on."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """`provenance.json`: the origin of the numbers, enough to compute them again."""

    made_by: str = MADE_BY
    study: str
    trial_id: str
    label: str
    params: dict[str, Scalar]  # the point of the space
    data_dir: str  # absolute, on the machine of the run
    tokenizer: FileFacts
    val_shards: tuple[FileFacts, ...]
    max_tokens: int  # leading validation tokens that were scored; 0 is all
    scored_tokens: int
    scored_bytes: int
    script_sha256: str
    device: str
    world_size: int
    threads: int
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""  # of pgolf when it made the script; -dirty with changed files, empty outside a checkout


def seed_log(seed: int) -> str:
    """Return the name of a seed's log in a submission."""
    return f"train_seed{seed}.log"


def file_facts(path: Path) -> FileFacts:
    """Return name, size and hash of a file; raise OSError if there is none."""
    return FileFacts(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def read_known(cls: type[T], path: Path) -> T:
    """Return the instance of `cls` in a JSON file; keys that people added are left out.

    Raises:
        UserError: no such file, not JSON, or a key is missing or of the wrong type; names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", hint="give a folder made by `pgolf export`") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key in known}
    return from_plain(cls, data, where=str(path))
