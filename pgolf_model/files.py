"""Names of the files that a run leaves in its folder, and how they are written. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

ARTIFACT_FILE = "final_model.pgolf"
METRICS_FILE = "metrics.json"  # what the run measured; written last
AUDIT_FILE = "quant.json"  # how the weights were quantized, tensor by tensor
CHECKPOINT_FILE = "checkpoint.npz"  # the trained float32 weights, with --keep-checkpoint
CONFIG_ENTRY = "config.json"  # in a checkpoint, beside the arrays: what trained it, as text in bytes
PROGRESS_FILE = "progress.jsonl"  # one JSON object a line, about one line a second
FAULT_FILE = "fault.json"  # {"fault": "oom"}, left by a script or a rank that ran out of memory


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
