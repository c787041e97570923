"""Documents to datasets: `pgolf data build` and `pgolf data check`, and the corpus every machine has."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from pgolf_model.data.bytecount import load_tokenizer
from pgolf_model.data.shards import read_shard, shard_paths
from search.corpus.build import build, is_validation
from search.corpus.builtin import builtin_corpus, documentation, group_blocks, python_files
from search.corpus.check import check
from search.corpus.dedupe import Deduplicator
from search.corpus.documents import batches, corpus_from_files, read_documents
from search.corpus.manifest import read_manifest


@pytest.fixture
def dataset(tiny_docs: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """A small dataset that a test may damage."""
    out = tmp_path / "dataset"
    build(corpus_from_files([tiny_docs]), out, tokenizer=tiny_data / "tokenizer.model", val_fraction=0.2)
    return out


def stream(directory: Path, split: str) -> list[int]:
    """All tokens of one split."""
    return [int(token) for path in shard_paths(str(directory), split) for token in read_shard(path)]


def test_streams_are_bos_and_the_tokens_of_each_document(tiny_docs: Path, dataset: Path) -> None:
    """In the order of the file, in the split the document's hash says; no EOS."""
    tokenizer = load_tokenizer(str(dataset / "tokenizer.model"))
    for split, wanted in (("train", False), ("val", True)):
        texts = [text for text in read_documents(tiny_docs) if is_validation(text, 0.2) == wanted]
        assert stream(dataset, split) == [token for text in texts for token in (1, *tokenizer.encode(text))]


def test_given_validation_documents_validate_and_their_copies_never_train(
    tiny_docs: Path, tiny_data: Path, tmp_path: Path
) -> None:
    texts = list(read_documents(tiny_docs))
    held_out = tmp_path / "val.jsonl"
    held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[3:9]))
    build(
        corpus_from_files([tiny_docs]),
        tmp_path / "d",
        tokenizer=tiny_data / "tokenizer.model",
        val_corpus=corpus_from_files([held_out]),
    )
    tokenizer = load_tokenizer(str(tiny_data / "tokenizer.model"))
    kept = [text for text in texts if text not in texts[3:9]]
    for split, wanted in (("train", kept), ("val", texts[3:9])):
        assert stream(tmp_path / "d", split) == [token for text in wanted for token in (1, *tokenizer.encode(text))]


def test_manifest_counts_what_is_there(tiny_docs: Path, tiny_data: Path) -> None:
    """Documents, tokens and bytes add up to the input; scored bytes are the UTF-8 bytes of the decoded text."""
    manifest = read_manifest(tiny_data)
    texts = list(read_documents(tiny_docs))
    tokenizer = load_tokenizer(str(tiny_data / "tokenizer.model"))
    assert manifest.train.num_docs + manifest.val.num_docs == len(texts)
    assert (manifest.train.raw_bytes or 0) + (manifest.val.raw_bytes or 0) == sum(len(text.encode()) for text in texts)
    decoded = [tokenizer.decode(tokenizer.encode(text)) for text in texts if is_validation(text, 0.2)]
    assert manifest.val.scored_bytes == sum(len(text.encode()) for text in decoded)
    assert manifest.val.tokens == len(stream(tiny_data, "val"))


