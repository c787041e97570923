"""`pgolf evaluate`: score an artifact or a submission on any shards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from pgolf_model.errors import UserError


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
    from search.submission.verify import run_evaluation, run_submission
    from space.plain import to_plain

    click.echo(f"scoring {source} on {val}", err=True)
    if not source.exists():
        raise UserError(f"{source}: no such artifact or submission folder")
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer}: no such tokenizer")
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
