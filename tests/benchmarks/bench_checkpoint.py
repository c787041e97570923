"""What a trained checkpoint costs in bytes, error and bpb under our quantizer and packer, and under the field's.

    python tests/benchmarks/bench_checkpoint.py CHECKPOINT --data DIR [--tokenizer FILE] [--tokens N]
        [--calibration-tokens N] [--ablations] [--time-packing]

CHECKPOINT is what `--keep-checkpoint` leaves. The field: GPTQ with act-order, int6 SDClip 12.85, the embedding in int7
SDClip 15, int8 streams per role in rows or columns, whichever packs better, under brotli-11, lzma, zstd-22, and zpaq
-m5 or lrzip -z where installed. Its scales have our four mantissa bits and its files no header, both to its advantage.
Ours is the solver's recipe (`space.knobs.quant.SOLVER`) with 8 states, every row a real artifact, unpacked to be
scored.

The predicted error is the sum over matrices of sensitivity-weighted errors under the Hessian, in nats per token; the
Hessians and row weights of one calibration serve all rows. KL is the mean over tokens of the divergence from the
unquantized model. All rows see the same windows of validation text; errors are standard errors over windows.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf_model.codec.pack import pack_model, unpack_model
from pgolf_model.config import ModelConfig, QuantConfig, RunConfig, TrainConfig
from pgolf_model.data.batches import count_bytes
from pgolf_model.distributed import DistEnv
from pgolf_model.evaluate import validation_set
from pgolf_model.files import CONFIG_ENTRY
from pgolf_model.model.gpt import GPT
from pgolf_model.quant.gptq import hessian_error
from pgolf_model.quant.quantize import PackedTensor, QuantizedTensor, dequantize, dequantize_state
from pgolf_model.shapes import num_params
from pgolf_model.ship.allocate import plan_line
from pgolf_model.ship.bench import QuantBench, shipped_eval
from pgolf_model.ship.calibrate import Calibration
from pgolf_model.ship.checkpoint import open_bench, read_checkpoint
from pgolf_model.ship.solve import ship
from pgolf_model.train.progress import PhaseLog
from space.knobs.quant import SOLVER

FIELD = QuantConfig(
    method="gptq",
    embed_bits=7,
    embed_clip_sigmas=15.0,
    attn_bits=(6,),
    mlp_bits=(6,),
    attn_clip_sigmas=(12.85,),
    mlp_clip_sigmas=(12.85,),
)
OURS = replace(SOLVER, quantizer="trellis8")  # as the challenge's spaces solve it
WIDER = replace(FIELD, embed_bits=8, embed_clip_sigmas=20.0)
ROUNDED = replace(FIELD, method="round", embed_bits=8, embed_clip_sigmas=20.0)
FIELDS = {"GPTQ int6, embedding int7": FIELD, "GPTQ int6, embedding int8": WIDER}
CLASSIC = ("brotli-11", "lzma", "zstd-22")
ABLATIONS = {
    "4 states": replace(OURS, quantizer="trellis4"),
    "uniform codes": replace(OURS, quantizer="uniform"),
    "no column plan": replace(OURS, column_plan=False),
    "no rate weight": replace(OURS, rate_weight=0.0),
    "solver only (uniform, no plan, no rate weight)": replace(
        OURS, quantizer="uniform", column_plan=False, rate_weight=0.0
    ),
}
EQUAL = 0.01  # a metric is met when it lies within this share below the one wanted
MEET_TRIES = 6
BATCH_TOKENS = 4096
Tensors = Mapping[str, PackedTensor]


class Verdict(NamedTuple):
    """A quantized model against the unquantized one on the same windows."""

    kl: float  # nats per token
    kl_error: float
    bpb: float
    bpb_change: float
    bpb_change_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    label: str
    model_bytes: int
    bits_per_weight: float
    errors: dict[str, float]  # predicted, nats per token, by role
    verdict: Verdict
    cpu_seconds: float  # of quantizing and packing, searches for a size or an error included


class Judge:
    """Divergence and loss on the first validation tokens, paired by windows."""

    def __init__(self, state: Mapping[str, Tensor], config: RunConfig, tokens: Tensor, num_bytes: Tensor) -> None:
        self.config, self.seq_len = config, config.train.seq_len
        self.tokens = tokens.long()
        self.model = GPT(config.model).eval()
        self.bytes_W = num_bytes.view(-1, self.seq_len).sum(1).double().numpy()
        self.reference: list[Tensor] = []
        self.nats_W = self._walk(state, lambda index, logs: self.reference.append(logs))
        self.bpb = float(self.nats_W.sum() / self.bytes_W.sum() / math.log(2))

    def __call__(self, state: Mapping[str, Tensor]) -> Verdict:
        """Score some weights."""
        divergences: list[Tensor] = []

        def compare(index: int, logs: Tensor) -> None:
            true = self.reference[index]
            divergences.append((true.exp() * (true - logs)).sum(-1).double().mean(1))

        nats_W = self._walk(state, compare)
        kl_W, count = torch.cat(divergences).numpy(), len(nats_W)
        # A ratio of sums: its standard error is that of the residuals.
        more_W, total = (nats_W - self.nats_W) / math.log(2), self.bytes_W.sum()
        change = float(more_W.sum() / total)
        spread = float(np.std(more_W - change * self.bytes_W, ddof=1)) * math.sqrt(count) / total
        return Verdict(
            kl=float(kl_W.mean()),
            kl_error=float(kl_W.std(ddof=1)) / math.sqrt(count),
            bpb=self.bpb + change,
            bpb_change=change,
            bpb_change_error=spread,
        )

    @torch.inference_mode()
    def _walk(self, state: Mapping[str, Tensor], look: Callable[[int, Tensor], None]) -> np.ndarray:
        """Nats of every window; `look` sees the log-probabilities, (windows, T, V), of each batch."""
        self.model.load_state_dict(dict(state))
        ids, targets = (part.view(-1, self.seq_len) for part in (self.tokens[:-1], self.tokens[1:]))
        nats, size = [], max(1, BATCH_TOKENS // self.seq_len)
        for index, (some, wanted) in enumerate(zip(ids.split(size), targets.split(size), strict=True)):
            logs = self.model.logits(some).log_softmax(-1)
            look(index, logs)
            nats.append(-logs.gather(2, wanted[:, :, None])[:, :, 0].double().sum(1))
        return torch.cat(nats).numpy()


def cpu_seconds() -> float:
    """CPU time of this process and of the children it waited for: the machine is shared."""
    return sum(os.times()[:4])


def errors_by_role(bench: QuantBench, tensors: Tensors) -> dict[str, float]:
    """Nats per token, as the bench's audit has it, of any tensors."""
    found = {"embed": 0.0, "attn": 0.0, "mlp": 0.0}
    for name, matrix in bench.matrices.items():
        item, hessian = tensors[name], matrix.hessian
        assert isinstance(item, QuantizedTensor)
        error = (dequantize(item) - matrix.weight) * matrix.row_costs.sqrt()
        found[bench.shapes[name].role] += hessian_error(error, hessian) * matrix.error_cost
    return found