def test_building_again_is_the_same_to_the_byte(tiny_docs: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Tokenizer training included."""
    build(corpus_from_files([tiny_docs]), tmp_path / "again", vocab_size=512, val_fraction=0.2)
    names = sorted(path.name for path in tiny_data.iterdir())
    assert [path.name for path in sorted((tmp_path / "again").iterdir())] == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tiny_data / name).read_bytes(), name


def test_shard_size_only_cuts_the_stream(tiny_docs: Path, dataset: Path, tmp_path: Path) -> None:
    """Shards of 20,000 tokens hold the same stream as one large shard."""
    out = tmp_path / "cut"
    model = dataset / "tokenizer.model"
    manifest = build(corpus_from_files([tiny_docs]), out, tokenizer=model, val_fraction=0.2, shard_tokens=20_000)
    assert len([shard for shard in manifest.shards if shard.split == "train"]) > 1
    assert stream(out, "train") == stream(dataset, "train")
    assert check(out).problems == ()


def test_a_built_dataset_is_kept_and_another_is_not_overwritten(tiny_docs: Path, dataset: Path, tmp_path: Path) -> None:
    """The same request says so and returns; other settings, damage or foreign files are errors that name the fix."""
    corpus, model, said = corpus_from_files([tiny_docs]), dataset / "tokenizer.model", []
    before = (dataset / "manifest.json").stat().st_mtime_ns
    build(corpus, dataset, tokenizer=tmp_path / "dataset" / "tokenizer.model", val_fraction=0.2, report=said.append)
    assert said == [f"{dataset} already holds this dataset: nothing to do"]
    assert (dataset / "manifest.json").stat().st_mtime_ns == before
    with refused(r"holds another dataset .*", hint=r"delete it or choose another --out"):
        build(corpus, dataset, tokenizer=model, val_fraction=0.3)
    shard_paths(str(dataset), "val")[0].unlink()
    with refused("files missing or cut short", hint="delete it to build it again"):
        build(corpus, dataset, tokenizer=model, val_fraction=0.2)
    with refused("is not empty and holds no dataset", hint="choose another --out"):
        build(corpus, tmp_path, tokenizer=model, val_fraction=0.2)


def test_a_failed_build_leaves_nothing(tiny_data: Path, tmp_path: Path) -> None:
    """A bad line after good ones: the error names file and line, and neither output nor temporary folder exists."""
    docs = tmp_path / "docs.jsonl"
    docs.write_text('{"text": "a good document"}\n{"text": "another"}\n{"txt": 1}\n')
    with refused(r'docs\.jsonl:3: expected {"text": "\.\.\."}, got {"txt": 1}', hint=r"fix or remove"):
        build(corpus_from_files([docs]), tmp_path / "out", tokenizer=tiny_data / "tokenizer.model", val_fraction=0)
    assert [path.name for path in tmp_path.iterdir()] == ["docs.jsonl"]


def test_a_full_disk_is_said_clearly(dataset: Path, tiny_docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while a shard is finished becomes an error with the fix, and the half-made folder goes away."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = dataset.parent / "full"
    monkeypatch.setattr(os, "fsync", full)
    with refused(r"no space left on the disk of .*", hint=r"free some"):
        build(corpus_from_files([tiny_docs]), out, tokenizer=dataset / "tokenizer.model", val_fraction=0.2)
    assert [path.name for path in dataset.parent.iterdir()] == ["dataset"]


@given(texts=st.lists(st.text(max_size=20), max_size=30), fraction=st.floats(0, 1))
def test_every_document_has_one_side_and_extremes_are_exact(texts: list[str], fraction: float) -> None:
    """Fraction 0 and 1 put everything on one side; a larger fraction never moves a document back to training."""
    for text in texts:
        assert not is_validation(text, 0.0)
        assert is_validation(text, 1.0)
        assert is_validation(text, fraction) <= is_validation(text, min(1.0, fraction + 0.1))


def test_an_empty_split_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    """One document cannot make two splits."""
    docs = tmp_path / "one.txt"
    docs.write_text("a single document")
    with pytest.raises(ValueError, match=r"none of 1 documents fell into the \w+ split"):
        build(corpus_from_files([docs]), tmp_path / "out", tokenizer=tiny_data / "tokenizer.model", val_fraction=0.5)


def test_document_files_of_every_kind(tmp_path: Path) -> None:
    """A .txt file is one document, a line of .jsonl or .jsonl.gz is one; blank ones are left out, text is as given."""
    texts = ["first\n\nsecond paragraph ", "größer", "a\0b"]
    lines = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in [*texts, "  \n"]) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.txt").write_text(texts[0])
    (tmp_path / "d.txt").write_text(" \n")
    corpus = corpus_from_files([tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "d.txt")])
    assert list(corpus.documents()) == [*texts, *texts, texts[0]]
    assert list(corpus.documents()) == list(corpus.documents())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', r"a\.jsonl:2: not a JSON record .*; fix or remove this line"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: half a surrogate pair at character 0"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1: expected"),
        ("a.jsonl.gz", b'{"text": "ok"}\n', r"a\.jsonl\.gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "ok"}\n' * 99, mtime=0)[:-9], r"a\.jsonl\.gz: not a whole gzip file"),
        ("a.txt", b"\xff\xfe", r"a\.txt: not UTF-8"),
        (
            "a.csv",
            b"",
            r"a\.csv: unknown kind of document file; give \.txt, \.jsonl, \.jsonl\.gz files",
        ),
    ],
)
def test_bad_documents_are_located(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """The message names the file, and the line where there is one."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(corpus_from_files([tmp_path / name]).documents())


def test_batches_keep_order_and_lose_nothing() -> None:
    """However many documents, however long."""
    texts = [str(i) for i in range(3000)]
    assert [text for batch in batches(texts, text_of=str) for text in batch] == texts
    assert max(len(batch) for batch in batches(texts, text_of=str)) <= 1024


def damage_token(directory: Path) -> None:
    """One token beyond the vocabulary, hash and size of the manifest kept honest by rewriting both."""
    path = shard_paths(str(directory), "val")[0]
    raw = bytearray(path.read_bytes())
    raw[1030:1032] = (60_000).to_bytes(2, "little")
    path.write_bytes(raw)
    refresh_hash(directory, path)


def damage_bos(directory: Path) -> None:
    """The first document lost its BOS."""
    path = shard_paths(str(directory), "train")[0]
    raw = bytearray(path.read_bytes())
    raw[1024:1026] = (300).to_bytes(2, "little")
    path.write_bytes(raw)
    refresh_hash(directory, path)


def refresh_hash(directory: Path, shard: Path) -> None:
    """Make the manifest agree with the shard's bytes."""
    import hashlib

    manifest = json.loads((directory / "manifest.json").read_text())
    for entry in manifest["shards"]:
        if entry["name"] == shard.name:
            entry["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (damage_token, ["token id 60000 does not fit vocab_size 512"]),
        (damage_bos, ["expected BOS (1) as first token, got 300", "documents in the train split"]),
        (lambda d: shard_paths(str(d), "val")[0].unlink(), ["no such shard"]),
        (lambda d: os.truncate(shard_paths(str(d), "train")[0], 2000), ["got 2000; fetch or build the shard again"]),
        (lambda d: (d / "fineweb_train_000007.bin").write_bytes(b""), ["not in the manifest, yet training would read"]),
        (lambda d: (d / "tokenizer.model").write_bytes(b"x"), ["the shards are another tokenizer's"]),
        (lambda d: (d / "tokenizer.model").unlink(), ["tokenizer.model: no such file"]),
    ],
)
def test_check_finds_every_kind_of_damage(dataset: Path, damage, messages: list[str]) -> None:
    """A fresh dataset passes; each damage is named with what to do."""
    assert check(dataset).ok
    damage(dataset)
    problems = check(dataset).problems
    for message in messages:
        assert any(message in problem for problem in problems), problems


