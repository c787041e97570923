"""Join the modules of `pgolf_model` into one namespace, dependencies first.

Three rules make that possible and are checked here: imports within the package are absolute and rename nothing,
top-level names are unique over the whole package, and nothing runs at import. An error names the module and the name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

PACKAGE = "pgolf_model"

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)  # the same, for isinstance


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Import:
    """One name bound by one import: `import module [as alias]` or `from module import name [as alias]`."""

    module: str
    name: str = ""
    alias: str = ""

    @property
    def bound(self) -> str:
        """The name that it binds; `import a.b` binds `a`."""
        return self.alias or self.name or self.module.partition(".")[0]

    def agrees(self, other: Import) -> bool:
        """Whether both may bind the same name: they are equal, or plain imports of one top-level package."""
        plain = not (self.name or self.alias or other.name or other.alias)
        return self == other or (plain and self.bound == other.bound)


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One module of the package as its parts."""

    name: str  # dotted, without the package's
    doc: str
    text: str  # source without docstring, top-level imports and the `__main__` block
    body: tuple[ast.stmt, ...]  # the same as a tree: definitions and assignments only
    needs: tuple[tuple[str, str], ...]  # (module, name) imported from the package itself
    imports: tuple[Import, ...]  # everything else imported at the top

    @property
    def path(self) -> str:
        """The path of its source from the root of the repository."""
        return f"{PACKAGE}/{self.name.replace('.', '/')}.py"


def join_modules(sources: Mapping[str, str], entry: str) -> tuple[Module, ...]:
    """The modules that `entry` reaches, dependencies first, checked to share one namespace.

    Args:
        sources: dotted module name (without the package's) -> source text.
    Raises:
        ValueError: a bundling rule is broken: a relative, aliased, nested or circular import within the package, code
            that runs at import, or one name with two meanings. Names the module and the name.
    """
    order: dict[str, Module | None] = {}  # None while a module's dependencies are being placed

    def place(name: str, chain: tuple[str, ...]) -> None:
        if name in order:
            if order[name] is None:
                raise ValueError(f"{PACKAGE} imports itself in a circle: {' -> '.join((*chain, name))}")
            return
        if name not in sources:
            raise ValueError(f"{PACKAGE}.{chain[-1]} imports {PACKAGE}.{name}, which does not exist")
        order[name] = None
        module = parse_module(name, sources[name])
        for needed, _ in module.needs:
            place(needed, (*chain, name))
        del order[name]  # so that insertion order is dependency order
        order[name] = module

    place(entry, ())
    modules = tuple(module for module in order.values() if module)
    _check_names(modules)
    return modules


def parse_module(name: str, source: str) -> Module:
    """The parts of one module.

    Raises:
        ValueError: the module breaks a rule that can be checked without the other modules.
    """
    where = f"{PACKAGE}.{name}"
    tree = ast.parse(source)
    doc = ast.get_docstring(tree) or ""
    dropped = set[int]()  # line numbers
    body: list[ast.stmt] = []
    needs: list[tuple[str, str]] = []
    imports: list[Import] = []
    for index, node in enumerate(tree.body):
        is_doc = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found_needs, found_imports = _read_import(node, where)
            needs += found_needs
            imports += found_imports
        elif isinstance(node, (*DEFINITIONS, ast.Assign, ast.AnnAssign)):
            body.append(node)
            continue
        elif not is_doc and not _is_main_block(node):
            raise ValueError(f"{where}:{node.lineno}: nothing may run at import, got {ast.unparse(node)[:60]!r}")
        dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for nested in (node for statement in body for node in ast.walk(statement)):
        if isinstance(nested, (ast.Import, ast.ImportFrom)) and _read_import(nested, where)[0]:
            raise ValueError(f"{where}:{nested.lineno}: imports from {PACKAGE} belong at the top of the module")
    kept = (line for number, line in enumerate(source.splitlines(True), 1) if number not in dropped)
    return Module(name=name, doc=doc, text="".join(kept), body=tuple(body), needs=tuple(needs), imports=tuple(imports))


