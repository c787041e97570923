"""Documents from files: one per `.txt` file, one per line of `.jsonl` and `.jsonl.gz`."""

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
from search.corpus.shards import file_sha256

T = TypeVar("T")
BATCH_DOCS = 1024
BATCH_CHARS = 4_000_000
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Documents that can be read more than once, and what they are."""

    source: str  # for people
    identity: str  # changes when the documents change
    documents: Callable[[], Iterator[str]]  # non-empty texts, as given, in a fixed order


def corpus_from_files(paths: Sequence[Path]) -> Corpus:
    """The documents of files, in the order given.

    Raises:
        UserError: no such file, or a suffix other than .txt, .jsonl, .jsonl.gz. While reading: text that is not
            UTF-8, or a line that is not {"text": "..."}; both name the place.
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
    """Documents of one file, as given; those that are empty but for whitespace are left out."""
    texts = [(str(path), _decode(path.read_bytes(), str(path)))] if path.suffix == ".txt" else _read_lines(path)
    for where, text in texts:
        if not text.isascii():
            _refuse_surrogates(text, where)
        if text.strip():
            yield text


def batches(documents: Iterable[T], text_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Documents in lists that fit in memory however long or many they are."""
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
    """(place, text) of every line that holds a record."""
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
    """The text of one JSON line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not a JSON record ({error.msg})", hint="fix or remove this line") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{where}: expected {{"text": "..."}}, got {line.strip()[:60]}', hint="fix or remove this line")
    return text


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})", hint="convert the file") from None


def _refuse_surrogates(text: str, where: str) -> None:
    """JSON can spell half a surrogate pair, which no UTF-8 text has."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair at character {error.start}", hint="fix or remove it") from None
