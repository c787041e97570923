"""Fetch published FineWeb shards from the Hugging Face hub, or from a local folder with the same layout.

A repository holds, below `datasets/`: `manifest.json`, `datasets/fineweb10B_<variant>/fineweb_{train,val}_<n>.bin`
and `tokenizers/`. Source: https://github.com/openai/parameter-golf/tree/main/data
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf_model.data.bytecount import PieceBytes, load_tokenizer, piece_bytes
from pgolf_model.data.shards import read_shard
from pgolf_model.errors import UserError
from search.corpus.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, ShardInfo, Split, SplitInfo, read_manifest
from search.corpus.shard_writer import disk_errors, scan_shard, shard_info
from search.corpus.tokenizer import normalization_of, tokenizer_hash
from trials.files import write_json

ROOT = "datasets"  # folder of the repository with all of its files
DEFAULT_REPO = "willdepueoai/parameter-golf"
REPOS = {"sp4096": "kevclark/parameter-golf", "sp8192": "kevclark/parameter-golf"}  # variants published elsewhere
PARTIAL_FOLDER = ".partial"  # unfinished downloads; kept after an interrupt, so that the next call continues them

Report = Callable[[str], None]
Hub = Callable[[str, Path], Path]  # (name in the repository, folder to put it below) -> the file


def fetch(
    variant: str,
    out: Path,
    *,
    train_shards: int = 1,
    repo: str | None = None,
    revision: str | None = None,
    report: Report = lambda line: None,
) -> Manifest:
    """Download a variant's tokenizer, all validation shards and its first training shards.

    A repeated call keeps the shards that are whole, so it continues an interrupted download, and adds shards if
    `train_shards` is larger.

    Args:
        variant: such as "sp1024".
        repo: dataset repository, or a local folder with the same layout.
    Raises:
        UserError: no such variant, shard or repository, no network, a damaged download, a full disk, or `out` has
            other contents.
    """
    repo = repo or REPOS.get(variant, DEFAULT_REPO)
    source = f"{repo} {variant}" + (f" at {revision}" if revision else "")
    there = _refuse_other(out, source)
    train_shards = max(train_shards, there)
    report(f"reading the manifest of {repo}")
    hub = open_hub(repo, revision)
    with disk_errors(out):
        partial = out / PARTIAL_FOLDER
        partial.mkdir(parents=True, exist_ok=True)
        files = _files_of(hub(f"{ROOT}/{MANIFEST_FILE}", partial), repo, variant, train_shards)
        os.replace(hub(files.tokenizer, partial), out / TOKENIZER_FILE)
        for number, (_, name) in enumerate(files.shards, start=1):
            label = f"shard {number}/{len(files.shards)} {name}"
            if _is_whole(out / name):
                report(f"{label}: already there")
                continue
            report(f"{label}: downloading")
            found = hub(f"{files.folder}/{name}", partial)
            read_shard(found)
            os.replace(found, out / name)
        report("hashing and counting")
        manifest = _describe(out, files, source)
        write_json(out / MANIFEST_FILE, manifest)
        shutil.rmtree(partial)
    return manifest


def open_hub(repo: str, revision: str | None = None) -> Hub:
    """Return a function that gets a file of a repository: by copying from a local folder, or by downloading.

    The function raises UserError if the file does not exist or the hub cannot be reached, and says which.
    """
    if Path(repo).is_dir():
        return lambda name, folder: _copy(Path(repo), name, folder)
    return lambda name, folder: _download(repo, revision, name, folder)


def _copy(repo: Path, name: str, folder: Path) -> Path:
    """Copy a file of a local folder."""
    if not (repo / name).is_file():
        raise UserError(f"{repo}: no {name}", hint=f"see its {ROOT}/{MANIFEST_FILE} for what is published")
    return Path(shutil.copyfile(repo / name, folder / Path(name).name))


def _download(repo: str, revision: str | None, name: str, folder: Path) -> Path:
    """Download a file of the hub; an interrupted download is continued."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision, local_dir=folder))
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, so it comes first
        raise UserError(
            f"cannot reach the Hugging Face hub for {repo} ({_first_line(error)})",
            hint=("check the network, or build from local text with `pgolf data build --builtin`"),
        ) from None
    except EntryNotFoundError:
        raise UserError(f"{repo}: no {name}", hint=f"see its {ROOT}/{MANIFEST_FILE} for what is published") from None
    except HFValidationError:
        raise UserError(
            f"--repo must be a local folder or OWNER/NAME, got {repo!r}", hint="give one that exists"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(
            f"{repo}: the hub refused {name} ({_first_line(error)})", hint="check --repo and --revision"
        ) from None
    except OSError as error:
        if error.errno is not None:  # the disk's, not the network's
            raise
        raise UserError(
            f"{repo}: downloading {name} failed ({_first_line(error)})", hint="run it again to go on"
        ) from None


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Files:
    """Files to download, as the repository's manifest lists them."""

    folder: str  # of the shards, in the repository
    tokenizer: str  # name in the repository
    shards: tuple[tuple[Split, str], ...]  # training first


def _files_of(path: Path, repo: str, variant: str, train_shards: int) -> _Files:
    """Return the files of a variant; raise UserError if the manifest does not list them."""
    name = f"fineweb10B_{variant}"
    try:
        listed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        datasets = {entry["name"]: entry for entry in listed["datasets"]}
        tokenizers = {entry["name"]: entry for entry in listed["tokenizers"]}
        if name not in datasets:
            known = ", ".join(sorted(key.removeprefix("fineweb10B_") for key in datasets)) or "none"
            raise UserError(f"{repo}: no variant {variant!r}", hint=f"published there: {known}")
        stats, model = datasets[name]["stats"], tokenizers[datasets[name]["tokenizer_name"]].get("model_path")
        published, num_val = int(stats["files_train"]), int(stats["files_val"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{repo}: its manifest is not as expected ({error!r})", hint="try another --revision") from None
    if not model:
        raise UserError(f"{repo}: {variant} has no SentencePiece model", hint="choose a variant such as sp1024")
    if not 0 <= train_shards <= published:
        raise UserError(f"{repo} has {published} training shards of {variant}, got --train-shards {train_shards}")
    return _Files(
        folder=f"{ROOT}/datasets/{name}",
        tokenizer=f"{ROOT}/{model}",
        shards=(
            *(("train", f"fineweb_train_{i:06d}.bin") for i in range(train_shards)),
            *(("val", f"fineweb_val_{i:06d}.bin") for i in range(num_val)),
        ),
    )


def _refuse_other(out: Path, source: str) -> int:
    """Return how many training shards of this source `out` has; raise UserError if it has other contents."""
    if (out / MANIFEST_FILE).is_file():
        manifest = read_manifest(out)
        if manifest.source != source:
            raise UserError(
                f"{out} holds another dataset ({manifest.source})", hint="delete it or choose another --out"
            )
        return sum(shard.split == "train" for shard in manifest.shards)
    if out.exists() and not (out.is_dir() and ((out / PARTIAL_FOLDER).is_dir() or not any(out.iterdir()))):
        raise UserError(f"{out} is not empty and holds no dataset", hint="choose another --out")
    return 0


def _is_whole(path: Path) -> bool:
    """Return whether a shard exists and has the size that its header says."""
    try:
        read_shard(path)
    except UserError:
        return False
    return True


def _describe(out: Path, files: _Files, source: str) -> Manifest:
    """Return our manifest of the downloaded files, after one pass over all tokens."""
    model = out / TOKENIZER_FILE
    tokenizer = load_tokenizer(str(model))
    table = piece_bytes(str(model), tokenizer.vocab_size())
    shards = tuple(shard_info(out / name, side) for side, name in files.shards)
    return Manifest(
        source=source,
        recipe_sha256=hashlib.sha256(source.encode()).hexdigest(),
        tokenizer_sha256=tokenizer_hash(model),
        vocab_size=tokenizer.vocab_size(),
        normalization=normalization_of(tokenizer),
        shards=shards,
        train=_count(out, [shard for shard in shards if shard.split == "train"], table, tokenizer.bos_id()),
        val=_count(out, [shard for shard in shards if shard.split == "val"], table, tokenizer.bos_id()),
    )


def _count(out: Path, shards: list[ShardInfo], table: PieceBytes, bos_id: int) -> SplitInfo:
    """Count documents, tokens and scored bytes of one split; raise UserError if a token is not the tokenizer's."""
    num_docs = scored_bytes = 0
    previous = bos_id
    for shard in shards:
        scan = scan_shard(out / shard.name, table, bos_id=bos_id, previous=previous)
        if scan.max_token >= len(table.base_bytes):
            raise UserError(
                f"{out / shard.name}: token id {scan.max_token} does not fit the tokenizer's "
                f"{len(table.base_bytes)} pieces",
                hint="the repository mixes datasets: try another --revision",
            )
        num_docs, scored_bytes, previous = num_docs + scan.num_docs, scored_bytes + scan.scored_bytes, scan.last_token
    return SplitInfo(num_docs=num_docs, tokens=sum(shard.tokens for shard in shards), scored_bytes=scored_bytes)
