"""The README.md of a submission folder."""

from __future__ import annotations

from collections.abc import Mapping

from pgolf_model.config import RunConfig
from pgolf_model.files import ARTIFACT_FILE
from search.corpus.manifest import TOKENIZER_FILE
from search.submission.papers import READABLE_FILE, REQUIREMENTS_FILE, Provenance, Submission
from space.plain import to_plain
from space.words import count
from trials.spec import SCRIPT_FILE


def submission_readme(config: RunConfig, submission: Submission, provenance: Provenance) -> str:
    """Return score, seeds, commands, bytes, rules and the whole configuration, as Markdown."""
    spread = f" +- {submission.val_bpb_std:.5f}" if len(submission.seeds) > 1 else ""
    rules = "".join(f"- [{'x' if kept else ' '}] {rule}\n" for rule, kept in submission.compliance.items())
    return f"""\
# {submission.name}: val_bpb {submission.val_bpb:.5f}{spread} ({count(len(submission.seeds), "seed")})

{submission.blurb}.
{submission.num_params:,} parameters, {submission.bytes_total:,} bytes of {submission.bytes_cap:,}, run on \
{submission.hardware}.

{_seeds(submission, provenance)}

## Run it

{_commands(submission, provenance)}

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
Nothing is learned from validation data; quantization needs no data. Each token is scored once, from the tokens
before it, by a distribution over the whole vocabulary, and nothing is learned while scoring.

## Configuration

| field | value |
|---|---|
{_config_rows(config)}"""


def _seeds(submission: Submission, provenance: Provenance) -> str:
    """Return the table of seeds, and which seed's artifact ships."""
    subset = (
        f"Scored on the first {provenance.scored_tokens:,} validation tokens only, as its rung asks: not comparable "
        "with scores of the whole set.\n\n"
        if provenance.max_tokens
        else ""
    )
    rows = "".join(
        f"| {seed} | {entry.steps:,} | {entry.pre_quant_val_bpb:.5f} | {entry.val_bpb:.5f} | {entry.val_loss:.5f} | "
        f"{entry.artifact_bytes:,} | {entry.train_time_s:.1f} | {entry.eval_time_s:.1f} |\n"
        for seed, entry in submission.seed_results.items()
    )
    return f"""\
{subset}| seed | steps | pre-quantization bpb | **val_bpb** | val_loss | bytes | train s | eval s |
|---|---|---|---|---|---|---|---|
{rows}
`{ARTIFACT_FILE}` is the artifact of seed {submission.artifact_seed}, the first one listed when the trial was started.
Its score was read from that file after unpacking."""


def _commands(submission: Submission, provenance: Provenance) -> str:
    """Return the commands that install, train and score."""
    ranks = provenance.world_size
    launch = f"torchrun --standalone --nproc_per_node={ranks}" if ranks > 1 else "python"
    subset = f" --max-tokens {provenance.max_tokens}" if provenance.max_tokens else ""
    return f"""\
    pip install -r {REQUIREMENTS_FILE}
    {launch} {SCRIPT_FILE} --data DATASET_FOLDER --tokenizer {TOKENIZER_FILE} --seed {submission.artifact_seed}
    python {SCRIPT_FILE} --evaluate {ARTIFACT_FILE} --val DATASET_FOLDER --tokenizer {TOKENIZER_FILE}{subset}

On eight GPUs: `torchrun --standalone --nproc_per_node=8 {SCRIPT_FILE}`. The script's last lines hold every value that
is not at its default; the table below has all. `pgolf verify` recounts the bytes and recomputes the score."""


def _config_rows(config: RunConfig) -> str:
    """Return a table row for each field of the config."""
    return "".join(
        f"| {section}.{name} | {value} |\n" if section else f"| {name} | {value} |\n"
        for section, name, value in _config_values(config)
    )


def _config_values(config: RunConfig) -> list[tuple[str, str, object]]:
    """Return (section, field, value) of each field of the config."""
    rows: list[tuple[str, str, object]] = []
    for section, value in to_plain(config).items():
        if isinstance(value, Mapping):
            rows += [(section, name, item) for name, item in value.items()]
        else:
            rows.append(("", section, value))
    return rows
