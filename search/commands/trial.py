"""`pgolf trial`: train, pack and score one configuration without a study."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from search.commands import options
from search.commands.tables import print_json


@click.command()
@click.argument("config")
@options.dataset
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for script, artifact and result.")
@click.option("--steps", type=int, default=0, help="Training budget in steps instead of the configuration's.")
@click.option("--seconds", type=float, default=0.0, help="Training budget in seconds instead of the configuration's.")
@options.training_seeds
@options.cpus
@options.gpus
@click.option("--keep-checkpoint", is_flag=True, help="Keep the trained weights, for `pgolf quantize`.")
@options.as_json
def trial(
    config: str,
    data: str,
    out: Path,
    steps: int,
    seconds: float,
    seeds: tuple[int, ...],
    cpus: float | None,
    gpus: float | None,
    keep_checkpoint: bool,
    as_json: bool,
) -> None:
    """Train CONFIG (a preset or a TOML file) once per seed, exactly as a study would, and score the artifact.

    \b
    Example:
      pgolf trial tiny --data data/builtin --steps 200 --out runs/tiny
    """
    from pgolf_model.config import Budget
    from search.corpus.dataset import open_dataset
    from search.engines.machine import this_machine
    from search.engines.single import run_single
    from space.presets import load_config

    run_config = load_config(config)
    if steps or seconds:
        run_config = replace(run_config, budget=Budget(steps=steps, seconds=seconds))
    machine = this_machine(cpus or 0, gpus or 0)
    result = run_single(
        run_config,
        dataset=open_dataset(data),
        folder=out,
        seeds=seeds or (run_config.seed,),
        cpus=machine.cpus,
        gpus=machine.gpus if gpus is None else int(gpus),  # one torchrun rank each
        keep_checkpoint=keep_checkpoint,
    )
    if as_json:
        print_json(result)
    elif result.status == "complete":
        click.echo(f"val_bpb {result.val_bpb:.8f}  artifact_bytes {result.artifact_bytes}  in {out}")
    if result.status != "complete":
        print(f"error: the trial {result.status}: {result.error}", file=sys.stderr)
        raise SystemExit(1)
