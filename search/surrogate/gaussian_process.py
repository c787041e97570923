"""A Gaussian process over (configuration, rung), so that a run at one rung predicts scores at the others.

The model of a score y measured at rung r on configuration x:

    y = constant + offset_r + scale_r * f(x) + bias_r(x) + noise_r

f is the score at the top rung: a Matern-5/2 kernel with one lengthscale per parameter plus a quadratic in every
feature, because scores are smooth bowls over learning rates and decays. bias_r is the systematic error of a cheap
rung: its covariance between two rungs is the smaller of their distances from the top in log compute (a Brownian
path that is 0 at the top), with lengthscales of its own, so that the model can learn that one knob's best value moves
with compute and another's does not. Hyperparameters are the most probable ones under the priors below, found with
analytical gradients. Exact, cubic in the number of points: give it a few hundred.

Sources: Kennedy and O'Hagan 2000 (scale and bias between levels); CARBS, https://arxiv.org/abs/2306.08055 (compute as
an input); https://arxiv.org/abs/2402.02229 (priors whose lengthscales grow with the square root of the dimension).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.special import log_ndtr

from search.surrogate.encoding import Array, Ints

CONSTANT_VARIANCE = 4.0  # of the common constant, in squared units of the standardised score
OFFSET_VARIANCE = 1.0  # of each rung's own offset
JITTER = 1e-6
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
SQRT5 = math.sqrt(5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The model's shape: which columns share a lengthscale, and how far rungs are apart."""

    groups: tuple[int, ...]  # of each feature column: the index of its lengthscale
    distances: tuple[float, ...]  # of each rung from the top one: 0 at the top, 1 at the farthest
    bias_shift: tuple[float, ...]  # per lengthscale: prior mean of log(bias lengthscale) minus that of f's
    noise: float = 0.035  # prior median of the noise at the top rung, in standard deviations of the score

    @property
    def num_groups(self) -> int:
        """Number of lengthscales."""
        return len(self.bias_shift)

    @property
    def num_rungs(self) -> int:
        """Number of rungs, lowest first."""
        return len(self.distances)

    def prior(self) -> tuple[Array, Array]:
        """Mean and deviation of the normal prior on the hyperparameters' logarithms, in the order of `Hyper`."""
        g, r = self.num_groups, self.num_rungs
        usual = math.log(0.45 * math.sqrt(max(g, 1)))
        noise = [math.log(self.noise) + 0.5 * d for d in self.distances]
        mean = [usual] * g + [usual + s for s in self.bias_shift]
        mean += [0.0, -0.5, math.log(0.6)] + [0.0] * r + noise
        spread = [1.0] * g + [0.8] * g + [1.0, 1.0, 0.7] + [0.25] * (r - 1) + [1e-3] + [0.8] * r
        return np.array(mean), np.array(spread)


@dataclass(frozen=True, slots=True)
class Hyper:
    """Hyperparameters, unpacked from a vector of logarithms."""

    lengthscale: Array  # per group
    bias_lengthscale: Array  # per group
    amplitude: float  # of the Matern part
    quadratic: float  # of the quadratic part
    bias: float  # of the bias at distance 1 from the top
    scale: Array  # per rung; 1 at the top
    noise: Array  # per rung, standard deviation


def unpack(theta: Array, layout: Layout) -> Hyper:
    """The hyperparameters that `theta` holds the logarithms of."""
    g, r = layout.num_groups, layout.num_rungs
    v = np.exp(theta)
    amplitude, quadratic, bias = (float(x) for x in v[2 * g : 2 * g + 3])
    return Hyper(v[:g], v[g : 2 * g], amplitude, quadratic, bias, v[2 * g + 3 : 2 * g + 3 + r], v[2 * g + 3 + r :])


def quadratic_features(x: Array) -> Array:
    """(points, 2 * columns): centred features and their squares, scaled so that a random point has norm about 1."""
    centred = 2 * x - 1
    return np.concatenate([centred, centred**2 - 1 / 3], axis=1) / math.sqrt(max(x.shape[1], 1) * 0.43)


