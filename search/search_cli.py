"""`pgolf search` and `pgolf trial`: everything that trains."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from collections.abc import Generator

    from search.events import Event
    from search.ledger import TrialRecord
    from search.study import EngineName, StudyConfig


@click.command()
@click.argument("study")
@click.option("--engine", type=click.Choice(["ray", "local"]), help="Override the study's engine.")
@click.option("--data", multiple=True, metavar="DIR", help="Override the study's dataset folder(s).")
@click.option("--ray-address", default="", metavar="ADDRESS", help="Use a running Ray cluster, e.g. auto.")
@click.option("--dry-run", is_flag=True, help="Print rungs, resources and worst-case cost; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def search(
    study: str, engine: str | None, data: tuple[str, ...], ray_address: str, dry_run: bool, as_json: bool
) -> None:
    """Run STUDY (a TOML file, a built-in name, or a study's folder), or go on where it stopped.

    \b
    Example:
      pgolf search demo.toml
      pgolf search 8xh100.toml --dry-run
    """
    from search.plan import describe, plan
    from search.study import load_study
    from space.plain import to_plain
    from space.spaces import named_space

    config = load_study(study)
    if data:
        config = replace(config, data=data)
    if engine:
        config = replace(config, engine=cast("EngineName", engine))
    if dry_run:
        named_space(config.space)
        planned = plan(config)
        click.echo(json.dumps(to_plain(planned), indent=1) if as_json else describe(planned))
        return
    best = _run(config, ray_address=ray_address)
    if as_json:
        found = {"trial": best.spec.trial_id, "result": to_plain(best.result)}
        click.echo(json.dumps({"study": config.name, "folder": str(config.dir), "best": found}, indent=1))


def _run(config: StudyConfig, *, ray_address: str) -> TrialRecord:
    """Run the study to its end, talking on stderr; its best trial."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print(f"study {config.name}: engine {config.engine}, trials in {config.dir}", highlight=False)
    from search.driver import Driver
    from search.ledger import best_record
    from search.local import run_local, this_machine
    from search.lock import driver_lock
    from search.progress import follow, outlook

    config.dir.mkdir(parents=True, exist_ok=True)
    machine = this_machine(config.cpus, config.gpus)
    events: Generator[Event, None, None] | None = None
    try:
        with driver_lock(config):
            driver = Driver(config)
            if driver.records:
                known = f"going on with {len(driver.records)} known trials: {outlook(config, driver.records)}"
                console.print(known, highlight=False)
            if config.engine == "ray":
                from search.ray_engine import run_ray

                events = run_ray(driver, machine, address=ray_address)
            else:
                events = run_local(driver, machine)
            follow(driver, events, console)
    except KeyboardInterrupt:
        if events is not None:
            console.print("\nstopping ...", highlight=False)
            events.close()
        console.print(
            "stopped; finished trials are kept, running ones will be run again. Go on with:\n"
            f"  pgolf {shlex.join(sys.argv[1:])}",
            highlight=False,
        )
        raise SystemExit(130) from None
    best = best_record(config, driver.records)
    if best is None or best.result is None:
        raise ValueError(f"study {config.name} is complete, no trial is feasible; see why: pgolf status {config.dir}")
    console.print(
        f"study {config.name} is complete: best {best.spec.trial_id}, val_bpb {best.result.val_bpb:.4f}, "
        f"{best.result.artifact_bytes:,} bytes\n"
        f"  look at it:  pgolf pareto {config.dir}\n"
        f"  export it:   pgolf export {config.dir} --out submission",
        highlight=False,
    )
    return best


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
    from search.driver import open_dataset
    from search.local import this_machine
    from search.single import run_single
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
