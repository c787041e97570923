"""`pgolf evaluate`: score an artifact or a submission on any shards."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pgolf_model.errors import UserError
from search.commands import options
from search.commands.tables import print_json


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, metavar="DIR|GLOB|FILE", help="Validation shards: of a dataset folder, or files."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True, help="Their SentencePiece model.")
@click.option("--max-tokens", type=int, default=0, help="Score so many leading tokens; all by default.")
@options.as_json
def evaluate(source: Path, data: str, tokenizer: Path, max_tokens: int, as_json: bool) -> None:
    """Score SOURCE, an artifact or a submission folder, on any shards.

    A submission is scored by its own script, an artifact by this version of pgolf.

    \b
    Example:
      pgolf evaluate submission --data data/builtin --tokenizer data/builtin/tokenizer.model
      pgolf evaluate final_model.pgolf --data 'data/*_val_*.bin' --tokenizer tokenizer.model --json
    """
    from search.corpus.check import refuse_foreign_tokenizer
    from search.submission.verify import run_evaluation, run_submission

    click.echo(f"scoring {source} on {data}", err=True)
    if not source.exists():
        raise UserError(f"{source}: no such artifact or submission folder")
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer}: no such tokenizer")
    refuse_foreign_tokenizer(data, tokenizer)
    if source.is_dir():
        found = run_submission(source, val=data, tokenizer=tokenizer, max_tokens=max_tokens)
    else:
        command = [sys.executable, "-m", "pgolf_model.main", "--evaluate", str(source), "--val", data]
        found = run_evaluation([*command, "--tokenizer", str(tokenizer), "--max-tokens", str(max_tokens)])
    if as_json:
        print_json(found)
    else:
        click.echo(
            f"val_bpb {found.val_bpb:.8f} val_loss {found.val_loss:.8f} over {found.tokens:,} tokens, "
            f"{found.bytes:,} bytes in {found.seconds:.1f} s"
        )
