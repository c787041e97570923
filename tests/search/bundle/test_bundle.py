"""The bundle is the package: one file, the same numbers, readable when something breaks."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submissions import CONFIG

from pgolf_model.config import Budget, ModelConfig, QuantConfig, RunConfig, TrainConfig
from search.bundle.join import join_modules
from search.bundle.minify import minify
from search.bundle.script import (
    bundle,
    code_bytes,
    compact_repr,
    foreign_imports,
    readable,
    self_extracting,
    unpack_script,
)

CONFIG_NAMES = {
    cls.__name__: cls for cls in (RunConfig, ModelConfig, TrainConfig, QuantConfig, Budget, type(CONFIG.eval))
}


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )


def metrics_of(folder: Path) -> dict[str, object]:
    metrics: dict[str, object] = json.loads((folder / "metrics.json").read_text())
    return metrics


def test_bundle_equals_the_package_bit_for_bit(tmp_path: Path, tiny_data: Path) -> None:
    """Same config, seed and steps on one CPU thread: the same artifact and the same score, to the last bit.

    The script runs isolated, in a process in which our packages cannot be imported.
    """
    (tmp_path / "train_gpt.py").write_bytes(bundle(CONFIG))
    blocked = (
        "import runpy, sys; sys.modules |= dict.fromkeys(['pgolf_model', 'space', 'trials', 'search']); "
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    options = ["--data", str(tiny_data), "--out"]
    bundled = run("-I", "-c", blocked, "train_gpt.py", *options, "bundled", cwd=tmp_path)
    program = f"from pgolf_model.config import *; from pgolf_model.main import main; raise SystemExit(main({CONFIG!r}))"
    package = run("-c", program, *options, "package", cwd=tmp_path)
    assert (bundled.returncode, package.returncode) == (0, 0), bundled.stderr + package.stderr

    ours, theirs = metrics_of(tmp_path / "bundled"), metrics_of(tmp_path / "package")
    for key in ("status", "artifact_sha256", "val_bpb", "val_loss", "pre_quant_val_bpb", "final_train_loss", "bytes"):
        assert ours[key] == theirs[key], key
    artifacts = [(tmp_path / folder / "final_model.pgolf").read_bytes() for folder in ("bundled", "package")]
    assert artifacts[0] == artifacts[1]
    assert ours["code_bytes"] == len(bundle(CONFIG))


def test_bundle_runs_under_torchrun(tmp_path: Path, tiny_data: Path) -> None:
    """Two ranks train one model and leave one artifact, whose bytes are counted from the script itself."""
    (tmp_path / "train_gpt.py").write_bytes(bundle(CONFIG))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_gpt.py"]
    answer = run(*launcher, "--data", str(tiny_data), cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    metrics = metrics_of(tmp_path)
    assert (metrics["world_size"], metrics["code_bytes"]) == (2, len(bundle(CONFIG)))
    assert answer.stdout.count("final val_loss:") == 1


def test_bundle_stands_alone() -> None:
    """Nothing is imported but torch, numpy, sentencepiece, zstandard and the standard library."""
    for source in (unpack_script(bundle(CONFIG)), readable(CONFIG)):
        assert foreign_imports(source) == []
        assert foreign_imports(source, allowed=()) == ["numpy", "sentencepiece", "torch", "zstandard"]


def test_bundle_is_deterministic(tmp_path: Path) -> None:
    """Another process with other hashes writes the same bytes."""
    program = "from search.bundle.script import pack_package; import sys; sys.stdout.write(pack_package().decode())"
    again = run("-c", program, cwd=tmp_path, PYTHONHASHSEED="123")
    assert bundle(RunConfig(seed=7)).startswith(again.stdout.encode())


@given(
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**31 - 1),
    bits=st.lists(st.integers(2, 8), min_size=1, max_size=5).map(tuple),
    layers=st.integers(1, 40),
    seconds=st.floats(min_value=1e-3, max_value=1e6),
)
def test_baked_config_is_the_config(lr: float, seed: int, bits: tuple[int, ...], layers: int, seconds: float) -> None:
    """Defaults are left out of the script, and come back when it is read."""
    config = RunConfig(
        model=ModelConfig(num_layers=layers),
        train=TrainConfig(matrix_lr=lr),
        quant=QuantConfig(attn_bits=bits),
        budget=Budget(seconds=seconds),
        seed=seed,
    )
    for text in (repr(config), compact_repr(config)):
        assert eval(text, dict(CONFIG_NAMES)) == config
    last_lines = bundle(config).decode().splitlines()[-2:]
    assert last_lines[0] == f"CONFIG={compact_repr(config)}"


def test_baked_config_survives_unpacking() -> None:
    """Verification reads the values that ran from the script."""
    tree = ast.parse(unpack_script(bundle(CONFIG)))
    baked = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "CONFIG"]
    assert eval(ast.unparse(baked[0]), dict(CONFIG_NAMES)) == CONFIG


def test_code_bytes_are_cheap_and_exact() -> None:
    """Thousands of configurations are sized in a moment, once the body is packed."""
    code_bytes(CONFIG)
    started = time.process_time()
    sizes = [code_bytes(replace(CONFIG, seed=seed)) for seed in range(1000)]
    assert time.process_time() - started < 1.0
    assert sizes[5] == len(bundle(replace(CONFIG, seed=5)))


def test_errors_in_the_packed_script_show_their_source(tmp_path: Path) -> None:
    """An uncaught error, also one at import, names the line of the unpacked source; inspect finds it as well."""
    body = "import inspect\ndef broken(x):\n return {'a': 1}[x]\n"
    body += "def main():\n print(inspect.getsource(broken))\n broken('b')\n"
    (tmp_path / "script.py").write_bytes(self_extracting(body) + b"main()\n")
    answer = run("-I", "script.py", cwd=tmp_path)
    assert answer.stdout.startswith("def broken(x):\n return")
    assert "return {'a': 1}[x]" in answer.stderr
    assert 'File "<train_gpt>", line 3, in broken' in answer.stderr
    (tmp_path / "script.py").write_bytes(self_extracting("import math\nROOT = math.sqrt(-1.0)\n"))
    assert "ROOT = math.sqrt(-1.0)" in run("-I", "script.py", cwd=tmp_path).stderr


def test_readable_source_keeps_its_comments() -> None:
    text = readable(CONFIG)
    compile(text, "train_gpt_readable.py", "exec")
    assert "# bits per weight" in text or '"""Round each row' in text
    assert text.count("from __future__ import annotations") == 1
    assert "from pgolf_model" not in text.replace("'from pgolf_model", "")
    assert (
        text.index("pgolf_model/config.py") < text.index("pgolf_model/model/gpt.py") < text.index("pgolf_model/main.py")
    )