def predicted_error(bench: QuantBench, tensors: Tensors) -> float:
    """All roles together."""
    return sum(errors_by_role(bench, tensors).values())


def field_streams(bench: QuantBench, tensors: Tensors) -> list[list[bytes]]:
    """The streams of a field artifact, each in the orders that it may be written in."""
    streams = []
    for role in ("embed", "attn", "mlp"):
        items = [tensors[name] for name, info in bench.shapes.items() if info.role == role]
        codes = [item.codes.numpy() for item in items if isinstance(item, QuantizedTensor)]
        streams.append([b"".join(c.tobytes(order) for c in codes) for order in ("C", "F")])  # type: ignore[arg-type]
    halves = [item.scales if isinstance(item, QuantizedTensor) else item for item in tensors.values()]
    return [*streams, [b"".join(half.numpy().tobytes() for half in halves)]]


def field_sizes(streams: list[list[bytes]]) -> dict[str, int]:
    """Bytes by codec, the better order for each stream; the slow tools get rows only."""
    codecs: dict[str, Callable[[bytes], int]] = {
        "brotli-11": lambda raw: len(brotli.compress(raw, quality=11, lgwin=24)),
        "lzma": lambda raw: min(
            len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, **options}]))
            for options in ({"lc": 0, "lp": 0, "pb": 0}, {"lc": 0, "lp": 1, "pb": 1})
        ),
        "zstd-22": lambda raw: len(zstandard.ZstdCompressor(level=22).compress(raw)),
    }
    if shutil.which("zpaq"):
        codecs["zpaq -m5"] = lambda raw: _tool_size(raw, "zpaq", "a", "out.zpaq", "in", "-m5", "-t1", "-noattributes")
    if shutil.which("lrzip"):
        codecs["lrzip -z"] = lambda raw: _tool_size(raw, "lrzip", "-q", "-z", "-L9", "-p1", "-o", "out.lrz", "in")
    return {
        name: sum(min(map(size, orders if name in CLASSIC else orders[:1])) for orders in streams)
        for name, size in codecs.items()
    }


