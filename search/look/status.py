"""The state of a study: trials by rung and status, running trials and their ends, costs. It only reads files.

All facts come from the study's folder, so they can be read while a driver runs, after a crash, or on another machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from pgolf_model.files import PROGRESS_FILE
from search.ladder.budget import account, describe_account
from search.ladder.promote import Done, decide
from search.ladder.race import NoiseFloor, noise_floors
from search.ladder.trust import ProxyQuality, proxy_quality
from search.look.analysis import ENDED
from search.look.outlook import Pace, paces, read_lives, trial_seconds_left
from search.look.score_forecast import BpbForecast, forecast_study
from search.study.config import STUDY_FILE, StudyConfig
from search.study.journal import why_done
from search.study.ledger import TrialRecord, best_record, trial_dir
from search.study.next_steps import export_command, is_simulated, judge_command, search_command, study_argument
from trials.files import read_progress
from trials.live import LiveRun
from trials.rungs import Rung
from trials.spec import RESULT_FILE

State = Literal["not started", "running", "interrupted", "suspicious", "stopped", "out of budget", "finished"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RungStatus:
    """One rung's trials. `asked` is all of them, `waiting` have not begun, `interrupted` have lost their driver."""

    rung: str
    asked: int
    waiting: int
    running: int
    interrupted: int
    complete: int
    diverged: int
    failed: int
    timeout: int
    infeasible: int
    best: str | None  # lowest feasible val_bpb at this rung
    best_val_bpb: float | None
    best_artifact_bytes: int | None
    devices: tuple[str, ...] = ()  # that its runs used; on several, runs with budgets in seconds do not compare


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveTrial:
    """A trial that has begun and not ended: its newest word, or zeros before the first."""

    trial_id: str
    interrupted: bool
    seed: int  # that runs
    seeds_done: int
    num_seeds: int
    phase: str  # starting, training, calibrating, packing, scoring
    step: int
    progress: float  # of this seed's training, in [0, 1]
    train_loss: float | None
    ms_per_step: float | None
    seconds: float  # so far, all seeds
    eta_seconds: float | None  # until the trial ends; None when unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStatus:
    """All facts that `pgolf status` shows."""

    study: str
    folder: str
    state: State
    driver: int | None  # process id
    rungs: tuple[RungStatus, ...]
    live: tuple[LiveTrial, ...]
    best: str | None  # at the highest rung that has a feasible trial
    best_val_bpb: float | None
    elapsed_seconds: float | None  # since launch, to now while running, else to the last result
    gpu_seconds: float  # trials' wall time x their GPUs, unfinished ones included
    cpu_seconds: float
    dollars: float
    gpu_hours_limit: float | None  # of [budget], the tighter of GPU-hours and dollars; None where neither is limited
    budget: str  # GPU-hours spent, committed and left, as the driver counts, in a sentence
    noise: tuple[NoiseFloor, ...]  # per rung where a trial ran several seeds
    proxies: tuple[ProxyQuality, ...]  # how well each rung has ranked the trials promoted from it, and its keep share
    forecasts: tuple[BpbForecast, ...]  # at the top rung: of its running trials, then of the best trials below it
    next: tuple[str, ...]  # commands that make sense now


def study_status(
    study: StudyConfig, records: Sequence[TrialRecord], *, driver: int | None, alive: bool, now: float
) -> StudyStatus:
    """Return the status at Unix time `now`."""
    lives = read_lives(study, records, now=now if alive else None)
    pace = paces(study, records, lives)
    live = tuple(
        _live(r, lives[r.spec.trial_id], pace[r.spec.rung], alive=alive) for r in records if r.spec.trial_id in lives
    )
    begun = {trial.trial_id: trial for trial in live}
    best = best_record(study, tuple(records))
    gpu = sum(_spent(r, begun) * r.spec.gpus for r in records)
    books = account(study, records)
    state = study_state(study, records, alive=alive)
    best_id = best.spec.trial_id if best else None
    return StudyStatus(
        study=study.name,
        folder=str(study.dir),
        state=state,
        driver=driver,
        rungs=tuple(_rung_status(study, rung, records, begun, alive=alive) for rung in study.rungs),
        live=live,
        best=best_id,
        best_val_bpb=best.result.val_bpb if best and best.result else None,
        elapsed_seconds=_elapsed(study, records, alive=alive, now=now),
        gpu_seconds=gpu,
        cpu_seconds=sum(_spent(r, begun) * r.spec.cpus for r in records),
        dollars=gpu / 3600 * study.dollars_per_gpu_hour,
        gpu_hours_limit=books.gpu_hours_limit if isfinite(books.gpu_hours_limit) else None,
        budget=describe_account(books),
        noise=noise_floors(study, records),
        proxies=tuple(
            proxy_quality(study, records, lower=lower, upper=upper)
            for lower, upper in zip(study.rungs, study.rungs[1:], strict=False)
        ),
        forecasts=_forecasts(study, records),
        next=_next(study, records, state, best_id),
    )


