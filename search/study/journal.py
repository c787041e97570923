"""`events.jsonl` in a study's folder: the driver's decisions and their reasons, one JSON object per line.

It is written for people and displays. Nothing that is searched depends on it, and a killed driver may leave a torn
last line.
"""

from __future__ import annotations

from collections.abc import Iterator

from search.study.config import StudyConfig
from trials.files import append_line, read_lines

JOURNAL_FILE = "events.jsonl"
DONE = "done"  # event of a study that has nothing left to start; carries its number of trials and the reason
Fact = str | float | int | bool | None


def note(study: StudyConfig, event: str, *, at: float, **facts: Fact) -> None:
    """Append an event; `at` is in seconds since this launch, or simulated seconds."""
    append_line(study.dir / JOURNAL_FILE, {"at": round(at, 3), "event": event, **facts})


def read_journal(study: StudyConfig) -> Iterator[dict[str, Fact]]:
    """Yield the events in order; torn lines are left out."""
    for found in read_lines(study.dir / JOURNAL_FILE):
        if isinstance(found, dict):
            yield found


def why_done(study: StudyConfig, *, trials: int) -> str | None:
    """Return why the study ended: "" after its whole ladder, else the reason that stopped it early.

    None if no driver has noted an end of a study of so many trials.
    """
    said = [e for e in read_journal(study) if e.get("event") == DONE and e.get("trials") == trials]
    return str(said[-1].get("reason") or "") if said else None