def test_check_lists_all_problems(dataset: Path) -> None:
    """Not only the first."""
    for path in (*shard_paths(str(dataset), "train"), *shard_paths(str(dataset), "val"), dataset / "tokenizer.model"):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    assert len(check(dataset).problems) == 3


def test_deduplication_drops_copies_and_near_copies() -> None:
    """The second of two paragraphs that share most five-word runs goes; new text stays, in order."""
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200)]
    first, other = " ".join(words[:60]), " ".join(words[60:120])
    near = " ".join([*words[:30], "changed", *words[31:60]])
    deduplicator = Deduplicator()
    assert deduplicator.keep(f"{first}\n\nshort line") == f"{first}\n\nshort line"
    assert deduplicator.keep(f"{near}\n\nshort line") == ""
    assert deduplicator.keep(f"{first.upper()}\n\n{other}\n\nshort line") == f"{other}\n\nshort line"


def test_documentation_is_docstrings_in_source_order(tmp_path: Path) -> None:
    """Of module, classes and functions; strings that are values, and code, are not documentation."""
    long = "long enough to be worth keeping in a corpus"
    path = tmp_path / "package" / "module.py"  # the folder's name matters: tmp_path has "doc" in it
    path.parent.mkdir()
    path.write_text(
        f'"""Module {long}."""\nx = """value {long}"""\nif x:\n    def f():\n        """F {long}.\n\n        More.\n'
        f'        """\nclass C:\n    """C {long}."""\n    async def g(self):\n        r"""G {long}."""\n'
        f'        """no"""\n'
        f'def short():\n    """Short."""\n'
    )
    assert documentation(path) == [f"Module {long}.", f"F {long}.\n\nMore.", f"C {long}.", f"G {long}."]
    path.write_text('"""' + "x" * 100 + '"""\nnot python at all')
    assert documentation(path) == []