TOY = {
    "config": '"""Nouns."""\n\nfrom __future__ import annotations\n\nfrom dataclasses import dataclass\n\n\n'
    '@dataclass(frozen=True)\nclass Noun:\n    """A noun."""\n\n    size: int = 3  # of it\n',
    "steps": '"""Steps."""\n\nimport math\nimport os\nfrom collections.abc import Iterable\n\n'
    "from pgolf_model.config import Noun\n\n\ndef root(noun: Noun, *rest: Iterable[int]) -> float:\n"
    '    """The root."""\n    total: float = math.sqrt(noun.size)\n    return total\n\n\n'
    "def unused() -> str:\n    return os.sep\n",
    "main": '"""Entry."""\n\nimport math\n\nfrom pgolf_model.config import Noun\n'
    "from pgolf_model.steps import root\n\n\n"
    "def main(noun: Noun) -> float:\n    return math.floor(root(noun))\n\n\n"
    'if __name__ == "__main__":\n    main(Noun())\n',
}


def test_minified_source_is_the_same_program_without_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docstrings, comments, annotations, unused definitions and imports go; dataclass fields and behaviour stay."""
    text = minify(join_modules(TOY, "main"), roots=["main", "Noun"])
    assert text == (
        "from __future__ import annotations\nimport math\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Noun:\n size:int=3\n"
        "def root(noun,*rest):\n a=math.sqrt(noun.size)\n return a\n"
        "def main(noun):\n return math.floor(root(noun))\n"
    )
    toy = ModuleType("toy")
    monkeypatch.setitem(sys.modules, "toy", toy)  # dataclasses look their module up
    exec(text, vars(toy))
    assert toy.main(toy.Noun(size=17)) == 4


SPACES = """
def main(x, y):
    text = f"{x} {y}  {{ {x!r:>{y}} }} {x + y}" "b c" + ' {}' + f"{[k  for k in range(y)]}" + f"{x = }"
    return text, 1 if x else 0x1f if y else -1 - -2, [k for k in 'a b' if k not in " "], not x or y is not None
