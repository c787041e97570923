"""`pgolf trial`: train, pack and score one configuration without a study."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("config")
@click.option("--data", required=True, metavar="DIR", help="Dataset folder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for script, artifact and result.")
@click.option("--steps", type=int, default=0, help="Training budget in steps instead of the configuration's.")
@click.option("--seconds", type=float, default=0.0, help="Training budget in seconds instead of the configuration's.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Seed; give it several times for several runs.")
@click.option("--cpus", type=float, default=0.0, help="CPU cores to use; all by default.")
@click.option("--gpus", type=int, default=-1, help="GPUs to use, one torchrun rank each; all by default.")
@click.option("--keep-checkpoint", is_flag=True, help="Keep the trained weights, for `pgolf quantize`.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def trial(
    config: str,
    data: str,
    out: Path,
    steps: int,
    seconds: float,
    seeds: tuple[int, ...],
    cpus: float,
    gpus: int,
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
    from space.plain import to_plain
    from space.presets import load_config

    run_config = load_config(config)
    if steps or seconds:
        run_config = replace(run_config, budget=Budget(steps=steps, seconds=seconds))
    machine = this_machine(cpus, max(gpus, 0))
    num_gpus = machine.gpus if gpus < 0 else gpus
    result = run_single(
        run_config,
        dataset=open_dataset(data),
        folder=out,
        seeds=seeds or (run_config.seed,),
        cpus=machine.cpus,
        gpus=num_gpus,
        keep_checkpoint=keep_checkpoint,
    )
    if as_json:
        click.echo(json.dumps(to_plain(result), indent=1))
    elif result.status == "complete":
        click.echo(f"val_bpb {result.val_bpb:.8f}  artifact_bytes {result.artifact_bytes}  in {out}")
    if result.status != "complete":
        print(f"error: the trial {result.status}: {result.error}", file=sys.stderr)
        raise SystemExit(1)
