"""`pgolf quantize`: one trained checkpoint packed and scored at any sizes, by the script that would ship it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pgolf_model.config import RunConfig

CONFIG_ENTRY = "config.json"  # in a checkpoint, as pgolf_model.curve writes it


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A checkpoint with what is needed to pack it."""

    checkpoint: Path
    config: RunConfig
    script: Path | None  # the trial's own; None when there is none
    data: str  # dataset folder; empty when unknown
    tokenizer: str


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
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
        raise ValueError(f"{checkpoint}: it is not known which dataset this was trained on; give --data DIR")
    with tempfile.TemporaryDirectory() as folder:
        script = source.script
        if script is None or changes:
            from search.bundle import bundle

            script = Path(folder) / "train_gpt.py"
            script.write_bytes(bundle(changed(source.config, changes)))
        command = [sys.executable, "-u", str(script), "--quantize", str(source.checkpoint), "--data", data]
        command += ["--out", str(out or folder)] + (["--tokenizer", tokenizer] if tokenizer else [])
        command += [] if max_tokens is None else ["--max-tokens", str(max_tokens)]
        command += ["--bytes", *map(str, targets)] if targets else []
        click.echo(f"packing {source.checkpoint}", err=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(words[-1].removeprefix("error: "))
    report = json.loads(done.stdout)
    for point in report["points"]:
        if out and "error" not in point:
            point["artifact"] = str(out / f"quantized_{point['target_bytes']}.pgolf")
    if as_json:
        click.echo(json.dumps({"checkpoint": str(source.checkpoint), **report}, allow_nan=False))
    else:
        _print_table(report)
    if all("error" in point for point in report["points"]):
        raise ValueError(report["points"][0]["error"])


def find_source(path: Path) -> Source:
    """What a trial's folder or a checkpoint file says.

    Raises:
        ValueError: there is no checkpoint; says how to get one.
    """
    from trials.spec import CHECKPOINT_FILE, SCRIPT_FILE, SPEC_FILE, TrialSpec, read_noun

    if path.is_dir():
        found = sorted([*path.glob(CHECKPOINT_FILE), *path.glob(f"seed*/{CHECKPOINT_FILE}")])
        if not found:
            raise ValueError(f"{path}: no {CHECKPOINT_FILE} in it; train with --keep-checkpoint")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint or trial folder")
    path = path.absolute()
    trial = path.parent.parent
    if (trial / SPEC_FILE).is_file() and (trial / SCRIPT_FILE).is_file():
        spec = read_noun(TrialSpec, trial / SPEC_FILE)
        return Source(
            checkpoint=path,
            config=spec.config,
            script=trial / SCRIPT_FILE,
            data=spec.data_dir,
            tokenizer=spec.tokenizer,
        )
    return Source(checkpoint=path, config=read_config(path), script=None, data="", tokenizer="")


def read_config(checkpoint: Path) -> RunConfig:
    """The config that a checkpoint carries.

    Raises:
        ValueError: it is no checkpoint; names the file.
    """
    from zipfile import BadZipFile

    import numpy as np

    from pgolf_model.config import RunConfig
    from space.plain import from_plain

    try:
        with checkpoint.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            plain = json.loads(bytes(arrays[CONFIG_ENTRY]))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{checkpoint}: not a checkpoint of pgolf ({error})") from None
    return from_plain(RunConfig, plain, where=str(checkpoint))


def changed(config: RunConfig, changes: tuple[str, ...]) -> RunConfig:
    """The config with other [quant] settings, each `KEY=VALUE` with a value as TOML writes it, or a bare word."""
    import tomllib

    from pgolf_model.config import QuantConfig
    from space.plain import from_plain, to_plain

    plain: dict[str, Any] = to_plain(config.quant)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: expected KEY=VALUE, such as method=gptq")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        plain[key.strip()] = value
    return replace(config, quant=from_plain(QuantConfig, plain, where="--set"))


def _print_table(report: dict[str, Any]) -> None:
    """One line per size."""
    before = report["pre_quant_val_bpb"]
    click.echo(
        f"{report['num_params']:,} parameters, {report['code_bytes']:,} bytes of code, unpacked {before:.4f} bpb"
    )
    click.echo(
        f"{'target':>12} {'bytes':>12} {'val_bpb':>9} {'gap':>9} {'bits/weight':>12} {'pack s':>8} {'score s':>8}"
    )
    for point in report["points"]:
        target = f"{point['target_bytes']:,}" if point["target_bytes"] else "as is"
        if "error" in point:
            click.echo(f"{target:>12}  {point['error']}")
            continue
        click.echo(
            f"{target:>12} {point['artifact_bytes']:>12,} {point['val_bpb']:>9.4f} {point['val_bpb'] - before:>+9.4f} "
            f"{point['bits_per_weight']:>12.3f} {point['quantize_seconds']:>8.1f} {point['eval_seconds']:>8.1f}"
        )
