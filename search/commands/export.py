"""`pgolf export`: the best trial of a study as a submission folder."""

from __future__ import annotations

from pathlib import Path

import click

from pgolf_model.errors import UserError
from search.commands import options


@click.command()
@click.argument("study")
@click.option("--trial", "trial_id", metavar="ID", help="Trial such as full/0007; the best feasible one by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The submission folder to write.")
@click.option("--author", default="", help="Your name, for submission.json.")
@click.option("--github-id", default="", help="Your GitHub name, for submission.json.")
@click.option("--name", default="", help="Name of the submission; the study and trial by default.")
@click.option("--blurb", default="", help="What it does in a sentence; made from the configuration by default.")
@options.as_json
def export(
    study: str, trial_id: str | None, out: Path, author: str, github_id: str, name: str, blurb: str, as_json: bool
) -> None:
    """Write the best trial of STUDY, or --trial, as a submission folder.

    \b
    Example:
      pgolf export demo --out submission
      pgolf export demo --trial full/0007 --out submission --author "Ada Lovelace" --github-id ada
    """
    from search.look.trial import find_trial
    from search.study.config import load_study
    from search.study.ledger import best_record, read_records
    from search.submission.export import Credits
    from search.submission.export import export as write_submission
    from search.submission.papers import SUBMISSION_FILE

    config = load_study(study)
    records = read_records(config)
    record = find_trial(config, records, trial_id) if trial_id else best_record(config, records)
    if record is None:
        raise UserError(
            f"study {config.name!r} has no complete trial within its caps yet ({len(records)} trials in {config.dir})",
            hint=f"run it first: pgolf search {study}",
        )
    click.echo(f"exporting trial {record.spec.trial_id} of study {config.name} to {out}", err=True)
    credits = Credits(author=author, github_id=github_id, name=name, blurb=blurb)
    folder = write_submission(config, record, out, credits=credits)
    if as_json:
        click.echo((folder / SUBMISSION_FILE).read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(f"wrote {folder}; check it with: pgolf verify {out}", err=True)
        click.echo(folder)
