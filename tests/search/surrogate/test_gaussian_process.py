"""The Gaussian process does the textbook's arithmetic, however it is arranged for speed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.surrogate.gaussian_process import (
    CONSTANT_VARIANCE,
    JITTER,
    OFFSET_VARIANCE,
    Data,
    Layout,
    Posterior,
    fit,
    log_expected_improvement,
    matern,
    matern_slope,
    negative_log_posterior,
    quadratic_features,
    unpack,
)

LAYOUT = Layout(groups=(0, 1, 2, 2), distances=(1.0, 0.4, 0.0), bias_shift=(0.0, 0.7, 0.0))


def sample(seed: int, n: int = 25) -> tuple[Data, np.ndarray]:
    """Random observations and random hyperparameters."""
    rng = np.random.default_rng(seed)
    mean, spread = LAYOUT.prior()
    data = Data(rng.random((n, 4)), rng.integers(3, size=n), rng.standard_normal(n))
    return data, mean + 0.7 * spread * rng.standard_normal(len(mean))


def covariance(x1, r1: int, x2, r2: int, theta: np.ndarray) -> float:
    """The kernel of one pair, written out from the model's definition."""
    h = unpack(theta, LAYOUT)

    def matern52(lengths) -> float:
        r = math.sqrt(sum(((a - b) / lengths[g]) ** 2 for a, b, g in zip(x1, x2, LAYOUT.groups, strict=True)))
        return (1 + math.sqrt(5) * r + 5 * r * r / 3) * math.exp(-math.sqrt(5) * r)

    def bumps(x) -> list[float]:
        return [2 * v - 1 for v in x] + [(2 * v - 1) ** 2 - 1 / 3 for v in x]

    bowl = sum(a * b for a, b in zip(bumps(x1), bumps(x2), strict=True)) / (4 * 0.43)
    shared = h.amplitude**2 * matern52(h.lengthscale) + h.quadratic**2 * bowl
    bias = h.bias**2 * min(LAYOUT.distances[r1], LAYOUT.distances[r2]) * matern52(h.bias_lengthscale)
    offset = CONSTANT_VARIANCE + (OFFSET_VARIANCE if r1 == r2 else 0.0)
    return float(h.scale[r1] * h.scale[r2] * shared + bias + offset)


