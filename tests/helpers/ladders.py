"""A ladder of rungs and records on it."""

from __future__ import annotations

from pgolf_model.config import RunConfig
from search.study.config import Caps, StudyConfig
from search.study.ledger import TrialRecord
from trials.rungs import Rung
from trials.spec import SeedRun, TrialResult, TrialSpec

PROXY = Rung(name="proxy", trials=6, steps=10)


FULL = Rung(name="full", keep=0.34, min_promote=2, steps=100)


STUDY = StudyConfig(name="s", space="tiny", data=("d",), rungs=(PROXY, FULL), caps=Caps(artifact_bytes=1000))


def record(
    number: int, bpb: float | None, *, rung: str = "proxy", size: int = 900, label: str = "", parent: int | None = None,
    status: str = "complete", params: dict[str, float] | None = None,
) -> TrialRecord:  # fmt: skip
    """A trial; `bpb` None is one that has not ended."""
    spec = TrialSpec(
        study="s", rung=rung, number=number, parent=parent, label=label, params=params or {}, config=RunConfig(),
        seeds=(1,),
        data_dir="", tokenizer="",
    )  # fmt: skip
    if bpb is None:
        return TrialRecord(spec=spec)
    if status != "complete":
        return TrialRecord(spec=spec, result=TrialResult(status=status))  # type: ignore[arg-type]
    run = SeedRun(
        seed=1, val_bpb=bpb, val_loss=bpb, pre_quant_val_bpb=bpb, model_bytes=size, code_bytes=0, steps=1,
        tokens_seen=1, num_params=1, train_seconds=1, eval_seconds=1, total_seconds=1, peak_memory_bytes=1,
        artifact_sha256="",
    )  # fmt: skip
    return TrialRecord(spec=spec, result=TrialResult(status="complete", runs=(run,)))
