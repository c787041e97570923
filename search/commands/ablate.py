"""`pgolf ablate`: one-knob changes against the control, on paired seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from search.commands import options
from search.commands.tables import print_json, print_table

if TYPE_CHECKING:
    from search.launch import Running


@click.command()
@click.argument("study")
@options.running
@click.option("--knob", "knobs", multiple=True, required=True, metavar="NAME=A,B", help="A knob and values to try.")
@click.option("--rung", default="", metavar="RUNG", help="Where to compare; the study's first rung by default.")
@click.option("--num-seeds", type=click.IntRange(2), default=3, show_default=True, help="Paired seeds per point.")
@options.dry_run
@options.hardware
@options.as_json
def ablate(
    running: Running,
    study: str,
    knobs: tuple[str, ...],
    rung: str,
    num_seeds: int,
    dry_run: bool,
    hardware: str | None,
    as_json: bool,
) -> None:
    """Compare STUDY's control with points that differ from it in one knob, on paired seeds.

    \b
    Example:
      pgolf ablate demo.toml --knob matrix_lr=0.02,0.06 --knob num_layers=3
    """
    from search.brain.ablation import ablation, effect_cells, effects, parse_knobs
    from search.brain.maker import study_space
    from search.launch import run_study
    from search.preflight.cost import known_hardware
    from search.study.config import load_study

    config = running.applied_to(load_study(study))
    space = None
    if running.simulate is not None:
        from search.simulation.world import load_world

        space = load_world(running.simulate).space
        config = replace(config, name=f"{config.name}-simulated", storage="memory")
    space = space or study_space(config)
    config = ablation(config, space, parse_knobs(space, knobs), rung=rung, seeds=num_seeds)
    if dry_run:
        options.show_cost(config, known_hardware(config, hardware), as_json=as_json)
        return
    found = effects(config, run_study(config, running).records)
    if as_json:
        print_json({"study": config.name, "folder": str(config.dir), "effects": found})
    else:
        header, *rows = effect_cells(found)
        print_table(header, rows)
