"""The table of real runs, continued to every point, is honest about what it does not know."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from surrogates import real_runs

from space.forecast.sizing import estimate_model_bytes
from space.spaces import named_space


def test_a_continued_table_keeps_its_rows_and_its_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 rows at three budgets, one diverged: rows come back, r2 is below 1, half of the rows fit the cap."""
    rng, space = np.random.default_rng(0), replace(named_space("tiny"), params=real_runs.SPACE)
    path = tmp_path / "table.csv"
    points, scores = [], []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "steps", "seed", "val_bpb", "artifact_bytes", "params"])
        for number in range(60):
            params = space.sample(rng)
            unit = np.nan_to_num(real_runs.ENCODER.units([params])[0], nan=0.5)
            size = estimate_model_bytes(space.build(params)).model_bytes
            for steps in (20, 60, 180):
                score = 2 + unit[0] + 0.5 * unit[1] - 0.1 * np.log(steps) + 0.2 * rng.standard_normal()
                writer.writerow([number, steps, 1, "nan" if number == 5 else score, size, json.dumps(params)])
            points.append(params)
            scores.append(score)
    monkeypatch.setattr(real_runs, "TABLE", path)
    real_runs.table.cache_clear()
    continued, _, cap = real_runs.table()
    assert all(0.2 < column.loo_r2 < 0.85 for column in continued.values())
    assert real_runs.truth(points[7]) == pytest.approx(scores[7])
    assert sum(real_runs.predict_bytes(p) <= cap for p in points) == pytest.approx(30, abs=5)
    low = real_runs.evaluate(points[7], rung="r", fidelity=1 / 9, seed=0)["val_bpb"]
    middle = real_runs.evaluate(points[7], rung="r", fidelity=0.5, seed=0)["val_bpb"]
    assert np.isfinite([low, middle]).all()
    real_runs.table.cache_clear()
