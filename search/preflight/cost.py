"""The cost of a study before it starts: `pgolf search STUDY --dry-run`.

Two budgets appear here: a rung's, when one run ends (`pgolf_model.config.Budget`), and the study's, what all trials
together may spend (`[budget]`, `search.study.config.Limits`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgolf_model.config import RunConfig
from search.engines.machine import this_machine
from search.ladder.budget import account, out_of_reach, worst_seconds
from search.ladder.promote import most_trials, planned_trials
from search.ladder.race import control_seeds
from search.ladder.retry import ATTEMPTS
from search.study.config import StudyConfig
from space.forecast.hardware import HARDWARE_FILE, Hardware, load_hardware
from space.forecast.speed import SpeedEstimate, estimate_speed
from space.spaces import named_space
from space.words import count, duration
from trials.rungs import Rung


@dataclass(frozen=True, kw_only=True, slots=True)
class RungCost:
    """Trials and cost of one rung. Worst case: the most trials, every run until its timeout, one run of each twice."""

    name: str
    trials: int  # it wants
    most_trials: int  # it can get, when early promotions are overtaken
    runs: int  # of the trials it wants: times seeds
    budget: str  # of one run: "600 s" or "500 steps"
    cpus: float  # per trial
    gpus: float  # per trial
    processes: int  # torchrun ranks per trial
    train_gpu_hours: float | None  # training alone; None for budgets in steps, whose seconds depend on the machine
    worst_gpu_hours: float
    worst_dollars: float
    worst_core_hours: float
    worst_wall_seconds: float | None  # trials side by side as cores allow; None where a rung of the study asks for GPUs
    control: SpeedEstimate | None = None  # forecast of the control's run; None where the hardware is unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCost:
    """Trials and cost of a study."""

    study: str
    space: str
    artifact_bytes_cap: int
    rungs: tuple[RungCost, ...]
    worst_gpu_hours: float  # of all rungs together, or the budget if that is less
    worst_dollars: float
    worst_core_hours: float  # the rungs' together
    worst_wall_seconds: float | None  # one rung after another; None where a rung asks for GPUs
    cores: int | None  # CPU cores that wall seconds are for; None likewise
    budget: str  # the study's limits, in words
    warnings: tuple[str, ...]  # rungs that the budget cannot reach


def cost_of(study: StudyConfig, hardware: Hardware | None = None) -> StudyCost:
    """Return the cost of a study; needs no data, no GPU and no Ray.

    The worst case is an upper bound, but for runs that are killed with their worker, driver or node.
    Wall seconds are for the study's `cpus`, or for this machine's cores where it sets none.
    """
    on_cpus = not any(rung.gpus for rung in study.rungs)
    cores = int(study.cpus or this_machine().cpus) if on_cpus else None
    ladder = zip(study.rungs, planned_trials(study), most_trials(study), strict=True)
    rungs = tuple(
        _rung_cost(study, rung, trials=trials, most=most, cores=cores, hardware=hardware)
        for rung, trials, most in ladder
    )
    worst_gpu_hours = min(sum(r.worst_gpu_hours for r in rungs), account(study, ()).gpu_hours_limit)
    return StudyCost(
        study=study.name,
        space=study.space,
        artifact_bytes_cap=study.caps.artifact_bytes,
        rungs=rungs,
        worst_gpu_hours=worst_gpu_hours,
        worst_dollars=worst_gpu_hours * study.dollars_per_gpu_hour,
        worst_core_hours=sum(r.worst_core_hours for r in rungs),
        worst_wall_seconds=sum(r.worst_wall_seconds or 0.0 for r in rungs) if on_cpus else None,
        cores=cores,
        budget=describe_limits(study),
        warnings=out_of_reach(study),
    )


def _rung_cost(
    study: StudyConfig, rung: Rung, *, trials: int, most: int, cores: int | None, hardware: Hardware | None
) -> RungCost:
    """The cost of one rung that wants `trials` and can get `most`."""
    of_control = 0  # runs that only the control has, for a noise floor
    if rung is study.rungs[0] and study.control:
        of_control = max(0, len(control_seeds(study, rung)) - len(rung.seeds))
    runs = trials * len(rung.seeds) + of_control
    lost = ATTEMPTS - 1  # seeds that finished are kept, so that each attempt but the last costs one run in vain
    runs_of_trial = len(rung.seeds) + lost
    worst = worst_seconds(rung, most * runs_of_trial + of_control)
    wall = None
    if cores is not None:
        side_by_side = max(1, int(cores / rung.cpus) if rung.cpus else most)
        wall = worst_seconds(rung, -(-most // side_by_side) * runs_of_trial + of_control)
    limits = [f"{rung.steps} steps"] if rung.steps else []
    limits += [f"{rung.seconds:g} s"] if rung.seconds else []
    control = None
    if hardware:
        space = named_space(study.space)
        control = rung_speed(rung, space.build(space.control), hardware)
    return RungCost(
        name=rung.name,
        trials=trials,
        most_trials=most,
        runs=runs,
        budget=" or ".join(limits),
        cpus=rung.cpus,
        gpus=rung.gpus,
        processes=rung.processes,
        train_gpu_hours=runs * rung.seconds * rung.gpus / 3600 if rung.seconds else None,
        worst_gpu_hours=worst * rung.gpus / 3600,
        worst_dollars=worst * rung.gpus / 3600 * study.dollars_per_gpu_hour,
        worst_core_hours=worst * rung.cpus / 3600,
        worst_wall_seconds=wall,
        control=control,
    )


def known_hardware(study: StudyConfig, named: str | None) -> Hardware | None:
    """Return the hardware that the study will run on: as named, else as `pgolf doctor` measured it, else None."""
    measured = study.dir / HARDWARE_FILE
    if named:
        return load_hardware(named)[0]
    return load_hardware(str(measured))[0] if measured.is_file() else None


def rung_speed(rung: Rung, config: RunConfig, hardware: Hardware, *, val_tokens: int = 0) -> SpeedEstimate:
    """Return the forecast of a configuration's run at a rung, on its GPUs or its share of one.

    Args:
        val_tokens: of the dataset, of which the rung may score fewer; 0 takes the challenge's.
    """
    share = rung.gpus if 0 < rung.gpus < 1 else 1.0
    run = rung.apply(config, rung.seeds[0])
    if val_tokens and run.eval.max_tokens > val_tokens:
        run = replace(run, eval=replace(run.eval, max_tokens=0))
    return estimate_speed(run, hardware, ranks=rung.processes, share=share, val_tokens=val_tokens)


def describe_limits(study: StudyConfig) -> str:
    """Return the study's `[budget]` in words, "no limit" where it sets none."""
    limits, shown = study.budget, []
    if limits.gpu_hours:
        shown.append(f"{limits.gpu_hours:g} GPU-hours")
    if limits.dollars:
        shown.append(f"${limits.dollars:,.2f}")
    if limits.wall_seconds:
        shown.append(f"{limits.wall_seconds / 3600:g} hours a launch")
    if limits.trials:
        shown.append(f"{limits.trials} trials")
    return f"{', '.join(shown)}; {limits.reserve:.0%} only for the top rung" if shown else "no limit"


