"""Ranks as values, and two gloo processes that train what one trains."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf_model.distributed import (
    DistEnv,
    all_gather_rows,
    all_reduce_sum,
    dist_env_from_environ,
    process_group,
    value_of_main,
)

# Run by every rank: three training runs and the reductions. An odd number of matrices makes the last share smaller.
PROGRAM = """
import json, sys
from pathlib import Path

import torch

from pgolf_model.config import Budget, ModelConfig, RunConfig, TrainConfig
from pgolf_model.distributed import (
    all_gather_rows, all_reduce_sum, dist_env_from_environ, process_group, value_of_main
)
from pgolf_model.train.loop import train

data, out = sys.argv[1], Path(sys.argv[2])
env = dist_env_from_environ()
model = ModelConfig(vocab_size=32, num_layers=3, model_dim=32, num_heads=2, num_kv_heads=1)
recipe = TrainConfig(
    batch_tokens=512, seq_len=32, micro_batch_tokens=128, precision="float32", grad_clip=0.3, ema_decay=0.5,
    muon_polynomial="polar_express", muon_normalize_rows=True, matrix_weight_decay=0.1, weight_decay_taper_start=0.3,
    weight_decay_final=0.2, loader="strided", batch_schedule=((0.5, 0.5),), qat_start=0.6,
)
with process_group(env):
    facts = {
        "sum": all_reduce_sum(torch.tensor([1.0 + env.rank]), env).tolist(),
        "rows": all_gather_rows(torch.full((1, 2), float(env.rank)), env).tolist(),
        "main": value_of_main(7.0 + env.rank, env),
    }
    run = RunConfig(model=model, train=recipe, budget=Budget(steps=8))
    outcome = train(run, data=data, env=env, out_dir=out if env.is_main else None)
    torch.save(outcome.state, out / f"state{env.rank}.pt")
    timed = train(RunConfig(model=model, train=recipe, budget=Budget(seconds=0.7)), data=data, env=env, out_dir=None)
    wild = TrainConfig(batch_tokens=512, seq_len=32, precision="float32", matrix_lr=1e30, embed_lr=1e30)
    failed = train(RunConfig(model=model, train=wild, budget=Budget(steps=90)), data=data, env=env, out_dir=None)
facts |= {
    "loss": outcome.final_train_loss,
    "tokens_seen": outcome.tokens_seen,
    "timed_steps": timed.steps,
    "timed_sum": sum(float(weight.double().sum()) for weight in timed.state.values()),
    "failed": [failed.diverged, failed.steps],
}
(out / f"facts{env.rank}.json").write_text(json.dumps(facts))
"""


def start_ranks(world_size: int, folder: Path, data: Path) -> list[subprocess.Popen[str]]:
    """PROGRAM on every rank, with the environment torchrun would give it but without the wait for torchrun itself."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, program, data, folder],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def finish_ranks(ranks: list[subprocess.Popen[str]], folder: Path) -> list[dict[str, object]]:
    """Every rank's facts; only rank 0 has printed."""
    try:
        for rank, process in enumerate(ranks):
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert out.count("step 8/8 | ") == (rank == 0)
    finally:
        for process in ranks:
            process.kill()
    return [json.loads((folder / f"facts{rank}.json").read_text()) for rank in range(len(ranks))]


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Same global batch, same weights up to rounding; ranks agree bit for bit, on when to stop and on divergence."""
    tokens = np.random.default_rng(0).integers(32, size=9_000).astype("<u2")
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    data = tmp_path / "fineweb_train_000000.bin"
    data.write_bytes(header.tobytes() + tokens.tobytes())
    folders = {world_size: tmp_path / str(world_size) for world_size in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
    started = {world_size: start_ranks(world_size, folder, data) for world_size, folder in folders.items()}
    facts, states = {}, {}
    for world_size, folder in folders.items():
        facts[world_size] = finish_ranks(started[world_size], folder)
        states[world_size] = [torch.load(folder / f"state{rank}.pt") for rank in range(world_size)]
        assert json.loads((folder / "progress.jsonl").read_text().splitlines()[-1])["step"] == 8
    (one,), (first, second) = states[1], states[2]
    assert all(torch.equal(first[name], second[name]) for name in one)
    for name in one:
        torch.testing.assert_close(first[name], one[name], rtol=1e-3, atol=1e-4)
    (alone,), (main, other) = facts[1], facts[2]
    assert main["loss"] == other["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert main["tokens_seen"] == alone["tokens_seen"] == 4 * 512 + 4 * 256
    assert (main["timed_steps"], main["timed_sum"]) == (other["timed_steps"], other["timed_sum"])
    assert main["failed"] == other["failed"] == alone["failed"]
    assert main["failed"][0] is True
    for rank in (main, other):
        assert (rank["sum"], rank["main"]) == ([3.0], 7.0)
        assert rank["rows"] == [[0.0, 0.0], [1.0, 1.0]]


def test_alone_every_reduction_is_the_identity() -> None:
    """No process group is needed for one process."""
    env = DistEnv()
    tensor = torch.tensor([[1.0, 2.0]])
    with process_group(env):
        assert not torch.distributed.is_initialized()
        assert all_reduce_sum(tensor, env) is tensor
        assert all_gather_rows(tensor, env) is tensor
        assert value_of_main(0.25, env) == 0.25


def test_the_environment_says_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's three variables; rank 0 of 1 without them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert dist_env_from_environ() == DistEnv()
    assert DistEnv().is_main
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert dist_env_from_environ() == DistEnv(rank=5, local_rank=1, world_size=8, device="cpu")
    assert not dist_env_from_environ().is_main
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert dist_env_from_environ().device == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="nproc_per_node must be at most the number of GPUs, got local rank 1 of 1"):
        dist_env_from_environ()


def test_a_rank_outside_its_world_is_refused() -> None:
    """A wrong environment is found at once."""
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size\), got 2 and 2"):
        DistEnv(rank=2, world_size=2)
