"""Fronts, areas and correlations, each computed a second way."""

from __future__ import annotations

import random
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import CAP, add_trial, complete, make_realistic_study, make_run, make_study

from search.look.analysis import Point, analyse, forecast_error, pareto_front, points
from search.study.ledger import read_records
from search.study.statistics import hypervolume, non_dominated, spearman
from trials.spec import TrialResult

small_pairs = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=25)


@given(pairs=small_pairs)
def test_the_front_is_every_pair_that_no_other_dominates(pairs: list[tuple[int, int]]) -> None:
    """The sweep agrees with comparing all pairs, ties and duplicates included."""
    expected = {
        i for i, (x, y) in enumerate(pairs) if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in pairs)
    }
    found = non_dominated(pairs)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [pairs[i][0] for i in found] == sorted(pairs[i][0] for i in found)


@settings(max_examples=20, deadline=None)
@given(pairs=small_pairs.filter(bool))
def test_the_front_is_the_one_optuna_finds(pairs: list[tuple[int, int]]) -> None:
    """Optuna's best_trials on the same values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.add_trials([optuna.trial.create_trial(values=[float(x), float(y)]) for x, y in pairs])
    assert {t.number for t in study.best_trials} == set(non_dominated(pairs))


@given(pairs=small_pairs, reference=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_hypervolume_counts_the_unit_squares_that_are_dominated(
    pairs: list[tuple[int, int]], reference: tuple[int, int]
) -> None:
    """On integers the area is a number of grid cells, each dominated or not."""
    cells = sum(any(x <= i and y <= j for x, y in pairs) for i in range(reference[0]) for j in range(reference[1]))
    assert hypervolume(pairs, reference) == cells


def test_spearman_of_known_rankings() -> None:
    """Against 1 - 6 sum(d^2) / (n (n^2 - 1)), which holds without ties, and by hand with them."""
    rng = random.Random(0)
    first, second = [rng.random() for _ in range(20)], [rng.random() for _ in range(20)]
    d2 = sum((sorted(first).index(a) - sorted(second).index(b)) ** 2 for a, b in zip(first, second, strict=True))
    assert spearman(first, second) == pytest.approx(1 - 6 * d2 / (20 * 399))
    assert spearman([1, 2, 2, 3], [1, 3, 3, 9]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)


def test_spearman_says_nothing_about_two_points_or_a_constant() -> None:
    """Two points always agree or disagree perfectly; that is no evidence."""
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="sequences of one length, got 1 and 2"):
        spearman([1], [1, 2])


def test_only_feasible_trials_stand_on_the_front_and_each_rung_has_its_own(tmp_path: Path) -> None:
    """A full run does not dominate proxies: they had another budget. An oversize artifact dominates nobody."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", complete(1.40, 15_000_000))
    add_trial(study, "proxy/0001", complete(1.45, 12_000_000))
    add_trial(study, "proxy/0002", complete(1.46, 13_000_000))
    add_trial(study, "proxy/0003", complete(1.30, CAP + 1))
    add_trial(study, "full/0000", complete(1.20, 11_000_000), parent=1)
    analysis = analyse(study, read_records(study))
    assert analysis.fronts == {"proxy": ("proxy/0001", "proxy/0000"), "full": ("full/0000",)}
    assert (analysis.front_rung, analysis.front, analysis.best) == ("full", ("full/0000",), "full/0000")
    assert analysis.point("proxy/0003").over == ("artifact_bytes",)
    assert [p.trial_id for p in analysis.points if p.on_front] == ["proxy/0000", "proxy/0001", "full/0000"]


def test_an_artifact_of_exactly_the_cap_is_feasible(tmp_path: Path) -> None:
    """The rule is at most 16,000,000 bytes."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", complete(1.4, CAP))
    (point,) = points(study, read_records(study))
    assert point.feasible
    assert pareto_front([point]) == (0,)


def test_trials_without_a_score_are_points_with_their_reason(tmp_path: Path) -> None:
    """Nothing that was tried disappears."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", TrialResult(status="diverged", error="loss is nan at step 3", seconds=4.0))
    add_trial(study, "proxy/0001", TrialResult(status="infeasible", error="too big"), predicted_bytes=17_000_000)
    add_trial(study, "proxy/0002")
    rows = points(study, read_records(study), alive=False)
    assert [p.status for p in rows] == ["diverged", "infeasible", "interrupted"]
    assert all(p.val_bpb is None and p.artifact_bytes is None and not p.feasible for p in rows)
    assert (rows[0].error, rows[1].predicted_bytes) == ("loss is nan at step 3", 17_000_000)
    assert points(study, read_records(study), alive=True)[2].status == "running"


