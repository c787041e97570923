"""How a running study talks: one line per event, and a line now and then saying where it stands and when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console

from search.brain.driver import Driver
from search.engines.events import Event, Finished, Started
from search.ladder.promote import planned_trials
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord, trial_dir
from trials.files import read_progress
from trials.spec import PROGRESS_FILE, TrialResult, TrialSpec

QUIET_SECONDS = 15.0  # say where things stand after so long without an event


@dataclass(kw_only=True, slots=True)
class _Clock:
    started: float = field(default_factory=time.monotonic)
    spoke: float = field(default_factory=time.monotonic)


def follow(driver: Driver, events: Iterable[Event], console: Console, *, every: float = 0.0) -> None:
    """Print what happens until the events end; with `every`, at most a line in so many seconds."""
    clock, running = _Clock(), dict[str, TrialSpec]()
    for event in events:
        if every and time.monotonic() - clock.spoke < every:
            continue
        match event:
            case Started(spec=spec):
                running[spec.trial_id] = spec
                line = describe_start(spec)
            case Finished(spec=spec, result=result):
                running.pop(spec.trial_id, None)
                line = describe_end(driver.study, spec, result)
            case _:
                if time.monotonic() - clock.spoke < QUIET_SECONDS:
                    continue
                line = describe_running(driver.study, tuple(running.values()))
        clock.spoke = time.monotonic()
        elapsed = clock.spoke - clock.started
        console.print(f"{_duration(elapsed)} | {line} | {outlook(driver.study, driver.records)}", highlight=False)


def describe_start(spec: TrialSpec) -> str:
    """`proxy/0003 started: 6x128, mlp 2, 583,680 bytes forecast`."""
    model = spec.config.model
    loop = (
        f", layers {model.loop_start}-{model.loop_end - 1} run {model.loop_repeats + 1}x" if model.loop_repeats else ""
    )
    why = f" ({spec.label})" if spec.label else ""
    why += f" from {spec.parent:04d}" if spec.parent is not None else ""
    return (
        f"{spec.trial_id}{why} started: {model.num_layers} layers x {model.model_dim}, mlp {model.mlp_mult:g}{loop}, "
        f"forecast {spec.predicted_bytes:,} bytes"
    )


def describe_end(study: StudyConfig, spec: TrialSpec, result: TrialResult) -> str:
    """`proxy/0003 val_bpb 2.0431, 291,122 bytes, 96% of the cap, 31 s`, or what went wrong, in a line."""
    if result.status != "complete":
        reason = result.error.strip().splitlines()
        return f"{spec.trial_id} {result.status}: {(reason[0] if len(reason) == 1 else reason[-1]) if reason else ''}"
    share = result.artifact_bytes / study.caps.artifact_bytes
    over = "" if study.caps.allow(result) else " (over a cap)"
    return (
        f"{spec.trial_id} val_bpb {result.val_bpb:.4f}, {result.artifact_bytes:,} bytes, {share:.1%} of the cap{over}, "
        f"{result.seconds:.0f} s"
    )


def describe_running(study: StudyConfig, running: tuple[TrialSpec, ...]) -> str:
    """What every running trial last said."""
    return (
        "running " + ", ".join(f"{spec.trial_id} {_last_word(study, spec)}" for spec in running) if running else "..."
    )


def outlook(study: StudyConfig, records: tuple[TrialRecord, ...]) -> str:
    """`9/19 trials | best 2.0431 | about 4 min left`."""
    paid = [r for r in records if r.status != "infeasible"]
    ended = [r for r in paid if r.result is not None]
    words = [f"{len(ended)}/{sum(planned_trials(study))} trials"]
    for rung in reversed(study.rungs):
        scores = [r.result.val_bpb for r in ended if r.spec.rung == rung.name and r.result and r.feasible(study.caps)]
        if scores:
            words.append(f"best {rung.name} {min(scores):.4f}")
            break
    left = seconds_left(study, records)
    if left is not None:
        words.append(f"about {_duration(left)} left")
    return " | ".join(words)


def seconds_left(study: StudyConfig, records: tuple[TrialRecord, ...]) -> float | None:
    """Rough time to the end, from how long each rung's trials took; None before the first has ended.

    A rung nobody has climbed yet is guessed from the one below by the ratio of budgets. What runs now says how many
    trials fit side by side.
    """
    total, known, below = 0.0, None, None
    running = [r.spec for r in records if r.result is None]
    cpus, gpus = sum(spec.cpus for spec in running), sum(spec.gpus for spec in running)
    for rung, planned in zip(study.rungs, planned_trials(study), strict=True):
        mine = [r for r in records if r.spec.rung == rung.name and r.status != "infeasible"]
        took = [r.result.seconds for r in mine if r.result is not None]
        if took:
            known = fmean(took)
        elif known is not None and below is not None:
            longer = rung.seconds / below.seconds if rung.seconds and below.seconds else rung.steps / (below.steps or 1)
            if rung.batch_tokens and below.batch_tokens and not rung.seconds:
                longer *= rung.batch_tokens / below.batch_tokens
            known *= max(1.0, longer) * len(rung.seeds) / len(below.seeds)
            known = max(known, rung.seconds * len(rung.seeds))
        else:
            return None
        side_by_side = gpus / rung.gpus if rung.gpus else cpus / (rung.cpus or 1)
        total += (planned - len(took)) * known / max(1.0, side_by_side)
        below = rung
    return total


def _last_word(study: StudyConfig, spec: TrialSpec) -> str:
    folder = trial_dir(study, spec.trial_id)
    for seed in reversed(spec.seeds):
        said = list(read_progress(folder / f"seed{seed}" / PROGRESS_FILE))
        if said:
            loss = said[-1].get("train_loss")
            shown = "not finite" if loss is None else f"{loss:.3f}"
            return f"step {said[-1]['step']:.0f} loss {shown} ({said[-1]['progress']:.0%})"
    return "starting"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
