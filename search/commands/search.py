"""`pgolf search` and `pgolf trial`: everything that trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from pgolf_model.errors import UserError
from search.launch import run_study

if TYPE_CHECKING:
    from search.brain.driver import Driver
    from search.study.config import EngineName, StudyConfig
    from search.study.ledger import TrialRecord, Word


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
    from search.preflight.cost import cost_of, describe_cost, known_hardware
    from search.study.config import load_study
    from search.study.next_steps import is_simulated
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
        cost = cost_of(config, known_hardware(config, hardware))
        click.echo(json.dumps(to_plain(cost), indent=1) if as_json else describe_cost(cost))
        return
    verdicts: dict[str, Word] = {accept: "accepted"} if accept else {}
    verdicts |= {reject: "rejected"} if reject else {}
    driver = run_study(config, ray_address=ray_address, simulate=simulate, verdicts=verdicts)
    best = _best(config, driver)
    if as_json:
        found = {"trial": best.spec.trial_id, "result": to_plain(best.result)}
        click.echo(json.dumps({"study": config.name, "folder": str(config.dir), "best": found}, indent=1))


def _best(config: StudyConfig, driver: Driver) -> TrialRecord:
    """The best trial, announced on stderr with what to do next."""
    from rich.console import Console

    from search.study.ledger import best_record
    from search.study.next_steps import is_simulated

    best = best_record(config, driver.records)
    how = f"stopped early, {driver.why_done}" if driver.why_done else "is complete"
    if best is None or best.result is None:
        if driver.why_done:
            raise UserError(
                f"study {config.name} {how}, and none of its {len(driver.records)} trials is feasible",
                hint=(
                    "raise what the "
                    "study may spend ([budget], printed by --dry-run) or lower its rungs' timeouts, then run it again"
                ),
            )
        raise UserError(
            f"study {config.name} is complete, no trial is feasible", hint=f"see why: pgolf status {config.dir}"
        )
    lines = [
        f"study {config.name} {how}: best {best.spec.trial_id}, val_bpb {best.result.val_bpb:.4f}, "
        f"{best.result.artifact_bytes:,} bytes",
        f"  look at it:  pgolf pareto {config.dir}",
    ]
    if not is_simulated(config):
        lines.append(f"  export it:   pgolf export {config.dir} --out submission")
    Console(stderr=True, soft_wrap=True, markup=False).print("\n".join(lines), highlight=False)
    return best
