"""Make a submission folder of a finished trial: the very script and artifact that were measured, and their papers.

The trial's first seed ships, never its best: choosing among seeds by outcome would be selection on the validation set.
Everything is copied from the trial's folder and checked against what the trial reported; the submission appears whole
or not at all.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from pgolf_model.config import RunConfig
from pgolf_model.shards import shard_paths
from search.bundle import bundle, readable, unpack_script
from search.ledger import TrialRecord, trial_dir
from search.study import Caps, StudyConfig
from space.plain import from_plain, to_plain
from trials.spec import ARTIFACT_FILE, LOG_FILE, METRICS_FILE, SCRIPT_FILE, Scalar, SeedRun, TrialResult, write_json

T = TypeVar("T")

SUBMISSION_FILE = "submission.json"
PROVENANCE_FILE = "provenance.json"
READABLE_FILE = "train_gpt_readable.py"
README_FILE = "README.md"
REQUIREMENTS_FILE = "requirements.txt"
TOKENIZER_FILE = "tokenizer.model"
RECORD_TRACK = "10min_16mb"
OTHER_TRACK = "non_record_16mb"
MADE_BY = "pgolf export"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credits:
    """What a submission says about whoever makes it; empty where nothing was given."""

    author: str = ""
    github_id: str = ""
    name: str = ""  # of the submission; the study's name and the trial by default
    blurb: str = ""


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
    """`submission.json` (atlas H). Scores are means over the seeds; bytes are those of the files in the folder."""

    author: str
    github_id: str
    name: str
    blurb: str
    date: str  # ISO
    track: str
    val_loss: float
    val_bpb: float
    val_bpb_std: float  # sample standard deviation over the seeds, 0 for one
    pre_quant_val_bpb: float
    bytes_total: int
    bytes_code: int
    bytes_model: int
    bytes_cap: int  # what bytes_total was held to
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
    """A file the score depends on."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """`provenance.json`: where the numbers come from, enough to compute them again."""

    made_by: str = MADE_BY
    study: str
    trial_id: str
    label: str
    params: dict[str, Scalar]  # what the sampler said
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
    git_commit: str = ""  # of pgolf; ends in -dirty when its files were changed, empty outside a checkout


def export(
    study: StudyConfig,
    record: TrialRecord,
    out: Path,
    *,
    credits: Credits | None = None,
    date: datetime.date | None = None,
) -> Path:
    """Write the submission folder `out` (DESIGN section 5) for a finished trial and return it.

    Args:
        date: of the submission, today by default.
    Raises:
        ValueError: the trial is not complete or over a cap, its files are not those it reported, or `out` holds
            something else than an earlier export.
    """
    result = _submittable(study.caps, record)
    _refuse_to_overwrite(out)
    source = trial_dir(study, record.spec.trial_id)
    shipped = source / f"seed{result.runs[0].seed}"
    script = _checked_script(source, result)
    _check_artifact(shipped / ARTIFACT_FILE, result.runs[0])
    metrics = json.loads((shipped / METRICS_FILE).read_text(encoding="utf-8"))
    provenance = _provenance(record, metrics, script)
    submission = _submission(study, record, result, metrics, credits or Credits(), date or datetime.date.today())

    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        (staging / SCRIPT_FILE).write_bytes(script)
        shutil.copyfile(shipped / ARTIFACT_FILE, staging / ARTIFACT_FILE)
        shutil.copyfile(record.spec.tokenizer, staging / TOKENIZER_FILE)
        for run in result.runs:
            shutil.copyfile(source / f"seed{run.seed}" / LOG_FILE, staging / seed_log(run.seed))
        (staging / READABLE_FILE).write_text(_readable_source(script, record.spec.config), encoding="utf-8")
        (staging / REQUIREMENTS_FILE).write_text(_requirements(provenance.versions), encoding="utf-8")
        (staging / README_FILE).write_text(_readme(record, submission, provenance), encoding="utf-8")
        write_json(staging / SUBMISSION_FILE, submission)
        write_json(staging / PROVENANCE_FILE, provenance)
        _put_in_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def seed_log(seed: int) -> str:
    """Name of one seed's log in a submission."""
    return f"train_seed{seed}.log"


def file_facts(path: Path) -> FileFacts:
    """Name, size and hash of a file; OSError where there is none."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(name=path.name, bytes=path.stat().st_size, sha256=digest)


def read_known(cls: type[T], path: Path) -> T:
    """A noun from a JSON file that people may have added keys to.

    Raises:
        ValueError: no such file, not JSON, or a key is missing or of the wrong type; names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a folder made by `pgolf export`") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key in known}
    return from_plain(cls, data, where=str(path))


def _submittable(caps: Caps, record: TrialRecord) -> TrialResult:
    """The result of a trial that may be exported; ValueError with the numbers otherwise."""
    trial_id, result = record.spec.trial_id, record.result
    if result is None:
        raise ValueError(f"trial {trial_id} has no result yet; run the study to its end first")
    if result.status != "complete":
        detail = f": {result.error.splitlines()[-1]}" if result.error else ""
        raise ValueError(f"trial {trial_id} is {result.status}, only complete trials can be exported{detail}")
    for name, excess in caps.measured(result).items():
        if excess > 0:
            raise ValueError(
                f"trial {trial_id} is over the cap on {name}: {getattr(result, name):g} of {getattr(caps, name):g}; "
                f"export another trial, or raise the cap in the study"
            )
    return result