def _rung_status(
    study: StudyConfig, rung: Rung, records: Sequence[TrialRecord], begun: dict[str, LiveTrial], *, alive: bool
) -> RungStatus:
    """Return one rung's counts and best trial."""
    at = [r for r in records if r.spec.rung == rung.name]
    ended = Counter(r.result.status for r in at if r.result)
    unfinished = [r.spec.trial_id for r in at if r.result is None]
    running = sum(trial_id in begun for trial_id in unfinished)
    feasible = [r.result for r in at if r.result and r.feasible(study.caps)]
    best = min(feasible, key=lambda result: result.val_bpb, default=None)
    best_id = next((r.spec.trial_id for r in at if best and r.result is best), None)
    return RungStatus(
        rung=rung.name,
        asked=len(at),
        waiting=len(unfinished) - running if alive else 0,
        running=running if alive else 0,
        interrupted=0 if alive else len(unfinished),
        **{status: ended[status] for status in ENDED},
        best=best_id,
        best_val_bpb=best.val_bpb if best else None,
        best_artifact_bytes=best.artifact_bytes if best else None,
        devices=tuple(sorted({run.device for r in at if r.result for run in r.result.runs if run.device})),
    )


def _live(record: TrialRecord, live: LiveRun, pace: Pace, *, alive: bool) -> LiveTrial:
    num_seeds = len(record.spec.seeds)
    return LiveTrial(
        trial_id=record.spec.trial_id,
        interrupted=not alive,
        seed=live.seed,
        seeds_done=live.seeds_done,
        num_seeds=num_seeds,
        phase=live.phase,
        step=live.step,
        progress=live.progress,
        train_loss=live.train_loss,
        ms_per_step=live.ms_per_step,
        seconds=live.seconds,
        eta_seconds=trial_seconds_left(live, num_seeds, pace) if alive else None,
    )


def _forecasts(study: StudyConfig, records: Sequence[TrialRecord]) -> tuple[BpbForecast, ...]:
    """Return forecasts at the top rung; learning curves are read only while a trial runs there."""
    top = [r for r in records if r.spec.rung == study.rungs[-1].name]
    running = any(r.result is None for r in top)
    learning_curves = {r.spec.trial_id: _learning_curve(study, r) for r in top} if running else {}
    return forecast_study(study, records, learning_curves)


def _learning_curve(study: StudyConfig, record: TrialRecord) -> list[tuple[float, float]]:
    """Return (progress, train_loss) of the trial's first seed, in order."""
    path = trial_dir(study, record.spec.trial_id) / f"seed{record.spec.seeds[0]}" / PROGRESS_FILE
    return [(r["progress"], r["train_loss"]) for r in read_progress(path) if "progress" in r and "train_loss" in r]


def _seed_dirs(study: StudyConfig, record: TrialRecord) -> list[Path]:
    """Return the folders of the seeds that have begun."""
    folder = trial_dir(study, record.spec.trial_id)
    return [path for seed in record.spec.seeds if (path := folder / f"seed{seed}").is_dir()]


def _spent(record: TrialRecord, begun: dict[str, LiveTrial]) -> float:
    """Return the seconds of all attempts so far."""
    if record.result:
        return record.spec.earlier_seconds + record.result.seconds
    trial = begun.get(record.spec.trial_id)
    return record.spec.earlier_seconds + (trial.seconds if trial else 0.0)


def study_state(study: StudyConfig, records: Sequence[TrialRecord], *, alive: bool) -> State:
    """Return the state. A study has ended if its driver said so, or if the promotion rule would start nothing more."""
    if alive:
        return "running"
    if not records:
        return "not started"
    if any(r.result is None for r in records):
        return "interrupted"
    if any(r.suspicious for r in records):
        return "suspicious"
    reason = why_done(study, trials=len(records))
    if reason is None:
        decision = decide(study, records)
        if not isinstance(decision, Done):
            return "stopped"
        reason = decision.reason
    return "out of budget" if reason else "finished"


def _elapsed(study: StudyConfig, records: Sequence[TrialRecord], *, alive: bool, now: float) -> float | None:
    """Return the seconds from the launch to now, or to the last result of a study without a driver; None if unknown."""
    launched = study.dir / STUDY_FILE
    if not launched.exists() or not records:
        return None
    if alive:
        return max(0.0, now - _modified(launched))
    folders = [trial_dir(study, r.spec.trial_id) for r in records]
    files = [f / RESULT_FILE for f in folders] + [s / PROGRESS_FILE for r in records for s in _seed_dirs(study, r)]
    ends = [_modified(path) for path in files if path.exists()]
    return max(0.0, max(ends) - _modified(launched)) if ends else None


def _modified(path: Path) -> float:
    """Return the Unix time of a file's last change."""
    return path.stat().st_mtime


def _next(study: StudyConfig, records: Sequence[TrialRecord], state: State, best: str | None) -> tuple[str, ...]:
    """Return the commands that make sense in this state."""
    name = study_argument(study)
    commands = [
        judge_command(study, r.spec.trial_id, verdict)
        for r in records
        if r.suspicious
        for verdict in ("accept", "reject")
    ]
    if state in ("not started", "interrupted", "stopped", "out of budget"):
        commands.append(search_command(study))
    if state != "not started":
        commands.append(f"pgolf pareto {name}")
    if best and state != "running" and not is_simulated(study):
        commands.append(export_command(study, best))
    return tuple(commands)
