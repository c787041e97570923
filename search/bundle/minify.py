"""Drop from a joined program what no reader of the packed script would miss."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from itertools import product
from keyword import iskeyword
from string import ascii_letters

from search.bundle.join import DEFINITIONS, PACKAGE, Definition, Function, Module, defines, format_imports


def minify(modules: Iterable[Module], roots: Iterable[str]) -> str:
    """One source text with what `roots` reach: no comments, docstrings, unread annotations or unused imports.

    Local variables get short names; what tracebacks and callers name keeps its own: functions, parameters, attributes.
    """
    modules = tuple(modules)
    parsed = (node for module in modules for node in ast.parse(module.text).body)
    statements = reachable([_strip(node) for node in parsed], roots)
    _shorten_locals(statements, {i.bound for module in modules for i in module.imports})
    used = {name for statement in statements for name in names_in(statement)}
    imports = [i for module in modules for i in module.imports if i.bound in used]
    text = ast.unparse(ast.Module(body=statements, type_ignores=[]))
    if '"""' in text or "'''" in text:
        raise ValueError(f"{PACKAGE}: re-indenting would change a string over several lines; join shorter ones instead")
    text = re.sub(r"^ +", lambda m: m[0][::4], text, flags=re.MULTILINE)  # 1 space per level, not 4
    text = re.sub(r"\n{2,}", "\n", text)
    header = "from __future__ import annotations\n" + format_imports(imports).replace("\n\n", "\n")
    return header + text + "\n"


def names_in(node: ast.AST) -> Iterator[str]:
    """Every name that is read below `node`."""
    return (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def reachable(statements: list[ast.stmt], roots: Iterable[str]) -> list[ast.stmt]:
    """The statements that define the roots or anything they use, in their order."""
    by_name = {name: statement for statement in statements for name in defines(statement)}
    wanted = list(roots)
    kept = set[int]()
    while wanted:
        statement = by_name.get(wanted.pop())
        if statement is not None and id(statement) not in kept:
            kept.add(id(statement))
            wanted += names_in(statement)
    return [statement for statement in statements if id(statement) in kept]


def _strip(statement: ast.stmt) -> ast.stmt:
    """`statement` without docstrings and without the annotations that nothing reads at run time.

    Class-level annotations stay, dataclasses are made of them; so do those of decorated functions, which Triton and
    torch.library read.
    """
    stripped = _Stripper().visit(statement)
    assert isinstance(stripped, ast.stmt)
    return stripped


def _shorten_locals(statements: list[ast.stmt], imported: set[str]) -> None:
    """Rename, in place, the variables that functions and methods assign: each function has its own a, b, c, ..."""
    shared = {name for statement in statements for name in defines(statement)} | imported | set(dir(builtins))
    for statement in statements:
        for function in statement.body if isinstance(statement, ast.ClassDef) else [statement]:
            if isinstance(function, ast.FunctionDef):
                _shorten_in(function, shared)


def _shorten_in(function: ast.FunctionDef, shared: set[str]) -> None:
    """Rename the variables of one function and of all that is nested in it, together: closures go on seeing them.

    A name keeps its length if it means something else anywhere in there: a parameter, a function, what an exception is
    caught as, what a pattern binds, or one of the `shared` names.
    """
    nodes = list(ast.walk(function))
    kept = set(shared)
    for node in nodes:
        match node:
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                kept.add(name)
            case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                kept.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                kept.add(name)
            case ast.Global(names=several) | ast.Nonlocal(names=several):
                kept.update(several)
            case ast.alias(name=name, asname=asname):
                kept.add(asname or name.partition(".")[0])
    used = [node for node in nodes if isinstance(node, ast.Name)]
    stored = dict.fromkeys(node.id for node in used if isinstance(node.ctx, ast.Store))
    long = [name for name in stored if name not in kept]
    taken = kept | {node.id for node in used} - set(long)
    short = (name for length in (1, 2) for name in map("".join, product(ascii_letters, repeat=length)))
    free = (name for name in short if name not in taken and not iskeyword(name))
    renamed = dict(zip(long, free, strict=False))
    for node in used:
        node.id = renamed.get(node.id, node.id)


class _Stripper(ast.NodeTransformer):
    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [
            self.visit(child) if isinstance(child, DEFINITIONS) else child for child in _without_docstring(node)
        ]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign(targets=[node.target], value=self.visit(node.value)), node)

    def _function(self, node: Function) -> ast.AST:
        node.body = _without_docstring(node)
        if not node.decorator_list:
            arguments = node.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                argument.annotation = None
            for rest in (arguments.vararg, arguments.kwarg):
                if rest:
                    rest.annotation = None
            node.returns = None
        return self.generic_visit(node)


def _without_docstring(node: Definition) -> list[ast.stmt]:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return body or [ast.Pass()]
