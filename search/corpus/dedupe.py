"""Remove near-copies: a paragraph is dropped if most of its runs of five words were seen before."""

from __future__ import annotations

import re
from zlib import crc32

import numpy as np

SHINGLE_WORDS = 5
SEEN_SHARE = 0.5  # a paragraph is dropped if more of its shingles than this were seen
TABLE_BITS = 26  # 67 MB of flags; 2.5 M shingles fill 4 % of them, so that chance hits stay far below SEEN_SHARE

_WORD = re.compile(r"[a-z]+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")


class Deduplicator:
    """Remembers the shingles (runs of five words) of all kept text, so that its answers depend on the texts' order."""

    def __init__(self) -> None:
        self._seen = np.zeros(1 << TABLE_BITS, dtype=bool)

    def keep(self, text: str) -> str:
        """Return `text` without the paragraphs that repeat earlier ones.

        Paragraphs too short to tell, such as headings, are kept if any longer one is.
        """
        paragraphs = _PARAGRAPH.split(text.strip("\n"))
        fresh = [self._is_fresh(paragraph) for paragraph in paragraphs]
        if not any(fresh):
            return ""
        return "\n\n".join(p for p, state in zip(paragraphs, fresh, strict=True) if state is not False)

    def _is_fresh(self, paragraph: str) -> bool | None:
        """Return True for new text, False for a repeat, None for a paragraph too short to tell."""
        words = _WORD.findall(paragraph.lower())
        if len(words) < SHINGLE_WORDS + 3:
            return None
        shingles = _shingles(words)
        fresh = float(self._seen[shingles].mean()) <= SEEN_SHARE
        self._seen[shingles] = True
        return fresh


def _shingles(words: list[str]) -> np.ndarray:
    """Return the table positions of all runs of SHINGLE_WORDS words."""
    codes = np.array([crc32(word.encode()) for word in words], dtype=np.uint64)
    runs = len(words) - SHINGLE_WORDS + 1
    mixed = np.zeros(runs, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + runs]
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(64 - TABLE_BITS)
