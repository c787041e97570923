"""Verify a submission folder: every number that it claims is counted or computed again from its own files.

The folder's script and artifact are copied to a temporary directory and run there in isolated mode (`python -I`) with
a nearly empty environment. An editable install of pgolf can be imported even so. Therefore the unpacked source is read
too, and refused if it imports anything but the standard library and the packages in requirements.txt.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean

from packaging.requirements import InvalidRequirement, Requirement

from pgolf_model.data.shards import shard_paths
from pgolf_model.errors import UserError
from pgolf_model.files import ARTIFACT_FILE
from search.bundle.script import ALLOWED_PACKAGES, foreign_imports, unpack_script
from search.corpus.manifest import TOKENIZER_FILE
from search.submission.child import last_words
from search.submission.papers import (
    PROVENANCE_FILE,
    REQUIREMENTS_FILE,
    SUBMISSION_FILE,
    FileFacts,
    Provenance,
    Submission,
    file_facts,
    read_known,
    seed_log,
)
from space.plain import from_plain
from trials.spec import SCRIPT_FILE

# The same kind of device and number of ranks computes the same sums: with 1 and 2 CPU threads, equal to the last bit.
# Another device rounds every matrix product differently. The largest difference, bfloat16 against float32, was 0.00053
# bpb and 0.00089 nats over 65,536 tokens; a record has to win by 0.005 nats.
SAME_DEVICE_TOLERANCE = 1e-6
OTHER_DEVICE_TOLERANCE = 2e-3

KEPT_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The JSON document that `train_gpt.py --evaluate` prints."""

    val_bpb: float
    val_loss: float  # nats per token
    tokens: int
    bytes: int
    seconds: float
    model_bytes: int
    num_params: int
    device: str
    world_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """Counted bytes, recomputed scores and problems; scores are None if the folder was too broken to run."""

    folder: str
    artifact_bytes: int  # of the real files: code and model
    code_bytes: int
    model_bytes: int
    bytes_cap: int
    val_bpb: float | None = None  # computed again
    val_loss: float | None = None
    claimed_val_bpb: float | None = None  # of the seed whose artifact is in the folder
    tolerance: float | None = None  # on both scores
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all claims of the folder were confirmed."""
        return not self.problems


def verify(
    folder: Path,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    tolerance: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> VerifyReport:
    """Count bytes, compute the scores again and compare; every mismatch is a problem in the report.

    A trial that scored only leading tokens, as proxies do, is compared over the same tokens.

    Args:
        data: folder of the validation shards; by default the one that the trial used.
        tokenizer: another copy of the tokenizer, compared by hash; the folder's own by default.
        tolerance: largest difference in val_bpb and val_loss; by default SAME_DEVICE_TOLERANCE on the device of the
            run and OTHER_DEVICE_TOLERANCE elsewhere.
        say: called with a line before each long step.
    Raises:
        UserError: there is no such folder, or one of its papers cannot be read.
    """
    say(f"verifying {folder}: counting bytes, comparing hashes")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", hint="give one made by `pgolf export`")
    needed = (SCRIPT_FILE, ARTIFACT_FILE, SUBMISSION_FILE, PROVENANCE_FILE)
    missing = tuple(f"{folder / name}: no such file" for name in needed if not (folder / name).is_file())
    if missing:
        return VerifyReport(
            folder=str(folder), artifact_bytes=0, code_bytes=0, model_bytes=0, bytes_cap=0, problems=missing
        )
    submission = read_known(Submission, folder / SUBMISSION_FILE)
    provenance = read_known(Provenance, folder / PROVENANCE_FILE)
    data = data or Path(provenance.data_dir)
    tokenizer = tokenizer or folder / TOKENIZER_FILE
    script, artifact = file_facts(folder / SCRIPT_FILE), file_facts(folder / ARTIFACT_FILE)
    inputs = (
        *_script_problems(folder, script, provenance),
        *_artifact_problems(artifact, submission),
        *_tokenizer_problems(tokenizer, provenance),
        *_shard_problems(data, provenance),
    )
    claims = (*_count_problems(script, artifact, submission), *_claim_problems(folder, submission))
    counted = VerifyReport(
        folder=str(folder),
        artifact_bytes=script.bytes + artifact.bytes,
        code_bytes=script.bytes,
        model_bytes=artifact.bytes,
        bytes_cap=submission.bytes_cap,
        problems=(*inputs, *claims),
    )
    if inputs:
        return _with_problems(counted, "val_bpb was not computed again: the files above differ")
    say(f"running {SCRIPT_FILE} --evaluate in a clean process over {provenance.scored_tokens:,} tokens")
    try:
        found = run_submission(folder, val=data, tokenizer=tokenizer, max_tokens=provenance.max_tokens)
    except UserError as error:
        return _with_problems(counted, f"{SCRIPT_FILE} did not run: {error}")
    return _scored(counted, found, submission, provenance, tolerance)


def _with_problems(report: VerifyReport, *problems: str) -> VerifyReport:
    """Return the report with further problems."""
    return replace(report, problems=(*report.problems, *problems))


def _scored(
    counted: VerifyReport, found: Evaluation, submission: Submission, provenance: Provenance, tolerance: float | None
) -> VerifyReport:
    """Return the report with the scores computed again and their differences from the claimed ones."""
    if tolerance is None:
        same = (found.device, found.world_size) == (provenance.device, provenance.world_size)
        tolerance = SAME_DEVICE_TOLERANCE if same else OTHER_DEVICE_TOLERANCE
    report = replace(
        counted,
        val_bpb=found.val_bpb,
        val_loss=found.val_loss,
        claimed_val_bpb=_shipped_claim(submission, "val_bpb"),
        tolerance=tolerance,
        tokens=found.tokens,
        bytes=found.bytes,
        seconds=found.seconds,
    )
    return _with_problems(report, *_score_problems(found, submission, provenance, tolerance))


def run_submission(folder: Path, *, val: Path | str, tokenizer: Path, max_tokens: int = 0) -> Evaluation:
    """Score a folder's artifact with its own script: copies of both, in a temporary directory, isolated.

    Args:
        max_tokens: leading tokens to score; 0 scores all.
    Raises:
        UserError: the script failed, with its own message, or printed no evaluation.
    """
    with tempfile.TemporaryDirectory(prefix="pgolf-verify-") as scratch:
        for path in (folder / SCRIPT_FILE, folder / ARTIFACT_FILE):
            shutil.copyfile(path, Path(scratch) / path.name)
        shutil.copyfile(tokenizer, Path(scratch) / TOKENIZER_FILE)
        command = [sys.executable, "-I", SCRIPT_FILE, "--evaluate", ARTIFACT_FILE, "--tokenizer", TOKENIZER_FILE]
        command += ["--val", os.path.abspath(val), "--max-tokens", str(max_tokens)]
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        return run_evaluation(command, cwd=Path(scratch), environment=environment)


def run_evaluation(
    command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Evaluation:
    """Run a command and return the evaluation that it prints; raise UserError with its message if it fails."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise last_words(done)
    try:
        data = json.loads(done.stdout, parse_constant=_refuse_constant)
    except ValueError as error:
        raise UserError(f"expected one JSON document, got {done.stdout[:80]!r}: {error}") from None
    known = {f.name for f in fields(Evaluation)}
    if isinstance(data, Mapping):  # a later script may tell more
        data = {key: value for key, value in data.items() if key in known}
    return from_plain(Evaluation, data, where="evaluation")


