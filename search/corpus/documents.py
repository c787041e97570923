"""Read documents from files: one from a `.txt` file, one from each line of `.jsonl` and `.jsonl.gz`."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pgolf_model.errors import UserError
from search.corpus.shard_writer import file_sha256

T = TypeVar("T")
BATCH_DOCS = 1024
BATCH_CHARS = 4_000_000
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Documents that can be read more than once, with their source."""

    source: str  # a name for people
    identity: str  # a hash that changes with the documents
    documents: Callable[[], Iterator[str]]  # non-empty texts, as given, in a fixed order


def corpus_from_files(paths: Sequence[Path]) -> Corpus:
    """Return the documents of files, in the given order.

    Raises:
        UserError: no such file, or a suffix other than .txt, .jsonl, .jsonl.gz. While reading: text that is not
            UTF-8, or a line that is not {"text": "..."}; the message names the place.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file", hint=f"give {', '.join(SUFFIXES)} files")
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: unknown kind of document file", hint=f"give {', '.join(SUFFIXES)} files")
    hashes = "".join(file_sha256(path) for path in paths)
    return Corpus(
        source=", ".join(path.name for path in paths),
        identity=hashlib.sha256(hashes.encode()).hexdigest(),
        documents=lambda: (text for path in paths for text in read_documents(path)),
    )


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of one file, unchanged; those of whitespace only are left out."""
    texts = [(str(path), _decode(path.read_bytes(), str(path)))] if path.suffix == ".txt" else _read_lines(path)
    for where, text in texts:
        if not text.isascii():
            _refuse_surrogates(text, where)
        if text.strip():
            yield text


def batches(documents: Iterable[T], text_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Yield documents in lists of at most BATCH_DOCS documents and about BATCH_CHARS characters."""
    batch: list[T] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(text_of(document))
        if len(batch) == BATCH_DOCS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every line that is not empty."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                if line.strip():
                    yield where, _parse(_decode(line, where), where)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})", hint="copy or download it again") from None


def _parse(line: str, where: str) -> str:
    """Return the text of one JSON line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not a JSON record ({error.msg})", hint="fix or remove this line") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{where}: expected {{"text": "..."}}, got {line.strip()[:60]}', hint="fix or remove this line")
    return text


def _decode(raw: bytes, where: str) -> str:
    """Return UTF-8 bytes as text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})", hint="convert the file") from None


def _refuse_surrogates(text: str, where: str) -> None:
    """Raise UserError if a text has half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair at character {error.start}", hint="fix or remove it") from None
