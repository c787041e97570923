"""Input is refused with a message and a hint, looked at apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pgolf_model.errors import UserError


@contextmanager
def refused(message: str, *, hint: str = "") -> Iterator[pytest.ExceptionInfo[UserError]]:
    """The block raises UserError; both patterns are searched, each in its own part. Without `hint` any hint will do."""
    with pytest.raises(UserError) as caught:
        yield caught
    assert re.search(message, caught.value.message), f"expected {message!r} in message {caught.value.message!r}"
    assert re.search(hint, caught.value.hint), f"expected {hint!r} in hint {caught.value.hint!r}"