def test_a_point_of_several_seeds_holds_mean_spread_and_the_largest_artifact(tmp_path: Path) -> None:
    """val_bpb is the mean of 1.20 and 1.22; the artifact is the one that has to fit."""
    study = make_study(tmp_path)
    runs = (make_run(1.20, 15_000_000, seed=1), make_run(1.22, 15_100_000, seed=2))
    add_trial(study, "full/0000", TrialResult(status="complete", runs=runs), seeds=(1, 2))
    (point,) = points(study, read_records(study))
    assert point.val_bpb == pytest.approx(1.21)
    assert point.val_bpb_sd == pytest.approx(0.02 / 2**0.5)
    assert point.artifact_bytes == 15_100_000 == (point.model_bytes or 0) + (point.code_bytes or 0)
    assert point.quant_gap == pytest.approx(0.006)


def test_one_seed_is_said_to_measure_no_noise(tmp_path: Path) -> None:
    """A delta between single runs comes with that warning; with seeds it comes in standard errors."""
    study = make_study(tmp_path)
    add_trial(study, "proxy/0000", complete(1.40, 10_000_000), label="control")
    add_trial(study, "proxy/0001", complete(1.39, 10_000_000))
    comparison = analyse(study, read_records(study)).comparison
    assert comparison is not None
    assert comparison.delta_bpb == pytest.approx(-0.01)
    assert comparison.standard_error is None
    assert comparison.note.startswith("1 seed against 1 seed: seed noise is not measured")

    study = make_study(tmp_path / "seeds")
    for number, (mean, label) in enumerate(((1.40, "control"), (1.39, ""))):
        runs = tuple(make_run(mean + d, 10**7, seed=i) for i, d in enumerate((-0.001, 0.0, 0.001)))
        add_trial(study, f"proxy/{number:04d}", TrialResult(status="complete", runs=runs), label=label, seeds=(0, 1, 2))
    comparison = analyse(study, read_records(study)).comparison
    assert comparison is not None
    assert comparison.standard_error == pytest.approx((2 * 0.001**2 / 3) ** 0.5)
    assert comparison.note == "12.2 standard errors, 3 against 3 seeds"


def test_rank_agreement_is_over_promoted_trials_with_both_scores(tmp_path: Path) -> None:
    """A promoted trial that failed is no pair, and two pairs are no correlation."""
    study = make_study(tmp_path)
    for number in range(4):
        add_trial(study, f"proxy/{number:04d}", complete(1.4 + number / 100, 10**7))
    add_trial(study, "full/0000", complete(1.2, 10**7), parent=1)
    add_trial(study, "full/0001", complete(1.3, 10**7), parent=2)
    add_trial(study, "full/0002", TrialResult(status="failed", error="no"), parent=0)
    (agreement,) = analyse(study, read_records(study)).rank_agreement
    assert agreement.pairs == (("proxy/0001", "full/0000"), ("proxy/0002", "full/0001"))
    assert agreement.spearman is None
    add_trial(study, "full/0003", complete(1.1, 10**7), parent=3)
    (agreement,) = analyse(study, read_records(study)).rank_agreement
    assert agreement.spearman == pytest.approx(-0.5)
    assert "3 promoted trials. Few pairs: weak evidence." in agreement.note


def test_forecast_error_is_relative_and_counts_the_interval() -> None:
    """Two trials, 10 % above and 5 % below their forecast; one interval holds."""
    shared = {"rung": "proxy", "parent": None, "label": "", "status": "complete", "predicted_bytes": 1000}
    first = Point(trial_id="a", number=0, artifact_bytes=1100, predicted_low=900, predicted_high=1050, **shared)
    second = Point(trial_id="b", number=1, artifact_bytes=950, predicted_low=900, predicted_high=1050, **shared)
    found = forecast_error([first, second])
    assert found is not None
    assert found.mean_relative == pytest.approx(0.025)
    assert found.worst_absolute == pytest.approx(0.1)
    assert (found.num_inside, found.num_intervals) == (1, 2)
    assert forecast_error([]) is None


def test_the_realistic_study_is_what_the_page_tests_think_it_is(tmp_path: Path) -> None:
    """25 trials of five kinds."""
    study = make_realistic_study(tmp_path / "study")
    analysis = analyse(study, read_records(study))
    assert sum(p.val_bpb is None for p in analysis.points) == 5
    assert sum(bool(p.over) for p in analysis.points) == 2
    assert analysis.best != analysis.control
