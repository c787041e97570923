"""Bytes of the packed script under our minifier and under python-minifier, and whether the result still works.

    python tests/benchmarks/bench_minify.py [--repeats N]

The script is that of a preset. Every minifier's script trains a tiny model on a tiny dataset; its artifact must be that
of our minifier's script, byte for byte. A kernel in Triton's style shows whether a decorated function keeps what Triton
reads: the annotations of its parameters, its parameters as the only names for them, and no new global names.
Source: https://github.com/dflook/python-minifier
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median

import python_minifier
from python_minifier import RemoveAnnotationsOptions

from pgolf_model.config import Budget, EvalConfig, ModelConfig, RunConfig, TrainConfig
from search.bundle.join import Module, format_imports, join_modules
from search.bundle.minify import minify, names_in, reachable
from search.bundle.script import ENTRY, ROOTS, package_sources, script_around
from search.corpus.build import build
from search.corpus.builtin import documentation, group_blocks
from search.corpus.documents import corpus_from_files
from space.presets import preset

PRESET = "frontier_2026_04_27"
TINY = RunConfig(
    model=ModelConfig(
        vocab_size=512, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, loop_end=1, loop_repeats=1
    ),
    train=TrainConfig(batch_tokens=256, seq_len=32, micro_batch_tokens=128, precision="float32"),
    eval=EvalConfig(seq_len=32, batch_tokens=1024, max_tokens=5000),
    budget=Budget(steps=3),
)
KERNEL = """
import triton
import triton.language as tl
@triton.jit
def scale_kernel(x_ptr, y_ptr, num_elements, BLOCK_SIZE: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    columns = tl.arange(0, BLOCK_SIZE)[:, None] * BLOCK_SIZE + BLOCK_SIZE
    inside = offsets < num_elements
    values = tl.load(x_ptr + offsets, mask=inside, other=1.4142135623)
    tl.store(y_ptr + offsets, values * 1.4142135623 + 1.4142135623 + tl.sum(columns), mask=inside)
def main(x, y):
    scale_kernel[(1,)](x, y, 64, BLOCK_SIZE=64)
"""

Modules = tuple[Module, ...]


def joined(modules: Modules) -> str:
    """The whole program: every definition with its docstrings and annotations, without comments."""
    return program(modules, [node for module in modules for node in ast.parse(module.text).body])


def used(modules: Modules) -> str:
    """The definitions that the roots reach, otherwise as `joined`."""
    return program(modules, reachable([node for module in modules for node in ast.parse(module.text).body], ROOTS))


def ours(modules: Modules) -> str:
    """Our minifier."""
    return minify(modules, ROOTS)


def program(modules: Modules, statements: list[ast.stmt]) -> str:
    """Statements as source, below the imports that they use."""
    names = {name for statement in statements for name in names_in(statement)}
    imports = format_imports(i for module in modules for i in module.imports if i.bound in names)
    text = ast.unparse(ast.Module(body=statements, type_ignores=[]))
    return f"from __future__ import annotations\n{imports}\n{text}\n"


def theirs(source: str, *, hoist: bool, annotations: bool = False) -> str:
    """python-minifier with options that keep globals, attributes and the fields of dataclasses.

    Args:
        hoist: whether a literal that occurs often becomes a variable.
        annotations: whether those of functions stay, as Triton and torch.library need them.
    """
    removed = RemoveAnnotationsOptions(
        remove_variable_annotations=True,
        remove_return_annotations=not annotations,
        remove_argument_annotations=not annotations,
        remove_class_attribute_annotations=False,
    )
    return python_minifier.minify(
        source,
        remove_annotations=removed,
        remove_literal_statements=True,
        hoist_literals=hoist,
        rename_locals=True,
        rename_globals=False,
    )


MINIFIERS: dict[str, Callable[[Modules], str]] = {
    "ours": ours,
    "theirs, hoisting": lambda m: theirs(joined(m), hoist=True),
    "theirs": lambda m: theirs(joined(m), hoist=False),
    "unused removed, theirs, hoisting": lambda m: theirs(used(m), hoist=True),
    "unused removed, theirs": lambda m: theirs(used(m), hoist=False),
    "unused removed, theirs, annotations": lambda m: theirs(used(m), hoist=False, annotations=True),
    "ours, then theirs, hoisting": lambda m: theirs(ours(m), hoist=True),
    "ours, then theirs": lambda m: theirs(ours(m), hoist=False),
    "ours, then their printer": lambda m: python_minifier.unparse(ast.parse(ours(m))),
}


def kernel_faults(minifier: Callable[[Modules], str]) -> str:
    """What a minified kernel lacks of what Triton reads; empty where nothing."""
    statements = ast.parse(minifier(join_modules({"main": KERNEL}, "main"))).body
    kernel = next(s for s in statements if isinstance(s, ast.FunctionDef) and s.name == "scale_kernel")
    parameters = {argument.arg for argument in kernel.args.args}
    faults = []
    if kernel.args.args[-1].annotation is None:
        faults.append("annotation lost")
    values = [node.value for node in ast.walk(kernel) if isinstance(node, ast.Assign)]
    if any(isinstance(value, ast.Name) and value.id in parameters for value in values):
        faults.append("parameter renamed")
    if any(isinstance(s, ast.Assign) for s in statements):
        faults.append("global added")
    return ", ".join(faults)


def tiny_data(folder: Path) -> Path:
    """A dataset of 300 kB of the standard library's docstrings."""
    documents = folder / "tiny.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in docstrings(300_000)), encoding="utf-8")
    build(corpus_from_files([documents]), folder / "data", vocab_size=512, val_fraction=0.2)
    return folder / "data"


def docstrings(num_bytes: int) -> Iterator[str]:
    """Documents of at least so many bytes together."""
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for document in group_blocks(documentation(path)):
            if num_bytes <= 0:
                return
            num_bytes -= len(document.encode())
            yield document


def artifact(script: bytes, data: Path, folder: Path) -> str:
    """The hash of the artifact that a script leaves after a tiny training; the last line of its error if it fails."""
    folder.mkdir()
    (folder / "train_gpt.py").write_bytes(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-I", "train_gpt.py", "--data", str(data)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return hashlib.sha256((folder / "final_model.pgolf").read_bytes()).hexdigest()


def main() -> None:
    """Print a line per minifier and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    modules = join_modules(package_sources(), ENTRY)
    config = preset(PRESET)
    rows: dict[str, dict[str, object]] = {}
    print(f"{'minifier':36} {'characters':>10} {'lines':>6} {'script bytes':>12} {'seconds':>8}  artifact  kernel")
    with tempfile.TemporaryDirectory() as folder:
        data = tiny_data(Path(folder))
        expected = ""
        for place, (name, minifier) in enumerate(MINIFIERS.items()):
            seconds = []
            for _ in range(options.repeats):
                started = time.process_time()
                source = minifier(modules)
                seconds.append(time.process_time() - started)
            script = script_around(source, config)
            found = artifact(script_around(source, TINY), data, Path(folder, str(place)))
            expected = expected or found
            said = "same" if found == expected else found
            faults = kernel_faults(minifier)
            rows[name] = {
                "characters": len(source),
                "lines": source.count("\n"),
                "script_bytes": len(script),
                "seconds": {"median": round(median(seconds), 3), "all": [round(s, 3) for s in seconds]},
                "artifact": said,
                "kernel": faults or "whole",
            }
            print(
                f"{name:36} {len(source):10,} {rows[name]['lines']:6} {len(script):12,} {median(seconds):8.2f}  "
                f"{said:8}  {faults or 'whole'}",
                flush=True,
            )
    print(
        json.dumps(
            {
                "benchmark": "minify",
                "preset": PRESET,
                "repeats": options.repeats,
                "rows": rows,
                "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "python": platform.python_version(),
                "python_minifier": version("python-minifier"),
            }
        )
    )


if __name__ == "__main__":
    main()
