"""`pgolf doctor`: look at this machine and its data, and measure it, before anything is paid for."""

from __future__ import annotations

from dataclasses import replace

import click

from search.commands import options
from search.commands.tables import print_json
from search.preflight.examine import examine


@click.command()
@click.option("--study", metavar="STUDY", help="Check what this study needs; its data is taken too.")
@options.datasets
@click.option("--no-calibration", is_flag=True, help="Measure nothing, and run nothing.")
@options.as_json
def doctor(study: str | None, data: tuple[str, ...], no_calibration: bool, as_json: bool) -> None:
    """Check environment, data and speed of this machine; exit 1 when something has to be repaired.

    Times short steps of the real training code (half a minute on a CPU) and leaves the result in hardware.json, in the
    study's folder or here, where `pgolf size --hardware` and `pgolf search --dry-run` read it. With data it also runs
    two steps of the script that would ship, through packing, reading back and scoring.

    \b
    Example:
      pgolf doctor --study demo.toml
    """
    from search.preflight.checks import describe_checks, failed, plain_checks
    from search.study.config import load_study

    config = load_study(study) if study else None
    if config and data:
        config = replace(config, data=data)
    folders = data or (config.data if config else ())
    checks, hardware = examine(config, folders, calibrated=not no_calibration)
    if as_json:
        print_json({"checks": plain_checks(checks), "hardware": hardware})
    else:
        click.echo(describe_checks(checks))
    if failed(checks):
        raise SystemExit(1)