def test_a_documentation_module_gives_all_its_strings(tmp_path: Path) -> None:
    """`add_docstr(f, "...")`, as numpy and torch write theirs."""
    path = tmp_path / "_module_docs.py"
    path.write_text(f'add_docstr(f, """{"words " * 20}""")\n')
    assert documentation(path) == [("words " * 20).strip()]


@given(sizes=st.lists(st.integers(40, 30_000), max_size=12))
def test_grouping_loses_no_block_of_a_large_document(sizes: list[int]) -> None:
    """Documents hold the blocks in order; only leftovers too short to be a document are dropped."""
    blocks = [f"{i:02d}" + "x" * (size - 2) for i, size in enumerate(sizes)]
    documents = list(group_blocks(blocks))
    kept = "\n\n".join(documents).split("\n\n") if documents else []
    assert kept == [block for block in blocks if block in kept]
    assert sum(len(block) for block in blocks if block not in kept) <= 200 * (len(documents) + 1)


def test_builtin_corpus_starts_at_once_and_skips_tests() -> None:
    """It reports before it reads, and test suites are not documentation."""
    said: list[str] = []
    corpus = builtin_corpus(said.append)
    assert said == []
    assert corpus.identity == builtin_corpus().identity
    import numpy

    files = python_files(Path(numpy.__file__).parent)
    assert files == sorted(files)
    assert not any("tests" in path.parts for path in files)


