"""Our Gaussian process against BoTorch's, on two stand-ins for the field, at equal simulated GPU-seconds.

    python -m venv /tmp/bo
    /tmp/bo/bin/pip install torch==2.13.0 botorch==0.18.1 optuna==5.0.0 sentencepiece zstandard
    PYTHONPATH=. /tmp/bo/bin/python tests/benchmarks/bench_botorch.py --seeds 3 --units 48

BoTorch is no dependency of this project, so it gets an environment of its own. The simulated node of eight GPUs and the
rule for the incumbent are those of `bench_search.py`. Methods:

- `ours`: search/surrogate, proxies of 1/8 and full runs.
- `botorch-mf`: the same proposals (candidates, value per GPU-second, byte model, shares of the rungs, moments of
  fitting), on BoTorch's SingleTaskMultiFidelityGP in place of our Gaussian process.
- `ours-full`: search/surrogate, full runs only.
- `botorch-full`: full runs only, BoTorch's own way: SingleTaskGP and qLogExpectedImprovement with the pending runs;
  where bytes are known after a run only, a second SingleTaskGP of their logarithm is the constraint. First design and
  candidate pool are ours, since half of the knobs are whole numbers or choices, which gradients do not move.

Prints the true (noiseless) regret at full of each method's incumbent, mean and sd over paired seeds, and wall seconds
per proposal. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
import warnings
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import botorch
import gpytorch
import numpy as np
import torch
from bench_search import best_known, load_problem, simulate
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.acquisition.objective import GenericMCObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP, SingleTaskMultiFidelityGP
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.mlls import ExactMarginalLogLikelihood, SumMarginalLogLikelihood
from search_methods import Job, Ours, OursFullOnly, Problem

from search.surrogate.candidates import mutate, pool
from search.surrogate.gaussian_process import Data, Layout
from search.surrogate.history import History, Reader, row_key, standardise

CHECKPOINTS = (12, 21.4, 32, 48)  # full runs' worth of GPU-seconds
NUM_LEADERS, NUM_ROUNDS, NUM_PARENTS, NUM_CHILDREN = 8, 2, 10, 16  # as in search/surrogate/proposal.py
MC_SAMPLES = 64
PROXY_SHARE = Ours.fidelities[0]  # compute of a proxy over that of a full run


def single_task(x: torch.Tensor, y: torch.Tensor) -> SingleTaskGP:
    """BoTorch's default model (dimension-scaled log-normal lengthscales, RBF); y is standardised."""
    return SingleTaskGP(x, y, outcome_transform=None)


def multi_fidelity(x: torch.Tensor, y: torch.Tensor) -> SingleTaskMultiFidelityGP:
    """BoTorch's model over a fidelity column, the last one."""
    return SingleTaskMultiFidelityGP(x, y, data_fidelities=[x.shape[1] - 1], outcome_transform=None)


def with_fidelity(x: np.ndarray, rung: np.ndarray, layout: Layout) -> torch.Tensor:
    """Features and the share of a full run's compute; `layout.distances` are logarithms over that of the cheapest."""
    shares = np.array([PROXY_SHARE**distance for distance in layout.distances])
    return torch.tensor(np.concatenate([x, shares[rung][:, None]], axis=1))


def fit_multi_fidelity(
    data: Data, layout: Layout, *, start: np.ndarray | None = None, max_iterations: int = 40
) -> np.ndarray:
    """In place of `gaussian_process.fit`: the raw parameters of BoTorch's fitted model as one vector."""
    model = multi_fidelity(with_fidelity(data.x, data.rung, layout), torch.tensor(data.y)[:, None])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()


