"""The tables of space/README.md say what the code says."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

from pgolf_model.shapes import num_params
from space.presets import PRESETS, config_from_tables
from space.spaces import SPACES

README = (Path(__file__).resolve().parents[2] / "space" / "README.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    """Cells of the first table below a heading, without backquotes."""
    table = README.split(f"\n## {title}\n", 1)[1].split("\n|---", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def test_every_space_is_listed_with_its_knobs_and_starts() -> None:
    """In the order of the code."""
    found = [(name, int(knobs), re.findall(r"\w+", starts)) for name, knobs, _, starts in rows("Spaces")]
    spaces = {name: make() for name, make in SPACES.items()}
    listed = ("recurrent", "everything", "tiny", "tiny_everything")
    assert found == [(n, len(spaces[n].params), [w.label for w in spaces[n].warm_starts]) for n in listed]
    assert set(listed) == set(SPACES)


def test_the_tags_are_counted() -> None:
    """Of the space that asks everything."""
    params = SPACES["everything"]().params
    found = {tag: int(re.match(r"\d+", knobs)[0]) for tag, knobs, _ in rows("Knobs")}  # type: ignore[index]
    assert found == Counter(param.tag for param in params)
    assert f"{sum(param.when is not None for param in params)} knobs of `everything` are asked only after" in README


def test_the_knobs_of_the_elements_exist() -> None:
    """`bigram_*` stands for every knob with that beginning; none of the patterns is empty."""
    names = {param.name for param in SPACES["everything"]().params}
    for _, _, knobs in rows("Elements"):
        for pattern in re.findall(r"[\w*]{2,}", knobs):
            assert any(re.fullmatch(pattern.replace("*", r"\w*"), name) for name in names), pattern


def test_every_preset_is_listed_with_its_parameters() -> None:
    """Counted from shapes."""
    found = {name: int(count.replace(",", "")) for name, count, _ in rows("Presets")}
    assert found == {name: num_params(make().model) for name, make in PRESETS.items()}


def test_the_toml_of_the_readme_is_a_configuration() -> None:
    """As a user would write it."""
    text = README.split("```toml\n", 1)[1].split("```", 1)[0]
    config = config_from_tables(tomllib.loads(text), where="README")
    assert (config.model.num_layers, config.seed) == (11, 42)
