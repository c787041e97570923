"""Make `pgolf_model` one file: the self-extracting `train_gpt.py` that every trial runs, and a readable one.

The modules that `pgolf_model.main` reaches are put in dependency order; their imports of each other go, all other
imports move to the top. `minify` shortens the source, then LZMA2 and base85 bring it to 38 %. The config is not
compressed: it stands in the last lines of the script. So a bundle costs microseconds once the body is known, and the
file that was run shows the values that it was run with.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import lzma
import re
import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError
from pgolf_model.files import write_atomically
from search.bundle.join import PACKAGE, Module, format_imports, join_modules
from search.bundle.minify import minify

ENTRY = "main"  # the module whose `main(CONFIG)` the script runs
ROOTS = ("main", "RunConfig")  # the names that the script's last lines use
UNPACKED_NAME = "<train_gpt>"  # what tracebacks call the unpacked source; registered in linecache
ALLOWED_PACKAGES = frozenset({"torch", "numpy", "sentencepiece", "zstandard"})  # that a script may import

# Raw LZMA2 has no header but its chunks' own, and text has no alignment (pb 0). Measured on 2026-12-01, 128,408
# characters: 37,488 bytes at lc 3, 65 to 215 more at another lc, 47 more at pb 2, 848 more with zstd-22, 3,731 with
# zlib-9, 205 less with bz2 (39 more while the package was half as long). base85 adds a quarter. Raw bytes in a Latin-1
# source would add 3 % and save 0.05 % of the cap, but editors, git and web pages would mangle the file.
_LZMA_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**20, "lc": 3, "lp": 0, "pb": 0}
]

# sys.excepthook: up to Python 3.12 the interpreter prints uncaught errors without asking linecache for their lines.
_STUB = """\
# pgolf submission: LZMA2 in base85 around plain Python; train_gpt_readable.py has the same code with its comments
import base64,linecache,lzma,sys,traceback
_source=lzma.decompress(base64.b85decode("{body}"),3,None,[{{"id":33}}]).decode()
linecache.cache["{name}"]=len(_source),None,_source.splitlines(True),"{name}"
sys.excepthook=traceback.print_exception
exec(compile(_source,"{name}","exec"))
"""
_TAIL = """\
CONFIG={config}
if __name__=="__main__":raise SystemExit(main(CONFIG))
"""
_PACKED = re.compile(rb'^_source=lzma\.decompress\(base64\.b85decode\("([^"]*)"\)', re.MULTILINE)


def bundle(config: RunConfig) -> bytes:
    """The self-extracting `train_gpt.py` of a config: the same bytes every time under one Python version.

    Raises:
        ValueError: the package breaks a bundling rule (see `join`); names the module and the name.
    """
    return _packed_package() + _tail(config)


def script_around(source: str, config: RunConfig) -> bytes:
    """The self-extracting script of a program that is given as source text, with a config."""
    return self_extracting(source) + _tail(config)


def _tail(config: RunConfig) -> bytes:
    """The last lines of the script: the config as plain text, and the call that runs it."""
    return _TAIL.format(config=compact_repr(config)).encode()


def code_bytes(config: RunConfig) -> int:
    """The size of `bundle(config)`, which the cap counts beside the model."""
    return len(bundle(config))


def readable(config: RunConfig) -> str:
    """The same program with its comments and docstrings, for reviewers."""
    modules = _package_modules()
    parts = [
        f"# {PACKAGE} as one file, made by pgolf. train_gpt.py is this program packed; only that one counts.\n"
        "from __future__ import annotations\n\n" + format_imports(i for m in modules for i in m.imports)
    ]
    for module in modules:
        doc = "".join(f"# {line}".rstrip() + "\n" for line in module.doc.strip().splitlines())
        parts.append(f"# {'-' * 110}\n# {module.path}\n#\n{doc}\n\n{module.text.strip()}\n")
    parts.append(f'CONFIG = {_spread_repr(config)}\n\nif __name__ == "__main__":\n    raise SystemExit(main(CONFIG))\n')
    return "\n\n".join(parts)


def self_extracting(source: str) -> bytes:
    """A Python script that unpacks `source` and executes it as its own top level; more lines may follow it."""
    packed = lzma.compress(source.encode(), lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
    return _STUB.format(body=base64.b85encode(packed).decode(), name=UNPACKED_NAME).encode()


def unpack_script(script: bytes) -> str:
    """The Python source that a script runs: the unpacked body and its config, or the script itself if it is not packed.

    Raises:
        UserError: it looks packed and does not unpack, or is not UTF-8.
    """
    packed = _PACKED.search(script)
    try:
        if not packed:
            return script.decode()
        raw = lzma.decompress(base64.b85decode(packed[1]), lzma.FORMAT_RAW, None, [{"id": lzma.FILTER_LZMA2}])
        tail = script[script.index(b"\nCONFIG=") + 1 :]
        return raw.decode() + tail.decode()
    except (ValueError, lzma.LZMAError) as error:
        raise UserError(f"the script does not unpack: {error}") from None


def foreign_imports(source: str, allowed: Iterable[str] = ALLOWED_PACKAGES) -> list[str]:
    """The packages that `source` imports anywhere and that are neither standard library nor `allowed`, sorted.

    Raises:
        UserError: it is not Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"the script is not Python: {error}") from None
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add("." if node.level else (node.module or "").partition(".")[0])
    return sorted(roots - set(allowed) - sys.stdlib_module_names)


def compact_repr(value: object) -> str:
    """The `repr` of a config without the fields that have their default value; it evaluates to an equal config."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    parts = []
    for f in fields(value):
        item = getattr(value, f.name)
        if f.default is not MISSING and repr(item) == repr(f.default):
            continue
        if f.default_factory is not MISSING and repr(item) == repr(f.default_factory()):
            continue
        parts.append(f"{f.name}={compact_repr(item)}")
    return f"{type(value).__name__}({','.join(parts)})"


def _spread_repr(config: RunConfig) -> str:
    """The `repr` of a config with one section per line."""
    sections = "".join(f"    {f.name}={getattr(config, f.name)!r},\n" for f in fields(config))
    return f"RunConfig(\n{sections})"


def package_sources() -> dict[str, str]:
    """The source text of every module of the installed package, by dotted name without the package's."""
    folder = Path(__file__).parents[2] / PACKAGE
    paths = (path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py")
    return {".".join(p.relative_to(folder).with_suffix("").parts): p.read_text(encoding="utf-8") for p in paths}


@cache
def _package_modules() -> tuple[Module, ...]:
    return join_modules(package_sources(), ENTRY)


def pack_package() -> bytes:
    """Everything in the script but its config: 0.9 s of joining, minifying and compressing."""
    return self_extracting(minify(_package_modules(), roots=ROOTS))


@cache
def _packed_package() -> bytes:
    """`pack_package`, kept on disk under a hash of all that it depends on, so that `pgolf size` need not pack again."""
    code = "".join(package_sources().values()) + sys.version
    code += "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    kept = Path(__file__).parent / "__pycache__" / f"train_gpt.{hashlib.sha256(code.encode()).hexdigest()[:32]}.packed"
    if kept.exists():
        return kept.read_bytes()
    packed = pack_package()
    with contextlib.suppress(OSError):  # an installation that cannot be written to packs again each time
        kept.parent.mkdir(exist_ok=True)
        write_atomically(kept, packed)
    return packed
