"""One training run: batches in, float32 weights out, after a number of steps or seconds."""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pgolf_model.config import RunConfig, TrainConfig
from pgolf_model.data.batches import TrainingWindows, check_token_range
from pgolf_model.data.shards import shard_paths
from pgolf_model.distributed import DistEnv, all_reduce_sum
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.model.kernels import flash_package
from pgolf_model.train.averaging import WeightAverage
from pgolf_model.train.clock import DivergenceGuard, RunClock
from pgolf_model.train.optim import build_optimizers
from pgolf_model.train.progress import PhaseLog, ProgressLog, StepRecord
from pgolf_model.train.qat import WeightRounder
from pgolf_model.train.schedule import all_plans, plan_step, training_budget

WARMUP_STEPS = 3  # on CUDA, outside the clock: compiles, tunes kernels, opens nccl channels; weights are restored

LossFunction = Callable[[Tensor, Tensor], Tensor]  # (inputs, targets) -> mean loss


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainOutcome:
    """What training leaves behind; the same on every rank, except seconds and memory."""

    state: dict[str, Tensor]  # name -> float32 CPU weights, in `param_shapes` order; their mean with EMA or SWA
    steps: int  # optimizer steps done
    tokens_seen: int  # target tokens, over all ranks
    train_seconds: float  # on the budget's clock: data, steps, averaging; not building, compiling, warming up
    warmup_seconds: float  # spent compiling and warming up before the clock started; 0 on a CPU
    peak_memory_bytes: int  # CUDA: most allocated on this rank's GPU; CPU: largest resident set of the process
    final_train_loss: float  # nats per token on the last step's batch, before its update, over all ranks
    diverged: bool  # the loss or the weights became non-finite, or the loss stayed worse than a uniform guess


