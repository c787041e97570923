"""Training runs: they learn, they repeat, they stop when they should."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf_model.config import Budget, ModelConfig, QuantConfig, RunConfig, TrainConfig
from pgolf_model.distributed import DistEnv
from pgolf_model.model.gpt import GPT, build_model
from pgolf_model.shapes import param_shapes
from pgolf_model.train import loop as training
from pgolf_model.train.clock import DIVERGED_STEPS, DivergenceGuard, RunClock
from pgolf_model.train.loop import LossFunction, TrainOutcome, accumulate_gradients, train, warm_up
from pgolf_model.train.optim import build_optimizers
from pgolf_model.train.progress import format_rate
from pgolf_model.train.schedule import lr_multiplier, muon_momentum_at, training_budget

ALONE = DistEnv()
MODEL = ModelConfig(vocab_size=32, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1)
RECIPE = TrainConfig(batch_tokens=512, seq_len=32, micro_batch_tokens=512, precision="float32", warmdown_fraction=0.5)
RUN = RunConfig(model=MODEL, train=RECIPE, budget=Budget(steps=6))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and lose a factor of ten when the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stream that is easy to predict: 16 tokens, each followed by a fixed other one, with restarts."""
    folder = tmp_path_factory.mktemp("tokens")
    successor = np.random.default_rng(0).permutation(32)
    tokens = np.zeros(20_000, dtype="<u2")
    for i in range(1, len(tokens)):
        tokens[i] = successor[tokens[i - 1]] if i % 50 else i // 50 % 32
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    (folder / "fineweb_train_000000.bin").write_bytes(header.tobytes() + tokens.tobytes())
    return str(folder)


def state_bytes(outcome: TrainOutcome) -> bytes:
    return b"".join(weight.numpy().tobytes() for weight in outcome.state.values())


def test_a_run_learns_an_easy_pattern(data: str, tmp_path: Path) -> None:
    """Loss falls from ln(32) to near nothing; what comes back is the model's whole state, float32 on the CPU."""
    outcome = train(replace(RUN, budget=Budget(steps=60)), data=data, env=ALONE, out_dir=tmp_path)
    assert outcome.final_train_loss < 0.4
    assert not outcome.diverged
    assert (outcome.steps, outcome.tokens_seen) == (60, 60 * 512)
    assert outcome.train_seconds > 0
    assert outcome.peak_memory_bytes > 50_000_000
    assert {name: tuple(weight.shape) for name, weight in outcome.state.items()} == {
        name: info.shape for name, info in param_shapes(MODEL).items()
    }
    assert list(outcome.state) == list(param_shapes(MODEL))
    assert all(weight.dtype == torch.float32 for weight in outcome.state.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_spec_gives_the_same_bytes(data: str, precision: str) -> None:
    """Under a step budget, whatever the global generator did; another seed gives others."""
    run = replace(RUN, train=replace(RECIPE, precision=precision, ema_decay=0.9, grad_clip=1.0, qat_start=0.5))
    first = train(run, data=data, env=ALONE, out_dir=None)
    torch.rand(3)
    assert state_bytes(train(run, data=data, env=ALONE, out_dir=None)) == state_bytes(first)
    assert state_bytes(train(replace(run, seed=1), data=data, env=ALONE, out_dir=None)) != state_bytes(first)


def test_training_is_its_parts_in_a_plain_loop(data: str) -> None:
    """The schedule, the batches, the optimizers and the moving average, put together by hand."""
    recipe = replace(
        RECIPE,
        ema_decay=0.8,
        muon_momentum_warmup=0.5,
        grad_clip=0.5,
        matrix_weight_decay=0.2,
        weight_decay_taper_start=0.4,
        weight_decay_final=0.5,
    )
    run = replace(RUN, train=recipe)
    model = build_model(MODEL, seed=run.seed)
    optimizers = build_optimizers(model, run.train, ALONE)
    raw = np.fromfile(Path(data) / "fineweb_train_000000.bin", dtype="<u2", offset=1024).astype(np.int64)
    history = []
    for step in range(6):
        span = torch.from_numpy(raw[step * 512 : (step + 1) * 512 + 1])
        model.zero_grad()
        model(span[:-1].view(16, 32), span[1:].view(16, 32)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizers.set_rates(
            lr_multiplier=lr_multiplier(step / 6, warmdown_fraction=0.5, min_lr_fraction=0.0),
            momentum=muon_momentum_at(step / 6, start=0.85, end=0.95, warmup_fraction=0.5),
            decay_multiplier=1.0 if step < 3 else 1.0 - (step / 6 - 0.4) / 0.6 * 0.5,
        )
        optimizers.step()
        history.append({name: weight.clone() for name, weight in model.state_dict().items()})
    outcome = train(run, data=data, env=ALONE, out_dir=None)
    shares = np.array([0.8 ** (5 - i) for i in range(6)])
    shares /= shares.sum()
    for name, weight in outcome.state.items():
        expected = sum(float(share) * state[name] for share, state in zip(shares, history, strict=True))
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    averaged = replace(run, train=replace(recipe, ema_decay=0.0, swa_start=0.9, swa_every=2))
    for name, weight in train(averaged, data=data, env=ALONE, out_dir=None).state.items():
        torch.testing.assert_close(weight, history[5][name], rtol=1e-4, atol=1e-6)  # step 6 alone: 0.67 at step 5


class Watched:
    """Stands for compiling: a loss function that notes the shape of every batch it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.losses: list[float] = []
        monkeypatch.setattr(training, "prepare_device", self.prepare)

    def prepare(self, model: GPT, recipe: TrainConfig, env: DistEnv) -> tuple[LossFunction, float]:
        def loss_function(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            self.shapes.append(tuple(ids.shape))
            loss = model(ids, targets)
            self.losses.append(loss.item())
            return loss

        return loss_function, 0.0


def test_scheduled_batches_have_their_shapes_and_every_token_is_counted(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the batch first, then sequences half as long, in the order and the number the schedules say."""
    recipe = replace(
        RECIPE, batch_schedule=((0.0, 0.5), (0.5, 1.0)), seq_len_schedule=((0.0, 0.5), (0.25, 0.75), (0.75, 1.0))
    )
    watched = Watched(monkeypatch)
    run = replace(RUN, train=recipe, budget=Budget(steps=8))
    outcome = train(run, data=data, env=ALONE, out_dir=tmp_path)
    assert watched.shapes == [(16, 16)] * 2 + [(11, 24)] * 2 + [(21, 24)] * 2 + [(16, 32)] * 2
    assert outcome.tokens_seen == 2 * (256 + 264 + 504 + 512)
    assert json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])["tokens_seen"] == outcome.tokens_seen


