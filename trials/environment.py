"""The environment of a trial's script: what is known to be needed, and nothing else of whoever started the study.

A pod's RANK and MASTER_ADDR would make a script wait for peers that never come, and tokens are none of its business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from trials.spec import TrialSpec

TRIAL_VARIABLE = "PGOLF_TRIAL"  # the trial's folder, in every process of it: how leftovers of a trial are found
ALLOWED = re.compile(
    # the machine and its paths
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TZ|LANG|LANGUAGE|LC_\w+|LD_LIBRARY_PATH|XDG_\w+|VIRTUAL_ENV|NO_COLOR"
    # Python, its compilers and caches
    r"|PYTHON\w+|CC|CXX|TORCH_\w+|TORCHINDUCTOR_\w+|TRITON_\w+|PYTORCH_\w+"
    # threads and numerics
    r"|OMP_\w+|KMP_\w+|MKL_\w+|OPENBLAS_\w+"
    # GPUs and how they talk
    r"|CUDA_\w+|NVIDIA_\w+|CUBLAS_\w+|NCCL_\w+|GLOO_\w+"
)


def trial_environment(spec: TrialSpec, folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the script in `folder`.

    It has threads for the trial's share of the cores, and no GPU for a trial without one: under Ray such a trial would
    otherwise see them all.
    """
    environment = {name: value for name, value in inherited.items() if ALLOWED.fullmatch(name)}
    environment["OMP_NUM_THREADS"] = str(max(1, int(spec.cpus) // spec.processes))
    environment[TRIAL_VARIABLE] = str(folder.absolute())
    if not spec.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment
