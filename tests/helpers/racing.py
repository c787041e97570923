"""A simulated study whose finalists race."""

from __future__ import annotations

from dataclasses import replace

from simulated import STUDY as ON_DISK

from search.ladder.race import SEEDS
from trials.rungs import Rung

STUDY = replace(ON_DISK, storage="memory")


FINAL = Rung(name="final", keep=1.0, min_promote=4, seconds=590, gpus=8, processes=8, seeds=SEEDS[:6], race_from=2)


RACE = replace(STUDY, rungs=(replace(STUDY.rungs[0], trials=8), FINAL))
