"""How many bytes of text a token stands for by the challenge's rule; dataset builders and the score share it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import sentencepiece

from pgolf_model.errors import UserError

SPACE_MARK = "\u2581"  # how SentencePiece writes a space


class PieceBytes(NamedTuple):
    """The bytes that each token id stands for, as arrays of (vocab_size,)."""

    base_bytes: np.ndarray  # int16: UTF-8 bytes without the leading space
    has_leading_space: np.ndarray  # bool: one more byte, unless the token before is a boundary
    is_boundary: np.ndarray  # bool: control, unknown or unused; 0 bytes itself


def piece_bytes(tokenizer_path: str, vocab_size: int) -> PieceBytes:
    """The byte table of a SentencePiece model; ids beyond the tokenizer's are boundaries.

    Raises:
        UserError: the file is no SentencePiece model, is larger than `vocab_size`, or lacks the bare space
            piece, without which space bytes are miscounted (https://github.com/openai/parameter-golf/issues/897).
    """
    tokenizer = load_tokenizer(tokenizer_path)
    num_pieces = tokenizer.vocab_size()
    if num_pieces > vocab_size:
        raise UserError(
            f"{tokenizer_path}: the tokenizer has {num_pieces} pieces, vocab_size is {vocab_size}",
            hint=f"set vocab_size to at least {num_pieces}",
        )
    bare = tokenizer.piece_to_id(SPACE_MARK)
    if tokenizer.is_unknown(bare):
        raise UserError(
            f"{tokenizer_path}: the tokenizer has no bare space piece (U+2581), so bytes would be miscounted",
            hint="train it with byte_fallback and character coverage that include the space",
        )
    table = PieceBytes(np.zeros(vocab_size, np.int16), np.zeros(vocab_size, bool), np.ones(vocab_size, bool))
    for token in range(num_pieces):
        if tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token):
            continue
        table.is_boundary[token] = False
        if tokenizer.is_byte(token):
            table.base_bytes[token] = 1
            continue
        piece = tokenizer.id_to_piece(token)
        table.has_leading_space[token] = piece.startswith(SPACE_MARK)
        table.base_bytes[token] = len(piece.removeprefix(SPACE_MARK).encode("utf-8"))
    return table


def load_tokenizer(tokenizer_path: str) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model from its file; UserError when there is none."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=tokenizer_path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{tokenizer_path}: not a SentencePiece model ({error})", hint="give a .model file") from None
