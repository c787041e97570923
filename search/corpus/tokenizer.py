"""Train a SentencePiece tokenizer as the challenge does, and audit any tokenizer on real documents."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from pgolf_model.data.bytecount import PieceBytes, load_tokenizer, piece_bytes
from pgolf_model.errors import UserError
from search.corpus.documents import batches
from search.corpus.manifest import TokenizerAudit
from search.corpus.shard_writer import file_sha256, stream_bytes

Normalization = Literal["nmt_nfkc", "identity"]

MAX_SENTENCE_BYTES = 4192  # SentencePiece silently skips longer training sentences
UNSTABLE_SHARE = 0.001  # normalising twice differs from once for a few rare character sequences
_LOSSY = "a\n b  \ufb01"  # a newline, two spaces and a ligature: each survives identity alone


def train_tokenizer(documents: Iterable[str], *, vocab_size: int, normalization: Normalization = "nmt_nfkc") -> bytes:
    """Return a BPE model with the challenge's settings as the bytes of its `.model` file; same documents, same bytes.

    As in the challenge, NUL becomes a space and empty documents are dropped. Other than there, documents over
    SentencePiece's sentence limit are cut at white space instead of being skipped.

    Raises:
        UserError: SentencePiece refuses, for example because 260 fixed pieces and the alphabet exceed vocab_size.
    Source: openai/parameter-golf data/download_hf_docs_and_tokenize.py
    """
    if not 1 <= vocab_size <= 65_536:
        raise UserError(f"vocab_size must be in [1, 65536] (shards are uint16), got {vocab_size}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name=normalization,
            remove_extra_whitespaces=normalization != "identity",
            add_dummy_prefix=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            hard_vocab_limit=False,
            num_threads=1,  # the model file records it
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"SentencePiece cannot train vocab_size {vocab_size} on these documents ({error})",
            hint="give more text or a larger --vocab-size",
        ) from None
    return model.getvalue()


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    """Yield training sentences within the limit; text without white space is cut at the limit."""
    for document in documents:
        text = document.replace("\0", " ").strip()
        if len(text.encode("utf-8")) <= MAX_SENTENCE_BYTES:
            yield from [text] if text else []
            continue
        start, longest = 0, MAX_SENTENCE_BYTES // 4  # characters are at most 4 bytes
        while start < len(text):
            end = start + longest
            if end < len(text):
                space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
                end = space if space > 0 else end
            yield text[start:end].strip()
            start = end


def tokenizer_hash(model_path: Path) -> str:
    """Return the sha256 of the model file, by which shards know their tokenizer."""
    return file_sha256(model_path)


def normalization_of(tokenizer: sentencepiece.SentencePieceProcessor) -> Normalization:
    """Return how a tokenizer treats raw text, found by encoding a sample."""
    return "identity" if tokenizer.decode(tokenizer.encode(_LOSSY)) == _LOSSY else "nmt_nfkc"


def audit(model_path: Path, documents: Iterable[str]) -> TokenizerAudit:
    """Return the audit of a tokenizer on documents; raise UserError if it is unsound (`require_sound`)."""
    tokenizer = load_tokenizer(str(model_path))
    table = piece_bytes(str(model_path), tokenizer.vocab_size())
    total = audit_batch(tokenizer, table, [], [])
    for texts in batches(documents, text_of=str):
        total = merge_audits(total, audit_batch(tokenizer, table, texts, tokenizer.encode(texts)))
    require_sound(total, model_path)
    return total


def audit_batch(
    tokenizer: sentencepiece.SentencePieceProcessor,
    table: PieceBytes,
    texts: Sequence[str],
    encoded: Sequence[list[int]],
) -> TokenizerAudit:
    """Return the audit of documents whose tokens are known."""
    bos = tokenizer.bos_id()
    decoded = tokenizer.decode(list(encoded)) if encoded else []
    again = tokenizer.encode(decoded) if decoded else []
    scored = [stream_bytes(table, np.array([bos, *ids])) for ids in encoded]
    # By the challenge's rule a space right after BOS does not count, so a text that starts with one has one byte less.
    expected = [len(text.encode("utf-8")) - text.startswith(" ") for text in decoded]
    return TokenizerAudit(
        num_documents=len(texts),
        raw_bytes=sum(len(text.encode("utf-8")) for text in texts),
        scored_bytes=sum(scored),
        num_unstable=sum(a != b for a, b in zip(encoded, again, strict=True)),
        num_miscounted=sum(a != b for a, b in zip(scored, expected, strict=True)),
        has_bare_space_piece=True,  # piece_bytes refuses to make a table otherwise
    )


def merge_audits(a: TokenizerAudit, b: TokenizerAudit) -> TokenizerAudit:
    """Return the audit of both sets of documents together."""
    return TokenizerAudit(
        num_documents=a.num_documents + b.num_documents,
        raw_bytes=a.raw_bytes + b.raw_bytes,
        scored_bytes=a.scored_bytes + b.scored_bytes,
        num_unstable=a.num_unstable + b.num_unstable,
        num_miscounted=a.num_miscounted + b.num_miscounted,
        has_bare_space_piece=a.has_bare_space_piece and b.has_bare_space_piece,
    )


def require_sound(result: TokenizerAudit, model_path: Path) -> None:
    """Raise UserError if scores with this tokenizer would be wrong."""
    if result.num_miscounted:
        raise UserError(
            f"{model_path}: the byte table is wrong for {result.num_miscounted} of {result.num_documents} documents "
            f"(unknown tokens, or pieces with several spaces)",
            hint="train it with byte_fallback and without such pieces",
        )
    if result.num_unstable > UNSTABLE_SHARE * result.num_documents:
        raise UserError(
            f"{model_path}: decoded tokens encode differently in {result.num_unstable} of {result.num_documents} "
            f"documents, so the tokenizer does not agree with itself",
            hint="use another normalization",
        )
