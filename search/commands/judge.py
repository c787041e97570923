"""`pgolf judge`: say what to think of a score that was too good to believe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from search.study.ledger import Word

WORDS: dict[str, Word] = {"accept": "accepted", "reject": "rejected"}


@click.command()
@click.argument("study")
@click.argument("trial")
@click.argument("verdict", type=click.Choice(list(WORDS)), metavar="accept|reject")
def judge(study: str, trial: str, verdict: str) -> None:
    """Believe the score of TRIAL, which stopped STUDY, or count that trial as failed.

    A score far below all others is more often a leak or a broken metric than a discovery: look at the trial first
    (pgolf show STUDY TRIAL). The study goes on with the next pgolf search.

    \b
    Example:
      pgolf judge demo full/0007 reject
    """
    from search.study.config import load_study
    from search.study.ledger import give_verdict
    from search.study.lock import driver_lock
    from search.study.next_steps import search_command

    config = load_study(study)
    with driver_lock(config):
        give_verdict(config, trial, WORDS[verdict])
    click.echo(f"{trial} of study {config.name} is {WORDS[verdict]}; go on with: {search_command(config)}", err=True)
