"""What a point of the space becomes: a configuration that fills the cap when the solver chooses its bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.brain.maker import script_maker
from search.study.config import Caps, StudyConfig
from trials.rungs import Rung

CAP = 200_000


@pytest.fixture
def study(tmp_path: Path, tiny_data: Path) -> StudyConfig:
    rungs = (Rung(name="proxy", trials=3, steps=5), Rung(name="full", steps=20, curve=(0.5, 0.8)))
    return StudyConfig(
        name="m", space="tiny", data=(str(tiny_data),), rungs=rungs, folder=str(tmp_path / "m"),
        caps=Caps(artifact_bytes=CAP),
    )  # fmt: skip


def test_solved_points_aim_at_the_cap(study: StudyConfig) -> None:
    """Code and model together: the forecast ends at most 0.2 % below the cap and never above, whatever the shape."""
    maker = script_maker(study)
    start = next(start.values for start in maker.space.warm_starts if start.values["quantization"] == "solved")
    for num_layers, model_dim in ((2, 64), (4, 128), (6, 192)):
        made = maker.make(study.rungs[0], {**start, "num_layers": num_layers, "model_dim": model_dim}, 1)
        assert made.config.quant.target_bytes == CAP
        assert made.predicted_bytes <= CAP
        if model_dim > 64:  # the smallest does not fill the cap even at its finest
            assert made.predicted_bytes >= 0.998 * CAP
        assert maker.predict_bytes(made_params := {**start, "num_layers": num_layers, "model_dim": model_dim}) == (
            pytest.approx(maker.make(study.rungs[0], made_params, 1).predicted_bytes, rel=0.005)
        )


def test_explicit_points_keep_their_bits(study: StudyConfig) -> None:
    """The control's bytes follow from its bits and clips: nothing is solved for."""
    maker = script_maker(study)
    made = maker.make(study.rungs[0], maker.space.control, 1)
    assert made.config.quant.target_bytes == 0
    assert made.config.quant.mlp_bits == (6, 6)


def test_a_rungs_curve_becomes_byte_targets(study: StudyConfig) -> None:
    """Shares of the cap, at this rung only."""
    maker = script_maker(study)
    assert maker.make(study.rungs[0], maker.space.control, 1).config.quant.curve_bytes == ()
    assert maker.make(study.rungs[1], maker.space.control, 1).config.quant.curve_bytes == (100_000, 160_000)


def test_a_curve_beyond_the_cap_is_refused() -> None:
    """Shares lie in (0, 1]."""
    with pytest.raises(ValueError, match=r"curve holds shares of the cap, in \(0, 1\], got \(1\.2,\)"):
        replace(Rung(name="full", steps=1), curve=(1.2,))