def _tool_size(raw: bytes, *command: str) -> int:
    """Bytes that a tool makes of a file called `in`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").write_bytes(raw)
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return next(path.stat().st_size for path in Path(folder).iterdir() if path.name.startswith("out"))


def meet(
    bench: QuantBench, measure: Callable[[Tensors], float], *, wanted: float, start: float
) -> tuple[Tensors, float]:
    """The tensors whose metric lies just below `wanted`, and their place on the line of plans: a search on its log.

    Args:
        start: bits, where to begin on the line.
    """
    line, weights = plan_line(bench.tables), sum(bench.shapes[name].size for name in bench.matrices)
    aim, position = math.log2(wanted * (1 - EQUAL / 2)), start
    below: tuple[float, float] | None = None  # place and log of the nearest plan that is good enough
    above: tuple[float, float] | None = None  # and of the nearest one that is not
    best: tuple[Tensors, float] | None = None
    for _ in range(MEET_TRIES):
        position = min(max(position, line.fewest_bits), line.most_bits)
        tensors = bench.tensors(bench.plan_at(line.at(position)))
        value = measure(tensors)
        if value > wanted:
            above = position, math.log2(value)
        else:
            below = position, math.log2(value)
            best = tensors, position
            if value >= wanted * (1 - EQUAL) or position == line.fewest_bits:
                break
        if below and above:
            share = (above[1] - aim) / (above[1] - below[1])
            position = above[0] + min(max(share, 0.05), 0.95) * (below[0] - above[0])
        else:  # two bits less error for each bit of a weight, at coarse steps more
            position += (math.log2(value) - aim) * weights / (2 if value > wanted else 4)
    if best is None:
        raise RuntimeError(f"no plan came below {wanted}: {above}")
    return best


def read_config(path: Path) -> RunConfig:
    """The model, training length and seed that a checkpoint was made with."""
    with np.load(path, allow_pickle=False) as arrays:
        plain = json.loads(bytes(arrays[CONFIG_ENTRY]))
    known = {f.name for f in fields(ModelConfig)}
    model = {k: tuple(v) if isinstance(v, list) else v for k, v in plain["model"].items() if k in known}
    seq_len = plain["train"]["seq_len"]
    train = TrainConfig(seq_len=seq_len, batch_tokens=8 * seq_len, micro_batch_tokens=max(2048, seq_len))
    return RunConfig(model=ModelConfig(**model), train=train, seed=plain["seed"])


def peak_and_seconds(call: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of a call, the process' peak memory in it (VmHWM), and the resident memory before it, in MB."""

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = status("VmRSS"), cpu_seconds()
    call()
    return {"cpu_seconds": cpu_seconds() - started, "peak_mb": status("VmHWM"), "resident_before_mb": before}


