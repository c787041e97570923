"""`UserError`, the one error that the user can mend. Every other exception is a bug and shows its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DISK_FULL = 74  # of a script or worker that could not write because the disk is full; os.EX_IOERR


class UserError(ValueError):
    """What is wrong, and what to do about it: two sentences, kept apart.

    Args:
        message: what was expected and what came; lower case, no full stop.
        hint: what to do; empty where the message says it all.
        exit_code: of a command that ends with this error.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        """Message and hint in one line, for logs."""
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def lines(self) -> str:
        """The text that a command prints on stderr: `error: MESSAGE`, and `hint: HINT` where there is one."""
        return f"error: {self.message}" + (f"\nhint: {self.hint}" if self.hint else "")

    def at(self, place: str) -> UserError:
        """The same error with the place where it was seen in front: `config.toml: num_layers must be positive`."""
        return UserError(f"{place}: {self.message}", hint=self.hint, exit_code=self.exit_code)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keyword arguments, so that it crosses processes."""
        return _restored, (self.message, self.hint, self.exit_code)


def _restored(message: str, hint: str, exit_code: int) -> UserError:
    return UserError(message, hint=hint, exit_code=exit_code)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist; its hint is the nearest known name, or the list of all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind}: {name!r}", hint=hint)
