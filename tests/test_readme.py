"""Every command in every README exists as written, and what the pages show of cheap ones is what they print.

`pgolf` commands are parsed by click with their own options, `make` targets looked up in the Makefile, the options of
scripts in their `add_argument` calls, modules behind `python -m` in the import path. Nothing that takes long is run.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from search.cli import cli

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pgolf_model", "space", "trials", "search", "tests")
RESULTS = ROOT / "tests" / "benchmarks" / "results"  # dated records: their commands are those of their day
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for room in ROOMS for page in (ROOT / room).rglob("*.md") if RESULTS not in page.parents),
]
README = ROOT / "README.md"
MAP = ROOT / "tests" / "README.md"  # the page with the file tree

FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SHELLS = ("sh", "bash", "shell")  # in these blocks every line is a command; in ```console those behind "$ "
CHECKED = ("pgolf", "make", "python", "python3", "pytest", "cp")  # programs whose words are looked at
TRUSTED = ("cd", "git", "pip", "ray", "source", "mkdir", "less")  # others that a page may tell to run
PLACEHOLDERS = {"N": "1000", "STUDY": "demo.toml", "TRIAL": "full/0001", "PRESET": "tiny"}  # the rest stay themselves
CHEAP = re.compile(r"pgolf (size \S+|list (spaces|presets|studies)|search 8xh100\S* --dry-run)")  # same on all machines
VOLATILE = ("code_bytes", "artifact_bytes", "fits")  # lines with byte counts that every commit may change


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that a page shows."""

    page: Path
    text: str
    is_inline: bool = False  # in a sentence, where `pgolf search --dry-run` names an option and no study
    output: str = ""  # what the page shows below it

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def commands_of(page: Path) -> Iterator[Command]:
    """All that a page tells to run: blocks first, then what its sentences name."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCED.findall(text):
        if language == "console":
            for part in re.split(r"^ *\$ ", block, flags=re.MULTILINE)[1:]:
                line, _, output = part.replace("\\\n", " ").partition("\n")
                yield Command(page=page, text=line.strip(), output=output.strip())
        elif language in SHELLS:
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield Command(page=page, text=line.strip())
    prose = FENCED.sub("", text)
    for line in re.findall(r"^ {4,}(\S.*)$", prose, re.MULTILINE):
        if program_of(line.split()) in CHECKED:
            yield Command(page=page, text=line.strip())
    for span in re.findall(r"`([^`]+)`", re.sub(r"^ {4,}\S.*$", "", prose, flags=re.MULTILINE).replace("\n", " ")):
        words = span.split()
        if len(words) > 1 and program_of(words) in CHECKED:
            yield Command(page=page, text=" ".join(words), is_inline=True)


def program_of(words: list[str]) -> str:
    """`pgolf` for `.venv/bin/pgolf`, `python` for a script of ours that is named without it."""
    if not words:
        return ""
    return "python" if re.fullmatch(r"tests/\S+\.py", words[0]) else words[0].rpartition("/")[2]


COMMANDS = [command for page in PAGES for command in commands_of(page)]
SHOWN = [command for command in COMMANDS if command.output and CHEAP.fullmatch(command.text)]


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing asks no file whether it exists: a page's data and studies are the reader's."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_in_every_readme_parses(command: Command) -> None:
    """Programs, verbs, options, targets and scripts exist, and arguments are complete."""
    check_line(command.text, is_inline=command.is_inline)


def check_line(line: str, *, is_inline: bool) -> None:
    """Fail unless each command of a shell line would be understood."""
    for words in simple_commands(line):
        check(words, is_inline=is_inline)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell line, without redirections and settings of the environment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if word in ("&&", "||", ";", "|", "&"):
            if words:
                yield words
            words = []
        elif skip or re.match(r"\d?>", word):
            skip = word in (">", ">>", "2>")
        elif words or not re.match(r"[A-Z_]+=", word):
            words.append(word)


def check(words: list[str], *, is_inline: bool) -> None:
    """Fail unless this would be understood."""
    program, rest = program_of(words), filled_in(words[1:])
    if program == "pgolf":
        check_pgolf(rest, is_inline=is_inline)
    elif program == "make":
        check_make(rest)
    elif words[0].endswith(".py"):
        check_script(words[0], rest, is_inline=is_inline)
    elif program in ("python", "python3"):
        if rest[0] == "-m":
            assert importlib.util.find_spec(rest[1]), f"no module {rest[1]}"
        else:
            check_script(rest[0], rest[1:], is_inline=is_inline)
    elif program == "pytest":
        assert all((ROOT / word.partition("::")[0]).exists() for word in rest if word.startswith("tests/"))
    elif program == "cp":
        assert (ROOT / rest[0]).exists(), f"no file {rest[0]}"
    else:
        assert program in TRUSTED, f"nothing here checks {program}: teach this test or leave it out"


def filled_in(words: list[str]) -> list[str]:
    """Something to parse for placeholders: `[a|b]` and `a|b` are a, `FILE...` is a file, N a number."""
    found = []
    for word in words:
        bare = word.strip("[]").removesuffix("...").split("|")[0]
        if bare:
            found.append(PLACEHOLDERS.get(bare, bare))
    return found


def check_pgolf(words: list[str], *, is_inline: bool) -> None:
    """Parse with click's own parser, without running anything."""
    command: click.Command = cli
    context = click.Context(cli, info_name="pgolf")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"pgolf has no command {words[0]}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context)
    if is_inline and not words:  # a sentence names the verb
        return
    assert words or not isinstance(command, click.Group), "a verb is missing"
    try:
        command.make_context(command.name, list(words), parent=context.parent)
    except click.exceptions.Exit:  # --help and --version say what they say and leave
        pass
    except click.MissingParameter as error:
        if not (is_inline and isinstance(error.param, click.Argument)):
            raise
    except click.BadOptionUsage as error:
        if not (is_inline and words[-1] == error.option_name):
            raise


