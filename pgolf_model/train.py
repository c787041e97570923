"""One training run: batches in, float32 weights out, after a number of steps or seconds."""

from __future__ import annotations

import json
import math
import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pgolf_model.config import Budget, RunConfig, TrainConfig
from pgolf_model.data import check_token_range, train_batches
from pgolf_model.distributed import DistEnv, all_reduce_sum, value_of_main
from pgolf_model.model import GPT, build_model
from pgolf_model.optim import Optimizers, build_optimizers
from pgolf_model.schedule import lr_multiplier, muon_momentum_at
from pgolf_model.shards import shard_paths

WARMUP_STEPS = 3  # on CUDA, outside the clock: compiles, tunes kernels, opens nccl channels; weights are restored
LOG_EVERY_SECONDS = 1.0
DIVERGED_NATS = 1.0  # this much worse than a uniform guess ...
DIVERGED_STEPS = 20  # ... for so many steps in a row; a healthy run may spike for a step or two

LossFunction = Callable[[Tensor, Tensor], Tensor]  # (inputs, targets) -> mean loss


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainOutcome:
    """What training leaves behind; the same on every rank, except seconds and memory."""

    state: dict[str, Tensor]  # name -> float32 CPU weights, in `param_shapes` order; the average when EMA is on
    steps: int  # optimizer steps done
    tokens_seen: int  # target tokens, over all ranks
    train_seconds: float  # on the budget's clock: data, steps, averaging; not building, compiling, warming up
    warmup_seconds: float  # spent compiling and warming up before the clock started; 0 on a CPU
    peak_memory_bytes: int  # CUDA: most allocated on this rank's GPU; CPU: largest resident set of the process
    final_train_loss: float  # nats per token on the last step's batch, before its update, over all ranks
    diverged: bool  # the loss or the weights became non-finite, or the loss stayed worse than a uniform guess


def train(config: RunConfig, *, data: str, env: DistEnv, out_dir: Path | None) -> TrainOutcome:
    """Train the model of `config` until its budget is spent or the loss diverges.

    With several ranks, call it on each of them inside `process_group(env)`. Under a step budget on a CPU the result is
    a function of the config, the data and the number of threads.

    Args:
        data: where the training shards are, as `shard_paths` takes it.
        out_dir: rank 0 appends to `progress.jsonl` in this folder; None writes no file.
    Raises:
        ValueError: the shards are missing, damaged, too small or of a larger vocabulary, or the batch cannot be shared
            out over the ranks.
    """
    recipe, budget = config.train, config.budget
    batches = train_batches(
        shard_paths(data, "train"),
        batch_tokens=recipe.batch_tokens,
        seq_len=recipe.seq_len,
        rank=env.rank,
        world_size=env.world_size,
        loader=recipe.loader,
        seed=config.seed,
    )
    model = build_model(config.model, seed=config.seed).to(env.device)
    loss_function, warmup_seconds = prepare_device(model, recipe, env)
    optimizers = build_optimizers(model, recipe, env)
    average = WeightAverage(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    guard = DivergenceGuard(config.model.vocab_size)
    log = ProgressLog(config, out_dir if env.is_main else None, enabled=env.is_main)
    clock = RunClock(budget, env)
    in_flight: deque[StepRecord] = deque()
    # The host prepares and launches one step while the GPU runs the one before, and never gets further ahead.
    max_in_flight = 1 if env.is_cuda else 0
    step, diverged, last = 0, False, None
    while True:
        start_seconds = clock.next_start(step, in_flight=len(in_flight))
        if diverged or start_seconds is None:
            break
        progress = budget.progress(step, start_seconds)
        multiplier = lr_multiplier(
            progress, warmdown_fraction=recipe.warmdown_fraction, min_lr_fraction=recipe.min_lr_fraction
        )
        momentum = muon_momentum_at(
            progress,
            start=recipe.muon_momentum_start,
            end=recipe.muon_momentum,
            warmup_fraction=recipe.muon_momentum_warmup,
        )
        optimizers.set_rates(lr_multiplier=multiplier, momentum=momentum)
        inputs, targets = next(batches)
        for tokens in (inputs, targets):
            check_token_range(tokens, config.model.vocab_size, data)
        inputs, targets = to_device(inputs, env), to_device(targets, env)
        loss = take_step(model, loss_function, optimizers, inputs, targets, recipe, env)
        if average:
            average.update()
        step += 1
        in_flight.append(StepRecord(step, loss, lr_multiplier=multiplier))
        while len(in_flight) > max_in_flight:
            last = in_flight.popleft()
            diverged |= guard.is_diverged(last.wait())
            log.write(last, clock.finish_step(), due_only=True)
    while in_flight:
        last = in_flight.popleft()
        diverged |= guard.is_diverged(last.wait())
        clock.finish_step()
    assert last is not None, "the first step always runs"
    log.write(last, clock.finished_seconds, due_only=False)
    state = float32_state(model.state_dict() if average is None else average.state_dict())
    return TrainOutcome(
        state=state,
        steps=step,
        tokens_seen=step * recipe.batch_tokens,
        train_seconds=clock.finished_seconds,
        warmup_seconds=warmup_seconds,
        peak_memory_bytes=peak_memory_bytes(env),
        final_train_loss=last.wait(),
        diverged=diverged or not all(bool(torch.isfinite(weight).all()) for weight in state.values()),
    )


def prepare_device(model: GPT, recipe: TrainConfig, env: DistEnv) -> tuple[LossFunction, float]:
    """On CUDA, compile the loss and warm it up outside the clock; (loss function, seconds it took)."""
    if not env.is_cuda:
        return model, 0.0
    started = time.perf_counter()
    torch.cuda.reset_peak_memory_stats(env.device)
    torch.set_float32_matmul_precision("high")
    loss_function: LossFunction = torch.compile(model, dynamic=False) if recipe.compile else model
    warm_up(model, loss_function, recipe, env, steps=WARMUP_STEPS)
    torch.cuda.synchronize(env.device)
    return loss_function, time.perf_counter() - started


def warm_up(model: GPT, loss_function: LossFunction, recipe: TrainConfig, env: DistEnv, *, steps: int) -> None:
    """Run whole steps on a made-up batch with optimizers that are thrown away, then put the weights back exactly."""
    saved = [parameter.detach().clone() for parameter in model.parameters()]
    optimizers = build_optimizers(model, recipe, env)
    shape = (recipe.batch_tokens // env.world_size // recipe.seq_len, recipe.seq_len)
    ids = torch.zeros(shape, dtype=torch.int64, device=env.device)
    for _ in range(steps):
        take_step(model, loss_function, optimizers, ids, ids, recipe, env)
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), saved)
    model.zero_grad(set_to_none=True)


