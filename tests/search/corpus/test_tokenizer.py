"""Tokenizers: trained as the challenge trains them, and audited on what is scored."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgolf_model.data.bytecount import load_tokenizer
from search.corpus.documents import read_documents
from search.corpus.manifest import Manifest, SplitInfo, TokenizerAudit, check_comparable
from search.corpus.tokenizer import audit, normalization_of, require_sound, tokenizer_hash, train_tokenizer

LAYOUT = ["  indented line\n\n\tand a tab, then   spaces \n", "ﬁne ligatures and ½ of it", "a\0b", "plain words"]


@pytest.fixture(scope="module")
def documents(tiny_docs: Path) -> list[str]:
    """Real text."""
    return list(read_documents(tiny_docs))


@pytest.fixture(scope="module")
def lossless(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with identity normalization."""
    path = tmp_path_factory.mktemp("lossless") / "tokenizer.model"
    path.write_bytes(train_tokenizer(documents, vocab_size=400, normalization="identity"))
    return path


def test_same_documents_give_the_same_model_file(documents: list[str]) -> None:
    """Byte for byte, so the tokenizer's hash identifies a dataset on every machine."""
    first, second = (train_tokenizer(documents[:40], vocab_size=400) for _ in range(2))
    assert first == second


def test_the_challenges_special_pieces(tiny_data: Path) -> None:
    """pad 0, bos 1, eos 2, unk 3, a piece for every byte, digits split, no space put in front."""
    tokenizer = load_tokenizer(str(tiny_data / "tokenizer.model"))
    assert (tokenizer.pad_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()) == (0, 1, 2, 3)
    assert sum(tokenizer.is_byte(token) for token in range(tokenizer.vocab_size())) == 256
    assert len(tokenizer.encode("2026")) >= 4
    assert tokenizer.decode(tokenizer.encode("x")[:1]) == "x"


def test_long_documents_are_cut_not_skipped() -> None:
    """SentencePiece drops training sentences over 4,192 bytes; one long document alone must still train."""
    long = "the documentation of everything, " * 2000
    assert len(long) > 4192
    assert len(train_tokenizer([long, "é" * 30_000], vocab_size=300)) > 0


def test_training_refuses_what_cannot_work() -> None:
    """No text, and vocabularies out of range, say what to change."""
    with pytest.raises(ValueError, match="cannot train vocab_size 512 on these documents"):
        train_tokenizer([" ", ""], vocab_size=512)
    with pytest.raises(ValueError, match="cannot train vocab_size 100"):
        train_tokenizer(["some text"], vocab_size=100)
    with pytest.raises(ValueError, match=r"vocab_size must be in \[1, 65536\]"):
        train_tokenizer(["some text"], vocab_size=65_537)


def test_the_default_normalises_and_is_still_sound(tiny_data: Path) -> None:
    """Layout is dropped before scoring; tokens are a fixed point and the byte table is exact all the same."""
    model = tiny_data / "tokenizer.model"
    result = audit(model, LAYOUT)
    assert (result.num_unstable, result.num_miscounted) == (0, 0)
    decoded = [load_tokenizer(str(model)).decode(load_tokenizer(str(model)).encode(text)) for text in LAYOUT]
    assert decoded[0] == "indented line and a tab, then spaces"
    assert result.scored_bytes == sum(len(text.encode()) for text in decoded)
    assert result.raw_bytes == sum(len(text.encode()) for text in LAYOUT)
    assert 0 < result.dropped_share < 1
    assert normalization_of(load_tokenizer(str(model))) == "nmt_nfkc"


def test_identity_keeps_every_byte(lossless: Path, documents: list[str]) -> None:
    """decode(encode(x)) == x on raw text; only a space right after BOS is free, by the challenge's rule."""
    tokenizer = load_tokenizer(str(lossless))
    for text in [*LAYOUT, *documents[:20]]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    result = audit(lossless, LAYOUT)
    assert result.raw_bytes - result.scored_bytes == sum(text.startswith(" ") for text in LAYOUT)
    assert normalization_of(tokenizer) == "identity"


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ({"num_miscounted": 1}, "the byte table is wrong for 1 of 1000 documents"),
        ({"num_unstable": 2}, "decoded tokens encode differently in 2 of 1000 documents"),
    ],
)
def test_an_unsound_tokenizer_is_refused(flaw: dict[str, int], message: str) -> None:
    """One miscounted document falsifies the score; one unstable document in a thousand does not."""
    good = TokenizerAudit(
        num_documents=1000, raw_bytes=10, scored_bytes=9, num_unstable=1, num_miscounted=0, has_bare_space_piece=True
    )
    require_sound(good, Path("t.model"))
    with pytest.raises(ValueError, match=message):
        require_sound(replace(good, **flaw), Path("t.model"))


def manifest(scored_bytes: int, val_docs: str = "a", num_docs: int = 5) -> Manifest:
    """A manifest that matters only for its validation split."""
    split = SplitInfo(num_docs=num_docs, tokens=10, scored_bytes=scored_bytes)
    return Manifest(
        source="s",
        recipe_sha256="",
        tokenizer_sha256="",
        vocab_size=512,
        normalization="identity",
        shards=(),
        train=split,
        val=split,
        val_docs_sha256=val_docs,
    )


def test_only_scores_on_the_same_text_are_comparable() -> None:
    """The same validation documents, and scored bytes within 0.1 %."""
    check_comparable(manifest(100_000), manifest(100_100))
    check_comparable(manifest(100_000, val_docs=""), manifest(100_000))
    with pytest.raises(ValueError, match=r"score 100000 and 100102 bytes .* more than 0\.1% apart"):
        check_comparable(manifest(100_000), manifest(100_102))
    with pytest.raises(ValueError, match="different validation documents"):
        check_comparable(manifest(100_000), manifest(100_000, val_docs="b"))
    with pytest.raises(ValueError, match="different validation documents"):
        check_comparable(manifest(100_000, val_docs=""), manifest(100_000, num_docs=6))


def test_official_tokenizers_are_sound_and_score_the_same_bytes(fineweb: Path) -> None:
    """On raw FineWeb documents hardly any survives a round trip, yet all three score one and the same text."""
    with gzip.open(fineweb / "docs" / "fineweb_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(60), strict=False)]
    models = [fineweb / "tokenizers" / f"fineweb_{size}_bpe.model" for size in (1024, 4096, 8192)]
    audits = [audit(model, texts) for model in models]
    assert len({result.scored_bytes for result in audits}) == 1
    assert tokenizer_hash(models[0]).startswith("4f5e8adb109c66b4")