class MultiFidelityPosterior:
    """In place of `gaussian_process.Posterior`: the same questions answered by BoTorch's model."""

    def __init__(self, data: Data, theta: np.ndarray, layout: Layout) -> None:
        self.data, self.theta, self.layout = data, theta, layout
        self.model = multi_fidelity(with_fidelity(data.x, data.rung, layout), torch.tensor(data.y)[:, None])
        torch.nn.utils.vector_to_parameters(torch.tensor(theta), self.model.parameters())
        self.model.eval()
        noise = float(self.model.likelihood.noise.detach()) ** 0.5
        hyper = type("Hyper", (), {"noise": np.full(len(layout.distances), noise)})
        self.kernel = type("Kernel", (), {"hyper": hyper})

    def joint(self, x: np.ndarray, rungs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Noiseless scores at several rungs: means (points, rungs) and covariances (points, rungs, rungs)."""
        stacked = torch.cat([with_fidelity(x, np.full(len(x), rung), self.layout) for rung in rungs])
        with torch.no_grad():
            found = self.model(stacked)
            means, whole = found.mean.numpy(), found.covariance_matrix.numpy()
        n = len(x)
        cov = np.empty((n, len(rungs), len(rungs)))
        for i in range(len(rungs)):
            for j in range(len(rungs)):
                cov[:, i, j] = np.diagonal(whole[i * n : (i + 1) * n, j * n : (j + 1) * n])
        return means.reshape(len(rungs), n).T, cov

    def mean(self, x: np.ndarray, rung: int) -> np.ndarray:
        """Expected score of each configuration at one rung."""
        with torch.no_grad():
            return self.model(with_fidelity(x, np.full(len(x), rung), self.layout)).mean.numpy()

    def believing(self, x: np.ndarray, rung: np.ndarray) -> MultiFidelityPosterior:
        """The posterior after runs in flight have ended as expected."""
        if not len(x):
            return self
        with torch.no_grad():
            expected = self.model(with_fidelity(x, rung, self.layout)).mean.numpy()
        more = Data(
            np.concatenate([self.data.x, x]),
            np.concatenate([self.data.rung, rung]),
            np.concatenate([self.data.y, expected]),
        )
        return MultiFidelityPosterior(more, self.theta, self.layout)


class BotorchMultiFidelity(Ours):
    """Our proposals on BoTorch's multi-fidelity model."""

    def next(self, remaining: float) -> Job | None:
        torch.manual_seed(len(self.history))
        own = {"fit": fit_multi_fidelity, "Posterior": MultiFidelityPosterior}
        with patch.multiple("search.surrogate.proposal", **own):
            return super().next(remaining)


class BotorchFullOnly(OursFullOnly):
    """BoTorch's own acquisition on full runs only."""

    def __init__(self, problem: Problem, seed: int, units: float) -> None:
        super().__init__(problem, seed, units)
        self.encoder, self.reader = self.model.encoder, Reader(self.model.encoder)
        self.rng, self.seed = np.random.default_rng([seed, 1]), seed

    def next(self, remaining: float) -> Job | None:
        history = self.reader.read(self.history)
        if history.scored.sum() < self.model.num_initial and len(history) < 2 * self.model.num_initial:
            return super().next(remaining)  # the first design
        torch.manual_seed(1000 * self.seed + len(history))
        params = self.encoder.values(self._best_candidate(history))
        job = Job(params=params, level=0)
        self.place[id(job)] = len(self.history)
        self.jobs.append(job)
        self.history.append(type(self.history[0])(params=params, level=0, running=True))
        return job

    def _best_candidate(self, history: History) -> np.ndarray:
        """Units of the point with the highest qLogEI among a pool and two rounds of its best one's neighbours."""
        value, scores = self._acquisition(history)
        rows = np.flatnonzero(history.scored)
        order = rows[np.lexsort((scores[rows], ~history.feasible[rows]))]  # those that fit first, best first
        points = self._fitting(pool(self.encoder, history.units[order[:NUM_LEADERS]], self.rng))
        values = value(points)
        for _ in range(NUM_ROUNDS):
            parents = points[np.argsort(-values, kind="stable")[:NUM_PARENTS]]
            children = self._fitting(mutate(self.encoder, np.repeat(parents, NUM_CHILDREN, axis=0), self.rng))
            points, values = np.concatenate([points, children]), np.concatenate([values, value(children)])
        seen = set(history.keys)
        best = np.argsort(-values, kind="stable")
        return points[next((i for i in best if row_key(points[i]) not in seen), best[0])]

    def _fitting(self, points: np.ndarray) -> np.ndarray:
        """The points that fit, where bytes can be known; all of them elsewhere, or where none fits."""
        kept = np.array([self.problem.fits(self.encoder.values(row)) for row in points], dtype=bool)
        return points[kept] if kept.any() else points

    def _acquisition(self, history: History) -> tuple[Any, np.ndarray]:
        """(qLogEI of rows of units, standardised scores of the runs)."""
        scores = standardise(history, 1)
        told = np.flatnonzero(~np.isnan(scores))
        x = torch.tensor(self.encoder.features(history.units))
        models = [single_task(x[told], torch.tensor(scores[told])[:, None])]
        constraints = None
        if self.problem.predict_bytes is None:
            sized = [i for i, run in enumerate(history.runs) if run.artifact_bytes is not None]
            logs = np.log([history.runs[i].artifact_bytes / self.problem.cap_bytes for i in sized])
            centre, spread = float(logs.mean()), float(logs.std()) or 1.0
            models.append(single_task(x[sized], torch.tensor((logs - centre) / spread)[:, None]))
            constraints = [lambda samples: samples[..., 1] + centre / spread]  # negative: under the cap
        model = ModelListGP(*models)
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        done = np.flatnonzero(history.scored & history.feasible)
        with torch.no_grad():
            best = float(models[0].posterior(x[done]).mean.min()) if len(done) else float(np.nanmax(scores))
        flying = [i for i, run in enumerate(history.runs) if run.running]
        found = qLogExpectedImprovement(
            model,
            best_f=-best,
            sampler=SobolQMCNormalSampler(torch.Size([MC_SAMPLES]), seed=self.seed),
            objective=GenericMCObjective(lambda samples, X=None: -samples[..., 0]),
            X_pending=x[flying] if flying else None,
            constraints=constraints,
        )

        def value(points: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return found(torch.tensor(self.encoder.features(points))[:, None, :]).numpy()

        return value, scores


METHODS: dict[str, type[Ours]] = {
    "ours": Ours,
    "botorch-mf": BotorchMultiFidelity,
    "ours-full": OursFullOnly,
    "botorch-full": BotorchFullOnly,
}


def run_one(name: str, method_name: str, seed: int, units: float, optimum: float) -> dict[str, Any]:
    """True regret at the checkpoints, and what a proposal took."""
    problem = load_problem(name)
    method = METHODS[method_name](problem, seed, units)
    began = time.perf_counter()
    found = simulate(problem, method, units, seed)
    seconds = time.perf_counter() - began
    regret = []
    for at in CHECKPOINTS:
        known = [f for f in found if f[0] <= at + 1e-9]
        regret.append(min(known, key=lambda f: f[1])[2] - optimum if known else math.nan)
    return {
        "problem": name, "method": method_name, "seed": seed, "regret": regret, "runs": len(method.jobs),
        "seconds_per_proposal": seconds / len(method.jobs),
    }  # fmt: skip


def mean_sd(values: list[float]) -> str:
    """`12.3 (sd 1.2)`."""
    return f"{fmean(values):.1f} (sd {stdev(values):.1f})" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    """Run, print a table, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--problems", default="smooth,rugged")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--units", type=float, default=48.0, help="budget in full runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions |= {"botorch": botorch.__version__, "gpytorch": gpytorch.__version__}
    summary: dict[str, Any] = {"units": args.units, "seeds": args.seeds, "versions": versions, "runs": []}
    for problem in args.problems.split(","):
        optimum = best_known(problem)
        print(f"\n{problem}: 1000 x regret, mean over {args.seeds} paired seeds, by full-run units", flush=True)
        print(f"{'method':<14}" + "".join(f"{c:>20g}" for c in CHECKPOINTS) + f"{'runs':>7}{'s/proposal':>20}")
        for name in args.methods.split(","):
            seeds = range(args.first_seed, args.first_seed + args.seeds)
            runs = [run_one(problem, name, seed, args.units, optimum) for seed in seeds]
            cells = [mean_sd([1000 * run["regret"][i] for run in runs]) for i in range(len(CHECKPOINTS))]
            pace = [run["seconds_per_proposal"] for run in runs]
            speed = f"{fmean(pace):.3f} (sd {stdev(pace) if len(pace) > 1 else 0:.3f})"
            print(f"{name:<14}" + "".join(f"{cell:>20}" for cell in cells), end="")
            print(f"{fmean(run['runs'] for run in runs):>7.0f}{speed:>20}", flush=True)
            summary["runs"] += runs
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
