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
    from collections.abc import Generator, Mapping

    from search.driver import Driver
    from search.events import Event
    from search.ledger import TrialRecord, Word
    from search.study import EngineName, StudyConfig


@click.command()
@click.argument("study")
@click.option("--engine", type=click.Choice(["ray", "local"]), help="Override the study's engine.")
@click.option("--data", multiple=True, metavar="DIR", help="Override the study's dataset folder(s).")
@click.option("--ray-address", default="", metavar="ADDRESS", help="Use a running Ray cluster, e.g. auto.")
@click.option(
    "--simulate",
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Train nothing: call its evaluate(), in simulated time.",
)
@click.option("--seed", type=int, help="Simulation only: seed of the sampler.")
@click.option("--gpus", type=float, help="GPUs to use; simulated ones with --simulate.")
@click.option("--cpus", type=float, help="CPU cores to use; likewise.")
@click.option("--accept", metavar="TRIAL", help="Believe a score that stopped the study, and go on.")
@click.option("--reject", metavar="TRIAL", help="Count a trial whose score stopped the study as failed, and go on.")
@click.option("--dry-run", is_flag=True, help="Print rungs, resources and worst-case cost; run nothing.")
@click.option("--hardware", metavar="NAME|FILE.json", help="With --dry-run: forecast the control's run at every rung.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def search(
    study: str,
    engine: str | None,
    data: tuple[str, ...],
    ray_address: str,
    simulate: Path | None,
    seed: int | None,
    gpus: float | None,
    cpus: float | None,
    accept: str | None,
    reject: str | None,
    dry_run: bool,
    hardware: str | None,
    as_json: bool,
) -> None:
    """Run STUDY (a TOML file, a built-in name, or a study's folder), or go on where it stopped.

    \b
    Example:
      pgolf search demo.toml
      pgolf search 8xh100.toml --dry-run --hardware h100
      pgolf search 8xh100.toml --simulate surrogate.py --gpus 64
    """
    from search.commands import is_simulated
    from search.plan import describe, known_hardware, plan
    from search.study import load_study
    from space.plain import to_plain
    from space.spaces import named_space

    config = load_study(study)
    if data:
        config = replace(config, data=data)
    if engine:
        config = replace(config, engine=cast("EngineName", engine))
    if dry_run and (accept or reject):
        raise click.UsageError("--dry-run changes nothing, --accept and --reject do: give one or the other")
    if seed is not None and simulate is None:
        raise click.UsageError("--seed is for --simulate; a real study's seed is in its file")
    config = replace(config, gpus=config.gpus if gpus is None else gpus, cpus=config.cpus if cpus is None else cpus)
    if simulate is not None:  # in a folder of its own: its results are no measurements
        seed = config.seed if seed is None else seed
        if not is_simulated(config) or seed != config.seed:
            config = replace(config, name=f"{config.name}-simulated{seed}", seed=seed, folder="", storage="memory")
    if dry_run:
        named_space(config.space)
        planned = plan(config, known_hardware(config, hardware))
        click.echo(json.dumps(to_plain(planned), indent=1) if as_json else describe(planned))
        return
    verdicts: dict[str, Word] = {accept: "accepted"} if accept else {}
    verdicts |= {reject: "rejected"} if reject else {}
    driver = run_study(config, ray_address=ray_address, simulate=simulate, verdicts=verdicts)
    best = _best(config, driver)
    if as_json:
        found = {"trial": best.spec.trial_id, "result": to_plain(best.result)}
        click.echo(json.dumps({"study": config.name, "folder": str(config.dir), "best": found}, indent=1))


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
    from search.ablate import ablation, describe_effects, effects, parse_knobs
    from search.maker import study_space
    from search.study import load_study
    from space.plain import to_plain

    config = load_study(study)
    config = replace(config, data=data or config.data, engine=cast("EngineName", engine or config.engine))
    space = None
    if simulate is not None:
        from search.world import load_world

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


def run_study(
    config: StudyConfig, *, ray_address: str, simulate: Path | None, verdicts: Mapping[str, Word] | None = None
) -> Driver:
    """Run the study to its end, talking on stderr.

    Args:
        verdicts: on suspicious trials, given once the study has opened.
    """
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, markup=False)
    engine = f"simulating {simulate}" if simulate else f"engine {config.engine}"
    console.print(f"study {config.name}: {engine}, trials in {config.dir}", highlight=False)
    from search.budget import out_of_reach
    from search.driver import Driver
    from search.local import run_local, this_machine
    from search.lock import driver_lock
    from search.progress import follow, outlook

    if simulate:
        from search.simulate import run_simulated, simulated_driver
        from search.world import load_world

        world = load_world(simulate)  # a mistake in it leaves nothing behind
    for warning in out_of_reach(config):
        console.print(f"warning: {warning}", highlight=False)
    config.dir.mkdir(parents=True, exist_ok=True)
    every = 0.0
    events: Generator[Event, None, None] | None = None
    try:
        with driver_lock(config):
            if simulate:
                driver, clock = simulated_driver(config, world)
            else:
                driver = Driver(config)
            for trial_id, word in (verdicts or {}).items():
                driver.judge(trial_id, word)
            if driver.records:
                known = f"going on with {len(driver.records)} known trials: {outlook(config, driver.records)}"
                console.print(known, highlight=False)
            if simulate:
                events, every = run_simulated(driver, world, clock), 5.0
            elif config.engine == "ray":
                from search.ray_engine import run_ray

                events = run_ray(driver, this_machine(config.cpus, config.gpus), address=ray_address)
            else:
                events = run_local(driver, this_machine(config.cpus, config.gpus))
            follow(driver, events, console, every=every)
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
    return driver


def _best(config: StudyConfig, driver: Driver) -> TrialRecord:
    """The best trial, announced on stderr with what to do next."""
    from rich.console import Console

    from search.commands import is_simulated
    from search.ledger import best_record

    best = best_record(config, driver.records)
    how = f"stopped early, {driver.why_done}" if driver.why_done else "is complete"
    if best is None or best.result is None:
        if driver.why_done:
            raise ValueError(
                f"study {config.name} {how}, and none of its {len(driver.records)} trials is feasible; raise what the "
                "study may spend ([budget], printed by --dry-run) or lower its rungs' timeouts, then run it again"
            )
        raise ValueError(f"study {config.name} is complete, no trial is feasible; see why: pgolf status {config.dir}")
    lines = [
        f"study {config.name} {how}: best {best.spec.trial_id}, val_bpb {best.result.val_bpb:.4f}, "
        f"{best.result.artifact_bytes:,} bytes",
        f"  look at it:  pgolf pareto {config.dir}",
    ]
    if not is_simulated(config):
        lines.append(f"  export it:   pgolf export {config.dir} --out submission")
    Console(stderr=True, soft_wrap=True, markup=False).print("\n".join(lines), highlight=False)
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
    from search.local import this_machine
    from search.maker import open_dataset
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
