"""`pgolf data fetch`, against a local folder that stands for the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from refusals import refused

from pgolf_model.data.shards import shard_paths
from search.commands.data import data
from search.corpus.build import build
from search.corpus.check import check
from search.corpus.documents import corpus_from_files
from search.corpus.fetch import fetch
from search.corpus.manifest import read_manifest


@pytest.fixture(scope="module")
def published(tiny_docs: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as the challenge publishes them: three or more training shards of variant sp512."""
    root = tmp_path_factory.mktemp("hub") / "repo" / "datasets"
    folder = root / "datasets" / "fineweb10B_sp512"
    folder.parent.mkdir(parents=True)
    model = tiny_data / "tokenizer.model"
    manifest = build(corpus_from_files([tiny_docs]), folder, tokenizer=model, val_fraction=0.2, shard_tokens=25_000)
    (folder / "manifest.json").unlink()
    (root / "tokenizers").mkdir()
    (folder / "tokenizer.model").rename(root / "tokenizers" / "fineweb_512_bpe.model")
    stats = {f"files_{side}": sum(s.split == side for s in manifest.shards) for side in ("train", "val")}
    assert stats["files_train"] >= 3
    listing = {
        "datasets": [{"name": "fineweb10B_sp512", "tokenizer_name": "sp_bpe_512", "stats": stats}],
        "tokenizers": [{"name": "sp_bpe_512", "model_path": "tokenizers/fineweb_512_bpe.model"}],
    }
    (root / "manifest.json").write_text(json.dumps(listing))
    return root.parent


@pytest.fixture
def repo(published: Path, tmp_path: Path) -> Path:
    """The published repository, for a test to damage."""
    return Path(shutil.copytree(published, tmp_path / "repo"))


def names(out: Path) -> list[str]:
    """Files of a dataset folder."""
    return sorted(path.name for path in out.iterdir())


def test_fetch_brings_the_first_shards_all_validation_and_the_tokenizer(repo: Path, tmp_path: Path) -> None:
    """What came is a dataset that passes the check, and the manifest says where it came from."""
    manifest = fetch("sp512", tmp_path / "out", train_shards=2, repo=str(repo))
    train = [path.name for path in shard_paths(str(tmp_path / "out"), "train")]
    val = len(list((repo / "datasets" / "datasets" / "fineweb10B_sp512").glob("fineweb_val_*")))
    assert train == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    assert len(shard_paths(str(tmp_path / "out"), "val")) == val
    assert check(tmp_path / "out").problems == ()
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest.source == f"{repo} sp512"
    assert manifest.vocab_size == 512
    assert not any(name.startswith(".") for name in names(tmp_path / "out"))


def test_fetching_again_keeps_whole_shards_and_adds_the_rest(repo: Path, tmp_path: Path) -> None:
    """A damaged shard is downloaded again, whole ones are not, and asking for fewer drops none."""
    out, said = tmp_path / "out", []
    fetch("sp512", out, train_shards=2, repo=str(repo))
    good = (out / "fineweb_train_000001.bin").read_bytes()
    (out / "fineweb_train_000001.bin").write_bytes(good[:-1])
    kept = (out / "fineweb_train_000000.bin").stat().st_mtime_ns
    manifest = fetch("sp512", out, train_shards=3, repo=str(repo), report=said.append)
    assert (out / "fineweb_train_000000.bin").stat().st_mtime_ns == kept
    assert (out / "fineweb_train_000001.bin").read_bytes() == good
    assert sum(line.endswith("downloading") for line in said) == 2
    assert sum(shard.split == "train" for shard in manifest.shards) == 3
    assert fetch("sp512", out, train_shards=1, repo=str(repo)) == manifest


def test_an_interrupted_fetch_goes_on(repo: Path, tmp_path: Path) -> None:
    """A listed shard that is missing stops it; when it appears, the same command finishes without starting over."""
    out = tmp_path / "out"
    shard = repo / "datasets" / "datasets" / "fineweb10B_sp512" / "fineweb_train_000001.bin"
    shard.rename(tmp_path / "late.bin")
    with refused(r"no datasets/datasets/fineweb10B_sp512/fineweb_train_000001\.bin", hint=r"see its"):
        fetch("sp512", out, train_shards=2, repo=str(repo))
    assert not (out / "manifest.json").exists()
    (tmp_path / "late.bin").rename(shard)
    said: list[str] = []
    fetch("sp512", out, train_shards=2, repo=str(repo), report=said.append)
    assert "shard 1/3 fineweb_train_000000.bin: already there" in said
    assert check(out).ok


def test_a_damaged_download_is_not_taken(repo: Path, tmp_path: Path) -> None:
    """The header is read before a shard gets its place."""
    shard = repo / "datasets" / "datasets" / "fineweb10B_sp512" / "fineweb_train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match="fetch or build the shard again"):
        fetch("sp512", tmp_path / "out", repo=str(repo))
    assert not (tmp_path / "out" / shard.name).exists()


def test_what_is_not_published_is_said(repo: Path, tmp_path: Path) -> None:
    """An unknown variant lists the known ones; too many shards and an odd manifest are told apart."""
    with refused("no variant 'sp9'", hint="published there: sp512"):
        fetch("sp9", tmp_path / "a", repo=str(repo))
    with pytest.raises(ValueError, match=r"has \d+ training shards of sp512, got --train-shards 99"):
        fetch("sp512", tmp_path / "b", train_shards=99, repo=str(repo))
    (repo / "datasets" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="its manifest is not as expected"):
        fetch("sp512", tmp_path / "c", repo=str(repo))


def test_another_dataset_is_not_overwritten(repo: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Neither one of ours nor a folder of other files."""
    with refused(r"holds another dataset \(tiny\.jsonl\)", hint=r"delete it or choose another --out"):
        fetch("sp512", tiny_data, repo=str(repo))
    with pytest.raises(ValueError, match="is not empty and holds no dataset"):
        fetch("sp512", tmp_path, repo=str(repo))


def test_no_network_is_said_and_names_the_way_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub client in offline mode, as on a machine without internet."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with refused(r"cannot reach the Hugging Face hub .*", hint=r"check the network, or build from local"):
        fetch("sp1024", tmp_path / "out", repo="someone/nothing")
    with pytest.raises(ValueError, match="--repo must be a local folder or OWNER/NAME, got 'a/b/c'"):
        fetch("sp1024", tmp_path / "out", repo="a/b/c")


def test_command_line_fetches(repo: Path, tmp_path: Path) -> None:
    """One JSON document on stdout, one line per shard on stderr."""
    arguments = ["fetch", "--variant", "sp512", "--repo", str(repo), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(data, arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["source"] == f"{repo} sp512"
    assert "shard 1/2 fineweb_train_000000.bin: downloading" in result.stderr
