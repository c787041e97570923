"""`pgolf data build | fetch | check`: datasets made, downloaded and checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from search.commands import options
from search.commands.tables import print_json

if TYPE_CHECKING:
    from search.corpus.manifest import Manifest

P = ParamSpec("P")
R = TypeVar("R")


@click.group()
def data() -> None:
    """Make, download and check datasets.

    \b
    Example:
      pgolf data build --builtin --out data/builtin
      pgolf data check data/builtin
    """


def _say(line: str) -> None:
    click.echo(line, err=True)


@data.command()
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--builtin", is_flag=True, help="Use the documentation installed on this machine instead of files.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="SentencePiece model to use; else one is trained.")
@click.option("--vocab-size", type=click.IntRange(1, 65_536), help="Pieces of the trained tokenizer.  [default: 1024]")
@click.option(
    "--normalization",
    type=click.Choice(["nmt_nfkc", "identity"]),
    help="How the trained tokenizer treats text; the challenge's is nmt_nfkc.  [default: nmt_nfkc]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Dataset folder to make.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of documents held out.",
)
@click.option(
    "--val-docs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Document files to hold out instead of a share; may be given several times.",
)
@click.option(
    "--shard-tokens",
    type=click.IntRange(1, 2**31 - 1),
    default=100_000_000,
    show_default=True,
    help="Tokens of a full shard.",
)
@options.as_json
def build(
    files: tuple[Path, ...],
    builtin: bool,
    tokenizer: Path | None,
    vocab_size: int | None,
    normalization: str | None,
    out: Path,
    val_fraction: float,
    val_docs: tuple[Path, ...],
    shard_tokens: int,
    as_json: bool,
) -> None:
    """Make a dataset from document FILEs: tokenizer, train and validation shards, manifest.

    A .txt file is one document; .jsonl and .jsonl.gz have one {"text": ...} a line.

    \b
    Example:
      pgolf data build articles.jsonl.gz --vocab-size 1024 --out data/articles
      pgolf data build --builtin --out data/builtin
    """
    if builtin == bool(files):
        raise click.UsageError("give either document files or --builtin")
    if tokenizer is not None and (vocab_size is not None or normalization is not None):
        raise click.UsageError("--tokenizer brings its own vocabulary and normalization; drop the other options")
    _say(f"building {out} from {'the built-in corpus' if builtin else f'{len(files)} files'}")
    from search.corpus.build import build as build_dataset
    from search.corpus.builtin import builtin_corpus
    from search.corpus.documents import corpus_from_files

    manifest = build_dataset(
        builtin_corpus(_say) if builtin else corpus_from_files(files),
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size or 1024,
        normalization="identity" if normalization == "identity" else "nmt_nfkc",
        val_fraction=val_fraction,
        val_corpus=corpus_from_files(val_docs) if val_docs else None,
        shard_tokens=shard_tokens,
        report=_say,
    )
    _show(manifest, out, as_json)


@data.command()
@click.option("--variant", default="sp1024", show_default=True, help="Tokenizer family, such as sp1024 or sp8192.")
@click.option(
    "--train-shards",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Training shards to have, 100 M tokens (200 MB) each.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Dataset folder to fill.")
@click.option("--repo", help="Hub dataset repository, or a local folder laid out like one.  [default: the variant's]")
@click.option("--revision", help="Branch, tag or commit of the repository.")
@options.as_json
def fetch(variant: str, train_shards: int, out: Path, repo: str | None, revision: str | None, as_json: bool) -> None:
    """Download published FineWeb shards; run it again to go on or to add shards.

    \b
    Example:
      pgolf data fetch --variant sp1024 --train-shards 10 --out data/sp1024
    """
    from search.corpus.fetch import fetch as fetch_dataset

    manifest = fetch_dataset(variant, out, train_shards=train_shards, repo=repo, revision=revision, report=_say)
    _show(manifest, out, as_json)


@data.command()
@click.argument("directory", type=click.Path(path_type=Path))
@options.as_json
def check(directory: Path, as_json: bool) -> None:
    """Check a dataset: headers, sizes, hashes, tokenizer, token range, documents.

    \b
    Example:
      pgolf data check data/sp1024
    """
    _say(f"checking {directory}")
    from search.corpus.check import check as check_dataset
    from space.plain import to_plain

    report = check_dataset(directory)
    if as_json:
        print_json({**to_plain(report), "ok": report.ok})
    for problem in report.problems:
        _say(f"error: {problem}")
    if not report.ok:
        sys.exit(1)
    if not as_json:
        click.echo(f"{directory}: ok, {report.num_shards} shards, {report.tokens:,} tokens")


def _show(manifest: Manifest, out: Path, as_json: bool) -> None:
    """The manifest for people, or as JSON."""
    from space.plain import to_plain

    if as_json:
        audit = manifest.audit
        derived = {"dropped_share": audit.dropped_share} if audit else {}
        print_json({"directory": str(out), **to_plain(manifest), **derived})
        return
    for name, split in (("train", manifest.train), ("val", manifest.val)):
        click.echo(
            f"{name:5} {split.num_docs:>9,} documents  {split.tokens:>13,} tokens  {split.scored_bytes:>13,} bytes"
        )
    dropped = f", drops {manifest.audit.dropped_share:.2%} of raw bytes" if manifest.audit else ""
    click.echo(f"tokenizer {manifest.vocab_size} pieces, {manifest.normalization}{dropped}")
    click.echo(f"dataset {out}")