@pytest.mark.slow
def test_builtin_corpus_is_ten_megabytes_of_distinct_text() -> None:
    """What the demo study trains on, on this installation; half a minute of one core."""
    documents = list(builtin_corpus().documents())
    assert sum(len(text.encode()) for text in documents) >= 10_000_000
    assert len(set(documents)) == len(documents)
    letters = sum(char.isalpha() or char == " " for text in documents[::50] for char in text)
    assert letters > 0.7 * sum(len(text) for text in documents[::50])


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `pgolf data ...`."""
    command = [sys.executable, "-m", "search.cli", "data", *map(str, arguments)]
    result = subprocess.run(command, text=True, capture_output=True, check=False)
    return result.returncode, result.stdout, result.stderr


def test_command_line_builds_and_checks(tiny_docs: Path, tmp_path: Path) -> None:
    """--json prints exactly one document on stdout; talk goes to stderr; damage exits 1 with the reason."""
    out = tmp_path / "out"
    code, stdout, stderr = run("build", tiny_docs, "--vocab-size", "400", "--out", out, "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["vocab_size"] == 400
    assert stderr.startswith(f"building {out} from 1 files\n")
    code, stdout, _ = run("check", out, "--json")
    assert (code, json.loads(stdout)["ok"]) == (0, True)
    assert "ok, 2 shards" in run("check", out)[1]
    (out / "tokenizer.model").unlink()
    code, stdout, stderr = run("check", out, "--json")
    assert (code, json.loads(stdout)["ok"]) == (1, False)
    assert "error: " in stderr


def test_build_takes_several_files(tiny_docs: Path, tiny_data: Path, tmp_path: Path) -> None:
    """As a shell expands `*.txt`; neither files nor --builtin is a misuse."""
    extra = tmp_path / "extra.txt"
    extra.write_text("one more document")
    rest = ["--tokenizer", tiny_data / "tokenizer.model", "--out", tmp_path / "out", "--json"]
    code, stdout, stderr = run("build", tiny_docs, extra, *rest)
    assert code == 0, stderr
    built = json.loads(stdout)
    assert built["train"]["num_docs"] + built["val"]["num_docs"] == len(list(read_documents(tiny_docs))) + 1
    assert run("build", *rest)[0] == 2


def test_building_never_loads_torch() -> None:
    """Datasets are made on machines and in processes where torch would only cost seconds."""
    modules = ["corpus.build", "corpus.builtin", "corpus.check", "corpus.fetch", "commands.data"]
    code = f"import sys; import {', '.join(f'search.{name}' for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_command_line_errors_name_the_fix(tiny_docs: Path, tmp_path: Path) -> None:
    """Bad input exits 1 with `error:` and `hint:` in lower case; misuse exits 2."""
    code, stdout, stderr = run("build", tmp_path / "none.txt", "--out", tmp_path / "out")
    assert (code, stdout) == (1, "")
    assert f"error: {tmp_path}/none.txt: no such file\nhint: give" in stderr
    assert run("check", tmp_path)[0] == 1
    assert run("build", "--out", tmp_path / "out")[0] == 2
    assert run("build", "--builtin", tiny_docs, "--out", tmp_path / "out")[0] == 2
    assert run("build", tiny_docs, "--tokenizer", "x", "--vocab-size", "300", "--out", tmp_path)[0] == 2


@pytest.mark.parametrize("command", ["build", "fetch", "check"])
def test_every_command_shows_an_example(command: str) -> None:
    """In its help."""
    assert f"Example:\n    pgolf data {command}" in run(command, "--help")[1]


def test_official_training_documents_give_the_golden_stream(fineweb: Path, tmp_path: Path) -> None:
    """Tokens written by an independent builder, byte for byte, header included."""
    docs = tmp_path / "first300.jsonl"
    with gzip.open(fineweb / "docs" / "fineweb_train.jsonl.gz", "rb") as lines:
        docs.write_bytes(b"".join(islice(lines, 300)))
    model = fineweb / "tokenizers" / "fineweb_1024_bpe.model"
    build(corpus_from_files([docs]), tmp_path / "out", tokenizer=model, val_fraction=0.0)
    built = (tmp_path / "out" / "fineweb_train_000000.bin").read_bytes()
    assert built == (fineweb / "sp1024" / "golden_first300_train_docs.bin").read_bytes()


def test_official_validation_documents_give_the_official_shard(fineweb: Path, tmp_path: Path) -> None:
    """450 documents of the challenge's validation split give its tokens, byte for byte."""
    docs, model = fineweb / "docs" / "fineweb_val.jsonl.gz", fineweb / "tokenizers" / "fineweb_1024_bpe.model"
    manifest = build(corpus_from_files([docs]), tmp_path / "out", tokenizer=model, val_fraction=1.0)
    built = (tmp_path / "out" / "fineweb_val_000000.bin").read_bytes()
    assert built == (fineweb / "sp1024" / "fineweb_val_000000.bin").read_bytes()
    assert manifest.val.num_docs == int(np.sum(np.frombuffer(built[1024:], "<u2") == 1)) == 450
