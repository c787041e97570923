"""How a running study talks: one line per event, and a line now and then saying where it stands and when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console

from search.brain.driver import Driver
from search.engines.events import Event, Finished, Started
from search.ladder.promote import planned_trials
from search.look.outlook import InUse, in_use, read_lives, study_seconds_left
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord
from space.words import clock
from trials.live import STARTING, TRAINING, LiveRun
from trials.spec import TrialResult, TrialSpec

QUIET_SECONDS = 15.0  # say where things stand after so long without an event


def follow(driver: Driver, events: Iterable[Event], console: Console, *, every: float = 0.0) -> None:
    """Print what happens until the events end; with `every`, at most a line in so many seconds."""
    running: dict[str, TrialSpec] = {}
    room = InUse()
    started = spoke = time.monotonic()
    for event in events:
        line = ""
        match event:
            case Started(spec=spec):
                running[spec.trial_id] = spec
                line = describe_start(spec)
            case Finished(spec=spec, result=result):
                running.pop(spec.trial_id, None)
                line = describe_end(driver.study, spec, result)
        room = room.at_least(in_use(running.values()))
        now = time.monotonic()
        if now - spoke < (every if line else max(every, QUIET_SECONDS)):
            continue
        spoke = now
        lives = read_lives(driver.study, driver.records, now=time.time())
        line = line or describe_running(tuple(running.values()), lives)
        console.print(f"{clock(now - started)} | {line} | {outlook(driver.study, driver.records, lives, room)}")


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


def describe_running(running: Sequence[TrialSpec], lives: Mapping[str, LiveRun]) -> str:
    """`running full/0001 training 91 %, step 218, loss 3.747; full/0002 packing`."""
    words = [f"{spec.trial_id} {describe_live(lives.get(spec.trial_id), len(spec.seeds))}" for spec in running]
    return "running " + "; ".join(words) if words else "nothing runs"


def describe_live(live: LiveRun | None, num_seeds: int) -> str:
    """The phase of a trial, and in training how far it is."""
    if live is None:
        return STARTING
    seed = f"seed {live.seeds_done + 1}/{num_seeds} " if num_seeds > 1 else ""
    if live.phase != TRAINING or not live.step:
        return seed + live.phase
    loss = "not finite" if live.train_loss is None else f"{live.train_loss:.3f}"
    return f"{seed}{live.phase} {100 * live.progress:.0f} %, step {live.step}, loss {loss}"


def outlook(
    study: StudyConfig, records: Sequence[TrialRecord], lives: Mapping[str, LiveRun], room: InUse | None = None
) -> str:
    """`9/19 trials | best full 2.0431 | about 4:05 left`."""
    paid = [r for r in records if r.status != "infeasible"]
    ended = [r for r in paid if r.result is not None]
    words = [f"{len(ended)}/{sum(planned_trials(study))} trials"]
    for rung in reversed(study.rungs):
        scores = [r.result.val_bpb for r in ended if r.spec.rung == rung.name and r.result and r.feasible(study.caps)]
        if scores:
            words.append(f"best {rung.name} {min(scores):.4f}")
            break
    left = study_seconds_left(study, records, lives, room)
    if left is not None:
        words.append(f"about {clock(left)} left")
    return " | ".join(words)
