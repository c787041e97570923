"""`python -m trials.gang RANKS SCRIPT ARGUMENT...`: start the script on several ranks of this node, as torchrun does.

It is torchrun's own launcher with `--standalone`; it adds a word about a rank that a signal ended, which torchrun tells
to people only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pgolf_model.files import FAULT_FILE


def main(argv: list[str]) -> int:
    """Run the script on all ranks; leaves FAULT_FILE in the working directory where a signal ended one of them.

    Returns:
        The exit code: 0, or 1 when a rank failed.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(["--standalone", f"--nproc_per_node={argv[0]}", *argv[1:]])
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        first = error.get_first_failure()[1]
        if first.exitcode < 0 and not Path(FAULT_FILE).exists():
            Path(FAULT_FILE).write_text(json.dumps({"fault": "signal"}) + "\n", encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