def test_loops_and_rounding_switch_on_during_the_run(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At their fractions; the first rounded step is the first to differ from a run without, and latents stay exact."""
    switched: list[bool] = []
    monkeypatch.setattr(GPT, "set_looping", lambda model, active: switched.append(active), raising=False)
    losses = {}
    for qat_start in (1.0, 0.5):
        watched = Watched(monkeypatch)
        run = replace(
            RUN, train=replace(RECIPE, qat_start=qat_start, loop_at=0.3), quant=QuantConfig(mlp_bits=(2,), embed_bits=2)
        )
        outcome = train(run, data=data, env=ALONE, out_dir=None)
        losses[qat_start] = watched.losses
    assert switched == [False, False, True, True, True, True] * 2
    assert [a == b for a, b in zip(losses[1.0], losses[0.5], strict=True)] == [True] * 3 + [False] * 3
    up = outcome.state["blocks.0.mlp.up"]
    assert len(up.unique()) > up.numel() / 2


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_after_a_warm_up_gives_the_same_bytes(
    data: str, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    """Weights, both optimizers, the average, random numbers and the loop switch start as if there had been none."""
    recipe = replace(
        RECIPE,
        ema_decay=ema_decay,
        swa_start=0.0 if ema_decay else 0.9,
        swa_every=2,
        grad_clip=0.3,
        seq_len_schedule=((0.5, 0.5),),
        loop_at=0.5,
        qat_start=0.7,
        loader="shuffled",
    )
    run = replace(RUN, train=recipe)
    cold = train(run, data=data, env=ALONE, out_dir=None)
    warmed: list[int] = []

    def prepare(model: GPT, recipe: TrainConfig, env: DistEnv) -> tuple[LossFunction, float]:
        warm_up(model, model, recipe, env, steps=2)
        warmed.append(1)
        return model, 1.0

    monkeypatch.setattr(training, "prepare_device", prepare)
    before = torch.get_rng_state()
    assert state_bytes(train(run, data=data, env=ALONE, out_dir=None)) == state_bytes(cold)
    assert torch.equal(torch.get_rng_state(), before)
    assert warmed


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    """Also when the last one is smaller."""
    ids = torch.randint(32, (7, 32), generator=torch.Generator().manual_seed(0))
    whole, parts = build_model(MODEL, seed=0), build_model(MODEL, seed=0)
    loss = accumulate_gradients(whole, ids, ids, RECIPE)
    same = accumulate_gradients(parts, ids, ids, replace(RECIPE, micro_batch_tokens=3 * 32))
    torch.testing.assert_close(loss, same)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_warming_up_leaves_no_trace() -> None:
    """Weights to the last bit, and no gradients; optimizers are built afterwards."""
    model = build_model(MODEL, seed=0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    warm_up(model, model, RECIPE, ALONE, steps=2)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_lines_are_complete_and_end_with_the_last_step(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file says what stdout says, in numbers; the last step is always there."""
    outcome = train(RUN, data=data, env=ALONE, out_dir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    names = ["step", "train_loss", "seconds", "progress", "lr_multiplier", "tokens_seen", "ms_per_step"]
    assert all(list(line) == names for line in lines)
    assert lines[-1]["step"] == 6
    assert lines[-1]["tokens_seen"] == outcome.tokens_seen
    assert lines[-1]["train_loss"] == outcome.final_train_loss
    assert lines[-1]["progress"] == 1.0
    assert lines[-1]["lr_multiplier"] == pytest.approx(1 / 3)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(lines)
    assert printed[-1].startswith(f"step 6/6 | loss {outcome.final_train_loss:.4f} | lr 0.33 | ")


def test_a_run_keeps_to_its_seconds(data: str) -> None:
    """It ends within the budget or one late step after it, and uses most of it."""
    started = time.perf_counter()
    outcome = train(replace(RUN, budget=Budget(seconds=1.5)), data=data, env=ALONE, out_dir=None)
    step_seconds = outcome.train_seconds / outcome.steps
    assert outcome.steps > 1
    assert 1.0 < outcome.train_seconds < 1.5 + 10 * step_seconds
    assert outcome.train_seconds <= time.perf_counter() - started


def test_seconds_held_in_reserve_are_left(data: str) -> None:
    """The schedule ends where training ends, and holding back everything is refused."""
    run = replace(RUN, train=replace(RECIPE, reserve_seconds=8.0), budget=Budget(seconds=9.0))
    assert training_budget(run) == Budget(seconds=1.0)
    assert train(run, data=data, env=ALONE, out_dir=None).train_seconds < 3.0
    assert training_budget(replace(run, budget=Budget(steps=5))) == Budget(steps=5)
    with pytest.raises(ValueError, match="reserve_seconds must be below the budget's 8 seconds, got 8"):
        training_budget(replace(run, budget=Budget(seconds=8.0)))


def test_a_step_starts_only_when_it_would_end_in_time() -> None:
    """At the mean pace so far, steps in flight included; the first step always starts."""
    clock = RunClock(Budget(seconds=10.0), ALONE)
    assert clock.next_start(0, in_flight=0) is not None
    clock.finished_steps, clock.finished_seconds = 4, 8.0
    assert clock.next_start(4, in_flight=0) == 8.0
    assert clock.next_start(5, in_flight=1) is None
    clock.finished_steps, clock.finished_seconds = 4, 8.4
    assert clock.next_start(4, in_flight=0) is None
    assert RunClock(Budget(seconds=1e-9), ALONE).next_start(0, in_flight=0) is not None
    both = RunClock(Budget(steps=3, seconds=10.0), ALONE)
    assert both.next_start(2, in_flight=0) is not None
    assert both.next_start(3, in_flight=0) is None


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, matrix_lr=1e30, embed_lr=1e30, scalar_lr=1e30),
        replace(RECIPE, matrix_lr=30.0, embed_lr=300.0, warmdown_fraction=0.0),
    ],
    ids=["non_finite", "exploding"],
)
def test_a_diverging_run_says_so_and_stops(data: str, tmp_path: Path, recipe: TrainConfig) -> None:
    """It is a result, not an exception, and does not use up its budget."""
    run = replace(RUN, train=recipe, budget=Budget(steps=500))
    outcome = train(run, data=data, env=ALONE, out_dir=tmp_path)
    assert outcome.diverged
    assert outcome.steps < 200
    assert json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])["step"] == outcome.steps


