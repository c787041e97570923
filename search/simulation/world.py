"""The Python file behind a simulated study: the space that is searched, and what a trial would measure.

A file that can be searched this way:

    SPACE = {"lr": {"low": 1e-3, "high": 1e-1, "log": True}}   # search.simulation.bare_space has the other forms

    def evaluate(params, *, rung, fidelity, seed):
        bpb = 1.2 + (params["lr"] - 0.02) ** 2 + 0.1 * (1 - fidelity)
        return {"val_bpb": bpb, "artifact_bytes": 15_000_000, "train_seconds": 600 * fidelity}

`evaluate` must be a pure function of its arguments: a study that was killed is simulated on from its folder, and ends
as if nothing had happened. `fidelity` is the rung's training compute relative to the top rung's (`Rung.compute`).
It may also give "eval_seconds" and "gpu_seconds"; the latter says that the run held its GPUs for longer than it
trained. A NaN score is a divergence, an exception a failed trial; an answer that is no such table stops the study,
for then the file is wrong and no trial is to blame. `CONTROL` in the file is the point to compare with
(the middle of every range otherwise), `predict_bytes(params)` the forecast that refuses points before they run.
"""

from __future__ import annotations

import hashlib
import inspect
import runpy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Protocol

from pgolf_model.errors import UserError
from search.simulation.bare_space import bare_space
from search.study.config import StudyConfig
from space.params import Scalar, Space
from trials.spec import Fault, SeedRun, Status, TrialResult, TrialSpec

SIGNATURE = "evaluate(params, *, rung, fidelity, seed)"
MEND = "mend the file, then run the same command again"
NEEDED, OPTIONAL = ("val_bpb", "artifact_bytes", "train_seconds"), ("eval_seconds", "gpu_seconds")


class Evaluate(Protocol):
    """What a trial measures: val_bpb, artifact_bytes, train_seconds, and perhaps eval_seconds and gpu_seconds."""

    def __call__(
        self, params: dict[str, Scalar], /, *, rung: str, fidelity: float, seed: int
    ) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A simulated reality: the space that is searched and the measurements that a run would make."""

    evaluate: Evaluate
    space: Space | None = None  # None: the study's own
    predict_bytes: Callable[[Mapping[str, Scalar]], float] | None = None
    file: str = ""  # absolute path of what it was read from
    sha256: str = ""  # of that file

    def predicted(self, params: Mapping[str, Scalar]) -> float:
        """What `predict_bytes` says of a point.

        Raises:
            UserError: it says nothing, or no number of bytes.
        """
        assert self.predict_bytes is not None
        try:
            size = float(self.predict_bytes(dict(params)))
            if not (isfinite(size) and size >= 0):
                raise ValueError(f"{size} is no size")
        except Exception as problem:
            raise UserError(
                f"{place_of(self.predict_bytes, problem)}: predict_bytes, given {dict(params)}: "
                f"{type(problem).__name__}: {problem}",
                hint=f"it must return a number of bytes for every point: {MEND}",
            ) from problem
        return size


def load_world(path: Path) -> World:
    """The world that a Python file describes; see the top of this file.

    Raises:
        UserError: there is no such file, it cannot be run, or it defines no `evaluate` or an impossible SPACE; names
            the file and, where there is one, the line.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}", hint="--simulate wants Python that defines evaluate(params, ...)")
    file = str(path.absolute())
    try:
        names = runpy.run_path(file)
    except (Exception, SystemExit) as problem:
        what = problem.msg if isinstance(problem, SyntaxError) else problem
        raise UserError(f"{_last_line(problem, file)}: {type(problem).__name__}: {what}", hint=MEND) from problem
    evaluate, predict_bytes, space = (names.get(name) for name in ("evaluate", "predict_bytes", "SPACE"))
    if not callable(evaluate):
        raise UserError(f"{path} defines no function {SIGNATURE}")
    if predict_bytes is not None and not callable(predict_bytes):
        raise UserError(f"{path}: predict_bytes must be a function of a point, got {predict_bytes!r:.200}", hint=MEND)
    try:
        inspect.signature(evaluate).bind({}, rung="", fidelity=1.0, seed=0)
    except TypeError as problem:
        taken = inspect.signature(evaluate)
        raise UserError(
            f"{place_of(evaluate)}: expected {SIGNATURE}, got evaluate{taken}: {problem}", hint=MEND
        ) from None
    if space is not None:
        try:
            space = bare_space(space, control=names.get("CONTROL"))
        except (TypeError, ValueError) as problem:
            raise UserError(f"{path}: SPACE or CONTROL: {problem}", hint=MEND) from None
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return World(evaluate=evaluate, space=space, predict_bytes=predict_bytes, file=file, sha256=sha256)