def _refuse_to_overwrite(out: Path) -> None:
    if out.is_file():
        raise ValueError(f"{out} is a file; give --out another name")
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise ValueError(f"{out} is not empty and not an earlier export; give --out another name")


def _is_export(folder: Path) -> bool:
    try:
        return read_known(Provenance, folder / PROVENANCE_FILE).made_by == MADE_BY
    except ValueError:
        return False


def _checked_script(source: Path, result: TrialResult) -> bytes:
    script = (source / SCRIPT_FILE).read_bytes()
    for run in result.runs:
        if run.code_bytes != len(script):
            raise ValueError(
                f"{source / SCRIPT_FILE}: seed {run.seed} ran a script of {run.code_bytes} bytes, this one has "
                f"{len(script)}; it was changed after the run"
            )
    return script


def _check_artifact(path: Path, run: SeedRun) -> None:
    found = file_facts(path).sha256
    if found != run.artifact_sha256:
        raise ValueError(f"{path}: sha256 is {found}, the run reported {run.artifact_sha256}; it was changed since")


def _provenance(record: TrialRecord, metrics: Mapping[str, Any], script: bytes) -> Provenance:
    spec = record.spec
    return Provenance(
        study=spec.study,
        trial_id=spec.trial_id,
        label=spec.label,
        params=dict(spec.params),
        data_dir=spec.data_dir,
        tokenizer=file_facts(Path(spec.tokenizer)),
        val_shards=tuple(file_facts(path) for path in shard_paths(spec.data_dir, "val")),
        max_tokens=spec.config.eval.max_tokens,
        scored_tokens=metrics["tokens"],
        scored_bytes=metrics["bytes"],
        script_sha256=hashlib.sha256(script).hexdigest(),
        device=metrics["device"],
        world_size=metrics["world_size"],
        threads=metrics["threads"],
        versions=dict(metrics["versions"]),
        git_commit=_git_commit(),
    )


def _submission(
    study: StudyConfig,
    record: TrialRecord,
    result: TrialResult,
    metrics: Mapping[str, Any],
    credits: Credits,
    date: datetime.date,
) -> Submission:
    spec, runs, first = record.spec, result.runs, result.runs[0]
    on_target = metrics["world_size"] == 8 and "H100" in metrics["device"]
    compliance = {
        "artifact_under_cap": result.artifact_bytes <= study.caps.artifact_bytes,
        "artifact_under_16mb": result.artifact_bytes <= 16_000_000,
        "train_under_600s": result.train_seconds <= 600,
        "eval_under_600s": result.eval_seconds <= 600,
        "on_8xh100": on_target,
        "full_validation_set": spec.config.eval.max_tokens == 0,
        "three_seeds": len(runs) >= 3,
        "no_ttt": True,
        "no_slot": True,
        "no_etlb": True,
        "no_ngram_cache": True,
    }
    return Submission(
        author=credits.author,
        github_id=credits.github_id,
        name=credits.name or f"{spec.study} {spec.trial_id}",
        blurb=credits.blurb or _blurb(spec.config),
        date=date.isoformat(),
        track=RECORD_TRACK if all(compliance.values()) else OTHER_TRACK,
        val_loss=fmean(run.val_loss for run in runs),
        val_bpb=result.val_bpb,
        val_bpb_std=stdev(run.val_bpb for run in runs) if len(runs) > 1 else 0.0,
        pre_quant_val_bpb=fmean(run.pre_quant_val_bpb for run in runs),
        bytes_total=first.artifact_bytes,
        bytes_code=first.code_bytes,
        bytes_model=first.model_bytes,
        bytes_cap=study.caps.artifact_bytes,
        artifact_seed=first.seed,
        artifact_sha256=first.artifact_sha256,
        seeds=tuple(run.seed for run in runs),
        seed_results={str(run.seed): _seed_entry(run) for run in runs},
        num_params=first.num_params,
        step_stop=first.steps,
        wallclock_seconds=result.train_seconds,
        eval_time_seconds=result.eval_seconds,
        hardware=f"{metrics['world_size']}x {metrics['device']}",
        pytorch_version=metrics["versions"]["torch"],
        compliance=compliance,
    )


def _seed_entry(run: SeedRun) -> SeedEntry:
    return SeedEntry(
        val_bpb=run.val_bpb,
        val_loss=run.val_loss,
        pre_quant_val_bpb=run.pre_quant_val_bpb,
        artifact_bytes=run.artifact_bytes,
        bytes_model=run.model_bytes,
        bytes_code=run.code_bytes,
        steps=run.steps,
        train_time_s=run.train_seconds,
        eval_time_s=run.eval_seconds,
        artifact_sha256=run.artifact_sha256,
    )


