"""The built-in corpus: documentation that every installation already has, so that nothing is downloaded.

It is docstrings of the standard library and of packages that this project pins or that these depend on: English prose
about programs. One lock file and Python version always give the same corpus, and the manifest records both.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from pgolf_model.errors import UserError
from search.corpus.dedupe import Deduplicator
from search.corpus.documents import Corpus

# Packages with the best prose come first, since the first of two near-copies is kept. sympy and plotly are left out:
# they are mostly formulas and copies, of which 0.4 of 8.0 MB would be kept.
PACKAGES = (
    "numpy", "optuna", "networkx", "sqlalchemy", "alembic", "huggingface_hub", "pandas", "torch", "mpmath", "click",
    "rich", "narwhals", "fsspec", "jinja2",
)  # fmt: skip
SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "testing", "idle_test", "lib2to3", "site-packages", "dist-packages", "_vendor", "__pycache__")
)
MIN_DOCUMENTED_SHARE = 0.1
MIN_BLOCK_CHARS = 40  # shorter docstrings say little
MIN_DOCUMENT_CHARS = 200
MAX_DOCUMENT_CHARS = 20_000  # modules with more documentation become several documents
MIN_BYTES = 10_000_000  # with fewer bytes, packages are missing
CORPUS_VERSION = 2  # to be raised with every change of this file or of the deduplication that changes the documents

_TRIPLE_QUOTED = re.compile(rb'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)

Report = Callable[[str], None]


def builtin_corpus(report: Report = lambda line: None) -> Corpus:
    """Return the built-in corpus: about 14 MB, read in about 25 s of one core when it is first iterated.

    Documents come in the order of their hashes, so that a short run reads from every package.
    """
    versions = " ".join(f"{name}=={_version(name)}" for name in PACKAGES)
    identity = f"builtin {CORPUS_VERSION} python {platform.python_version()} {versions}"

    @functools.cache
    def documents() -> tuple[str, ...]:
        return tuple(sorted(_collect(report), key=lambda text: hashlib.sha256(text.encode()).digest()))

    return Corpus(
        source=f"documentation of Python {platform.python_version()} and {len(PACKAGES)} packages",
        identity=hashlib.sha256(identity.encode()).hexdigest(),
        documents=lambda: iter(documents()),
    )


def _collect(report: Report) -> Iterator[str]:
    """Yield the documents of all packages; text that repeats another package's is left out."""
    deduplicator = Deduplicator()
    roots = {"python": Path(sysconfig.get_path("stdlib")), **{name: _root(name) for name in PACKAGES}}
    raw = kept = 0
    for number, (name, root) in enumerate(roots.items(), start=1):
        report(f"reading documentation {number}/{len(roots)}: {name} ({kept / 1e6:.1f} MB so far)")
        for file in python_files(root):
            blocks = documentation(file)
            fresh = [text for text in map(deduplicator.keep, blocks) if text]
            raw += sum(len(text.encode()) for text in blocks)
            for document in group_blocks(fresh):
                kept += len(document.encode())
                yield document
    report(f"kept {kept / 1e6:.1f} of {raw / 1e6:.1f} MB of documentation; the rest repeats it or is too short")
    if kept < MIN_BYTES:
        raise UserError(
            f"the built-in corpus has {kept} bytes, expected at least {MIN_BYTES}",
            hint=("install the pinned packages (`make setup`) or give files of your own"),
        )


def python_files(root: Path) -> list[Path]:
    """Return the Python sources below a folder in a fixed order, without tests and vendored copies."""
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
    ]


def documentation(path: Path) -> list[str]:
    """Return the docstrings of a module in source order; of a documentation module (`_torch_docs.py`) all long strings.

    The list is empty for a file that is not valid Python of this version, and for a module of which less than a tenth
    is documentation: skipping those saves parsing half of all source and loses 10 % of the text.
    """
    source = path.read_bytes()
    is_doc = "doc" in path.name or "doc" in path.parent.name
    quoted = sum(len(text) for texts in _TRIPLE_QUOTED.findall(source) for text in texts)
    if not is_doc and quoted < MIN_DOCUMENTED_SHARE * len(source):
        return []
    found: dict[int, str] = {}
    for constant in _strings(_parse(source), is_doc):
        if isinstance(constant.value, str):
            text = inspect.cleandoc(constant.value).strip().encode("utf-8", "ignore").decode("utf-8")
            if len(text) >= MIN_BLOCK_CHARS:
                found[constant.lineno] = text
    return [found[line] for line in sorted(found)]


def _parse(source: bytes) -> ast.Module:
    """Return the syntax tree; empty for invalid source. Without the garbage collector it takes a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module(body=[], type_ignores=[])
    finally:
        if collecting:
            gc.enable()


def _strings(tree: ast.Module, is_doc: bool) -> Iterator[ast.Constant]:
    """Yield constants that may be documentation: all of a documentation module, else those in docstring position."""
    if is_doc:
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        body: list[ast.stmt] = [*getattr(node, "body", ()), *getattr(node, "orelse", ())]
        first = body[0] if body and not isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try) else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            yield first.value
        todo += body


def group_blocks(blocks: list[str]) -> Iterator[str]:
    """Yield the blocks of a module joined to documents of at most MAX_DOCUMENT_CHARS; a longer block stays whole."""
    group: list[str] = []
    chars = 0
    for block in [*blocks, None]:
        if block is None or (group and chars + len(block) > MAX_DOCUMENT_CHARS):
            document = "\n\n".join(group)
            if len(document) >= MIN_DOCUMENT_CHARS:
                yield document
            group, chars = [], 0
        if block is not None:
            group.append(block)
            chars += len(block) + 2


def _root(package: str) -> Path:
    """Return a package's folder, found without importing it; a folder that does not exist if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else Path("/nonexistent") / package


def _version(package: str) -> str:
    """Return a package's version, "absent" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