def cost_cells(cost: StudyCost) -> list[list[str]]:
    """Return titles and a row for each rung: in GPU-hours and dollars, or in core-hours and time without GPUs."""
    titles = ["rung", "trials", "most", "runs", "budget", "cpus"]
    if cost.worst_wall_seconds is None:
        rows = [[*titles, "gpus", "ranks", "train GPU-h", "worst GPU-h", "worst $"]]
    else:
        rows = [[*titles, "ranks", "worst core-h", "worst time"]]
    for r in cost.rungs:
        row = [r.name, *map(str, (r.trials, r.most_trials, r.runs)), r.budget, f"{r.cpus:g}"]
        if cost.worst_wall_seconds is None:
            train = "-" if r.train_gpu_hours is None else f"{r.train_gpu_hours:.2f}"
            row += [f"{r.gpus:g}", str(r.processes), train, f"{r.worst_gpu_hours:.2f}", f"{r.worst_dollars:.2f}"]
        else:
            row += [str(r.processes), f"{r.worst_core_hours:.2f}", duration(r.worst_wall_seconds or 0.0)]
        rows.append(row)
    return rows


def cost_notes(cost: StudyCost) -> list[str]:
    """Return what the table leaves open: the worst case, the budget, warnings, forecasts of the control's run."""
    lines = [f"worst case (most trials, every run until its timeout, one of each trial's twice): {_worst_case(cost)}"]
    lines.append(f"budget: {cost.budget}")
    lines += [f"warning: {warning}" for warning in cost.warnings]
    return lines + [f"{r.name}: control on {describe_control(r.control)}" for r in cost.rungs if r.control]


def _worst_case(cost: StudyCost) -> str:
    """Return the sum over rungs in words."""
    if cost.worst_wall_seconds is not None:
        wall = f"{duration(cost.worst_wall_seconds)} on {count(cost.cores or 0, 'core')}"
        return f"{cost.worst_core_hours:.1f} core-hours, {wall}"
    ladder, most = sum(r.worst_gpu_hours for r in cost.rungs), cost.worst_gpu_hours
    allowed = f"; the budget allows {most:.1f}" if most < ladder else ""
    return f"{ladder:.1f} GPU-hours{allowed}, ${cost.worst_dollars:.2f}"


def describe_control(speed: SpeedEstimate) -> str:
    """Return the forecast of one run in one line."""
    return (
        f"{speed.ranks} x {speed.hardware}: {speed.steps:,} steps ({speed.steps_low:,} to {speed.steps_high:,}) of "
        f"{1e3 * speed.step_seconds:.1f} ms, {speed.peak_memory_bytes / 2**20:,.0f} MiB, {speed.total_seconds:,.0f} s"
    )