def squared_distances(a: Array, b: Array) -> Array:
    """(len(a), len(b)) squared Euclidean distances, never negative."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :]
    squares -= 2 * a @ b.T
    return np.asarray(np.maximum(squares, 0.0, out=squares))


def matern(r2: Array) -> Array:
    """Matern-5/2 of squared scaled distances. (Most of the time of a proposal is spent here: no spare arrays.)"""
    scaled = np.sqrt(r2)
    scaled *= SQRT5
    decay = np.negative(scaled)
    np.exp(decay, out=decay)
    scaled += 1
    scaled += 5 / 3 * r2
    scaled *= decay
    return np.asarray(scaled)


def matern_slope(r2: Array) -> Array:
    """-2 times the derivative of `matern`."""
    scaled = SQRT5 * np.sqrt(r2)
    return np.asarray(5 / 3 * (1 + scaled) * np.exp(-scaled))


@dataclass(frozen=True, slots=True)
class Data:
    """Observations: features (n, columns), rung index (n,), standardised score (n,)."""

    x: Array
    rung: Ints
    y: Array

    def __len__(self) -> int:
        return len(self.y)


class Kernel:
    """Covariances under one set of hyperparameters."""

    def __init__(self, theta: Array, layout: Layout) -> None:
        """Unpack once."""
        self.layout = layout
        self.hyper = unpack(theta, layout)
        groups = np.array(layout.groups, dtype=int)
        self.column_scale = self.hyper.lengthscale[groups]
        self.bias_column_scale = self.hyper.bias_lengthscale[groups]
        self.distance = np.array(layout.distances)

    def parts(self, a: Array, b: Array) -> tuple[Array, Array]:
        """(covariance of f, unit covariance of the bias) between two sets of features."""
        h = self.hyper
        shared = matern(squared_distances(a / self.column_scale, b / self.column_scale))
        shared *= h.amplitude**2
        shared += h.quadratic**2 * quadratic_features(a) @ quadratic_features(b).T
        if self.layout.num_rungs == 1:
            return shared, np.zeros_like(shared)
        return shared, matern(squared_distances(a / self.bias_column_scale, b / self.bias_column_scale))

    def combine(self, shared: Array, bias: Array, rung_a: Ints, rung_b: Ints) -> Array:
        """Covariance of noiseless scores from their parts; one rung stands for all rows."""
        h = self.hyper
        both = np.minimum(self.distance[rung_a][:, None], self.distance[rung_b][None, :])
        same = rung_a[:, None] == rung_b[None, :]
        cov = h.scale[rung_a][:, None] * h.scale[rung_b][None, :] * shared
        cov += h.bias**2 * both * bias
        cov += CONSTANT_VARIANCE
        cov += OFFSET_VARIANCE * same.astype(float)
        return np.asarray(cov)

    def at_one_point(self, x: Array, rung_a: int, rung_b: int) -> Array:
        """Covariance between the scores at two rungs of the same configuration, per row of x."""
        h = self.hyper
        shared = h.amplitude**2 + h.quadratic**2 * (quadratic_features(x) ** 2).sum(1)
        fixed = h.bias**2 * min(self.distance[rung_a], self.distance[rung_b]) + CONSTANT_VARIANCE
        return np.asarray(h.scale[rung_a] * h.scale[rung_b] * shared + fixed + OFFSET_VARIANCE * (rung_a == rung_b))


def negative_log_posterior(theta: Array, data: Data, layout: Layout) -> tuple[float, Array]:
    """Minus log(likelihood * prior) of the hyperparameters up to a constant, and its gradient."""
    mean, spread = layout.prior()
    kernel = Kernel(theta, layout)
    h, rung = kernel.hyper, data.rung
    g, r = layout.num_groups, layout.num_rungs
    scaled, bias_scaled = data.x / kernel.column_scale, data.x / kernel.bias_column_scale
    r2 = squared_distances(scaled, scaled)
    base, slope = matern(r2), matern_slope(r2)
    smooth, bump = h.amplitude**2 * base, quadratic_features(data.x)
    bowl = h.quadratic**2 * bump @ bump.T
    several = r > 1
    r2 = squared_distances(bias_scaled, bias_scaled)
    bias_base, bias_slope = (matern(r2), matern_slope(r2)) if several else (0 * base, 0 * base)
    cov = kernel.combine(smooth + bowl, bias_base, rung, rung)
    cov[np.diag_indices_from(cov)] += h.noise[rung] ** 2 + JITTER
    try:
        factor = cho_factor(cov, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    alpha = cho_solve(factor, data.y, check_finite=False)
    inverse = dpotri(factor[0], lower=True)[0]
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    loss = 0.5 * float(data.y @ alpha) + float(np.log(np.diag(factor[0])).sum())
    pull = 0.5 * (inverse - np.outer(alpha, alpha))  # d loss / d cov

    grad = np.zeros_like(theta)
    scales = np.outer(h.scale[rung], h.scale[rung])
    weighted = pull * scales
    grad[:g] = _by_group(weighted * (h.amplitude**2 * slope), scaled, layout)
    grad[2 * g] = 2 * float((weighted * smooth).sum())
    grad[2 * g + 1] = 2 * float((weighted * bowl).sum())
    if several:
        distance = kernel.distance[rung]
        spread_out = pull * (h.bias**2 * np.minimum(distance[:, None], distance[None, :]))
        grad[g : 2 * g] = _by_group(spread_out * bias_slope, bias_scaled, layout)
        grad[2 * g + 2] = 2 * float((spread_out * bias_base).sum())
    rows = (weighted * (smooth + bowl)).sum(1)
    diagonal = np.diag(pull)
    for i in range(r):
        grad[2 * g + 3 + i] = 2 * float(rows[rung == i].sum())
        grad[2 * g + 3 + r + i] = 2 * float(h.noise[i] ** 2 * diagonal[rung == i].sum())
    away = (theta - mean) / spread
    return loss + 0.5 * float(away @ away), grad + away / spread


def _by_group(weights: Array, scaled: Array, layout: Layout) -> Array:
    """Per lengthscale: sum over pairs of weights times the squared scaled difference, without a loop over pairs."""
    rows = weights.sum(1)
    per_column = 2 * (rows @ scaled**2) - 2 * (scaled * (weights @ scaled)).sum(0)
    per_group = np.bincount(np.array(layout.groups, dtype=int), weights=per_column, minlength=layout.num_groups)
    return np.asarray(per_group, dtype=float)


def fit(data: Data, layout: Layout, *, start: Array | None = None, max_iterations: int = 40) -> Array:
    """The most probable hyperparameters (their logarithms), searched from `start` or the prior's mean."""
    mean, spread = layout.prior()
    found = minimize(
        negative_log_posterior,
        mean if start is None else start,
        args=(data, layout),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(mean - 4 * spread, mean + 4 * spread, strict=True)),
        options={"maxiter": max_iterations, "maxcor": 20},
    )
    return np.asarray(found.x)