def train(
    config: RunConfig, *, data: str, env: DistEnv, out_dir: Path | None, phases: PhaseLog | None = None
) -> TrainOutcome:
    """Train the model of `config` until its budget is spent or the loss diverges.

    With several ranks, call it on each of them inside `process_group(env)`. Under a step budget on a CPU the result is
    a function of the config, the data and the number of threads.

    Args:
        data: where the training shards are, as `shard_paths` takes it.
        out_dir: rank 0 appends to `progress.jsonl` in this folder; None writes no file.
        phases: of the run that this training is part of; told when warming up and training begin.
    Raises:
        UserError: the shards are missing, damaged, too small or of a larger vocabulary, or the batch cannot be shared
            out over the ranks.
    """
    recipe, budget = config.train, training_budget(config)
    plans = all_plans(recipe, world_size=env.world_size)
    batches = TrainingWindows(
        shard_paths(data, "train"),
        loader=recipe.loader,
        batch_tokens=max(plan.num_sequences * plan.seq_len for plan in plans) * env.world_size,
        rank=env.rank,
        world_size=env.world_size,
        seed=config.seed,
    )
    model = build_model(config.model, seed=config.seed).to(env.device)
    if phases and env.is_cuda:
        phases.enter("warming up")
    loss_function, warmup_seconds = prepare_device(model, recipe, env)
    optimizers = build_optimizers(model, recipe, env)
    average = WeightAverage(model, recipe)
    rounder = WeightRounder(model, config.quant)
    guard = DivergenceGuard(config.model.vocab_size)
    log = ProgressLog(budget, out_dir if env.is_main else None, enabled=env.is_main)
    if phases:
        phases.enter("training")
    clock = RunClock(budget, env)
    in_flight: deque[StepRecord] = deque()
    # The host prepares and launches one step while the GPU runs the one before, and never gets further ahead.
    max_in_flight = 1 if env.is_cuda else 0
    step, tokens_seen, diverged, last = 0, 0, False, None
    while True:
        start_seconds = clock.next_start(step, in_flight=len(in_flight))
        if diverged or start_seconds is None:
            break
        plan = plan_step(recipe, budget.progress(step, start_seconds), world_size=env.world_size)
        model.set_looping(plan.is_looping)
        optimizers.set_rates(
            lr_multiplier=plan.lr_multiplier, momentum=plan.momentum, decay_multiplier=plan.decay_multiplier
        )
        inputs, targets = batches.next_batch(plan.num_sequences, plan.seq_len)
        for tokens in (inputs, targets):
            check_token_range(tokens, config.model.vocab_size, data)
        inputs, targets = to_device(inputs, env), to_device(targets, env)
        with rounder.rounded(active=plan.is_rounded):
            loss = compute_gradients(model, loss_function, inputs, targets, recipe, env)
        optimizers.step()
        step += 1
        tokens_seen += targets.numel() * env.world_size
        average.update(step, plan.lr_multiplier)
        in_flight.append(StepRecord(step, loss, tokens_seen=tokens_seen, lr_multiplier=plan.lr_multiplier))
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
    state = float32_state(average.state_dict())
    return TrainOutcome(
        state=state,
        steps=step,
        tokens_seen=tokens_seen,
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
    torch._dynamo.config.recompile_limit = 64  # one graph for every shape of the schedules
    torch.compiler.assume_constant_result(flash_package)  # type: ignore[no-untyped-call]  # marked in place
    loss_function: LossFunction = torch.compile(model, dynamic=False) if recipe.compile else model
    warm_up(model, loss_function, recipe, env, steps=WARMUP_STEPS)
    torch.cuda.synchronize(env.device)
    return loss_function, time.perf_counter() - started


def warm_up(model: GPT, loss_function: LossFunction, recipe: TrainConfig, env: DistEnv, *, steps: int) -> None:
    """Run whole steps of every shape on made-up batches with throw-away optimizers, then put the weights back exactly.

    What is built afterwards starts as if this had not been; the switch of the loops is set by the next step.
    """
    saved = [parameter.detach().clone() for parameter in model.parameters()]
    optimizers = build_optimizers(model, recipe, env)
    for plan in all_plans(recipe, world_size=env.world_size):
        model.set_looping(plan.is_looping)
        ids = torch.zeros((plan.num_sequences, plan.seq_len), dtype=torch.int64, device=env.device)
        for _ in range(steps):
            compute_gradients(model, loss_function, ids, ids, recipe, env)
            optimizers.step()
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), saved)
    model.zero_grad(set_to_none=True)


def to_device(tensor: Tensor, env: DistEnv) -> Tensor:
    """Move a CPU batch to the device without making the host wait."""
    return tensor.pin_memory().to(env.device, non_blocking=True) if env.is_cuda else tensor


def compute_gradients(
    model: GPT, loss_function: LossFunction, inputs: Tensor, targets: Tensor, recipe: TrainConfig, env: DistEnv
) -> Tensor:
    """Gradients of the batch's mean loss, averaged over the ranks and clipped; that mean, still on the device."""
    model.zero_grad(set_to_none=True)
    loss = accumulate_gradients(loss_function, inputs, targets, recipe)
    loss = average_over_ranks(list(model.parameters()), loss, env)
    if recipe.grad_clip:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
    return loss


def accumulate_gradients(loss_function: LossFunction, inputs: Tensor, targets: Tensor, recipe: TrainConfig) -> Tensor:
    """Add the gradients of the mean loss over (sequences, seq_len) tokens, a micro batch at a time; that mean."""
    micro_sequences = max(1, recipe.micro_batch_tokens // inputs.shape[1])
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


def float32_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32 copies on the CPU."""
    return {name: weight.detach().to("cpu", torch.float32, copy=True) for name, weight in weights.items()}


def peak_memory_bytes(env: DistEnv) -> int:
    """Most memory in use so far: allocated by torch on this rank's GPU, else resident in this process (Linux)."""
    if env.is_cuda:
        return torch.cuda.max_memory_allocated(env.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
