"""Export a finished trial as a submission folder: the measured script and artifact, and the papers that describe them.

The first seed of the trial ships, never its best, since choosing among seeds by score would be selection on the
validation set. All files are copied from the trial's folder and compared with the hashes and sizes that the trial
reported. The submission appears whole or not at all.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pgolf_model.config import RunConfig
from pgolf_model.data.shards import shard_paths
from pgolf_model.errors import UserError
from pgolf_model.files import ARTIFACT_FILE, METRICS_FILE
from search.bundle.script import bundle, readable, unpack_script
from search.corpus.manifest import TOKENIZER_FILE
from search.study.config import Caps, StudyConfig
from search.study.ledger import TrialRecord, trial_dir
from search.submission.papers import (
    MADE_BY,
    PROVENANCE_FILE,
    READABLE_FILE,
    README_FILE,
    REQUIREMENTS_FILE,
    SUBMISSION_FILE,
    Provenance,
    SeedEntry,
    Submission,
    file_facts,
    read_known,
    seed_log,
)
from search.submission.readme import submission_readme
from trials.files import write_json
from trials.spec import LOG_FILE, SCRIPT_FILE, SeedRun, TrialResult

RECORD_TRACK = "10min_16mb"
OTHER_TRACK = "non_record_16mb"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credits:
    """Author, name and description of a submission; empty where none was given."""

    author: str = ""
    github_id: str = ""
    name: str = ""  # of the submission; the study's name and the trial by default
    blurb: str = ""


def export(
    study: StudyConfig,
    record: TrialRecord,
    out: Path,
    *,
    credits: Credits | None = None,
    date: datetime.date | None = None,
) -> Path:
    """Write the submission folder `out` for a finished trial and return its path.

    Args:
        date: of the submission, today by default.
    Raises:
        UserError: the trial is not complete or over a cap, its files are not those it reported, or `out` is neither
            empty nor an earlier export.
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
        (staging / README_FILE).write_text(
            submission_readme(record.spec.config, submission, provenance), encoding="utf-8"
        )
        write_json(staging / SUBMISSION_FILE, submission)
        write_json(staging / PROVENANCE_FILE, provenance)
        _put_in_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _submittable(caps: Caps, record: TrialRecord) -> TrialResult:
    """Return the result of a trial; raise UserError with the numbers if it may not be exported."""
    trial_id, result = record.spec.trial_id, record.result
    if result is None:
        raise UserError(f"trial {trial_id} has no result yet", hint="run the study to its end first")
    if result.status != "complete":
        detail = f": {result.error.splitlines()[-1]}" if result.error else ""
        raise UserError(f"trial {trial_id} is {result.status}, only complete trials can be exported{detail}")
    for name, excess in caps.measured(result).items():
        if excess > 0:
            raise UserError(
                f"trial {trial_id} is over the cap on {name}: {getattr(result, name):g} of {getattr(caps, name):g}",
                hint="export another trial, or raise the cap in the study",
            )
    return result


def _refuse_to_overwrite(out: Path) -> None:
    """Raise UserError if `out` holds anything but an earlier export."""
    if out.is_file():
        raise UserError(f"{out} is a file", hint="give --out another name")
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise UserError(f"{out} is not empty and not an earlier export", hint="give --out another name")


def _is_export(folder: Path) -> bool:
    """Return whether a folder is an earlier export."""
    try:
        return read_known(Provenance, folder / PROVENANCE_FILE).made_by == MADE_BY
    except ValueError:
        return False


def _checked_script(source: Path, result: TrialResult) -> bytes:
    """Return the trial's script; raise UserError if its size is not the one that the runs reported."""
    script = (source / SCRIPT_FILE).read_bytes()
    for run in result.runs:
        if run.code_bytes != len(script):
            raise UserError(
                f"{source / SCRIPT_FILE}: seed {run.seed} ran a script of {run.code_bytes} bytes, this one has "
                f"{len(script)}",
                hint="it was changed after the run",
            )
    return script


def _check_artifact(path: Path, run: SeedRun) -> None:
    """Raise UserError if the artifact's hash is not the one that the run reported."""
    found = file_facts(path).sha256
    if found != run.artifact_sha256:
        raise UserError(
            f"{path}: sha256 is {found}, the run reported {run.artifact_sha256}", hint="it was changed since"
        )


def _provenance(record: TrialRecord, metrics: Mapping[str, Any], script: bytes) -> Provenance:
    """Return the provenance of a trial whose first seed wrote `metrics`."""
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
        git_commit=spec.git_commit,
    )


def _submission(
    study: StudyConfig,
    record: TrialRecord,
    result: TrialResult,
    metrics: Mapping[str, Any],
    credits: Credits,
    date: datetime.date,
) -> Submission:
    """Return the claims of a submission; `metrics` are those of the first seed."""
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
        val_bpb_std=stdev(run.val_bpb for run in runs) if len(runs) > 1 else None,
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
    """Return a seed's run under the names that records use."""
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
    """Return a sentence about a configuration."""
    model, quant = config.model, config.quant
    loops = f" ([{model.loop_start}, {model.loop_end}) run {1 + model.loop_repeats} times)"
    return (
        f"{model.num_layers} layers{loops if model.loop_repeats else ''}, width {model.model_dim}, "
        f"MLP {model.mlp_mult:g}x, vocabulary {model.vocab_size}; {'/'.join(map(str, quant.attn_bits))} bits for "
        f"attention, {'/'.join(map(str, quant.mlp_bits))} for MLP, {quant.embed_bits} for embeddings"
    )


def _readable_source(script: bytes, config: RunConfig) -> str:
    """Return the package's commented source if it still packs to this script, else the unpacked script."""
    if bundle(config) == script:
        return readable(config)
    return f"# Unpacked from {SCRIPT_FILE}; pgolf_model has changed since, so its comments are not these.\n" + (
        unpack_script(script)
    )


def _requirements(versions: Mapping[str, str]) -> str:
    """Return the versions of the run as requirements, without build tags such as +cpu, which package indexes lack."""
    names = sorted(set(versions) - {"python"})
    return "".join(f"{name}=={versions[name].partition('+')[0]}\n" for name in names)


def _put_in_place(staging: Path, out: Path) -> None:
    """Rename the finished folder to `out`; an earlier export is deleted only after that."""
    previous = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(previous)
    staging.rename(out)
    shutil.rmtree(previous, ignore_errors=True)
