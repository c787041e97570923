"""One rung of the ladder: the length of its runs, their resources, and how many are promoted."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgolf_model.config import Budget, RunConfig, TrainConfig
from pgolf_model.errors import UserError
from trials.settings import free

TOKENS_PER_GPU_SECOND = 1e6  # of a 9-layer record on an H100 (8.2 M/s on eight), to compare seconds with steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """A complete short run with its own schedule. A long run that is cut short would rank configurations differently.

    The first rung says how many `trials` it asks the sampler for. Every later rung takes the best `keep` share of the
    rung before it, at least `min_promote`.
    """

    name: str
    steps: int = 0  # training budget in optimizer steps; 0 is no limit
    seconds: float = 0.0  # training budget in seconds; 0 is no limit. Never for runs that share a GPU
    trials: int = free(0)  # first rung only: configurations to ask for
    keep: float = free(0.25)  # later rungs: share of the previous rung's results that is promoted ...
    keep_min: float = free(0.0)  # ... at least this once the proxy has proved good; 0 is half of `keep`
    keep_max: float = free(0.0)  # ... at most this while it has not; 0 is `keep`
    min_promote: int = free(1)  # later rungs: at least so many, when there are as many
    seeds: tuple[int, ...] = (1337,)  # every trial runs once per seed; its score is the mean
    race_from: int = free(0)  # start with so many of the seeds and add one at a time while undecided; 0 runs them all
    cpus: float = free(1.0)  # CPU cores of one trial
    gpus: float = free(0.0)  # GPUs of one trial: a fraction, or a whole number
    processes: int = 1  # torchrun ranks; above 1 the trial is a gang on one node
    batch_tokens: int = 0  # overrides the configuration's batch when above 0
    val_tokens: int = 0  # scores only so many leading validation tokens when above 0
    curve: tuple[float, ...] = ()  # shares of the cap at which each checkpoint is packed and scored too
    timeout_seconds: float = free(0.0)  # per seed, everything included; 0 picks one from the budget

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise UserError(f"a rung needs a name without '/', got {self.name!r}")
        Budget(steps=self.steps, seconds=self.seconds)
        if not 0 < self.keep <= 1:
            raise UserError(f"keep must be in (0, 1], got {self.keep}")
        if not 0 < self.least_kept <= self.most_kept <= 1:
            raise UserError(
                f"keep_min and keep_max must satisfy 0 < keep_min <= keep_max <= 1, got {self.least_kept:g} and "
                f"{self.most_kept:g}"
            )
        if not 0 <= self.race_from <= len(self.seeds):
            raise UserError(f"race_from must be in [0, {len(self.seeds)}], the number of seeds, got {self.race_from}")
        if self.trials < 0 or self.min_promote < 0:
            raise UserError(f"trials and min_promote must be at least 0, got {self.trials} and {self.min_promote}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds must be distinct and not empty, got {self.seeds}")
        if not all(0 < share <= 1 for share in self.curve):
            raise UserError(f"curve holds shares of the cap, in (0, 1], got {self.curve}")
        if self.cpus < 0 or self.gpus < 0 or self.processes < 1:
            raise UserError(
                f"resources must not be negative, got {self.cpus} cpus, {self.gpus} gpus, {self.processes} processes"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UserError(f"gpus above 1 must be whole (Ray refuses fractions there), got {self.gpus}")
        if 0 < self.gpus < 1 and self.seconds and not self.steps:
            raise UserError(
                f"rung {self.name!r} shares a GPU ({self.gpus}), so its budget must be in steps, not seconds: "
                "neighbours would change what a second buys"
            )
        gang = self.gpus > 0 and max(self.gpus, self.processes) > 1
        if gang and self.processes != self.gpus:
            raise UserError(f"processes must equal gpus when there are several, got {self.processes} and {self.gpus}")

    @property
    def budget(self) -> Budget:
        """Training budget of one run at this rung."""
        return Budget(steps=self.steps, seconds=self.seconds)

    @property
    def least_kept(self) -> float:
        """Share of the rung below that is promoted once the proxy's ranking is known to be perfect."""
        return self.keep_min or min(self.keep / 2, self.most_kept)

    @property
    def most_kept(self) -> float:
        """Share of the rung below that is promoted while the proxy's ranking is unknown or poor."""
        return self.keep_max or max(self.keep, self.keep_min)

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """The seeds every trial runs before any race."""
        return self.seeds[: self.race_from or len(self.seeds)]

    @property
    def compute(self) -> float:
        """Training compute of one run in tokens, by which rungs are compared; no forecast.

        Steps times batch; a budget in seconds counts TOKENS_PER_GPU_SECOND on each GPU (on one where there is none).
        """
        if self.seconds and not self.steps:
            return self.seconds * max(self.gpus, 1.0) * TOKENS_PER_GPU_SECOND
        return float(self.steps * (self.batch_tokens or TrainConfig().batch_tokens))

    @property
    def timeout(self) -> float:
        """Seconds after which one seed's run is stopped: given, or training twice over plus the evaluation's 600 s."""
        if self.timeout_seconds:
            return self.timeout_seconds
        return 2 * self.seconds + 1200.0 if self.seconds else 3600.0

    def apply(self, config: RunConfig, seed: int) -> RunConfig:
        """Return the run of a configuration at this rung, with the rung's budget and this seed.

        The batch is cut to whole sequences for every rank, so that each configuration of a space can run.
        """
        whole = self.processes * config.train.seq_len
        batch_tokens = max(1, (self.batch_tokens or config.train.batch_tokens) // whole) * whole
        train = replace(config.train, batch_tokens=batch_tokens)
        scored = replace(config.eval, max_tokens=self.val_tokens)
        return replace(config, train=train, eval=scored, budget=self.budget, seed=seed)
