"""The error of a failed script as an error of ours."""

from __future__ import annotations

import subprocess

from pgolf_model.errors import UserError


def last_words(done: subprocess.CompletedProcess[str]) -> UserError:
    """Return the error that a failed script printed as `error: MESSAGE` and `hint: HINT`, or else its last line."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    hint = lines.pop().removeprefix("hint: ") if len(lines) > 1 and lines[-1].startswith("hint: ") else ""
    return UserError(lines[-1].removeprefix("error: "), hint=hint)