def format_imports(imports: Iterable[Import]) -> str:
    """Sorted import lines, one per module: the standard library first, then other packages."""
    blocks = []
    by_origin = sorted(set(imports), key=lambda i: (_is_third_party(i), bool(i.name), i))
    for _, origin in groupby(by_origin, _is_third_party):
        lines = []
        for module, group in groupby(origin, lambda i: (i.module, bool(i.name))):
            items = list(group)
            if module[1]:
                names = ", ".join(i.name + (f" as {i.alias}" if i.alias else "") for i in items)
                lines.append(f"from {module[0]} import {names}\n")
            else:
                lines += [f"import {i.module}" + (f" as {i.alias}" if i.alias else "") + "\n" for i in items]
        blocks.append("".join(lines))
    return "\n".join(blocks)


def _read_import(node: ast.Import | ast.ImportFrom, where: str) -> tuple[list[tuple[str, str]], list[Import]]:
    """The names that an import takes from the package as (module, name), and the imports from elsewhere.

    Raises:
        ValueError: the import breaks a rule.
    """
    line = f"{where}:{node.lineno}: {ast.unparse(node)!r}"
    if isinstance(node, ast.Import):
        if any(alias.name.partition(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"{line}: write 'from {PACKAGE}.x import Name'")
        return [], [Import(module=a.name, alias=a.asname or "") for a in node.names]
    module = node.module or ""
    if node.level:
        raise ValueError(f"{line}: relative imports do not survive bundling; write 'from {PACKAGE}.x import Name'")
    if any(alias.name == "*" for alias in node.names):
        raise ValueError(f"{line}: name what is imported")
    if module == "__future__":
        if [alias.name for alias in node.names] != ["annotations"]:
            raise ValueError(f"{line}: only annotations may come from __future__")
        return [], []
    if module.partition(".")[0] != PACKAGE:
        return [], [Import(module=module, name=a.name, alias=a.asname or "") for a in node.names]
    if module == PACKAGE:
        raise ValueError(f"{line}: write 'from {PACKAGE}.x import Name'")
    for alias in node.names:
        if alias.asname:
            raise ValueError(f"{line}: {alias.name} must not be renamed, the bundle has one namespace")
    return [(module.partition(".")[2], alias.name) for alias in node.names], []


def _check_names(modules: tuple[Module, ...]) -> None:
    """Raise ValueError for a name that would mean two things once all modules share one namespace."""
    owner: dict[str, str] = {}  # defined name -> module
    for module in modules:
        for name in (name for statement in module.body for name in defines(statement)):
            if name in owner:
                raise ValueError(f"{name} is defined in {PACKAGE}.{owner[name]} and in {PACKAGE}.{module.name}")
            owner[name] = module.name
    bound: dict[str, tuple[Import, str]] = {}
    for module in modules:
        for imported in module.imports:
            name = imported.bound
            if name in owner:
                raise ValueError(
                    f"{name} is defined in {PACKAGE}.{owner[name]} and imported from {imported.module} "
                    f"in {PACKAGE}.{module.name}"
                )
            first, where = bound.setdefault(name, (imported, module.name))
            if not imported.agrees(first):
                raise ValueError(f"{name} is imported as two things in {PACKAGE}.{where} and {PACKAGE}.{module.name}")
        for needed, name in module.needs:
            if owner.get(name) != needed:
                raise ValueError(f"{PACKAGE}.{module.name} imports {name} from {PACKAGE}.{needed}, not defined there")


def defines(statement: ast.stmt) -> Iterator[str]:
    """The top-level names that a definition or an assignment binds."""
    if isinstance(statement, DEFINITIONS):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _is_third_party(imported: Import) -> bool:
    return imported.module.partition(".")[0] not in sys.stdlib_module_names
