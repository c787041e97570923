"""`events.jsonl` in a study's folder: what the brain decided and on which grounds, one JSON object per line.

For people and displays; nothing is decided by it. A kill may cost its last line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from search.study import StudyConfig

JOURNAL_FILE = "events.jsonl"
DONE = "done"  # the event of a study that has nothing left to start, with its number of trials
Fact = str | float | int | bool | None


def note(study: StudyConfig, event: str, *, at: float, **facts: Fact) -> None:
    """Append an event; `at` is in seconds since this launch (simulated ones in a simulation)."""
    line = json.dumps({"at": round(at, 3), "event": event, **facts})
    with (study.dir / JOURNAL_FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_journal(study: StudyConfig) -> Iterator[dict[str, Fact]]:
    """The events in order; a torn line is skipped."""
    path = study.dir / JOURNAL_FILE
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            yield found


def was_done(study: StudyConfig, *, trials: int) -> bool:
    """Whether a driver has said that nothing is left to start, and no trial was added since."""
    return any(event.get("event") == DONE and event.get("trials") == trials for event in read_journal(study))
