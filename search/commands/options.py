"""Options that several verbs share: one word means one thing everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from search.launch import Running

if TYPE_CHECKING:
    from search.study.config import EngineName, StudyConfig
    from space.forecast.hardware import Hardware

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
datasets = click.option("--data", multiple=True, metavar="DIR", help="Dataset folder; several may be given.")
dataset = click.option("--data", required=True, metavar="DIR", help="Dataset folder.")
cpus = click.option("--cpus", type=click.FloatRange(0), help="CPU cores to use; all of the machine's by default.")
gpus = click.option("--gpus", type=click.FloatRange(0), help="GPUs to use; all of the machine's by default.")
hardware = click.option(
    "--hardware", metavar="NAME|FILE.json", help="Forecast the run on it: 8xh100, h200, or the file of pgolf doctor."
)
training_seeds = click.option(
    "--seed", "seeds", type=int, multiple=True, help="Seed of a training run; give it several times for several runs."
)
dry_run = click.option("--dry-run", is_flag=True, help="Print rungs, resources and worst-case cost; run nothing.")


def running(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that runs a study `--engine --data --cpus --gpus --ray-address --simulate` as one `Running`."""

    @click.option("--engine", type=click.Choice(["ray", "local"]), help="What runs the trials; the study's by default.")
    @datasets
    @cpus
    @gpus
    @click.option("--ray-address", default="", metavar="ADDRESS", help="Use a running Ray cluster, e.g. auto.")
    @click.option(
        "--simulate",
        type=click.Path(path_type=Path),
        metavar="FILE.py",
        help="Train nothing: call its evaluate() in simulated time, on as many cores and GPUs as are given.",
    )
    @functools.wraps(command)
    def with_running(
        *,
        engine: EngineName | None,
        data: tuple[str, ...],
        cpus: float | None,
        gpus: float | None,
        ray_address: str,
        simulate: Path | None,
        **others: Any,
    ) -> None:
        how = Running(engine=engine, data=data, cpus=cpus, gpus=gpus, ray_address=ray_address, simulate=simulate)
        command(how, **others)

    return with_running


def show_cost(study: StudyConfig, machine: Hardware | None, *, as_json: bool) -> None:
    """Print what a study may cost, as `--dry-run` asks; nothing is run or written."""
    from search.commands.tables import print_json, print_table
    from search.preflight.cost import cost_cells, cost_notes, cost_of
    from space.spaces import named_space

    named_space(study.space)  # an unknown one is refused before anything is printed
    cost = cost_of(study, machine)
    if as_json:
        print_json(cost)
        return
    click.echo(f"study {cost.study}: space {cost.space}, cap {cost.artifact_bytes_cap:,} bytes")
    header, *rows = cost_cells(cost)
    print_table(header, rows)
    click.echo("\n".join(cost_notes(cost)))