def dense(data: Data, theta: np.ndarray) -> np.ndarray:
    """Covariance of the observations, pair by pair."""
    noise = unpack(theta, LAYOUT).noise
    n = len(data)
    cov = np.array(
        [[covariance(data.x[i], data.rung[i], data.x[j], data.rung[j], theta) for j in range(n)] for i in range(n)]
    )
    return cov + np.diag(noise[data.rung] ** 2 + JITTER)


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_is_the_conditional_normal(seed: int) -> None:
    """Means and covariances at two rungs agree with the dense formula, point by point."""
    data, theta = sample(seed)
    new = np.random.default_rng(seed + 9).random((4, 4))
    means, cov = Posterior(data, theta, LAYOUT).joint(new, (0, 2))
    inverse = np.linalg.inv(dense(data, theta))
    for i, x in enumerate(new):
        cross = np.array([[covariance(x, r, data.x[j], data.rung[j], theta) for j in range(len(data))] for r in (0, 2)])
        prior = np.array([[covariance(x, a, x, b, theta) for b in (0, 2)] for a in (0, 2)])
        np.testing.assert_allclose(means[i], cross @ inverse @ data.y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(cov[i], prior - cross @ inverse @ cross.T, rtol=1e-4, atol=1e-5)


def test_the_likelihood_is_the_normal_density() -> None:
    """Differences of the loss between hyperparameters are those of scipy's density and the prior."""
    from scipy.stats import multivariate_normal, norm

    data, one = sample(1)
    two = one + 0.1
    mean, spread = LAYOUT.prior()

    def reference(theta: np.ndarray) -> float:
        density = multivariate_normal(np.zeros(len(data)), dense(data, theta)).logpdf(data.y)
        return -float(density + norm(mean, spread).logpdf(theta).sum())

    ours = negative_log_posterior(one, data, LAYOUT)[0] - negative_log_posterior(two, data, LAYOUT)[0]
    assert ours == pytest.approx(reference(one) - reference(two), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_finite_differences(seed: int) -> None:
    data, theta = sample(seed)
    _, gradient = negative_log_posterior(theta, data, LAYOUT)
    for i, unit in enumerate(np.eye(len(theta))):
        up = negative_log_posterior(theta + 1e-5 * unit, data, LAYOUT)[0]
        down = negative_log_posterior(theta - 1e-5 * unit, data, LAYOUT)[0]
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-4), i


def test_fitting_improves_on_the_prior_and_recovers_the_noise() -> None:
    """On 80 draws of a smooth function with noise 0.3, the fitted noise is about that."""
    rng = np.random.default_rng(0)
    x = rng.random((80, 4))
    y = np.sin(3 * x[:, 0]) + x[:, 1] ** 2 + 0.3 * rng.standard_normal(80)
    layout = Layout(groups=(0, 1, 2, 3), distances=(0.0,), bias_shift=(0.0,) * 4)
    data = Data(x, np.zeros(80, dtype=np.int64), y)
    theta = fit(data, layout)
    assert negative_log_posterior(theta, data, layout)[0] < negative_log_posterior(layout.prior()[0], data, layout)[0]
    assert 0.2 < unpack(theta, layout).noise[0] < 0.4


def test_a_cheap_rung_that_ranks_backwards_is_corrected() -> None:
    """Proxies whose slope is wrong for one knob, and a few full runs: the prediction at full has the right slope."""
    rng = np.random.default_rng(3)
    x = rng.random((60, 2))
    rung = np.array([0] * 45 + [1] * 15)
    slope = np.where(rung == 0, -1.0, 1.0)
    y = slope * (x[:, 0] - 0.5) * 2 + 2 * (x[:, 1] - 0.5) + 0.02 * rng.standard_normal(60)
    layout = Layout(groups=(0, 1), distances=(1.0, 0.0), bias_shift=(0.0, 0.0))
    data = Data(x, rung, y)
    posterior = Posterior(data, fit(data, layout), layout)
    low, high = posterior.mean(np.array([[0.1, 0.5], [0.9, 0.5]]), 1)
    assert high - low > 1.0
    low, high = posterior.mean(np.array([[0.1, 0.5], [0.9, 0.5]]), 0)
    assert high - low < -1.0


def test_runs_in_flight_remove_uncertainty_but_do_not_move_the_mean() -> None:
    data, theta = sample(2)
    x = np.array([[0.2, 0.8, 0.4, 0.6]])
    before = Posterior(data, theta, LAYOUT)
    after = before.believing(x, np.array([2]))
    mean, cov = before.joint(x, (2,))
    mean_after, cov_after = after.joint(x, (2,))
    assert mean_after[0, 0] == pytest.approx(mean[0, 0], abs=1e-6)
    assert cov_after[0, 0, 0] < cov[0, 0, 0]


@given(improvement=st.floats(-3, 3), deviation=st.floats(0.05, 3))
def test_expected_improvement_is_the_integral(improvement: float, deviation: float) -> None:
    grid = np.linspace(-8, 8, 40001)
    weight = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    expected = np.trapezoid(np.maximum(improvement + deviation * grid, 0) * weight, grid)
    ours = float(log_expected_improvement(np.array([improvement]), np.array([deviation]))[0])
    if expected > 1e-9:
        assert math.exp(ours) == pytest.approx(expected, rel=1e-4)


def test_expected_improvement_agrees_with_sampling() -> None:
    draws = np.random.default_rng(0).normal(-0.3, 0.8, size=400_000)
    ours = float(log_expected_improvement(np.array([-0.3]), np.array([0.8]))[0])
    assert math.exp(ours) == pytest.approx(np.maximum(draws, 0).mean(), rel=0.01)


def test_expected_improvement_keeps_its_order_far_into_the_tail() -> None:
    """Down to 200 deviations below, larger means larger and everything is finite; pieces join without a step."""
    z = -np.linspace(0.5, 200, 4000)
    values = log_expected_improvement(z, np.ones_like(z))
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()
    for joint in (-1.0, -20.0):
        near, far = log_expected_improvement(np.array([joint + 1e-7, joint - 1e-7]), np.ones(2))
        assert near == pytest.approx(far, abs=0.01)


@given(r2=st.floats(0.01, 20))
def test_the_matern_slope_is_its_derivative(r2: float) -> None:
    distances = np.array([r2 - 1e-5, r2, r2 + 1e-5])
    value, slope = matern(distances), matern_slope(distances)
    assert slope[1] == pytest.approx(-2 * (value[2] - value[0]) / 2e-5, rel=1e-3, abs=1e-7)


def test_quadratic_features_of_random_points_have_unit_norm() -> None:
    norms = (quadratic_features(np.random.default_rng(0).random((2000, 10))) ** 2).sum(1)
    assert norms.mean() == pytest.approx(1.0, abs=0.05)
