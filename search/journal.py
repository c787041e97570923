"""`events.jsonl` in a study's folder: what the brain decided and on which grounds, one JSON object per line.

For people and displays; nothing is decided by it. A kill may cost its last line.
"""

from __future__ import annotations

from collections.abc import Iterator

from search.study import StudyConfig
from trials.spec import append_line, read_lines

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


def was_done(study: StudyConfig, *, trials: int) -> bool:
    """Whether a driver has said that nothing is left to start, and no trial was added since."""
    return any(event.get("event") == DONE and event.get("trials") == trials for event in read_journal(study))
