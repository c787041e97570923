"""Near-copies out: a paragraph most of whose five-word runs were seen before is dropped."""

from __future__ import annotations

import re
from zlib import crc32

import numpy as np

SHINGLE_WORDS = 5
SEEN_SHARE = 0.5  # drop a paragraph when more of its shingles than this were seen
TABLE_BITS = 26  # 67 MB of flags; 2.5 M shingles fill 4 % of it, so chance hits stay far below SEEN_SHARE

_WORD = re.compile(r"[a-z]+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")


class Deduplicator:
    """Remembers the shingles of everything it kept; the result depends on the order of the texts alone."""

    def __init__(self) -> None:
        self._seen = np.zeros(1 << TABLE_BITS, dtype=bool)

    def keep(self, text: str) -> str:
        """`text` without the paragraphs that repeat earlier ones; short ones (headings, one-liners) only stay
        where a longer one does."""
        paragraphs = _PARAGRAPH.split(text.strip("\n"))
        fresh = [self._is_fresh(paragraph) for paragraph in paragraphs]
        if not any(fresh):
            return ""
        return "\n\n".join(p for p, state in zip(paragraphs, fresh, strict=True) if state is not False)

    def _is_fresh(self, paragraph: str) -> bool | None:
        """True for new text, False for a repeat, None for a paragraph too short to tell."""
        words = _WORD.findall(paragraph.lower())
        if len(words) < SHINGLE_WORDS + 3:
            return None
        shingles = _shingles(words)
        fresh = float(self._seen[shingles].mean()) <= SEEN_SHARE
        self._seen[shingles] = True
        return fresh


def _shingles(words: list[str]) -> np.ndarray:
    """Table positions of all runs of SHINGLE_WORDS words."""
    codes = np.array([crc32(word.encode()) for word in words], dtype=np.uint64)
    runs = len(words) - SHINGLE_WORDS + 1
    mixed = np.zeros(runs, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + runs]
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(64 - TABLE_BITS)
