"""`pgolf export`, `pgolf verify` and `pgolf evaluate`: from a finished study to a submission that holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("study")
@click.option("--trial", "trial_id", metavar="ID", help="Trial such as full/0007; the best feasible one by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The submission folder to write.")
@click.option("--author", default="", help="Your name, for submission.json.")
@click.option("--github-id", default="", help="Your GitHub name, for submission.json.")
@click.option("--name", default="", help="Name of the submission; the study and trial by default.")
@click.option("--blurb", default="", help="What it does in a sentence; made from the configuration by default.")
@click.option("--json", "as_json", is_flag=True, help="Print submission.json to stdout.")
def export(
    study: str, trial_id: str | None, out: Path, author: str, github_id: str, name: str, blurb: str, as_json: bool
) -> None:
    """Write the best trial of STUDY, or --trial, as a submission folder.

    \b
    Example:
      pgolf export demo --out submission
      pgolf export demo --trial full/0007 --out submission --author "Ada Lovelace" --github-id ada
    """
    from search.export import Credits
    from search.export import export as write_submission
    from search.ledger import best_record, read_records
    from search.study import load_study
    from search.submission import SUBMISSION_FILE

    config = load_study(study)
    records = read_records(config)
    if trial_id is None:
        record = best_record(config, records)
        if record is None:
            raise ValueError(
                f"study {config.name!r} has no complete trial within its caps yet ({len(records)} trials in "
                f"{config.dir}); run it first: pgolf search {study}"
            )
    else:
        by_id = {r.spec.trial_id: r for r in records}
        if trial_id not in by_id:
            known = ", ".join(sorted(by_id)[-5:]) or "none"
            raise ValueError(f"study {config.name!r} has no trial {trial_id!r}; the last ones are: {known}")
        record = by_id[trial_id]
    click.echo(f"exporting trial {record.spec.trial_id} of study {config.name} to {out}", err=True)
    credits = Credits(author=author, github_id=github_id, name=name, blurb=blurb)
    folder = write_submission(config, record, out, credits=credits)
    if as_json:
        click.echo((folder / SUBMISSION_FILE).read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(f"wrote {folder}; check it with: pgolf verify {out}", err=True)
        click.echo(folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Where the validation shards lie now.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Another copy of the tokenizer.")
@click.option("--tolerance", type=float, help="Largest difference in val_bpb and val_loss.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def verify(folder: Path, data: Path | None, tokenizer: Path | None, tolerance: float | None, as_json: bool) -> None:
    """Run the submission in FOLDER outside the repository and recount everything it claims.

    Exit 0 when every claim holds, 1 with the reasons when one does not.

    \b
    Example:
      pgolf verify submission
      pgolf verify submission --data data/fineweb10B_sp1024 --json
    """
    from search.verify import verify as check_submission
    from space.plain import to_plain

    report = check_submission(
        folder, data=data, tokenizer=tokenizer, tolerance=tolerance, say=lambda line: click.echo(line, err=True)
    )
    for problem in report.problems:
        click.echo(f"problem: {problem}", err=True)
    if as_json:
        click.echo(json.dumps({"ok": report.ok, **to_plain(report)}, indent=1, allow_nan=False))
    else:
        click.echo(
            f"{'ok' if report.ok else 'FAILED'}: {report.code_bytes:,} code + {report.model_bytes:,} model = "
            f"{report.artifact_bytes:,} of {report.bytes_cap:,} bytes"
        )
        if report.val_bpb is not None:
            click.echo(
                f"val_bpb {report.val_bpb:.8f}, claimed {report.claimed_val_bpb:.8f}, over {report.tokens:,} tokens "
                f"in {report.seconds:.1f} s"
            )
    if not report.ok:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--val", required=True, metavar="GLOB_OR_DIR", help="Validation shards: a dataset folder, glob or file.")
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True, help="Their SentencePiece model.")
@click.option("--max-tokens", type=int, default=0, help="Score so many leading tokens; all by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def evaluate(source: Path, val: str, tokenizer: Path, max_tokens: int, as_json: bool) -> None:
    """Score SOURCE, an artifact or a submission folder, on any shards.

    A submission is scored by its own script, an artifact by this version of pgolf.

    \b
    Example:
      pgolf evaluate submission --val data/builtin --tokenizer data/builtin/tokenizer.model
      pgolf evaluate final_model.pgolf --val 'data/*_val_*.bin' --tokenizer tokenizer.model --json
    """
    from search.corpus.check import refuse_foreign_tokenizer
    from search.verify import run_evaluation, run_submission
    from space.plain import to_plain

    click.echo(f"scoring {source} on {val}", err=True)
    if not source.exists():
        raise ValueError(f"{source}: no such artifact or submission folder")
    if not tokenizer.is_file():
        raise ValueError(f"{tokenizer}: no such tokenizer")
    refuse_foreign_tokenizer(val, tokenizer)
    if source.is_dir():
        found = run_submission(source, val=val, tokenizer=tokenizer, max_tokens=max_tokens)
    else:
        command = [sys.executable, "-m", "pgolf_model.main", "--evaluate", str(source), "--val", val]
        found = run_evaluation([*command, "--tokenizer", str(tokenizer), "--max-tokens", str(max_tokens)])
    if as_json:
        click.echo(json.dumps(to_plain(found), allow_nan=False))
    else:
        click.echo(
            f"val_bpb {found.val_bpb:.8f} val_loss {found.val_loss:.8f} over {found.tokens:,} tokens, "
            f"{found.bytes:,} bytes in {found.seconds:.1f} s"
        )
