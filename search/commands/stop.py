"""`pgolf stop`: end the process that runs a study; finished trials are kept."""

from __future__ import annotations

import time

import click

from pgolf_model.errors import UserError

POLL_SECONDS = 0.1
LINE_SECONDS = 5.0


@click.command()
@click.argument("study")
@click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds to wait for its end.")
def stop(study: str, timeout: float) -> None:
    """Ask the process that runs STUDY to stop, and wait until it has.

    Running trials stay unfinished and run again with the next pgolf search; finished ones are kept.

    \b
    Example:
      pgolf stop demo
    """
    import os
    import signal

    from search.study.config import load_study
    from search.study.lock import driver_alive, driver_pid
    from search.study.next_steps import search_command

    config = load_study(study)
    pid = driver_pid(config)
    if pid is None:
        raise UserError(f"nobody runs study {config.name} in {config.dir} now", hint=f"see pgolf status {study}")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        raise UserError(
            f"study {config.name} is run by process {pid} of another machine", hint="run pgolf stop on that machine"
        ) from None
    click.echo(f"stopping study {config.name}, process {pid} ...", err=True)
    started = said = time.monotonic()
    while driver_alive(config):
        now = time.monotonic()
        if now - started > timeout:
            raise UserError(
                f"process {pid} still runs after {timeout:g} s", hint=f"wait longer with --timeout, or kill -9 {pid}"
            )
        if now - said > LINE_SECONDS:
            said = now
            click.echo(f"waiting for process {pid}, {now - started:.0f} s", err=True)
        time.sleep(POLL_SECONDS)
    click.echo(f"stopped; go on with: {search_command(config)}", err=True)
