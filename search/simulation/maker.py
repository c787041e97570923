"""Trials that are calls of a Python function."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pgolf_model.config import RunConfig
from pgolf_model.errors import UserError
from search.brain.maker import Made
from search.bundle.script import bundle
from search.simulation.trace import LOG_FILE
from search.simulation.world import World
from search.study.next_steps import WORLD_FILE
from space.forecast.sizing import estimate_model_bytes
from space.knobs.quant import at_cap
from space.params import Scalar, Space
from trials.files import write_json
from trials.rungs import Rung
from trials.spec import RESULT_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedMaker:
    """Trials without scripts or data. The configuration is the space's own where it makes one."""

    world: World
    space: Space
    cap_bytes: int

    @property
    def predict_bytes(self) -> Callable[[Mapping[str, Scalar]], float] | None:
        """`predict_bytes`, or the named space's estimate."""
        if self.world.predict_bytes is not None:
            return self.world.predicted
        if self.world.space is not None:
            return None

        def artifact_bytes(params: Mapping[str, Scalar]) -> float:
            config = at_cap(self.space.build(params), params, self.cap_bytes)
            return code_bytes() + estimate_model_bytes(config, code_bytes=code_bytes()).model_bytes

        return artifact_bytes

    def make(self, rung: Rung, params: Mapping[str, Scalar], seed: int) -> Made:
        """The trial; its forecast is `predict_bytes`, or that of a named space's configuration."""
        config = at_cap(rung.apply(self.space.build(params), seed), params, self.cap_bytes)
        if self.world.predict_bytes is not None:
            size = round(self.world.predicted(params))
            return Made(config=config, predicted_bytes=size, predicted_low=size, predicted_high=size)
        if self.world.space is None:
            sizes = estimate_model_bytes(config, code_bytes=code_bytes())
            low, central, high = (code_bytes() + x for x in (sizes.low, sizes.model_bytes, sizes.high))
            return Made(config=config, predicted_bytes=central, predicted_low=low, predicted_high=high)
        return Made(config=config)

    def script(self, config: RunConfig) -> bytes:
        """There is none."""
        return b""

    def freeze(self, folder: Path) -> None:
        """Remember which file simulates the study: results of two functions are not comparable."""
        if not self.world.sha256:
            return
        path = folder / WORLD_FILE
        now = {"sha256": self.world.sha256, "file": self.world.file}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        if known["sha256"] != now["sha256"]:
            if any(folder.glob(f"*/*/{RESULT_FILE}")):
                raise UserError(
                    f"the study in {folder} was simulated with another file, or an older {self.world.file}",
                    hint=(
                        "put the old one back, take another --seed or remove that folder, or, where finished trials "
                        f"would end as they did, remove {path}"
                    ),
                )
            (folder / LOG_FILE).unlink(missing_ok=True)  # nothing has ended: nothing is lost by a new beginning
        write_json(path, now)


@cache
def code_bytes() -> int:
    """Bytes of the script, which differs between configurations by a few dozen: one bundle stands for all."""
    return len(bundle(RunConfig()))
