"""Make `real_runs.csv`, a table of real small trainings for `bench_search.py`: the tiny space at three budgets.

    pgolf data build --out data/builtin          (or any dataset folder of the project)
    python tests/benchmarks/make_real_runs.py --data data/builtin [--configs 120] [--workers 2]

Every configuration trains, is quantized, packed, unpacked and scored by the project's own code, once per budget (12,
36 and 108 steps of 2,048 tokens by default) with the full schedule in each. Two thirds of the configurations are
random; the rest are mutations of the best tenth so far, so that the table is dense where a search ends up. Rows are
appended as they finish and a row that is there is not run again, so the script can be stopped at any time.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from search.surrogate.candidates import mutate, random_points
from search.surrogate.encoding import Encoder
from space.params import ChoiceParam, Scalar
from space.spaces import named_space
from trials.rungs import Rung

SPACE = "tiny"
# Every bitwidth is a knob here: solved ones would all land at one size, and each would cost a solver's minute.
PARAMS = tuple(
    replace(param, options=("explicit",)) if isinstance(param, ChoiceParam) and param.name == "quantization" else param
    for param in named_space(SPACE).params
)
CODE_BYTES = 50_000  # of the shipped script; the same for every row, so that only models differ
COLUMNS = ("number", "steps", "seed", "val_bpb", "artifact_bytes", "train_seconds", "total_seconds", "params")


def run(
    number: int, params: dict[str, Scalar], steps: int, seed: int, batch_tokens: int, val_tokens: int, data: str,
    tokenizer: str, vocab_size: int,
) -> dict[str, object]:  # fmt: skip
    """Train and score one configuration in this process; val_bpb is nan when it diverged."""
    import torch

    from pgolf_model.files import METRICS_FILE
    from pgolf_model.main import main

    torch.set_num_threads(1)
    rung = Rung(name="table", steps=steps, batch_tokens=batch_tokens, val_tokens=val_tokens)
    config = rung.apply(named_space(SPACE).build(params, vocab_size=vocab_size), seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        arguments = ["--data", data, "--out", out, "--seed", str(seed)]
        code = main(config, arguments + (["--tokenizer", tokenizer] if tokenizer else []))
        if code:
            raise RuntimeError(f"configuration {number} at {steps} steps could not run; see the error above")
        metrics = json.loads((Path(out) / METRICS_FILE).read_text(encoding="utf-8"))
    complete = metrics["status"] == "complete"
    return {
        "number": number,
        "steps": steps,
        "seed": seed,
        "val_bpb": metrics["val_bpb"] if complete else math.nan,
        "artifact_bytes": metrics["model_bytes"] + CODE_BYTES if complete else math.nan,
        "train_seconds": round(metrics["train_seconds"], 3),
        "total_seconds": round(time.perf_counter() - began, 3),
        "params": json.dumps(params),
    }


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows so far; a torn last line had not happened."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return list(csv.DictReader(whole.splitlines()))


def choose(number: int, num_random: int, rows: list[dict[str, str]], steps: int) -> dict[str, Scalar]:
    """Configuration `number`: random at first, then a mutation of one of the best tenth at the middle budget."""
    encoder, rng = Encoder(PARAMS), np.random.default_rng(number)
    if number == 0:
        return dict(named_space(SPACE).control)
    scored = sorted(
        (float(r["val_bpb"]), r["params"]) for r in rows if int(r["steps"]) == steps and r["val_bpb"] != "nan"
    )
    if number < num_random or not scored:
        return encoder.values(random_points(encoder, 1, rng)[0])
    leaders = scored[: max(1, len(scored) // 10)]
    parent = encoder.units([json.loads(leaders[rng.integers(len(leaders))][1])])
    return encoder.values(mutate(encoder, parent, rng)[0])


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--tokenizer", default="", help="SentencePiece model; the dataset's own by default")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("real_runs.csv"))
    parser.add_argument("--configs", type=int, default=120)
    parser.add_argument("--steps", default="12,36,108")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--val-tokens", type=int, default=32_768)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    budgets = [int(s) for s in args.steps.split(",")]
    rows = read_table(args.out)
    done = {(int(r["number"]), int(r["steps"])) for r in rows}
    params = {int(r["number"]): json.loads(r["params"]) for r in rows}
    new = not args.out.exists()
    with args.out.open("a", encoding="utf-8", newline="") as file, ProcessPoolExecutor(
        args.workers, mp_context=get_context("spawn")
    ) as pool:  # fmt: skip
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        running: set[Future[dict[str, object]]] = set()
        todo = [(n, s) for n in range(args.configs) for s in budgets if (n, s) not in done]
        while todo or running:
            while todo and len(running) < args.workers:
                number, steps = todo.pop(0)
                if number not in params:
                    params[number] = choose(number, args.configs * 2 // 3, rows, budgets[len(budgets) // 2])
                running.add(
                    pool.submit(
                        run, number, params[number], steps, args.seed, args.batch_tokens, args.val_tokens, args.data,
                        args.tokenizer, args.vocab_size,
                    )
                )  # fmt: skip
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                row = future.result()
                writer.writerow(row)
                file.flush()
                rows.append({key: str(value) for key, value in row.items()})
                print(f"{len(rows)} rows: configuration {row['number']} at {row['steps']} steps: {row['val_bpb']:.4f} "
                      f"bpb, {row['artifact_bytes']} bytes, {row['total_seconds']} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
