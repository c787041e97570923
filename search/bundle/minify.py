"""Make the source of a joined program short without changing what it does.

Comments, docstrings, unused definitions and the annotations that nothing reads go; local variables get short names. The
names that tracebacks and callers use stay: functions, parameters, attributes; so does one statement per line.
python-minifier was measured against this and breaks Triton kernels (tests/benchmarks/results/minify_2026-12-01.md).
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import pairwise, product
from keyword import iskeyword
from string import ascii_letters
from tokenize import DEDENT, ENDMARKER, INDENT, NEWLINE, NL, generate_tokens

from search.bundle.join import DEFINITIONS, PACKAGE, Definition, Function, Module, defines, format_imports

_WORDS = re.compile(r"[\w\"']")  # ends of names, numbers and strings, which spaces keep apart
_LAYOUT = {NEWLINE, NL, INDENT, DEDENT, ENDMARKER}  # tokens that are no text
_BLIND = {"staticmethod", "classmethod", "property", "cache", "contextmanager"}  # decorators that read no annotations


def minify(modules: Iterable[Module], roots: Iterable[str]) -> str:
    """The short source text of all that the names in `roots` use, with its imports.

    Raises:
        ValueError: a string runs over several lines; re-indenting would change it.
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
    text = _without_spaces(re.sub(r"\n{2,}", "\n", text))
    header = "from __future__ import annotations\n" + format_imports(imports).replace("\n\n", "\n")
    return header + text + "\n"


def names_in(node: ast.AST) -> Iterator[str]:
    """The names that are read anywhere below `node`."""
    return (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def reachable(statements: list[ast.stmt], roots: Iterable[str]) -> list[ast.stmt]:
    """The statements that define the roots or anything that those use, in their order."""
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

    Class-level annotations stay, because dataclasses are made of them. So do those of functions under a decorator that
    may read them, as `triton.jit` and `torch.library.custom_op` do.
    """
    stripped = _Stripper().visit(statement)
    assert isinstance(stripped, ast.stmt)
    return stripped


def _shorten_locals(statements: list[ast.stmt], imported: set[str]) -> None:
    """Rename the variables that functions and methods assign, in place: a, b, c, ... anew in each function."""
    shared = {name for statement in statements for name in defines(statement)} | imported | set(dir(builtins))
    for statement in statements:
        for function in statement.body if isinstance(statement, ast.ClassDef) else [statement]:
            if isinstance(function, ast.FunctionDef):
                _shorten_in(function, shared)


def _shorten_in(function: ast.FunctionDef, shared: set[str]) -> None:
    """Rename the variables of one function and of the functions nested in it together, so that closures still see them.

    A variable keeps its name if that name means something else anywhere in the function: a parameter, a function, the
    name of a caught exception or of a pattern, or one of the `shared` names.
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


def _without_spaces(source: str) -> str:
    """The same program, line by line, without the spaces that stand beside an operator, a bracket or a comma.

    python-minifier's printer would save another 300 bytes of the packed script, but joins statements into one line.
    """
    lines = source.splitlines(keepends=True)
    gaps: list[tuple[int, int, int]] = []  # (line, first column, last column) of spaces to leave out
    tokens = (token for token in generate_tokens(StringIO(source).readline) if token.type not in _LAYOUT)
    for left, right in pairwise(tokens):
        (row, start), (next_row, end) = left.end, right.start
        words = _WORDS.match(left.string[-1:]) and _WORDS.match(right.string[:1])
        if row == next_row and lines[row - 1][start:end].isspace() and not words:
            gaps.append((row - 1, start, end))
    for line, start, end in reversed(gaps):
        lines[line] = lines[line][:start] + lines[line][end:]
    tight = "".join(lines)
    assert ast.dump(ast.parse(tight)) == ast.dump(ast.parse(source))
    return tight


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
        if all(isinstance(decorator, ast.Name) and decorator.id in _BLIND for decorator in node.decorator_list):
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