"""


def test_spaces_go_where_they_mean_nothing() -> None:
    """Strings keep theirs, words stay apart, and the program says the same."""
    text = minify(join_modules({"main": SPACES}, "main"), roots=["main"])
    assert "def main(x,y):" in text
    assert "-1--2" in text
    long: dict[str, Any] = {}
    short: dict[str, Any] = {}
    exec(SPACES, long)
    exec(text, short)
    assert short["main"](3, 7) == long["main"](3, 7)


def test_annotations_stay_where_a_decorator_may_read_them() -> None:
    """Triton and torch.library read those of the functions that they decorate; a property's nobody reads."""
    source = "import lib\n@lib.jit\ndef main(x: lib.T, n: lib.C) -> lib.T:\n    return Box().size\n"
    source += "class Box:\n    @property\n    def size(self) -> int:\n        return 3\n"
    text = minify(join_modules({"main": source}, "main"), roots=["main"])
    assert "@lib.jit\ndef main(x:lib.T,n:lib.C)->lib.T:\n" in text
    assert " @property\n def size(self):\n" in text


SCOPES = """
import math
LIMIT = 3
a = 10
def total(values):
    return sum(values)
def main(values, *, start=0):
    count, seen = start, {}
    def step(value):
        nonlocal count
        LIMIT_HERE = LIMIT + a
        count += value * LIMIT_HERE
        return count
    for index, value in enumerate(values):
        seen[index] = step(value)
    try:
        raise KeyError(count)
    except KeyError as error:
        failure = str(error)
    match values:
        case [first, *rest]:
            shape = first, rest
        case _:
            shape = ()
    lambdas = [lambda number, index=index: number + index for index in range(2)]
    if (largest := max(values)) > 1:
        math_floor = math.floor(largest + 0.5)
    def shadow():
        total = 5
        return total
    del failure
    return count, seen, shape, [f(1) for f in lambdas], f"{largest=} {math_floor}", total(values) + shadow()
"""


def test_shorter_locals_mean_the_same() -> None:
    """Closures, defaults, patterns, exceptions, and names that are a global elsewhere in the same function."""
    text = minify(join_modules({"main": SCOPES}, "main"), roots=["main"])
    assert "seen" not in text
    assert "math_floor" not in text
    assert "nonlocal count" in text
    long: dict[str, Any] = {}
    short: dict[str, Any] = {}
    exec(SCOPES, long)
    exec(text, short)
    for values in ([3, 1, 2], [2]):
        assert short["main"](values, start=4) == long["main"](values, start=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"steps": TOY["steps"] + "\nclass Noun:\n    pass\n"},
            r"Noun is defined in pgolf_model\.(config|steps) and in",
        ),
        ({"steps": TOY["steps"] + "\nroot = 3\n"}, "root is defined in pgolf_model.steps and in pgolf_model.steps"),
        ({"steps": TOY["steps"] + "\nmain = 3\n"}, r"main is defined in pgolf_model\.steps and in pgolf_model\.main"),
        ({"main": TOY["main"].replace("import math\n", "import cmath as math\n")}, "math is imported as two things"),
        ({"config": TOY["config"] + "\nmath = 3\n"}, r"math is defined in pgolf_model\.config and imported from math"),
        ({"main": TOY["main"].replace("import root", "import root as r")}, "root must not be renamed"),
        ({"main": TOY["main"].replace("from pgolf_model.steps", "from .steps")}, "relative imports"),
        (
            {"main": TOY["main"].replace("from pgolf_model.steps import root", "import pgolf_model.steps")},
            "write 'from",
        ),
        ({"main": TOY["main"].replace("import root", "import *")}, "name what is imported"),
        ({"main": TOY["main"].replace("pgolf_model.steps", "pgolf_model.stairs")}, "which does not exist"),
        ({"main": TOY["main"].replace("import root", "import math")}, "not defined there"),
        ({"steps": TOY["steps"] + "\nprint(root)\n"}, r"pgolf_model\.steps:\d+: nothing may run at import"),
        (
            {"steps": TOY["steps"] + "\n\ndef late() -> None:\n    from pgolf_model.config import Noun\n"},
            "belong at the top",
        ),
        ({"config": "from pgolf_model.main import main\n"}, "in a circle: main -> config -> main"),
    ],
)
def test_broken_bundling_rules_are_refused_by_name(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join_modules(TOY | changes, "main")


def test_a_damaged_script_does_not_unpack() -> None:
    script = bundle(CONFIG)
    middle = len(script) // 2
    with pytest.raises(ValueError, match="does not unpack"):
        unpack_script(script[:middle] + b"00000" + script[middle + 5 :])
