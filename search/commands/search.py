"""`pgolf search`: run a study to its end, or go on with one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from pgolf_model.errors import UserError
from search.commands import options
from search.commands.tables import print_json

if TYPE_CHECKING:
    from search.brain.driver import Driver
    from search.launch import Running
    from search.study.config import StudyConfig
    from search.study.ledger import TrialRecord


@click.command()
@click.argument("study")
@options.running
@click.option("--sampler-seed", type=int, metavar="N", help="With --simulate: seed of the sampler.")
@options.dry_run
@options.hardware
@options.as_json
def search(
    running: Running, study: str, sampler_seed: int | None, dry_run: bool, hardware: str | None, as_json: bool
) -> None:
    """Run STUDY (a TOML file, a built-in name, or a study's folder), or go on where it stopped.

    With --dry-run it says what every rung may cost; --hardware adds the forecast of the control's run.

    \b
    Example:
      pgolf search demo.toml
      pgolf search 8xh100.toml --dry-run --hardware h100
      pgolf search 8xh100.toml --simulate surrogate.py --gpus 64
    """
    from search.launch import run_study
    from search.preflight.cost import known_hardware
    from search.study.config import load_study
    from search.study.next_steps import is_simulated

    if sampler_seed is not None and running.simulate is None:
        raise click.UsageError("--sampler-seed is for --simulate; a real study's seed is in its file")
    config = running.applied_to(load_study(study))
    if running.simulate is not None:  # in a folder of its own: its results are no measurements
        seed = config.seed if sampler_seed is None else sampler_seed
        if not is_simulated(config) or seed != config.seed:
            config = replace(config, name=f"{config.name}-simulated{seed}", seed=seed, folder="", storage="memory")
    if dry_run:
        options.show_cost(config, known_hardware(config, hardware), as_json=as_json)
        return
    best = _best(config, run_study(config, running))
    if as_json:
        found = {"trial": best.spec.trial_id, "result": best.result}
        print_json({"study": config.name, "folder": str(config.dir), "best": found})


def _best(config: StudyConfig, driver: Driver) -> TrialRecord:
    """The best trial, announced on stderr with what to do next."""
    from search.study.ledger import best_record
    from search.study.next_steps import is_simulated

    best = best_record(config, driver.records)
    how = f"stopped early, {driver.why_done}" if driver.why_done else "is complete"
    if best is None or best.result is None:
        if driver.why_done:
            raise UserError(
                f"study {config.name} {how}, and none of its {len(driver.records)} trials is feasible",
                hint="raise what the study may spend ([budget], printed by --dry-run) or lower its rungs' timeouts, "
                "then run it again",
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
    click.echo("\n".join(lines), err=True)
    return best
