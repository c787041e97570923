"""Imports point one way, from the top floor of rooms to the ground, and heavy packages stay in few files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pgolf_model", "space", "trials", "search")  # each may import itself and those before it
LIGHT = (
    "pgolf_model.errors",
    "pgolf_model.checks",
    "pgolf_model.config",
    "pgolf_model.files",
    "pgolf_model.shapes",
    "pgolf_model.train.schedule",
)  # standard library only
# The house, ground floor first: a room may import rooms of earlier floors, and itself. Rooms of one floor do not
# know each other. A room is a folder, or the named modules at the root of a package.
FLOORS = (
    ("pgolf_model.{errors,files,checks,config,shapes,distributed}",),
    ("pgolf_model.data", "pgolf_model.model", "pgolf_model.quant"),
    ("pgolf_model.codec", "pgolf_model.train"),
    ("pgolf_model.evaluate",),
    ("pgolf_model.ship",),
    ("pgolf_model.main",),
    ("space.{params,plain,points,transfer,words}",),
    ("space.knobs",),
    ("space.{spaces,records,presets}",),
    ("space.forecast", "search.bundle"),
    ("trials",),
    ("search.corpus", "search.study", "search.surrogate"),
    ("search.ladder", "search.sampler", "search.submission"),
    ("search.brain", "search.look"),
    ("search.engines", "search.report"),
    ("search.preflight", "search.simulation"),
    ("search.launch",),
    ("search.commands",),
    ("search.cli",),
)
THIRD_PARTY = {  # what each package may import besides the standard library, anywhere
    "pgolf_model": {"torch", "numpy", "sentencepiece", "zstandard", "triton", "flash_attn_interface"},
    "space": {"numpy"},
    "trials": {"torch", "numpy", "psutil"},
    "search": {
        "numpy",
        "scipy",
        "sentencepiece",
        "click",
        "rich",
        "huggingface_hub",
        "optuna",
        "sqlalchemy",
        "ray",
        "plotly",
        "jinja2",
        "markupsafe",
        "torch",
        "packaging",
    },
}
ONLY_IN = {  # third-party package -> the modules that may import it
    "optuna": {f"search.sampler.{name}" for name in ("sampler", "mirror", "storage", "surrogate_sampler")},
    "sqlalchemy": {"search.sampler.sampler", "search.sampler.storage"},  # Optuna's storages raise its errors
    "ray": {"search.engines.ray_tune", "search.engines.ray_searcher"},
    "plotly": {"search.report.plot"},
    "jinja2": {"search.report.page"},
    "markupsafe": {"search.report.page"},  # only there may text be exempt from escaping
    "huggingface_hub": {"search.corpus.fetch"},
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One import statement's target."""

    importer: str  # dotted module
    target: str  # dotted module it imports, or imports from
    nested: bool  # inside a function

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module of ours."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imports() -> Iterator[Found]:
    """Every import of every module, in functions and out."""
    for name, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        nested = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno} imports relatively"
                # `from pgolf_model import config` names the module in its alias
                bare = node.module in PACKAGES
                targets = [f"{node.module}.{alias.name}" if bare else str(node.module) for alias in node.names]
            else:
                continue
            for target in targets:
                yield Found(importer=name, target=target, nested=id(node) in nested)


ALL_IMPORTS = tuple(imports())


def offenders(wrong: Iterator[Found]) -> list[str]:
    """What a failure prints."""
    return sorted({f"{found.importer} imports {found.target}" for found in wrong})


def floors() -> dict[str, tuple[int, str]]:
    """Room or module -> (its floor, the name of its room)."""
    found = {}
    for number, rooms in enumerate(FLOORS):
        for room in rooms:
            package, _, names = room.partition(".{")
            for name in [f"{package}.{name}" for name in names.rstrip("}").split(",")] if names else [room]:
                found[name] = (number, room)
    return found


def place(module: str, known: dict[str, tuple[int, str]]) -> tuple[int, str] | None:
    """The floor and room of a module: its own, or that of the nearest folder around it."""
    while module:
        if module in known:
            return known[module]
        module = module.rpartition(".")[0]
    return None


def test_every_module_is_in_a_room() -> None:
    """A file at the root of a package is in a room too: it is named in FLOORS."""
    known = floors()
    lost = [name for name, path in modules() if path.name != "__init__.py" and place(name, known) is None]
    assert not lost


def test_rooms_import_only_rooms_below() -> None:
    """No circle and no arrow upwards, also not inside functions or for types alone."""
    known = floors()
    wrong = set()
    for found in ALL_IMPORTS:
        here, there = place(found.importer, known), place(found.target, known)
        if here and there and here != there and there[0] >= here[0]:
            wrong.add(f"{found.importer} ({here[1]}) imports {found.target} ({there[1]})")
    assert not sorted(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below(package: str) -> None:
    """What ships knows nothing of the search; the space nothing of trials; trials nothing of the driver."""
    allowed = {*PACKAGES[: PACKAGES.index(package) + 1], *THIRD_PARTY[package], *sys.stdlib_module_names}
    assert not offenders(f for f in ALL_IMPORTS if f.importer.partition(".")[0] == package and f.top not in allowed)


def test_the_light_modules_need_only_the_standard_library() -> None:
    """Sizing, --help and status must not load torch, so what they read does not."""
    allowed = {*LIGHT, *sys.stdlib_module_names}
    light = [f for f in ALL_IMPORTS if f.importer in LIGHT]
    assert not offenders(f for f in light if f.target not in allowed and f.top not in allowed)


def test_the_space_reads_only_the_light_modules_of_the_model() -> None:
    """A space that touched the model would bring torch along."""
    assert not offenders(
        f for f in ALL_IMPORTS if f.importer.startswith("space") and f.top == "pgolf_model" and f.target not in LIGHT
    )


def test_torch_stays_out_of_the_driver() -> None:
    """Trials touch torch only inside functions, the driver only in the surrogate's, and it never imports trials.run."""
    assert not offenders(
        f for f in ALL_IMPORTS if f.importer.startswith("trials") and f.top == "torch" and not f.nested
    )
    in_search = [f for f in ALL_IMPORTS if f.importer.startswith("search")]
    surrogate = "search.surrogate.proposal"
    assert not offenders(f for f in in_search if f.top == "torch" and not (f.importer == surrogate and f.nested))
    assert not offenders(f for f in in_search if f.target in ("trials.run", "trials.worker"))


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_heavy_packages_live_in_one_file(package: str) -> None:
    """Optuna, Ray, plotly, Jinja2 and the hub can each be replaced by rewriting one file."""
    assert not offenders(f for f in ALL_IMPORTS if f.top == package and f.importer not in ONLY_IN[package])


def test_nothing_above_the_model_loads_torch() -> None:
    """The rule as it is felt: importing every module of the upper packages leaves torch unloaded."""
    names = [name for name, _ in modules() if not name.startswith("pgolf_model") and name != "trials.worker"]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "print(*sorted({'torch', 'ray', 'plotly'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