def _blurb(config: RunConfig) -> str:
    model, quant = config.model, config.quant
    loops = f", layers {model.loop_start}-{model.loop_end - 1} run {1 + model.loop_repeats} times"
    return (
        f"{model.num_layers} layers{loops if model.loop_repeats else ''}, width {model.model_dim}, "
        f"MLP {model.mlp_mult:g}x, vocabulary {model.vocab_size}; {'/'.join(map(str, quant.attn_bits))} bits for "
        f"attention, {'/'.join(map(str, quant.mlp_bits))} for MLP, {quant.embed_bits} for embeddings"
    )


def _readable_source(script: bytes, config: RunConfig) -> str:
    """Commented source while today's package still packs to this very script; after a change, what the script holds."""
    if bundle(config) == script:
        return readable(config)
    return f"# Unpacked from {SCRIPT_FILE}; pgolf_model has changed since, so its comments are not these.\n" + (
        unpack_script(script)
    )


def _requirements(versions: Mapping[str, str]) -> str:
    """The versions of the run; a build tag such as +cpu is dropped, package indexes do not have it."""
    names = sorted(set(versions) - {"python"})
    return "".join(f"{name}=={versions[name].partition('+')[0]}\n" for name in names)


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _put_in_place(staging: Path, out: Path) -> None:
    """Swap the finished folder in; an earlier export disappears only once the new one is whole."""
    previous = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(previous)
    staging.rename(out)
    shutil.rmtree(previous, ignore_errors=True)


def _readme(record: TrialRecord, submission: Submission, provenance: Provenance) -> str:
    spec = record.spec
    spread = f" +- {submission.val_bpb_std:.5f}" if len(submission.seeds) > 1 else ""
    seeds = "1 seed" if len(submission.seeds) == 1 else f"{len(submission.seeds)} seeds"
    subset = (
        f"Scored on the first {provenance.scored_tokens:,} validation tokens only, as its rung asks: not comparable "
        "with scores of the whole set.\n\n"
        if provenance.max_tokens
        else ""
    )
    seed_rows = "".join(
        f"| {seed} | {entry.steps:,} | {entry.pre_quant_val_bpb:.5f} | {entry.val_bpb:.5f} | {entry.val_loss:.5f} | "
        f"{entry.artifact_bytes:,} | {entry.train_time_s:.1f} | {entry.eval_time_s:.1f} |\n"
        for seed, entry in submission.seed_results.items()
    )
    config_rows = "".join(
        f"| {section}.{name} | {value} |\n" if section else f"| {name} | {value} |\n"
        for section, name, value in _config_values(spec.config)
    )
    rules = "".join(f"- [{'x' if kept else ' '}] {rule}\n" for rule, kept in submission.compliance.items())
    ranks = provenance.world_size
    launch = f"torchrun --standalone --nproc_per_node={ranks}" if ranks > 1 else "python"
    return f"""\
# {submission.name}: val_bpb {submission.val_bpb:.5f}{spread} ({seeds})

{submission.blurb}.
{submission.num_params:,} parameters, {submission.bytes_total:,} bytes of {submission.bytes_cap:,}, run on \
{submission.hardware}.

{subset}| seed | steps | pre-quantization bpb | **val_bpb** | val_loss | bytes | train s | eval s |
|---|---|---|---|---|---|---|---|
{seed_rows}
`{ARTIFACT_FILE}` is the artifact of seed {submission.artifact_seed}, the first one listed when the trial was started.
Its score was read from that file after unpacking.

## Run it

    pip install -r {REQUIREMENTS_FILE}
    {launch} {SCRIPT_FILE} --data DATASET_FOLDER --tokenizer {TOKENIZER_FILE} --seed {submission.artifact_seed}
    python {SCRIPT_FILE} --evaluate {ARTIFACT_FILE} --val DATASET_FOLDER --tokenizer {TOKENIZER_FILE}\
{f" --max-tokens {provenance.max_tokens}" if provenance.max_tokens else ""}

On eight GPUs: `torchrun --standalone --nproc_per_node=8 {SCRIPT_FILE}`. Every hyperparameter is in the script's last
lines. `pgolf verify` recounts the bytes and recomputes the score.

## Bytes

| file | bytes |
|---|---|
| {SCRIPT_FILE} | {submission.bytes_code:,} |
| {ARTIFACT_FILE} | {submission.bytes_model:,} |
| counted | {submission.bytes_total:,} |
| cap | {submission.bytes_cap:,} |

Not counted, as in other records: `{TOKENIZER_FILE}` ({provenance.tokenizer.bytes:,} bytes).
`{READABLE_FILE}` is for reading; the script that ran and counts is `{SCRIPT_FILE}`.

## Rules

{rules}
No validation data is read during training; quantization needs no data. Each token is scored once, from the tokens
before it, by a distribution over the whole vocabulary, and nothing is learned while scoring.

## Configuration

| field | value |
|---|---|
{config_rows}"""


def _config_values(config: RunConfig) -> list[tuple[str, str, object]]:
    """(section, field, value) of everything in the config."""
    rows: list[tuple[str, str, object]] = []
    for section, value in to_plain(config).items():
        if isinstance(value, Mapping):
            rows += [(section, name, item) for name, item in value.items()]
        else:
            rows.append(("", section, value))
    return rows