def to_device(tensor: Tensor, env: DistEnv) -> Tensor:
    """Move a CPU batch to the device without making the host wait."""
    return tensor.pin_memory().to(env.device, non_blocking=True) if env.is_cuda else tensor


def take_step(
    model: GPT,
    loss_function: LossFunction,
    optimizers: Optimizers,
    inputs: Tensor,
    targets: Tensor,
    recipe: TrainConfig,
    env: DistEnv,
) -> Tensor:
    """One optimizer step on this rank's share of the batch; the mean loss over all ranks, still on the device."""
    model.zero_grad(set_to_none=True)
    loss = accumulate_gradients(loss_function, inputs, targets, recipe)
    loss = average_over_ranks(list(model.parameters()), loss, env)
    if recipe.grad_clip:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
    optimizers.step()
    return loss


def accumulate_gradients(loss_function: LossFunction, inputs: Tensor, targets: Tensor, recipe: TrainConfig) -> Tensor:
    """Add the gradients of the mean loss over (sequences, seq_len) tokens, a micro batch at a time; that mean."""
    micro_sequences = max(1, recipe.micro_batch_tokens // recipe.seq_len)
    mean_loss = torch.zeros((), device=inputs.device)
    for ids, next_ids in zip(torch.split(inputs, micro_sequences), torch.split(targets, micro_sequences), strict=True):
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = loss_function(ids, next_ids)
        loss = loss * (ids.shape[0] / inputs.shape[0])
        torch.autograd.backward(loss)
        mean_loss += loss.detach()
    return mean_loss


def average_over_ranks(parameters: list[nn.Parameter], loss: Tensor, env: DistEnv) -> Tensor:
    """Average gradients in place, and the loss, in one reduction of one flat tensor.

    The loss travels along, so that every rank sees the same one and draws the same conclusions from it.
    """
    if env.world_size == 1:
        return loss
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads] + [loss.reshape(1)])
    all_reduce_sum(flat, env).div_(env.world_size)
    *averaged, mean_loss = torch.split(flat, [grad.numel() for grad in grads] + [1])
    torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(averaged, grads, strict=True)])
    return mean_loss[0]


