"""`events.jsonl` in a study's folder: what the brain decided and on which grounds, one JSON object per line.

For people and displays; nothing is decided by it. A kill may cost its last line.
"""

from __future__ import annotations

from collections.abc import Iterator

from search.study.config import StudyConfig
from trials.files import append_line, read_lines

JOURNAL_FILE = "events.jsonl"
DONE = "done"  # the event of a study that has nothing left to start, with its number of trials
Fact = str | float | int | bool | None


def note(study: StudyConfig, event: str, *, at: float, **facts: Fact) -> None:
    """Append an event; `at` is in seconds since this launch (simulated ones in a simulation)."""
    append_line(study.dir / JOURNAL_FILE, {"at": round(at, 3), "event": event, **facts})


def read_journal(study: StudyConfig) -> Iterator[dict[str, Fact]]:
    """The events in order."""
    for found in read_lines(study.dir / JOURNAL_FILE):
        if isinstance(found, dict):
            yield found


def why_done(study: StudyConfig, *, trials: int) -> str | None:
    """Why nothing was left to start, "" for a climbed ladder; None if no driver said so, or trials were added since."""
    said = [e for e in read_journal(study) if e.get("event") == DONE and e.get("trials") == trials]
    return str(said[-1].get("reason") or "") if said else None
