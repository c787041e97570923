"""How often the truth lies inside the forecast of a full run's score: real runs replayed, and a simulated study.

    python tests/benchmarks/bench_forecast.py [--orders 40] [--held-out]

Real runs (`../shared/data/public_runs.csv`, where present): the proxy is val_bpb at step 1000 of a run with its seconds
per step, the truth its round-trip bpb at the end. Of each random order the first n runs are promotions that have
ended; the next 20 are forecast. `better half` promotes and forecasts only runs whose proxy is in the better half,
as promotion would. Simulated: 60 proxies of a bowl with a biased cheap rung, the best promoted one after another,
each forecast before it runs. With --held-out one half of the real runs chooses the prior's two constants, by how far
the shares inside are from 0.5 and 0.9, and the half that they never saw is forecast.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
from itertools import product
from math import exp, log
from pathlib import Path
from statistics import median

import numpy as np

import search.look.score_forecast
from search.look.score_forecast import SHARES, predict, proxy_line

RUNS = Path(__file__).resolve().parents[3] / "shared" / "data" / "public_runs.csv"
CHEAP_STEP = 1000
AHEAD = 20
TUNING_ORDERS = 8
PAIRS = (0, 1, 2, 3, 5, 10, 20, 50)
Run = tuple[float, float, float]  # proxy score, seconds per step, final score


def real_runs() -> list[Run]:
    """Runs with a score at CHEAP_STEP and a round-trip score at the end."""
    found = []
    with RUNS.open(newline="") as file:
        for row in csv.DictReader(file):
            points = (point.split(":") for point in row["curve_step:val_bpb:seconds"].split())
            curve = {int(step): (float(bpb), float(seconds)) for step, bpb, seconds in points}
            if row["roundtrip_bpb"] and CHEAP_STEP in curve and int(row["stop_step"]) > CHEAP_STEP:
                bpb, seconds = curve[CHEAP_STEP]
                found.append((bpb, seconds / CHEAP_STEP, float(row["roundtrip_bpb"])))
    return found


def simulated_runs(rng: random.Random, count: int = 60) -> list[Run]:
    """Proxies that see part of the truth; best first, as they would be promoted."""
    found = []
    for _ in range(count):
        shared, unseen = rng.gauss(0, 0.03), rng.gauss(0, 0.008)
        slow = rng.gauss(0, 0.2)
        proxy = 1.35 * exp(shared + rng.gauss(0, 0.004))
        found.append((proxy, 0.06 * exp(slow), 1.17 * exp(0.6 * shared + unseen + 0.01 * slow)))
    return sorted(found)


def forecast(known: list[Run], new: list[Run], ratio: float) -> list[tuple[float, float, float]]:
    """(error in log, half width of 50 %, of 90 %) per new run."""
    x = np.array([[log(a), log(s)] for a, s, _ in known]).reshape(len(known), 2)
    y = np.array([log(b / a) for a, _, b in known])
    here = np.array([[log(a), log(s)] for a, s, _ in new])
    gains, half, most = predict(proxy_line(x, y, ratio=ratio, around=here.mean(0)), here)
    return [(log(b / a) - g, h, m) for (a, _, b), g, h, m in zip(new, gains, half, most, strict=True)]


def replay(runs: list[Run], n: int, orders: int) -> list[tuple[float, float, float]]:
    """Random orders of which the first n runs have ended and the next AHEAD are forecast."""
    said = []
    for order in range(orders):
        mine = random.Random(order).sample(runs, len(runs))
        said += forecast(mine[:n], mine[n : n + AHEAD], 7.0)
    return said


def held_out(runs: list[Run], orders: int) -> list[dict[str, object]]:
    """Constants from one half, coverage on the other, both ways."""
    rows = []
    before = search.look.score_forecast.NOISE, search.look.score_forecast.REGRESSION_SD
    for seed in range(2):
        mixed = random.Random(seed).sample(runs, len(runs))
        for here, there in ((mixed[::2], mixed[1::2]), (mixed[1::2], mixed[::2])):
            tried = []
            for noise, slope in product((0.004, 0.008, 0.016, 0.032), (0.25, 0.5, 1.0)):
                search.look.score_forecast.NOISE, search.look.score_forecast.REGRESSION_SD = noise, slope
                shares = np.array([inside(replay(here, n, TUNING_ORDERS)) for n in PAIRS])
                tried.append((float(abs(shares - SHARES).sum()), noise, slope))
            _, search.look.score_forecast.NOISE, search.look.score_forecast.REGRESSION_SD = min(tried)
            name = f"held out, {search.look.score_forecast.NOISE:g}, {search.look.score_forecast.REGRESSION_SD:g}"
            rows += [row(name, n, replay(there, n, orders)) for n in PAIRS]
    search.look.score_forecast.NOISE, search.look.score_forecast.REGRESSION_SD = before
    return rows


def inside(rows: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Shares of truths inside the 50 and the 90 % interval."""
    return sum(abs(e) <= h for e, h, _ in rows) / len(rows), sum(abs(e) <= m for e, _, m in rows) / len(rows)


def row(name: str, n: int, rows: list[tuple[float, float, float]]) -> dict[str, object]:
    """Print and return the shares inside."""
    inside50, inside90 = inside(rows)
    error, width = median(abs(e) for e, _, _ in rows), median(m for _, _, m in rows)
    print(f"{name:<32}{n:>5}{len(rows):>7}{inside50:>9.3f}{inside90:>9.3f}{100 * error:>12.2f}{100 * width:>12.2f}")
    return {"runs": name, "pairs": n, "forecasts": len(rows), "inside50": inside50, "inside90": inside90,
            "median_error": error, "median_half_width90": width}  # fmt: skip


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=40)
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    orders = options.orders
    print(f"{'runs':<32}{'pairs':>5}{'n':>7}{'in 50 %':>9}{'in 90 %':>9}{'|error| %':>12}{'90 % +- %':>12}")
    rows = []
    if RUNS.exists():
        everything = real_runs()
        cut = median(a for a, _, _ in everything)
        for name, runs in (("real", everything), ("real, better half", [r for r in everything if r[0] <= cut])):
            rows += [row(name, n, replay(runs, n, orders)) for n in PAIRS]
        if options.held_out:
            rows += held_out(everything, orders)
    else:
        print(f"no {RUNS}: the real runs are not replayed")
    for n in (0, 1, 2, 3, 5, 10, 20):
        said = []
        for order in range(orders * 5):
            runs = simulated_runs(random.Random(order))
            said += forecast(runs[:n], runs[n : n + 2], 8.0)
        rows.append(row("simulated, next two promotions", n, said))
    print(json.dumps({"rows": rows, "orders": orders, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
