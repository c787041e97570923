"""Faults that are not the configuration's: what is run once more, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trials.spec import RESULT_FILE, TrialResult, TrialSpec

ATTEMPTS = 2


def second_attempt(spec: TrialSpec, result: TrialResult) -> TrialSpec | None:
    """The trial to run again after a fault, or None when its result stands.

    Out of memory: with half the micro batch, so the same global batch in more passes. A timeout, and a worker or
    script that died: as it was. An exception in the script is its own and would come again.
    Seeds that finished are kept, and their seconds are in the next result: only what is lost is an earlier attempt's.
    """
    if spec.attempt >= ATTEMPTS or result.status not in ("failed", "timeout"):
        return None
    lost = result.seconds - sum(run.total_seconds for run in result.runs)
    again = replace(
        spec,
        attempt=spec.attempt + 1,
        earlier_seconds=spec.earlier_seconds + max(0.0, lost),
        seeds_done=max(spec.seeds_done, len(result.runs)),
    )
    if result.fault == "oom":
        train = spec.config.train
        smaller = max(train.seq_len, train.micro_batch_tokens // 2)
        if smaller >= train.micro_batch_tokens:
            return None  # one sequence at a time is already too much
        return replace(again, config=replace(spec.config, train=replace(train, micro_batch_tokens=smaller)))
    return again if result.fault in ("signal", "timeout", "lost") else None


def earlier_result(folder: Path, attempt: int) -> Path:
    """Where the result of an attempt that was run again is kept."""
    return folder / f"attempt{attempt}_{RESULT_FILE}"