class Posterior:
    """The distribution of scores anywhere, given the data."""

    def __init__(self, data: Data, theta: Array, layout: Layout) -> None:
        """Factorise once, cubic in the number of observations."""
        self.data, self.theta, self.layout = data, theta, layout
        self.kernel = Kernel(theta, layout)
        cov = self.kernel.combine(*self.kernel.parts(data.x, data.x), data.rung, data.rung)
        cov[np.diag_indices_from(cov)] += self.kernel.hyper.noise[data.rung] ** 2 + JITTER
        self._factor = cho_factor(cov, lower=True, overwrite_a=True, check_finite=False)
        self._alpha = cho_solve(self._factor, data.y, check_finite=False)

    def joint(self, x: Array, rungs: tuple[int, ...]) -> tuple[Array, Array]:
        """Noiseless scores at several rungs of each configuration.

        Returns:
            means (points, rungs) and covariances (points, rungs, rungs).
        """
        shared, bias = self.kernel.parts(x, self.data.x)
        means, halves = [], []
        for rung in rungs:
            cross = self.kernel.combine(shared, bias, np.array([rung]), self.data.rung)
            means.append(cross @ self._alpha)
            halves.append(solve_triangular(self._factor[0], cross.T, lower=True, check_finite=False))
        cov = np.empty((len(x), len(rungs), len(rungs)))
        for i, a in enumerate(rungs):
            for j, b in enumerate(rungs):
                known = np.einsum("nc,nc->c", halves[i], halves[j])
                cov[:, i, j] = self.kernel.at_one_point(x, a, b) - known
        return np.stack(means, axis=1), cov

    def mean(self, x: Array, rung: int) -> Array:
        """Expected score of each configuration at one rung."""
        cross = self.kernel.combine(*self.kernel.parts(x, self.data.x), np.array([rung]), self.data.rung)
        return np.asarray(cross @ self._alpha)

    def believing(self, x: Array, rung: Ints) -> Posterior:
        """The posterior after runs in flight have ended as expected: their neighbourhood is no longer uncertain."""
        if not len(x):
            return self
        cross = self.kernel.combine(*self.kernel.parts(x, self.data.x), rung, self.data.rung)
        expected = cross @ self._alpha
        more = Data(
            np.concatenate([self.data.x, x]),
            np.concatenate([self.data.rung, rung]),
            np.concatenate([self.data.y, expected]),
        )
        return Posterior(more, self.theta, self.layout)


def log_expected_improvement(improvement: Array, deviation: Array) -> Array:
    """log E[max(0, N(improvement, deviation^2))], accurate far into the tail where the plain form is 0.

    For z = improvement / deviation < -1, log h(z) with h = phi + z Phi is taken as
    log phi(z) + log1p(z * Phi(z) / phi(z)); beyond -20 by its asymptote phi / z^2.
    """
    sd = np.maximum(deviation, 1e-12)
    z = improvement / sd
    log_phi = -0.5 * z**2 - LOG_SQRT_2PI
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = np.log(np.exp(log_phi) + z * np.exp(log_ndtr(z)))
        ratio = np.exp(log_ndtr(z) - log_phi)
        middle = log_phi + np.log1p(np.minimum(z * ratio, 0.0))
        far = log_phi - 2 * np.log(np.maximum(-z, 1e-300))
    return np.asarray(np.log(sd) + np.where(z > -1, near, np.where(z > -20, middle, far)))