def _script_problems(folder: Path, script: FileFacts, provenance: Provenance) -> list[str]:
    """Return problems of the script: it is not the one that ran, or it imports more than it may."""
    problems = []
    if script.sha256 != provenance.script_sha256:
        problems.append(_expected(f"{SCRIPT_FILE} sha256", provenance.script_sha256, script.sha256))
    requirements = folder / REQUIREMENTS_FILE
    text = requirements.read_text(encoding="utf-8") if requirements.is_file() else ""
    try:
        source = unpack_script((folder / SCRIPT_FILE).read_bytes())
        foreign = foreign_imports(source, ALLOWED_PACKAGES | named_packages(text))
    except UserError as error:
        return [*problems, f"{SCRIPT_FILE}: {error}"]
    if foreign:
        problems.append(f"{SCRIPT_FILE} imports {', '.join(foreign)}, which {REQUIREMENTS_FILE} does not name")
    return problems


def named_packages(requirements: str) -> set[str]:
    """Return the packages that the text of a requirements file names; comments and pip's options name none."""
    named = set()
    for line in requirements.splitlines():
        with contextlib.suppress(InvalidRequirement):
            named.add(Requirement(line.partition("#")[0].strip()).name)
    return named


def _artifact_problems(artifact: FileFacts, submission: Submission) -> list[str]:
    """Return a problem if the artifact is not the claimed one."""
    if artifact.sha256 == submission.artifact_sha256:
        return []
    return [_expected(f"{ARTIFACT_FILE} sha256", submission.artifact_sha256, artifact.sha256)]


