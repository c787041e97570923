"""Forecast seconds, steps, memory and dollars of a run: its counted work times a machine's seconds per unit of work.

The work of a step is counted from the configuration: FLOPs of matrix products (6 per weight and token, 2 when scoring),
of attention and of Muon; bytes that all other operations move; blocks run. A machine is a few rates. The H100's are
fitted to the challenge's records (tests/space/test_speed.py holds the rows, the residuals and the leave-one-out
errors); `pgolf doctor` fits those of the machine where it runs to steps that it times there. Seconds for starting,
compiling and packing are a constant of the machine. Standard library only; a forecast takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pgolf_model.config import ModelConfig, RunConfig, TrainConfig
from pgolf_model.shapes import param_shapes
from pgolf_model.train.schedule import StepPlan, plan_step, training_budget
from space.forecast.hardware import Hardware

# Passes over memory per token of a block, forward and backward: norms, rotations, mixes, residuals over the width,
# the activation over the hidden channels, soft cap and softmax over the vocabulary (float32).
WIDTH_PASSES, HIDDEN_PASSES, LOGIT_PASSES = 40.0, 8.0, 6.0
EXCLUSIVE_PASSES, SECOND_STREAM_PASSES = 6.0, 8.0  # more width passes of a block with XSA, with two streams
OPTIMIZER_BYTES, ROUNDING_BYTES = 60.0, 48.0  # moved per weight and step; rounding in the forward pass (QAT) is extra
FORWARD_SHARE = 1 / 3  # of a training step's products, passes and blocks that scoring needs
ATTENTION_FLOPS = 7.0  # per token, channel and position of context: causal, backward 2.5 times the forward's 2
# Tokens D of a document of FineWeb. Attention within documents works on T tokens as if on T D / (T + D) of them: .75 T
# at T = 1,024, .59 T at 2,048.
DOCUMENT_TOKENS = 3000.0
# Kept for the backward pass per token and block, elements per channel of width and of hidden layer.
SAVED_WIDTH, SAVED_HIDDEN = 11.33, 2.70
CHUNK_LOGITS = {True: 2**26, False: 2**20}  # that exist at once, on a GPU and on a CPU (pgolf_model.model.gpt)
LOGIT_BYTES = 12.0  # of each: product, tanh and shares
VALIDATION_BYTES = 151.08e6  # text of the challenge's validation split
BYTES_PER_TOKEN = {1024: 2.408, 4096: 3.279, 8192: 3.688}  # of it, under the records' tokenizers


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Counted work of one rank, in a training step or when scoring."""

    product_flops: float
    attention_flops: float
    traffic_bytes: float
    blocks: float  # run, all passes together
    steps: float = 1.0
    link_bytes: float = 0.0

    @property
    def counts(self) -> tuple[float, ...]:
        """The counts in the order of `Hardware.rates`."""
        return self.product_flops, self.attention_flops, self.traffic_bytes, self.blocks, self.steps

    def seconds(self, hardware: Hardware) -> float:
        """Return the forecast seconds. The parts are added up, since nothing is known about their overlap."""
        link = self.link_bytes / hardware.link_bytes_per_second if hardware.link_bytes_per_second else 0.0
        return link + sum(count * rate for count, rate in zip(self.counts, hardware.rates, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedEstimate:
    """Forecast of a run on `ranks` GPUs, or on CPUs."""

    hardware: str
    ranks: int
    step_seconds: float  # mean over the run, warm-up outside
    step_seconds_low: float  # 90 % interval
    step_seconds_high: float
    steps: int
    steps_low: int
    steps_high: int
    tokens: int  # seen, all ranks
    train_seconds: float
    eval_seconds: float  # scoring the artifact on all ranks
    total_seconds: float  # training, scoring twice (before and after packing), starting, compiling and packing
    peak_memory_bytes: int  # of one rank
    peak_memory_low: int
    peak_memory_high: int
    memory_bytes: int  # that one rank has
    dollars: float

    @property
    def fits_memory(self) -> bool | None:
        """Whether one rank holds the run; None when the interval does not decide."""
        if self.peak_memory_high <= self.memory_bytes:
            return True
        return False if self.peak_memory_low > self.memory_bytes else None


def estimate_speed(
    config: RunConfig, hardware: Hardware, *, ranks: int = 1, share: float = 1.0, val_tokens: int = 0
) -> SpeedEstimate:
    """Forecast a run, in less than a millisecond per schedule entry.

    Args:
        share: of the hardware that each rank has, for trials that share a GPU; the others are assumed to be as busy.
        val_tokens: scored where the configuration scores all tokens; by default the challenge's validation split.
    """
    whole, slow, fast = (
        _train(config, hardware, ranks=ranks, factor=factor / share)
        for factor in (1.0, 1 + hardware.error, 1 / (1 + hardware.error))
    )
    seconds, steps, tokens = whole
    scored = config.eval.max_tokens or val_tokens or _validation_tokens(config.model)
    eval_seconds = eval_work(config, scored, ranks=ranks).seconds(hardware) / share
    memory = peak_memory(config, hardware, ranks=ranks)
    total = seconds + 2 * eval_seconds + hardware.outside_seconds
    return SpeedEstimate(
        hardware=hardware.name,
        ranks=ranks,
        step_seconds=seconds / steps,
        step_seconds_low=fast[0] / fast[1],
        step_seconds_high=slow[0] / slow[1],
        steps=int(steps),
        steps_low=int(slow[1]),
        steps_high=int(fast[1]),
        tokens=int(tokens),
        train_seconds=seconds,
        eval_seconds=eval_seconds,
        total_seconds=total,
        peak_memory_bytes=int(memory),
        peak_memory_low=int(memory / (1 + hardware.memory_error)),
        peak_memory_high=int(memory * (1 + hardware.memory_error)),
        memory_bytes=int(hardware.memory_bytes * share),
        dollars=total / 3600 * hardware.dollars_per_hour * ranks * share,
    )


def _train(config: RunConfig, hardware: Hardware, *, ranks: int, factor: float) -> tuple[float, float, float]:
    """Return (seconds, steps, tokens) of training when everything takes `factor` times as long.

    Between two changes of its schedule a run has a constant pace. Its progress is the larger of two shares, that of
    steps done and that of seconds used, so the first of the two to reach a stretch's end is where the stretch ends.
    """
    recipe, budget = config.train, training_budget(config)
    seconds = steps = tokens = 0.0
    for _, end, plan in stretches(recipe, ranks=ranks):
        pace = step_work(config, plan, ranks=ranks).seconds(hardware) * factor
        by_steps = end * budget.steps - steps if budget.steps else math.inf
        by_seconds = (end * budget.seconds - seconds) / pace if budget.seconds else math.inf
        done = max(0.0, min(by_steps, by_seconds))
        steps += done
        seconds += done * pace
        tokens += done * plan.num_sequences * plan.seq_len * ranks
    return seconds, max(1.0, steps), tokens


def stretches(recipe: TrainConfig, *, ranks: int) -> list[tuple[float, float, StepPlan]]:
    """Return (begin, end, plan) of the parts of a run whose steps all do the same work; times are fractions of it."""
    changes = {recipe.loop_at, recipe.qat_start, *(at for at, _ in recipe.batch_schedule + recipe.seq_len_schedule)}
    times = sorted({0.0, *(at for at in changes if at < 1)})
    return [
        (begin, end, plan_step(recipe, begin, world_size=ranks))
        for begin, end in zip(times, [*times[1:], 1.0], strict=True)
    ]


def step_work(config: RunConfig, plan: StepPlan, *, ranks: int = 1) -> Work:
    """Return the work of one training step on one of `ranks`."""
    model, recipe = config.model, config.train
    tokens = plan.num_sequences * plan.seq_len
    passes = -(-plan.num_sequences // max(1, recipe.micro_batch_tokens // plan.seq_len))
    blocks = _order(model, looping=plan.is_looping)
    muon, other = _num_weights(model)
    element = _element_bytes(recipe)
    optimizer = OPTIMIZER_BYTES * (other + muon / 2 + muon / 2 / ranks)  # half of Muon's work is shared out
    rounding = ROUNDING_BYTES * (muon + other) * passes if plan.is_rounded else 0.0
    return Work(
        product_flops=6 * tokens * _products(model, blocks) + recipe.muon_iterations * _newton_schulz(model) / ranks,
        attention_flops=ATTENTION_FLOPS * tokens * len(blocks) * model.model_dim * _context(model, plan.seq_len),
        traffic_bytes=tokens * _token_bytes(model, blocks, element) + optimizer + rounding,
        blocks=len(blocks) * passes,
        link_bytes=(8.0 * (muon + other) + 2.0 * muon) * (ranks - 1) / ranks,
    )


def eval_work(config: RunConfig, tokens: int, *, ranks: int = 1) -> Work:
    """Return the work of scoring `tokens` once, on one of `ranks`; loops are on."""
    model, seq_len = config.model, config.eval.seq_len
    blocks, own = _order(model, looping=True), tokens / ranks
    attention = ATTENTION_FLOPS * own * len(blocks) * model.model_dim * _context(model, seq_len)
    return Work(
        product_flops=2 * own * _products(model, blocks),
        attention_flops=attention * 2 / 7,
        traffic_bytes=FORWARD_SHARE * own * _token_bytes(model, blocks, _element_bytes(config.train)),
        blocks=FORWARD_SHARE * len(blocks) * own / max(seq_len, config.eval.batch_tokens),
        steps=0.0,
    )


def peak_memory(config: RunConfig, hardware: Hardware, *, ranks: int = 1) -> float:
    """Return the largest number of bytes that one rank holds in training: weights, optimizer, one micro batch."""
    model, recipe = config.model, config.train
    muon, other = _num_weights(model)
    element = _element_bytes(recipe)
    weights = 8.0 * (muon + other) + 4.0 * muon / ranks + 8.0 * other  # weights and gradients; momentum; AdamW's two
    weights += 4.0 * (muon + other) * ((ranks > 1) + bool(recipe.ema_decay or recipe.swa_start))
    weights += 2.0 * (muon + other) * (element == 2)  # bfloat16 copies kept for the backward pass
    weights += 12.0 * max((count * info_size for info_size, count in _banks(model).items()), default=0) / ranks
    worst = 0.0
    for _, _, plan in stretches(recipe, ranks=ranks):
        rows = min(plan.num_sequences, max(1, recipe.micro_batch_tokens // plan.seq_len))
        tokens = rows * plan.seq_len
        blocks = len(_order(model, looping=plan.is_looping))
        hidden = model.mlp_dim * (2 if model.activation == "swiglu" else 1)
        saved = (SAVED_WIDTH * model.model_dim + SAVED_HIDDEN * hidden) * blocks * element * hardware.saved_factor
        logits = min(tokens * model.vocab_size, max(CHUNK_LOGITS[hardware.is_gpu], model.vocab_size))
        worst = max(worst, tokens * saved + LOGIT_BYTES * logits)
    return hardware.process_bytes + weights + worst


def fit_hardware(start: Hardware, samples: Sequence[tuple[Work, float]], *, trust: float = 0.02) -> Hardware:
    """Return the machine whose rates fit measured steps best, by relative squared error.

    Args:
        start: a guess of the right order; its links and constants are kept.
        samples: (work, seconds) pairs.
        trust: weight of `start` in the fit, so that a rate which the samples do not determine keeps its guess.
    """
    guess = start.rates
    links = [w.seconds(start) - sum(c * r for c, r in zip(w.counts, guess, strict=True)) for w, _ in samples]
    rows = [
        ([c * r / s for c, r in zip(w.counts, guess, strict=True)], 1 - link / s)
        for (w, s), link in zip(samples, links, strict=True)
    ]
    rows += [([trust**0.5 * (i == j) for j in range(len(guess))], trust**0.5) for i in range(len(guess))]
    gram = [[sum(row[i] * row[j] for row, _ in rows) for j in range(len(guess))] for i in range(len(guess))]
    aim = [sum(row[j] * y for row, y in rows) for j in range(len(guess))]
    found = [1.0] * len(guess)
    for _ in range(5_000):  # coordinate descent, factors kept above a hundredth of the guess
        before = list(found)
        for j, column in enumerate(gram):
            others = sum(g * f for g, f in zip(column, found, strict=True)) - column[j] * found[j]
            found[j] = max(0.01, (aim[j] - others) / column[j])
        if max(abs(a - b) for a, b in zip(before, found, strict=True)) < 1e-9:
            break
    return start.with_rates([g * f for g, f in zip(guess, found, strict=True)])


def leave_one_out(start: Hardware, samples: Sequence[tuple[Work, float]], *, trust: float = 0.02) -> list[float]:
    """Return forecast / measured seconds of each sample, by the machine fitted to all other samples."""
    return [
        work.seconds(fit_hardware(start, [*samples[:i], *samples[i + 1 :]], trust=trust)) / seconds
        for i, (work, seconds) in enumerate(samples)
    ]


def _order(model: ModelConfig, *, looping: bool) -> tuple[int, ...]:
    """Return the physical blocks in the order they run."""
    return model.virtual_layers if looping else tuple(range(model.num_layers))


def _products(model: ModelConfig, blocks: Sequence[int]) -> float:
    """Return the number of weights that a token is multiplied by in a forward pass."""
    width = model.embed_rank or model.model_dim
    total = float(model.vocab_size * width)  # the head
    for name, info in param_shapes(model).items():
        if info.role in ("attn", "mlp"):
            total += info.size * (blocks.count(info.layer) if name.startswith("blocks.") else 1)
    return total


def _num_weights(model: ModelConfig) -> tuple[int, int]:
    """Return the numbers of weights under Muon and under AdamW."""
    sizes = [(info.role in ("attn", "mlp"), info.size) for info in param_shapes(model).values()]
    return sum(size for muon, size in sizes if muon), sum(size for muon, size in sizes if not muon)


def _newton_schulz(model: ModelConfig) -> float:
    """Return the FLOPs of one iteration over all matrices: two products with the long side, one of the Gram matrix."""
    matrices = [sorted(info.shape) for info in param_shapes(model).values() if info.role in ("attn", "mlp")]
    return float(sum(4 * short**2 * long + 2 * short**3 for short, long in matrices))


def _banks(model: ModelConfig) -> dict[int, int]:
    """Return size of a matrix -> number of such matrices, which Muon updates together."""
    found: dict[tuple[int, ...], int] = {}
    for info in param_shapes(model).values():
        if info.role in ("attn", "mlp"):
            found[info.shape] = found.get(info.shape, 0) + 1
    return {math.prod(shape): count for shape, count in found.items()}


def _element_bytes(recipe: TrainConfig) -> int:
    """Return the bytes of an activation."""
    return 2 if recipe.precision == "bfloat16" else 4


def _token_bytes(model: ModelConfig, blocks: Sequence[int], element: int) -> float:
    """Return the bytes moved per token, forward and backward."""
    passes = 0.0
    for layer in blocks:
        passes += WIDTH_PASSES
        passes += EXCLUSIVE_PASSES * (layer >= model.num_layers - model.xsa_layers)
        passes += SECOND_STREAM_PASSES * (model.parallel in ("lanes", "routed") and layer >= model.parallel_start)
    hidden = HIDDEN_PASSES * (1.5 if model.activation == "swiglu" else 1.0) * model.mlp_dim * len(blocks)
    return element * (passes * model.model_dim + hidden) + 4 * LOGIT_PASSES * model.vocab_size


def _context(model: ModelConfig, seq_len: int) -> float:
    """Return the positions before a token that count for attention's work; fewer where documents end in between."""
    return seq_len * DOCUMENT_TOKENS / (seq_len + DOCUMENT_TOKENS) if model.document_attention else float(seq_len)


def _validation_tokens(model: ModelConfig) -> int:
    """Return the tokens of the challenge's validation split; vocabularies between the known ones are interpolated."""
    sizes = sorted(BYTES_PER_TOKEN)
    nearest = min(max(model.vocab_size, sizes[0]), sizes[-1])
    low = max(s for s in sizes if s <= nearest)
    high = min(s for s in sizes if s >= nearest)
    part = math.log(nearest / low) / math.log(high / low) if high > low else 0.0
    return int(VALIDATION_BYTES / (BYTES_PER_TOKEN[low] + part * (BYTES_PER_TOKEN[high] - BYTES_PER_TOKEN[low])))
