"""Forecasts of a full run's score: right on a line, calibrated on noise, wide when nothing is known, and shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from studies import add_trial, complete, make_realistic_study, make_spec, make_study

from pgolf_model.files import PROGRESS_FILE
from search.commands.status import status
from search.look.analysis import analyse
from search.look.score_forecast import fit_line, forecast_proxies, forecast_running, loss_at, predict, proxy_line
from search.look.status import study_status
from search.report.page import report_html
from search.report.pareto_figure import pareto_figure
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord, read_records
from trials.spec import TrialResult


def record(study: StudyConfig, trial_id: str, bpb: float | None, parent: int | None = None, **changes) -> TrialRecord:
    result = None if bpb is None else complete(bpb, 15_000_000, **changes)
    return TrialRecord(spec=make_spec(study, trial_id, parent=parent), result=result)


def ladder(study: StudyConfig, proxies: list[float], fulls: dict[int, float]) -> tuple[TrialRecord, ...]:
    """Proxies by score, and the score above of those that were promoted."""
    below = [record(study, f"proxy/{i:04d}", bpb) for i, bpb in enumerate(proxies)]
    above = [record(study, f"full/{i:04d}", bpb, parent) for i, (parent, bpb) in enumerate(fulls.items())]
    return (*below, *above)


def test_trials_that_all_gain_a_tenth_forecast_a_tenth(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    proxies = [1.30 + 0.01 * i for i in range(10)]
    records = ladder(study, proxies, {i: 0.9 * proxies[i] for i in range(6)})
    found = forecast_proxies(study, records)
    assert [f.trial_id for f in found] == [f"proxy/{i:04d}" for i in range(6, 10)]
    for f in found:
        truth = 0.9 * proxies[int(f.trial_id[-4:])]
        assert f.val_bpb == pytest.approx(truth, rel=3e-3)
        assert f.low90 < f.low50 < f.val_bpb < f.high50 < f.high90
        assert (f.num_pairs, f.few, f.rung, f.source) == (6, False, "full", "proxy")


def test_without_promotions_a_forecast_is_wide_and_says_so(tmp_path: Path) -> None:
    """Better than the proxy, for training helps; and by how much is open."""
    study = make_study(tmp_path)
    (best, *_) = forecast_proxies(study, ladder(study, [1.30, 1.35], {}))
    assert best.few
    assert best.num_pairs == 0
    assert best.val_bpb < 1.30
    assert (best.high90 - best.low90) / best.val_bpb > 0.1


def test_intervals_shrink_with_promotions(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    proxies = [1.30 + 0.005 * i for i in range(12)]
    widths = []
    for count in (0, 1, 3, 9):
        (f, *_) = forecast_proxies(study, ladder(study, proxies, {i: 0.9 * proxies[i] for i in range(count)}))
        widths.append(f.high90 - f.low90)
    assert widths == sorted(widths, reverse=True)


def test_the_best_few_and_the_control_are_forecast(tmp_path: Path) -> None:
    """What is over a cap, suspicious or promoted is not."""
    study = make_study(tmp_path)
    records = list(ladder(study, [1.40 - 0.01 * i for i in range(12)], {11: 1.1}))
    records[0] = replace(records[0], spec=replace(records[0].spec, label="control"))
    records[10] = replace(records[10], result=complete(1.30, 17_000_000))
    records[9] = replace(records[9], verdict="suspicious")
    records[8] = replace(records[8], result=TrialResult(status="diverged"))
    found = forecast_proxies(study, records)
    assert [int(f.trial_id[-4:]) for f in found] == [7, 6, 5, 4, 3, 0]


@pytest.mark.parametrize(("count", "low90", "high90"), [(4, 0.85, 1.0), (12, 0.8, 0.97), (30, 0.83, 0.96)])
def test_intervals_hold_the_truth_as_often_as_they_say(count: int, low90: float, high90: float) -> None:
    """300 studies, one forecast each: noise of 1.1 % with heavy tails (t with 4 degrees), a proxy whose leads shrink.

    The standard error of a share is at most .03. A few promotions may be too careful, never too bold.
    """
    rng = np.random.default_rng(0)
    inside50 = inside90 = 0
    for _ in range(300):
        x = np.stack([rng.normal(0.3, 0.02, count + 1), rng.normal(-2, 0.1, count + 1)], axis=1)
        gain = -0.14 - 0.3 * (x[:, 0] - 0.3) + 0.011 * rng.standard_t(4, count + 1)
        line = proxy_line(x[:-1], gain[:-1], ratio=8.0, around=x[0])
        centre, half, most = predict(line, x[-1:])
        inside50 += abs(gain[-1] - centre[0]) <= half[0]
        inside90 += abs(gain[-1] - centre[0]) <= most[0]
    assert 0.4 < inside50 / 300 < 0.75
    assert low90 < inside90 / 300 <= high90


def test_one_run_that_fell_apart_does_not_move_the_line() -> None:
    x = np.linspace(0.2, 0.3, 8)[:, None]
    y = np.full(8, -0.1)
    y[3] = 0.9
    line = fit_line(x, y, gain=-0.15, gain_sd=0.1, slope_sds=(0.5,))
    assert predict(line, np.array([[0.25]]))[0][0] == pytest.approx(-0.1, abs=0.01)


def test_a_line_of_many_trials_is_that_of_least_squares() -> None:
    """Normal noise and flat priors: numpy's solution within a fraction of its standard error (.001)."""
    rng = np.random.default_rng(1)
    x = rng.random((400, 2))
    y = 0.5 + x @ [0.3, -0.2] + rng.normal(0, 0.02, 400)
    line = fit_line(x, y, gain=0.0, gain_sd=100.0, slope_sds=(100.0, 100.0))
    design = np.concatenate([np.ones((400, 1)), x - x.mean(0)], axis=1)
    np.testing.assert_allclose(line.coefficients, np.linalg.lstsq(design, y, rcond=None)[0], atol=2e-3)


