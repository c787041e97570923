"""Hardware as a few effective rates, of a class of GPUs or of one measured machine. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pgolf_model.errors import UserError
from space.params import look_up
from space.plain import from_plain

HARDWARE_FILE = "hardware.json"  # written by `pgolf doctor` into a study's folder, or where it was called
TIMED = ("flops_per_second", "attention_flops_per_second", "bytes_per_second", "block_seconds", "step_seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One GPU, or the CPU cores of one rank, as rates that were fitted to steps of whole runs, not to data sheets."""

    name: str
    flops_per_second: float  # matrix products in the precision that is trained in
    attention_flops_per_second: float
    bytes_per_second: float  # memory traffic of all operations but products
    block_seconds: float  # per block and pass, whatever the batch
    step_seconds: float  # per optimizer step, whatever the model
    memory_bytes: float
    is_gpu: bool = True
    dollars_per_hour: float = 0.0  # of one; 0 for a machine that is there anyway
    link_bytes_per_second: float = 0.0  # between ranks; 0 is unknown and not counted
    outside_seconds: float = 0.0  # of a run, neither training nor scoring: starting, compiling, packing
    process_bytes: float = 0.0  # memory of a process before it holds a model
    saved_factor: float = 1.0  # activations kept, relative to compiled code in the same precision
    error: float = 0.5  # 90 % of forecasts of step seconds are within a factor of 1 + error
    memory_error: float = 0.3  # likewise for memory
    device: str = ""  # its name in a run's metrics; empty for a class
    threads: int = 0  # of the CPU, that were calibrated; 0 on a GPU
    made: str = ""  # where its numbers come from

    @property
    def rates(self) -> tuple[float, ...]:
        """Seconds per unit of each of `Work.counts`."""
        values = [getattr(self, name) for name in TIMED]
        return tuple(1 / v if name.endswith("per_second") else v for name, v in zip(TIMED, values, strict=True))

    def with_rates(self, rates: Sequence[float]) -> Hardware:
        """Return the same machine with other seconds per unit."""
        values = [1 / r if name.endswith("per_second") else r for name, r in zip(TIMED, rates, strict=True)]
        return replace(self, **dict(zip(TIMED, values, strict=True)))  # type: ignore[arg-type]


# Fitted to twelve records on 8xH100 SXM. Seven of them used FlashAttention-3, 1.6 times as fast as the kernel assumed
# here, PyTorch's own. tests/space/test_speed.py holds the rows, the fit and its leave-one-out error. Our code is not
# theirs, so the interval is wider than that error. Seconds for starting, compiling and packing are a guess.
H100 = Hardware(
    name="h100",
    flops_per_second=7.575e14,
    attention_flops_per_second=1.608e14,
    bytes_per_second=2.833e12,
    block_seconds=6.023e-5,
    step_seconds=5.235e-3,
    memory_bytes=80e9,
    dollars_per_hour=2.5,
    link_bytes_per_second=2.5e11,
    outside_seconds=240.0,
    error=0.25,
    made="fitted to 12 records on 8xH100 SXM (https://github.com/openai/parameter-golf)",
)


def _scaled(base: Hardware, name: str, factor: float, **changes: float) -> Hardware:
    """Return a class of which only the overall speed relative to `base` is known."""
    scaled = base.with_rates([rate / factor for rate in base.rates])
    return replace(scaled, name=name, **changes)  # type: ignore[arg-type]


HARDWARE = {
    "h100": H100,
    "h200": replace(_scaled(H100, "h200", 1.05, memory_bytes=141e9), made="H100 and 5 % (one remark in a record)"),
    "rtx5090": replace(
        _scaled(H100, "rtx5090", 0.48, memory_bytes=32e9, error=0.5, dollars_per_hour=0.7),
        made="H100 scaled to one measured row (159 ms for 131,072 tokens of the baseline)",
    ),
    "a100": replace(
        _scaled(H100, "a100", 0.4, memory_bytes=80e9, error=0.5, dollars_per_hour=1.5),
        made="H100 scaled by data sheets, never compared with a run",
    ),
}


def load_hardware(name_or_path: str) -> tuple[Hardware, int]:
    """(hardware, ranks) of a class ("h100"), a node ("8xh100"), or a file that `pgolf doctor` wrote.

    Raises:
        UserError: no such class (suggests the nearest), or a file that holds something else.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        if not path.is_file():
            raise UserError(f"there is no file {path}", hint=f"`pgolf doctor` writes {HARDWARE_FILE}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not JSON ({error})", hint="make it again with pgolf doctor") from None
        return from_plain(Hardware, data, where=str(path)), 1
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", name_or_path.lower())
    assert match is not None
    ranks = int(match[1] or 1)
    if ranks < 1:
        raise UserError(f"hardware needs at least one GPU, got {name_or_path!r}")
    return look_up("hardware", match[2], HARDWARE), ranks