class StepRecord:
    """One launched step and the loss it will have; on CUDA the loss comes to the host without a stop of the queue."""

    def __init__(self, step: int, loss: Tensor, *, lr_multiplier: float) -> None:
        self.step = step
        self.lr_multiplier = lr_multiplier
        self.arrived: torch.cuda.Event | None = None
        self.loss = loss
        if loss.is_cuda:
            self.loss = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()

    def wait(self) -> float:
        """Block until the device has finished this step; its mean training loss."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.loss)


class RunClock:
    """Seconds of training: when the next step starts, and whether it may."""

    def __init__(self, budget: Budget, env: DistEnv) -> None:
        self.budget, self.env = budget, env
        self.started = time.perf_counter()
        self.finished_steps = 0
        self.finished_seconds = 0.0

    def finish_step(self) -> float:
        """Note that one more step has finished now; seconds since the start."""
        self.finished_steps += 1
        self.finished_seconds = time.perf_counter() - self.started
        return self.finished_seconds

    def next_start(self, step: int, *, in_flight: int) -> float | None:
        """Seconds at which step number `step` (from 0) starts on the device, the same on all ranks; None to stop.

        A step may start when at the mean pace so far it ends within the budget, so a run is over its seconds only by
        what one step can take longer than the mean. The first step always runs.
        """
        if self.budget.steps and step >= self.budget.steps:
            return None
        elapsed = time.perf_counter() - self.started
        if not self.budget.seconds:
            return elapsed
        pace = self.finished_seconds / max(1, self.finished_steps)
        start = max(elapsed, self.finished_seconds + in_flight * pace)
        may_start = step == 0 or start + pace <= self.budget.seconds
        agreed = value_of_main(start if may_start else math.inf, self.env)
        return None if math.isinf(agreed) else agreed


class DivergenceGuard:
    """Tells a run that has failed from one that has a bad moment."""

    def __init__(self, vocab_size: int) -> None:
        self.bound = math.log(vocab_size) + DIVERGED_NATS
        self.steps_above = 0

    def is_diverged(self, loss: float) -> bool:
        """Take one step's loss; True when training should stop."""
        self.steps_above = self.steps_above + 1 if loss > self.bound else 0
        return not math.isfinite(loss) or self.steps_above >= DIVERGED_STEPS


class WeightAverage:
    """Exponential moving average of the weights after each step, in float32.

    After t steps weight w_i counts (1 - d) d^(t - i) / (1 - d^t): the initial weights, which nobody wants to ship, do
    not count at all, and the average of a short run is as unbiased as that of a long one.
    """

    def __init__(self, model: GPT, *, decay: float) -> None:
        self.decay, self.updates = decay, 0
        parameters = dict(model.named_parameters())
        self.weights = {name: torch.zeros_like(parameters[name]) for name in model.state_dict()}
        self.sources: list[Tensor] = [parameters[name] for name in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights as they are now."""
        self.updates += 1
        share = (1.0 - self.decay) / (1.0 - self.decay**self.updates)
        torch._foreach_lerp_(list(self.weights.values()), self.sources, share)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, by parameter name."""
        return self.weights


class ProgressLog:
    """One line on stdout and one JSON line in `progress.jsonl` about every second."""

    def __init__(self, config: RunConfig, out_dir: Path | None, *, enabled: bool) -> None:
        self.config, self.enabled = config, enabled
        self.path = None if out_dir is None else out_dir / "progress.jsonl"
        self.step, self.seconds = 0, 0.0  # of the last line

    def write(self, record: StepRecord, seconds: float, *, due_only: bool) -> None:
        """Report a finished step, or with `due_only` leave it when the last report is younger than a second."""
        is_due = seconds - self.seconds >= LOG_EVERY_SECONDS
        if not self.enabled or record.step == self.step or (due_only and not is_due):
            return
        recipe, budget = self.config.train, self.config.budget
        step_seconds = (seconds - self.seconds) / (record.step - self.step)
        self.step, self.seconds = record.step, seconds
        of_steps = f"/{budget.steps}" if budget.steps else ""
        of_seconds = f"/{budget.seconds:g}s" if budget.seconds else ""
        print(
            f"step {record.step}{of_steps} | loss {record.wait():.4f} | lr {record.lr_multiplier:.2f} | "
            f"{step_seconds * 1e3:.1f} ms | {format_rate(recipe.batch_tokens / step_seconds)} tok/s | "
            f"{seconds:.1f}s{of_seconds}",
            flush=True,
        )
        if self.path is None:
            return
        loss = record.wait()
        line = {
            "step": record.step,
            "train_loss": loss if math.isfinite(loss) else None,
            "seconds": round(seconds, 3),
            "progress": budget.progress(record.step, seconds),
            "lr_multiplier": record.lr_multiplier,
            "tokens_seen": record.step * recipe.batch_tokens,
            "ms_per_step": round(step_seconds * 1e3, 3),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def format_rate(per_second: float) -> str:
    """Three digits and a unit: 812, 12.3k, 6.46M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= factor:
            return f"{per_second / factor:.3g}{unit}"
    return f"{per_second:.3g}"


def float32_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32 copies on the CPU."""
    return {name: weight.detach().to("cpu", torch.float32, copy=True) for name, weight in weights.items()}


def peak_memory_bytes(env: DistEnv) -> int:
    """Most memory in use so far: allocated by torch on this rank's GPU, else resident in this process (Linux)."""
    if env.is_cuda:
        return torch.cuda.max_memory_allocated(env.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