def curve(end: float) -> list[tuple[float, float]]:
    """A power law with a last drop, whose loss ends at `end`."""
    steps = np.linspace(0.02, 1.0, 50)
    drop = 0.15 * np.clip((steps - 0.6) / 0.4, 0, 1)
    loss = steps**-0.15 - drop
    return list(zip(steps.tolist(), (loss - loss[-1] + end).tolist(), strict=True))


def test_a_running_trial_is_forecast_from_its_curve(tmp_path: Path) -> None:
    """Five trials of the rung ended; half way through, a sixth's training loss says more than its proxy."""
    study = make_study(tmp_path)
    ends = [2.00, 2.04, 2.08, 2.12, 2.16, 2.10]
    spread = [0.03, -0.04, 0.02, -0.03, 0.04, 0.08]  # what the proxies got wrong
    bpb_per_nat = 1 / 1.69  # as the helper writes val_loss
    below = [record(study, f"proxy/{i:04d}", 1.3 * (1 + wrong)) for i, wrong in enumerate(spread)]
    above = [record(study, f"full/{i:04d}", end * bpb_per_nat, i) for i, end in enumerate(ends[:5])]
    running = record(study, "full/0005", None, 5)
    curves = {f"full/{i:04d}": curve(end) for i, end in enumerate(ends)}
    half = {**curves, "full/0005": [point for point in curves["full/0005"] if point[0] <= 0.5]}
    (by_proxy,) = forecast_running(study, (*below, *above, running), {})
    (by_curve,) = forecast_running(study, (*below, *above, running), half)
    truth = ends[5] * bpb_per_nat
    assert (by_proxy.source, by_curve.source) == ("proxy", "curve")
    assert (by_proxy.trial_id, by_curve.trial_id) == ("full/0005", "full/0005")
    assert by_curve.low90 < truth < by_curve.high90
    assert abs(by_curve.val_bpb - truth) < abs(by_proxy.val_bpb - truth)
    assert by_curve.high90 - by_curve.low90 < by_proxy.high90 - by_proxy.low90


def test_a_curve_is_read_over_a_window() -> None:
    assert loss_at([(0.1, 9.0), (0.42, 3.0), (0.5, 2.0)], 0.5) == pytest.approx(2.5)
    assert loss_at([(0.1, 9.0), (0.9, 1.0)], 0.5) in (9.0, 1.0)


def test_status_shows_forecasts(tmp_path: Path) -> None:
    """In the table and in the document; a full run that is on its way comes first."""
    study = make_realistic_study(tmp_path / "study")
    folder = add_trial(study, "full/0005", parent=1, gpus=8.0)
    (folder / "seed1337").mkdir()
    lines = [json.dumps({"step": 10, "progress": at, "train_loss": loss}) for at, loss in curve(2.0) if at < 0.4]
    (folder / "seed1337" / PROGRESS_FILE).write_text("\n".join(lines))
    found = study_status(study, read_records(study), driver=None, alive=False, now=0.0)
    assert found.forecasts[0].trial_id == "full/0005"
    assert all(f.trial_id.startswith("proxy/") for f in found.forecasts[1:])
    assert {f.num_pairs for f in found.forecasts[1:]} == {found.proxies[0].num_pairs}
    said = CliRunner().invoke(status, [str(study.dir)]).output
    assert "at full" in said
    first = found.forecasts[1]
    assert f"{first.low90:.4f} to {first.high90:.4f}" in said
    document = json.loads(CliRunner().invoke(status, [str(study.dir), "--json"]).output)
    assert document["forecasts"][1]["val_bpb"] == pytest.approx(first.val_bpb)


def test_the_page_marks_forecasts_as_such(tmp_path: Path) -> None:
    """A table of them, and hollow marks with whiskers in the main figure."""
    study = make_realistic_study(tmp_path / "study")
    analysis = analyse(study, read_records(study))
    trace = next(t for t in pareto_figure(study, analysis)["data"] if t["name"].startswith("forecast at full"))
    assert len(trace["x"]) == len(analysis.full_forecasts) == 5
    for f, y, up in zip(analysis.full_forecasts, trace["y"], trace["error_y"]["array"], strict=True):
        assert math.isclose(y + up, f.high90)
    page = report_html(study, analysis)
    assert "What would they score at full?" in page
    assert f"{analysis.full_forecasts[0].low50:.4f} to {analysis.full_forecasts[0].high50:.4f}" in page


def test_a_study_without_scores_has_no_forecasts(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000")
    assert analyse(study, read_records(study)).full_forecasts == ()
