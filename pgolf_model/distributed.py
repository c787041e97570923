"""The rank and device of this process, and exchanges between ranks that do nothing when there is only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pgolf_model.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class DistEnv:
    """One process of a run: its rank, the number of ranks and its device."""

    rank: int = 0  # 0 .. world_size - 1, over all machines
    local_rank: int = 0  # on this machine; picks the GPU
    world_size: int = 1  # processes that train one model together
    device: str = "cpu"  # "cpu" or "cuda:N"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, world_size), got {self.rank} and {self.world_size}")

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    @property
    def is_cuda(self) -> bool:
        """True when this process drives a GPU."""
        return self.device.startswith("cuda")


def dist_env_from_environ() -> DistEnv:
    """The process that torchrun's variables describe (RANK, LOCAL_RANK, WORLD_SIZE), on a GPU when there is one.

    Without these variables it is a single process.

    Raises:
        UserError: torchrun started more processes on this machine than it has GPUs.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus and local_rank >= num_gpus:
        raise UserError(f"nproc_per_node must be at most the number of GPUs, got local rank {local_rank} of {num_gpus}")
    return DistEnv(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=local_rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        device=f"cuda:{local_rank}" if num_gpus else "cpu",
    )


@contextmanager
def process_group(env: DistEnv) -> Iterator[None]:
    """Connect the ranks for the length of the block: nccl between GPUs, gloo between CPUs; a single rank has none.

    GPU ranks get gloo as well, for CPU tensors: ranks can then agree on a clock without waiting for a GPU.
    """
    if env.is_cuda:
        torch.cuda.set_device(env.device)
    if env.world_size == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if env.is_cuda else "gloo", rank=env.rank, world_size=env.world_size)
    try:
        yield
        # A barrier, on the CPU: a rank that leaves early can abort its peers while they close their connections.
        all_reduce_sum(torch.zeros(1), env)
    finally:
        dist.destroy_process_group()


def all_reduce_sum(tensor: Tensor, env: DistEnv) -> Tensor:
    """Sum over the ranks, in place; returns its argument."""
    if env.world_size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def all_gather_rows(tensor: Tensor, env: DistEnv) -> Tensor:
    """Concatenate equally shaped tensors of all ranks along the first dimension, in rank order."""
    if env.world_size == 1:
        return tensor
    gathered = tensor.new_empty((env.world_size * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather_into_tensor(gathered, tensor.contiguous())
    return gathered


def value_of_main(value: float, env: DistEnv) -> float:
    """Rank 0's value, on every rank, so that all ranks decide alike, for instance by the time."""
    if env.world_size == 1:
        return value
    agreed = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(agreed, src=0)
    return float(agreed)
