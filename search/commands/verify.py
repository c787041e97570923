"""`pgolf verify`: run a submission folder and recount everything that it claims."""

from __future__ import annotations

from pathlib import Path

import click

from search.commands import options
from search.commands.tables import print_json


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Where the validation shards lie now.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Another copy of the tokenizer.")
@click.option("--tolerance", type=float, help="Largest difference in val_bpb and val_loss.")
@options.as_json
def verify(folder: Path, data: Path | None, tokenizer: Path | None, tolerance: float | None, as_json: bool) -> None:
    """Run the submission in FOLDER outside the repository and recount everything it claims.

    Exit 0 when every claim holds, 1 with the reasons when one does not.

    \b
    Example:
      pgolf verify submission
      pgolf verify submission --data data/fineweb10B_sp1024 --json
    """
    from search.submission.verify import verify as check_submission
    from space.plain import to_plain

    report = check_submission(
        folder, data=data, tokenizer=tokenizer, tolerance=tolerance, say=lambda line: click.echo(line, err=True)
    )
    for problem in report.problems:
        click.echo(f"problem: {problem}", err=True)
    if as_json:
        print_json({"ok": report.ok, **to_plain(report)})
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