def test_a_spike_is_not_a_divergence() -> None:
    """A healthy run may spike for a step or two; twenty bad steps in a row are another matter."""
    guard = DivergenceGuard(1024)
    assert not any(guard.is_diverged(loss) for loss in (6.9, 17.0, 9.0, 6.5))
    bad = [guard.is_diverged(math.log(1024) + 1.5) for _ in range(DIVERGED_STEPS)]
    assert bad == [False] * (DIVERGED_STEPS - 1) + [True]
    assert DivergenceGuard(1024).is_diverged(math.nan)
    assert DivergenceGuard(1024).is_diverged(math.inf)


def test_tokens_beyond_the_vocabulary_are_refused(data: str) -> None:
    """With the shards' place and the fix, before anything indexes with them."""
    run = replace(RUN, model=replace(MODEL, vocab_size=16))
    with pytest.raises(ValueError, match="does not fit vocab_size 16"):
        train(run, data=data, env=ALONE, out_dir=None)


@pytest.mark.parametrize(("rate", "text"), [(812.4, "812"), (12_345.0, "12.3k"), (6_457_000.0, "6.46M")])
def test_rates_print_three_digits_and_a_unit(rate: float, text: str) -> None:
    """As in the progress line."""
    assert format_rate(rate) == text


@pytest.mark.gpu
def test_a_compiled_gpu_run_matches_the_cpu(data: str, tmp_path: Path) -> None:
    """bf16, compiled, warmed up: the loss follows the float32 CPU run, and the warm-up is off the clock."""
    run = replace(RUN, budget=Budget(steps=30))
    cpu = train(run, data=data, env=ALONE, out_dir=None)
    gpu_run = replace(run, train=replace(RECIPE, precision="bfloat16", compile=True))
    gpu = train(gpu_run, data=data, env=DistEnv(device="cuda:0"), out_dir=tmp_path)
    assert not gpu.diverged
    assert gpu.final_train_loss == pytest.approx(cpu.final_train_loss, rel=0.1, abs=0.1)
    assert gpu.warmup_seconds > gpu.train_seconds
    assert all(weight.device.type == "cpu" for weight in gpu.state.values())
