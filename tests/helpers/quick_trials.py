"""Trials whose script is quick: real processes, no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storms import SPACE

from pgolf_model.config import RunConfig
from pgolf_model.files import ARTIFACT_FILE, METRICS_FILE
from search.brain.maker import Made
from search.simulation.bare_space import bare_space
from space.params import Param, Scalar, Space
from trials.rungs import Rung

NAP_SECONDS = 0.2  # that a script takes beside the start of its processes


SCRIPT = """
import json, os, random, sys, time
open("../gpus.txt", "w").write(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
seed = int(sys.argv[sys.argv.index("--seed") + 1])
time.sleep({nap})
open({started!r}, "a").write("ran\\n")
score = 1 + random.Random(repr(({params!r}, seed))).random()
open({artifact!r}, "wb").write(b"x")
metrics = dict(status="complete", seed=seed, val_bpb=score, val_loss=score, pre_quant_val_bpb=score, model_bytes=900,
    code_bytes=100, steps=1, tokens_seen=1, num_params=1, train_seconds={nap}, eval_seconds=0.0, total_seconds={nap},
    peak_memory_bytes=1, artifact_sha256="", versions=dict())
json.dump(metrics, open({metrics!r}, "w"))
"""


@dataclass(frozen=True, kw_only=True)
class QuickMaker:
    """Trials whose script sleeps a little and draws a score from its point and seed."""

    params: tuple[Param, ...] = SPACE
    predict_bytes: None = None

    @property
    def space(self) -> Space:
        """Nothing is built from it."""
        return bare_space(self.params)

    def make(self, rung: Rung, params: Mapping[str, Scalar], seed: int) -> Made:
        """A trial of the point."""
        text = SCRIPT.format(
            nap=NAP_SECONDS, params=sorted(params.items()), artifact=ARTIFACT_FILE, metrics=METRICS_FILE,
            started="../runs.txt",
        )  # fmt: skip
        return Made(config=rung.apply(RunConfig(), seed), script=text.encode())

    def script(self, config: RunConfig) -> bytes:
        """Configurations never change."""
        raise AssertionError(config)

    def freeze(self, folder: Path) -> None:
        """There is no data."""