def place_of(function: Callable[..., object], problem: BaseException | None = None) -> str:
    """`world.py:12`: where a function is, or the last of its file's lines that a problem went through."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    return f"{code.co_filename}:{code.co_firstlineno}" if problem is None else _last_line(problem, code.co_filename)


def _last_line(problem: BaseException, file: str) -> str:
    if isinstance(problem, SyntaxError) and problem.filename == file:
        return f"{file}:{problem.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == file]
    return f"{file}:{lines[-1]}" if lines else file


def measure(study: StudyConfig, world: World, spec: TrialSpec) -> tuple[TrialResult, float]:
    """What the world answers to a trial, all its seeds; and how long the seeds that are new take.

    Raises:
        UserError: the answer is no table of numbers.
    """
    fidelity = study.fidelity(study.rung(spec.rung))
    runs: list[SeedRun] = []
    status: Status = "complete"
    fault: Fault = ""
    error = ""
    total = new = 0.0
    for i, seed in enumerate(spec.seeds):
        try:
            said = world.evaluate(dict(spec.params), rung=spec.rung, fidelity=fidelity, seed=seed)
        except Exception as problem:
            where = place_of(world.evaluate, problem)
            error = f"evaluate raised {type(problem).__name__}: {problem} ({where})\n{traceback.format_exc()}"
            status, fault = "failed", "oom" if isinstance(problem, MemoryError) else "script"
            break
        _refuse_no_table(said, world, spec)
        try:
            run, lasts = _seed_run(said, spec, seed)
        except UserError as problem:
            status, fault, error = "failed", "script", f"{place_of(world.evaluate)}: {problem}"
            break
        spent = min(lasts, spec.timeout_seconds)
        total += spent
        new += spent if i >= spec.seeds_done else 0.0
        if lasts > spec.timeout_seconds:
            status, fault = "timeout", "timeout"
            error = f"seed {seed}: still running after {spec.timeout_seconds:g} s; raise the rung's timeout_seconds"
            break
        if run is None:
            status, error = "diverged", f"seed {seed}: training diverged: the score is {said['val_bpb']}"
            break
        runs.append(run)
    return TrialResult(status=status, runs=tuple(runs), fault=fault, error=error, seconds=total), new


def _refuse_no_table(said: object, world: World, spec: TrialSpec) -> None:
    """Raise UserError when `evaluate` answered something else than numbers by name, the three that it must give."""
    wrong = ""
    if not isinstance(said, Mapping):
        wrong = f"{said!r:.200}"
    elif missing := [key for key in NEEDED if key not in said]:
        wrong = f"no {', '.join(missing)} but {', '.join(map(str, said)) or 'nothing'}"
    elif strange := [key for key in (*NEEDED, *OPTIONAL) if not _is_number(said.get(key, 0.0))]:
        wrong = ", ".join(f"{key} = {said[key]!r:.100}" for key in strange)
    if wrong:
        raise UserError(
            f"{place_of(world.evaluate)}: evaluate returned {wrong} for {spec.trial_id}",
            hint=(f"it must return a dict with the numbers {', '.join(NEEDED)}: {MEND}"),
        )


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, str | bytes) and float(value) is not None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _seed_run(said: Mapping[str, float], spec: TrialSpec, seed: int) -> tuple[SeedRun | None, float]:
    """One seed's measurements, None when it diverged; and the seconds it took."""
    bpb, size, trained = (float(said[key]) for key in NEEDED)
    scored = float(said.get("eval_seconds", 0.0))
    lasts = max(trained + scored, float(said.get("gpu_seconds", 0.0)) / (spec.gpus or 1.0))
    if not isfinite(lasts) or lasts < 0:
        raise UserError(f"a run must take a number of seconds, got {dict(said)}")
    if not (isfinite(size) and round(size) > 0):
        raise UserError(f"artifact_bytes must be a positive number, got {said['artifact_bytes']}")
    if not isfinite(bpb):
        return None, lasts
    run = SeedRun(
        seed=seed,
        val_bpb=bpb,
        val_loss=bpb,
        pre_quant_val_bpb=bpb,
        model_bytes=round(size),
        code_bytes=0,
        steps=spec.config.budget.steps,
        tokens_seen=0,
        num_params=0,
        train_seconds=trained,
        eval_seconds=scored,
        total_seconds=lasts,
        peak_memory_bytes=0,
        artifact_sha256="",
    )
    return run, lasts
