"""What a study will do and can cost at most, known before anything runs: a pure function of its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgolf_model.config import RunConfig
from search.ladder.budget import account, out_of_reach, worst_seconds
from search.ladder.promote import most_trials, planned_trials
from search.ladder.race import control_seeds
from search.ladder.retry import ATTEMPTS
from search.study.config import StudyConfig
from space.forecast.hardware import HARDWARE_FILE, Hardware, load_hardware
from space.forecast.speed import SpeedEstimate, estimate_speed
from space.spaces import named_space
from trials.rungs import Rung


@dataclass(frozen=True, kw_only=True, slots=True)
class RungPlan:
    """One rung's share of the plan."""

    name: str
    trials: int  # it wants
    most_trials: int  # it can get, when early promotions are overtaken
    runs: int  # of the trials it wants: times seeds
    budget: str  # "600 s" or "500 steps"
    cpus: float  # per trial
    gpus: float  # per trial
    processes: int  # torchrun ranks per trial
    train_gpu_hours: float | None  # training alone; None for budgets in steps, whose seconds depend on the machine
    worst_gpu_hours: float  # of the most trials: every run until its timeout, one run of each trial twice
    worst_dollars: float
    control: SpeedEstimate | None = None  # forecast of the control's run; None where the hardware is unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """The whole ladder."""

    study: str
    space: str
    artifact_bytes_cap: int
    rungs: tuple[RungPlan, ...]
    worst_gpu_hours: float  # what trials can cost at most: the rungs' together, or the budget where that is less
    worst_dollars: float
    budget: str  # the limits, in words
    warnings: tuple[str, ...]  # rungs that the budget cannot reach


def plan(study: StudyConfig, hardware: Hardware | None = None) -> StudyPlan:
    """The plan of a study; needs no data, no GPU and no Ray.

    The worst case is a bound: runs that were killed with their worker, driver or node are all that can come on top.
    """
    space = named_space(study.space) if hardware else None
    rungs = []
    for rung, trials, most in zip(study.rungs, planned_trials(study), most_trials(study), strict=True):
        of_control = 0
        if rung is study.rungs[0] and study.control:
            of_control = max(0, len(control_seeds(study, rung)) - len(rung.seeds))
        runs = trials * len(rung.seeds) + of_control
        lost = ATTEMPTS - 1  # seeds that finished are kept, so that each attempt but the last costs one run in vain
        worst = worst_seconds(rung, most * (len(rung.seeds) + lost) + of_control) * rung.gpus / 3600
        limits = [f"{rung.steps} steps"] if rung.steps else []
        limits += [f"{rung.seconds:g} s"] if rung.seconds else []
        rungs.append(
            RungPlan(
                name=rung.name,
                trials=trials,
                most_trials=most,
                runs=runs,
                budget=" or ".join(limits),
                cpus=rung.cpus,
                gpus=rung.gpus,
                processes=rung.processes,
                train_gpu_hours=runs * rung.seconds * rung.gpus / 3600 if rung.seconds else None,
                worst_gpu_hours=worst,
                worst_dollars=worst * study.dollars_per_gpu_hour,
                control=rung_speed(rung, space.build(space.control), hardware) if space and hardware else None,
            )
        )
    worst_gpu_hours = min(sum(r.worst_gpu_hours for r in rungs), account(study, ()).gpu_hours_limit)
    return StudyPlan(
        study=study.name,
        space=study.space,
        artifact_bytes_cap=study.caps.artifact_bytes,
        rungs=tuple(rungs),
        worst_gpu_hours=worst_gpu_hours,
        worst_dollars=worst_gpu_hours * study.dollars_per_gpu_hour,
        budget=describe_limits(study),
        warnings=out_of_reach(study),
    )


def known_hardware(study: StudyConfig, named: str | None) -> Hardware | None:
    """What the study will run on: as named, else what `pgolf doctor` measured for it, else nobody knows."""
    measured = study.dir / HARDWARE_FILE
    if named:
        return load_hardware(named)[0]
    return load_hardware(str(measured))[0] if measured.is_file() else None


def rung_speed(rung: Rung, config: RunConfig, hardware: Hardware, *, val_tokens: int = 0) -> SpeedEstimate:
    """The forecast of a configuration's run at a rung, on its GPUs or its share of one.

    Args:
        val_tokens: of the dataset; 0 takes the challenge's. The rung may score fewer.
    """
    share = rung.gpus if 0 < rung.gpus < 1 else 1.0
    run = rung.apply(config, rung.seeds[0])
    if val_tokens and run.eval.max_tokens > val_tokens:
        run = replace(run, eval=replace(run.eval, max_tokens=0))
    return estimate_speed(run, hardware, ranks=rung.processes, share=share, val_tokens=val_tokens)


def describe_limits(study: StudyConfig) -> str:
    """What the study may spend at most, whatever its ladder says."""
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


def describe(study: StudyPlan) -> str:
    """The plan as a plain table."""
    lines = [
        f"study {study.study}: space {study.space}, cap {study.artifact_bytes_cap:,} bytes",
        f"{'rung':<10}{'trials':>7}{'most':>6}{'runs':>6}  {'budget':<16}{'cpus':>5}{'gpus':>6}{'ranks':>6}"
        f"{'train GPU-h':>13}{'worst GPU-h':>13}{'worst $':>10}",
    ]
    for r in study.rungs:
        train = "-" if r.train_gpu_hours is None else f"{r.train_gpu_hours:.2f}"
        lines.append(
            f"{r.name:<10}{r.trials:>7}{r.most_trials:>6}{r.runs:>6}  {r.budget:<16}"
            f"{r.cpus:>5g}{r.gpus:>6g}{r.processes:>6}{train:>13}{r.worst_gpu_hours:>13.2f}{r.worst_dollars:>10.2f}"
        )
    ladder, most = sum(r.worst_gpu_hours for r in study.rungs), study.worst_gpu_hours
    allowed = f"; the budget allows {most:.1f}" if most < ladder else ""
    worst = f"{ladder:.1f} GPU-hours{allowed}, ${study.worst_dollars:.2f}"
    lines.append(f"worst case (most trials, every run until its timeout, one of each trial's twice): {worst}")
    lines.append(f"budget: {study.budget}")
    lines += [f"warning: {warning}" for warning in study.warnings]
    for r in study.rungs:
        if r.control:
            lines.append(f"{r.name:<10}control on {describe_control(r.control)}")
    return "\n".join(lines)


def describe_control(speed: SpeedEstimate) -> str:
    """The forecast of one run in one line."""
    return (
        f"{speed.ranks} x {speed.hardware}: {speed.steps:,} steps ({speed.steps_low:,} to {speed.steps_high:,}) of "
        f"{1e3 * speed.step_seconds:.1f} ms, {speed.peak_memory_bytes / 2**20:,.0f} MiB, {speed.total_seconds:,.0f} s"
    )
