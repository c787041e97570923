"""`pgolf ablate`: one-knob changes against the control, on paired seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from search.study.config import EngineName
from search.launch import run_study


@click.command()
@click.argument("study")
@click.option("--knob", "knobs", multiple=True, required=True, metavar="NAME=A,B", help="A knob and values to try.")
@click.option("--rung", default="", metavar="RUNG", help="Where to compare; the study's first rung by default.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Paired seeds per point.")
@click.option("--engine", type=click.Choice(["ray", "local"]), help="Override the study's engine.")
@click.option("--data", multiple=True, metavar="DIR", help="Override the study's dataset folder(s).")
@click.option("--ray-address", default="", metavar="ADDRESS", help="Use a running Ray cluster, e.g. auto.")
@click.option("--simulate", type=click.Path(path_type=Path), metavar="FILE.py", help="Train nothing: see search.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def ablate(
    study: str,
    knobs: tuple[str, ...],
    rung: str,
    seeds: int,
    engine: str | None,
    data: tuple[str, ...],
    ray_address: str,
    simulate: Path | None,
    as_json: bool,
) -> None:
    """Compare STUDY's control with points that differ from it in one knob, on paired seeds.

    \b
    Example:
      pgolf ablate demo.toml --knob matrix_lr=0.02,0.06 --knob num_layers=3
    """
    from search.brain.ablation import ablation, describe_effects, effects, parse_knobs
    from search.brain.maker import study_space
    from search.study.config import load_study
    from space.plain import to_plain

    config = load_study(study)
    config = replace(config, data=data or config.data, engine=cast("EngineName", engine or config.engine))
    space = None
    if simulate is not None:
        from search.simulation.world import load_world

        space = load_world(simulate).space
        config = replace(config, name=f"{config.name}-simulated", storage="memory")
    space = space or study_space(config)
    config = ablation(config, space, parse_knobs(space, knobs), rung=rung, seeds=seeds)
    driver = run_study(config, ray_address=ray_address, simulate=simulate)
    found = effects(config, driver.records)
    if as_json:
        click.echo(json.dumps({"study": config.name, "folder": str(config.dir), "effects": to_plain(found)}, indent=1))
    else:
        click.echo(describe_effects(found))