def check_make(words: list[str]) -> None:
    """Targets and variables are those of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) *\??=", makefile, re.MULTILINE))
    for word in words:
        name, is_setting, _ = word.partition("=")
        assert name in (variables if is_setting else targets), f"the Makefile has no {name}"


def check_script(script: str, words: list[str], *, is_inline: bool) -> None:
    """Parse with a parser made from the script's `add_argument` calls; types and computed choices are not checked."""
    path = ROOT / script
    assert path.is_file(), f"no script {script}"
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            kept = ("nargs", "action", "required")
            settings = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in kept}
            names = [ast.literal_eval(name) for name in call.args]
            if is_inline:
                settings.pop("required", None)
            parser.add_argument(*names, **settings)
    parser.parse_args(words)


@pytest.mark.parametrize("command", SHOWN, ids=str)
def test_what_a_readme_shows_is_what_is_printed(command: Command) -> None:
    """Cheap commands are run; a size may move by the bytes a code change costs. A line of three dots stands for any."""
    words = shlex.split(command.text)[1:]
    answer = subprocess.run(
        [sys.executable, "-m", "search.cli", *words], text=True, capture_output=True, check=True, cwd=ROOT
    )
    shown, printed = masked(command.output), masked(answer.stdout)
    if "..." in shown:
        gap = shown.index("...")
        last = len(shown) - gap - 1
        assert (printed[:gap], printed[len(printed) - last :]) == (shown[:gap], shown[gap + 1 :])
    else:
        assert printed == shown


def masked(text: str) -> list[str]:
    """Lines without the digits of byte counts that include code, which every commit may change."""
    return [
        re.sub(r"[\d,]+", "N", line) if any(w in line for w in VOLATILE) else line for line in text.strip().splitlines()
    ]


def test_the_pages_have_commands() -> None:
    """The patterns above find what they are for."""
    assert {command.text for command in COMMANDS} >= {"make study", "pgolf search demo.toml", "pgolf pareto demo"}
    assert any(command.is_inline and "STUDY" in command.text for command in COMMANDS)
    assert SHOWN


@pytest.mark.parametrize(
    ("line", "is_inline"),
    [
        ("pgolf serch demo.toml", True),
        ("pgolf search demo.toml --dri-run", True),
        ("pgolf search", False),
        ("pgolf size tiny --hardware", False),
        ("pgolf data", False),
        ("pgolf trial tiny --data DIR", True),
        ("pgolf search demo.toml && pgolf quantize runs/one --bytes many", False),
        ("make tea", True),
        ("python tests/benchmarks/bench_tea.py", True),
        ("python tests/benchmarks/bench_search.py --sugar 2", True),
        ("python tests/benchmarks/bench_speed.py --threads 2", False),
        ("python -m search.tea", True),
        ("cp search/tea.yaml .", False),
        ("brew tea", False),
    ],
)
def test_a_wrong_command_is_noticed(line: str, is_inline: bool) -> None:
    """The checks above can fail."""
    with pytest.raises((AssertionError, click.UsageError, argparse.ArgumentError, ModuleNotFoundError, SystemExit)):
        check_line(line, is_inline=is_inline)


@pytest.mark.parametrize(
    "span",
    [
        "pgolf data",
        "pgolf data fetch",
        "pgolf search --dry-run",
        "pgolf size --hardware",
        "pgolf search STUDY --simulate FILE.py",
        "pgolf quantize CHECKPOINT --bytes N",
        "pgolf search [demo.toml|cpu20.toml] > log",
        "tests/benchmarks/bench_speed.py --threads 2",
        "make study STUDY=cpu20.toml",
    ],
)
def test_a_sentence_may_name_a_part_of_a_command(span: str) -> None:
    """A verb alone, an option alone, placeholders: what is there has to exist."""
    check_line(span, is_inline=True)


def test_the_readme_is_short() -> None:
    """What needs more room lives in the room that it is about."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures name files that are there."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    assert not [target for target in targets if target and not (page.parent / target).exists()]


def test_the_benchmarks_page_names_every_script_and_links_every_result() -> None:
    """A measurement that nobody can find was made in vain."""
    page = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in RESULTS.parent.glob("bench_*.py") if f"`{path.name}`" not in page]
    assert not [path.name for path in RESULTS.glob("*.md") if f"](results/{path.name})" not in page]


def test_the_file_tree_names_every_room() -> None:
    """A room with no line in the tree is one a newcomer cannot place."""
    tree = MAP.read_text(encoding="utf-8")
    for package in ("pgolf_model", "space", "trials", "search"):
        for face in (ROOT / package).rglob("__init__.py"):
            assert re.search(rf"\b{face.parent.name}/", tree), f"{face.parent.relative_to(ROOT)} is not in the tree"