def packing_costs(artifact: bytes) -> dict[str, dict[str, float]]:
    """Seconds and memory of reading an artifact, and of packing what it holds."""
    reading = peak_and_seconds(lambda: dequantize_state(unpack_model(artifact).tensors))
    unpacked = unpack_model(artifact)
    writing = peak_and_seconds(lambda: pack_model(unpacked.model, unpacked.eval_config, unpacked.tensors))
    return {"pack": writing, "unpack_and_dequantize": reading}


class Table:
    """Rows, printed as they come."""

    def __init__(self, judge: Judge, reference: QuantBench) -> None:
        self.judge, self.reference = judge, reference
        self.rows: list[Row] = []
        self.weights = num_params(reference.config.model)
        titles = ("", "model bytes", "bits/weight", "predicted error = embedding + attention + MLP")
        print(f"| {' | '.join((*titles, 'KL', 'val_bpb', 'change of bpb', 'CPU s'))} |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
        print(f"| unquantized, float32 | {4 * self.weights} | 32 | 0 | 0 | {judge.bpb:.4f} | 0 | |", flush=True)

    def add(self, label: str, size: int, tensors: Tensors, seconds: float, *, verdict: Verdict | None = None) -> Row:
        """Measure and print one row; the tensors are judged unless the verdict is known."""
        row = Row(
            label=label,
            model_bytes=size,
            bits_per_weight=8 * size / self.weights,
            errors=errors_by_role(self.reference, tensors),
            verdict=verdict or self.judge(dequantize_state(tensors)),
            cpu_seconds=seconds,
        )
        v, roles = row.verdict, " + ".join(f"{error:.4f}" for error in row.errors.values())
        columns = (
            label,
            str(size),
            f"{row.bits_per_weight:.3f}",
            f"{sum(row.errors.values()):.5f} = {roles}",
            f"{v.kl:.5f} ± {v.kl_error:.5f}",
            f"{v.bpb:.4f}",
            f"{v.bpb_change:+.5f} ± {v.bpb_change_error:.5f}",
            f"{seconds:.0f}",
        )
        print(f"| {' | '.join(columns)} |", flush=True)
        self.rows.append(row)
        return row


def add_field_rows(table: Table, label: str, bench: QuantBench) -> tuple[Row, dict[str, int]]:
    """One quantization of the field under every codec and under our coder; the first row and the sizes."""
    started = cpu_seconds()
    tensors = bench.tensors(bench.explicit_plan())
    quantizing = cpu_seconds() - started
    sizes = field_sizes(field_streams(bench, tensors))
    first, verdict = None, None
    for codec, size in sorted(sizes.items(), key=lambda found: -found[1]):
        first = table.add(f"{label}, {codec}", size, tensors, quantizing, verdict=verdict)
        verdict = first.verdict
    assert first is not None
    started = cpu_seconds()
    artifact = bench.artifact(bench.explicit_plan())
    table.add(f"{label}, our coder", len(artifact), tensors, quantizing + cpu_seconds() - started, verdict=verdict)
    return first, sizes


def at_equal_bytes(table: Table, label: str, bench: QuantBench, size: int) -> bytes:
    """The row of what the solver makes of so many bytes."""
    started = cpu_seconds()
    artifact = ship(bench, target_bytes=size, code_bytes=0).artifact
    seconds = cpu_seconds() - started
    table.add(label, len(artifact), unpack_model(artifact).tensors, seconds)
    return artifact


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--calibration-tokens", type=int, default=65_536)
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--time-packing", action="store_true")
    options = parser.parse_args()
    config = read_config(options.checkpoint)
    state = read_checkpoint(options.checkpoint, config.model)
    tokens, bytes_of = validation_set(
        options.data,
        options.tokenizer or str(Path(options.data) / "tokenizer.model"),
        vocab_size=config.model.vocab_size,
        seq_len=config.train.seq_len,
        max_tokens=options.tokens,
    )
    ids = tokens.long()
    judge = Judge(state, config, tokens, count_bytes(bytes_of, ids[:-1], ids[1:]))
    started = cpu_seconds()
    quant = replace(OURS, calibration_tokens=options.calibration_tokens)
    reference = open_bench(state, replace(config, quant=quant), data=options.data, env=DistEnv(), phases=PhaseLog(None))
    assert reference.calibration is not None
    # The audit's losses are not needed here: one batch of them will do.
    whole = replace(reference.calibration, batches=reference.calibration.batches[:1])
    alike = replace(whole, row_weights={})
    calibrating = cpu_seconds() - started

    def bench_of(quant: QuantConfig, calibration: Calibration | None = whole) -> QuantBench:
        return QuantBench(state, replace(config, quant=quant), calibration, DistEnv())

    table, ours, saved, codec_bytes = Table(judge, reference), bench_of(OURS), {}, {}
    position, artifact, classic = 0.0, b"", 0
    if options.ablations:
        add_field_rows(table, "RTN int6, embedding int8", bench_of(ROUNDED, None))
    for label, recipe in FIELDS.items() if options.ablations else [next(iter(FIELDS.items()))]:
        field, sizes = add_field_rows(table, label, bench_of(recipe, alike))
        codec_bytes[label] = sizes
        wanted = sum(field.errors.values())
        classic = min(size for codec, size in sizes.items() if codec in CLASSIC)
        for kind, measure, value in (
            ("predicted error", lambda t: predicted_error(reference, t), wanted),
            ("KL", lambda t: judge(dequantize_state(t)).kl, field.verdict.kl),
        ):
            started = cpu_seconds()
            tensors, position = meet(ours, measure, wanted=value, start=position or 5.0 * classic)
            artifact = pack_model(config.model, shipped_eval(ours.config), tensors)
            name = f"ours at the {kind} of {label}"
            table.add(name, len(artifact), unpack_model(artifact).tensors, cpu_seconds() - started)
            saved[name] = {codec: 1 - len(artifact) / size for codec, size in sizes.items()}
        artifact = at_equal_bytes(table, f"ours at the bytes of {label}", ours, classic)
    if options.ablations:
        for label, recipe in ABLATIONS.items():
            at_equal_bytes(table, f"the same bytes, {label}", bench_of(recipe), classic)
        at_equal_bytes(table, "the same bytes, embedding rows alike", bench_of(OURS, alike), classic)

    facts: dict[str, Any] = {
        "checkpoint": options.checkpoint.name,
        "num_params": num_params(config.model),
        "tokens": len(tokens) - 1,
        "windows": len(judge.bytes_W),
        "calibration_tokens": whole.tokens,
        "calibration_cpu_seconds": calibrating,
        "codec_bytes": codec_bytes,
        "absent": [tool for tool in ("zpaq", "lrzip") if not shutil.which(tool)],
        "bytes_saved": saved,
    }
    if options.time_packing:  # in a process that holds nothing else
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            facts |= fresh.submit(packing_costs, artifact).result()
    for key, value in facts.items():
        print(f"{key}: {value}")
    versions = {"torch": torch.__version__, "brotli": brotli.__version__, "zstd": zstandard.__version__}
    hardware = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    rows = [asdict(row) | {"verdict": row.verdict._asdict()} for row in table.rows]
    print(json.dumps({**facts, "rows": rows, "hardware": hardware, "versions": versions, "when": time.strftime("%F")}))


if __name__ == "__main__":
    main()
