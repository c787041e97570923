"""`pgolf quantize`: one trained checkpoint packed and scored at any sizes, by the script that would ship it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf_model.errors import UserError
from search.commands import options
from search.commands.tables import print_json, print_table
from search.submission.checkpoint import changed, find_source
from search.submission.child import last_words

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--bytes", "targets", type=int, multiple=True, metavar="N", help="Code and model bytes to fill.")
@click.option("--data", metavar="DIR", help="Dataset folder: calibration and validation; the trial's by default.")
@click.option("--tokenizer", metavar="FILE", help="Its tokenizer; the trial's, or the one in the folder, by default.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Another [quant] setting: method=gptq.")
@click.option("--max-tokens", type=int, help="Score so many leading tokens; 0 scores all. The trial's by default.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to leave artifacts and audits in."
)
@options.as_json
def quantize(
    checkpoint: Path,
    targets: tuple[int, ...],
    data: str | None,
    tokenizer: str | None,
    changes: tuple[str, ...],
    max_tokens: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Pack CHECKPOINT to any number of sizes and score each one: a curve of bytes against bpb from one training.

    CHECKPOINT is a trial's folder, or a checkpoint.npz that `pgolf trial --keep-checkpoint` left. Sizes are in bytes of
    code and model, and are filled to within 0.2 %, never above. A trial is packed by its own script; with --set, or
    for a lone checkpoint, by this version of pgolf.

    \b
    Example:
      pgolf trial tiny --data data/builtin --steps 200 --out runs/tiny --keep-checkpoint
      pgolf quantize runs/tiny --bytes 800000 --bytes 1000000 --set method=gptq
    """
    source = find_source(checkpoint)
    data, tokenizer = data or source.data, tokenizer or ("" if data else source.tokenizer)
    if not data:
        raise UserError(f"{checkpoint}: it is not known which dataset this was trained on", hint="give --data DIR")
    with tempfile.TemporaryDirectory() as folder:
        script = source.script
        if script is None or changes:
            from search.bundle.script import bundle

            script = Path(folder) / "train_gpt.py"
            script.write_bytes(bundle(changed(source.config, changes)))
        command = [sys.executable, "-u", str(script), "--quantize", str(source.checkpoint), "--data", data]
        command += ["--out", str(out or folder)] + (["--tokenizer", tokenizer] if tokenizer else [])
        command += [] if max_tokens is None else ["--max-tokens", str(max_tokens)]
        command += ["--bytes", *map(str, targets)] if targets else []
        click.echo(f"packing {source.checkpoint}", err=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise last_words(done)
    report = json.loads(done.stdout)
    for point in report["points"]:
        if out and "error" not in point:
            point["artifact"] = str(out / f"quantized_{point['target_bytes']}.pgolf")
    if as_json:
        print_json({"checkpoint": str(source.checkpoint), **report})
    else:
        _show(report)
    if all("error" in point for point in report["points"]):
        raise UserError(report["points"][0]["error"])


def _show(report: dict[str, Any]) -> None:
    """A row for each size, then why the others cannot be."""
    before = report["pre_quant_val_bpb"]
    click.echo(
        f"{report['num_params']:,} parameters, {report['code_bytes']:,} bytes of code, unpacked {before:.4f} bpb"
    )
    header = ["target", "bytes", "val_bpb", "gap", "bits/weight", "pack s", "score s"]
    packed = [point for point in report["points"] if "error" not in point]
    print_table(header, [_cells(point, before) for point in packed], left=0)
    for point in report["points"]:
        if "error" in point:
            click.echo(f"{_target(point)}: {point['error']}")


def _cells(point: dict[str, Any], before: float) -> list[str]:
    return [
        _target(point),
        f"{point['artifact_bytes']:,}",
        f"{point['val_bpb']:.4f}",
        f"{point['val_bpb'] - before:+.4f}",
        f"{point['bits_per_weight']:.3f}",
        f"{point['quantize_seconds']:.1f}",
        f"{point['eval_seconds']:.1f}",
    ]


def _target(point: dict[str, Any]) -> str:
    return f"{point['target_bytes']:,}" if point["target_bytes"] else "as is"
