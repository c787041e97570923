"""Named configurations and configurations from TOML files, with errors that name the file and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refusals import refused

from pgolf_model import config as nouns
from pgolf_model.config import Budget, RunConfig
from pgolf_model.quant.quantize import dequantize_rows, quantize_rows
from pgolf_model.shapes import num_params
from space.presets import PRESETS, load_config, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_a_configuration(name: str) -> None:
    """Presets build, survive repr, and are found by load_config under the same name."""
    config = preset(name)
    assert eval(repr(config), vars(nouns).copy()) == config
    assert load_config(name) == config


def test_the_baseline_has_the_record_parameter_count() -> None:
    """The challenge's baseline has exactly 17,059,912 parameters and trains for 600 s."""
    config = preset("baseline_2026_03_17")
    assert num_params(config.model) == 17_059_912
    assert config.budget == Budget(seconds=600.0)


def test_the_loop_preset_runs_three_blocks_three_times() -> None:
    """Blocks 3, 4, 5 come three times in the virtual order."""
    assert preset("loop_2026_04_09").model.virtual_layers == (0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10)


def write(folder: Path, text: str) -> str:
    """A configuration file; its path."""
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_overrides_the_preset_it_starts_from(tmp_path: Path) -> None:
    """Given keys win, the others are the preset's; whole numbers are fine where floats are meant."""
    path = write(
        tmp_path,
        """
        preset = "tiny"
        seed = 7
        [model]
        num_layers = 3
        mlp_mult = 3
        [quant]
        attn_bits = [5, 6]
        [budget]
        steps = 20
        """,
    )
    config, base = load_config(path), preset("tiny")
    assert (config.seed, config.model.num_layers, config.model.mlp_mult) == (7, 3, 3.0)
    assert config.quant.attn_bits == (5, 6)
    assert config.budget == Budget(steps=20)
    assert config.model.model_dim == base.model.model_dim
    assert config.train == base.train


def test_a_file_without_a_preset_starts_from_the_defaults(tmp_path: Path) -> None:
    """An empty file is the default configuration."""
    assert load_config(write(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modle]\nnum_layers = 3", r"mine\.toml: unknown key: 'modle'; did you mean 'model'\?"),
        ("[model]\nnum_layer = 3", r"mine\.toml\.model: unknown key: 'num_layer'; did you mean 'num_layers'\?"),
        ("[model]\nmodel_dim = 500\nnum_heads = 8", r"mine\.toml\.model: .*nearest valid model_dim is 496 or 512"),
        ('[model]\nnum_layers = "3"', r"mine\.toml\.model\.num_layers: expected int, got '3'"),
        ("model = 3", r"mine\.toml: expected a table \[model\], got 3"),
        ('preset = "tinny"', r"mine\.toml: unknown preset: 'tinny'; did you mean 'tiny'\?"),
        ("preset = 3", r"mine\.toml: preset must be a name, got 3"),
        ("[model", r"mine\.toml: not TOML: "),
        ("seed = -1", r"mine\.toml: seed must be in"),
    ],
)
def test_a_bad_file_gets_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    """Unknown keys get a suggestion, impossible configurations the reason, and both name the file."""
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text))


def test_an_unknown_name_or_file_is_told_apart() -> None:
    """A typo in a preset gets a suggestion, a missing file is called missing."""
    with refused(r"unknown preset: 'baseline_2026_03_18'", hint=r"did you mean 'baseline_2026_03_17'\?"):
        load_config("baseline_2026_03_18")
    with pytest.raises(ValueError, match=r"there is no file nowhere/mine\.toml"):
        load_config("nowhere/mine.toml")


@pytest.mark.parametrize(("name", "levels"), [("ternary_2026_03_24", {-1, 0, 1}), ("binary_2026_03_24", {-1, 1})])
def test_few_level_presets_use_all_their_levels(name: str, levels: set[int]) -> None:
    """Normal weights at the preset's bits and clip: every level holds a good share of them, and the sign is kept."""
    quant = preset(name).quant
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize_rows(weight, bits=quant.mlp_bits[0], clip_sigmas=quant.mlp_clip_sigmas[0])
    shares = {level: float((codes == level).float().mean()) for level in levels}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0.2
    assert float((dequantize_rows(codes, scales) - weight).square().mean()) < 0.4