def _tokenizer_problems(tokenizer: Path, provenance: Provenance) -> list[str]:
    """Return a problem if the tokenizer is missing or not the one of the run."""
    if not tokenizer.is_file():
        return [f"tokenizer {tokenizer} is missing"]
    found = file_facts(tokenizer).sha256
    if found == provenance.tokenizer.sha256:
        return []
    return [_expected(f"tokenizer {tokenizer.name} sha256", provenance.tokenizer.sha256, found)]


def _shard_problems(data: Path, provenance: Provenance) -> list[str]:
    """Return problems of the validation shards: missing, changed, or not among those that were scored."""
    try:
        found = {path.name: path for path in shard_paths(str(data), "val")}
    except UserError as error:
        return [f"{error}; or say where they are with --data"]
    claimed = {facts.name: facts.sha256 for facts in provenance.val_shards}
    problems = [f"validation shard {data / name} is missing" for name in claimed.keys() - found.keys()]
    problems += [f"validation shard {found[name]} was not scored" for name in found.keys() - claimed.keys()]
    for name in claimed.keys() & found.keys():
        digest = file_facts(found[name]).sha256
        if digest != claimed[name]:
            problems.append(_expected(f"validation shard {found[name]} sha256", claimed[name], digest))
    return sorted(problems)


def _count_problems(script: FileFacts, artifact: FileFacts, submission: Submission) -> list[str]:
    """Return problems of sizes: files against claims, and against the cap."""
    total = script.bytes + artifact.bytes
    pairs = (
        ("bytes_code", submission.bytes_code, script.bytes),
        ("bytes_model", submission.bytes_model, artifact.bytes),
        ("bytes_total", submission.bytes_total, total),
    )
    problems = [_expected(name, claimed, found) for name, claimed, found in pairs if claimed != found]
    if total > submission.bytes_cap:
        problems.append(f"{total:,} bytes are over the cap of {submission.bytes_cap:,}")
    return problems


def _claim_problems(folder: Path, submission: Submission) -> list[str]:
    """Return contradictions in submission.json, and between it and the logs."""
    results = submission.seed_results
    if sorted(results) != sorted(map(str, submission.seeds)) or str(submission.artifact_seed) not in results:
        return [_expected("seeds of seed_results", ", ".join(map(str, submission.seeds)), ", ".join(results))]
    problems = []
    for name, claimed in (("val_bpb", submission.val_bpb), ("val_loss", submission.val_loss)):
        mean = fmean(getattr(entry, name) for entry in results.values())
        if not math.isclose(mean, claimed, rel_tol=0.0, abs_tol=1e-9):
            problems.append(_expected(f"mean {name} over the seeds", claimed, mean))
    for seed, entry in results.items():
        log = folder / seed_log(int(seed))
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if not text:
            problems.append(f"{log.name} is missing or empty")
        elif f"val_bpb:{entry.val_bpb:.8f} " not in text:
            problems.append(f"{log.name} does not end with the claimed val_bpb of {entry.val_bpb:.8f}")
    return problems


def _score_problems(found: Evaluation, submission: Submission, provenance: Provenance, tolerance: float) -> list[str]:
    """Return differences between the scores computed again and the claimed ones, and between their texts."""
    problems = []
    for name in ("val_bpb", "val_loss"):
        claimed, again = _shipped_claim(submission, name), getattr(found, name)
        if not abs(claimed - again) <= tolerance:
            problems.append(f"{_expected(name, claimed, again)} (more than {tolerance:g} apart)")
    for name, told, again in (
        ("scored tokens", provenance.scored_tokens, found.tokens),
        ("scored bytes", provenance.scored_bytes, found.bytes),
        ("num_params", submission.num_params, found.num_params),
    ):
        if told != again:
            problems.append(_expected(name, told, again))
    return problems


def _shipped_claim(submission: Submission, name: str) -> float:
    """Return a claimed score of the seed whose artifact ships."""
    return float(getattr(submission.seed_results[str(submission.artifact_seed)], name))


def _expected(what: str, claimed: object, found: object) -> str:
    """Return a problem that names both values."""
    return f"{what}: expected {claimed}, got {found}"


def _refuse_constant(text: str) -> float:
    """Raise UserError for NaN and infinities, which JSON does not have."""
    raise UserError(f"it holds {text}")
