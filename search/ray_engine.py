"""Engine 2: Ray Tune places and runs trials; the brain decides everything (the only file that talks to Ray).

Tune owns placement, actors and node failure, and no truth: the brain is a `Searcher`, no scheduler stops anything,
and after a crash a new Tuner asks the brain again, never `Tuner.restore` (automl T4). A trial's resources follow from
its rung; Tune keeps one trial pending, so that a gang of 8 GPUs is not starved by small ones (automl E2).
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search.driver import Driver
from search.events import Event, Finished, Started, Tick
from search.ledger import trial_dir
from search.local import Machine, refuse_impossible, worker_command, worker_environment
from search.promote import Done, Wait
from space.plain import to_plain
from trials.spec import EXIT_UNFINISHED, WORKER_LOG, TrialSpec

Events = queue.Queue[Event | TrialSpec | BaseException | None]  # a spec: handed to Tune; None: the study is over

TUNE_PREFIX = ".tune_"  # of the folder in which Tune keeps its own books, which nobody reads
TICK_SECONDS = 0.5
WIND_DOWN_SECONDS = 20.0  # for workers to leave and for Tune to notice, when a study is stopped
NODE_LOSSES = 2  # times a trial is started again after Ray lost its node; its finished seeds are kept
OBJECT_STORE_BYTES = 100_000_000  # trials exchange files, not objects; Ray's floor is 75 MB
QUIET = {
    "RAY_AUTH_MODE": "disabled",  # Ray 2.60 writes a token into the home folder otherwise (automl R1)
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # Tune's thread would start a second cluster after our shutdown
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without GPUs sees none (automl R6)
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_ray(driver: Driver, machine: Machine, *, address: str = "") -> Generator[Event, None, None]:
    """Drive the study to its end under Ray Tune. Closing the generator stops Ray and with it all workers.

    Args:
        machine: what a local cluster may use; ignored when `address` names a running one.
    Raises:
        ValueError: Ray is not installed, or a rung asks for more than the machine has.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    try:
        import ray
    except ImportError:
        raise ValueError("engine 'ray' needs Ray: install ray[tune], or use --engine local") from None
    cluster: dict[str, Any] = {"address": address}
    if not address:  # "local": a cluster of our own even where another is running
        refuse_impossible(driver.study, cpus=int(machine.cpus), gpus=machine.gpus)
        cluster = {"address": "local", "num_cpus": int(machine.cpus), "num_gpus": machine.gpus}
        cluster |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it misses the loggers that we turn off
    ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **cluster)
    events: Events = queue.Queue()
    stopping = threading.Event()
    # Tune takes over signals in the main thread; in a thread of its own it leaves Ctrl-C to us.
    thread = threading.Thread(target=_tune, args=(driver, events, stopping), daemon=True, name="tune")
    try:
        if address:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            most = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU")}
            refuse_impossible(driver.study, cpus=most["CPU"], gpus=most["GPU"])
        thread.start()
        queued: list[TrialSpec] = []
        while True:
            for spec in [s for s in queued if _worker_log(driver, s).exists()]:
                queued.remove(spec)
                yield Started(spec=spec)
            try:
                event = events.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield Tick()
                continue
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, TrialSpec):
                queued.append(event)
            else:
                yield event
    finally:
        stopping.set()
        driver.call_off()
        if thread.is_alive():
            thread.join(timeout=WIND_DOWN_SECONDS)  # Ray ends the process when Tune's thread uses it after shutdown
        ray.shutdown()


def _tune(driver: Driver, events: Events, stopping: threading.Event) -> None:
    """Run one Tuner to its end; what goes wrong in it is raised where the events are read."""
    from ray import tune

    try:
        for left in driver.study.dir.glob(f"{TUNE_PREFIX}*"):  # by a driver that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=TUNE_PREFIX, dir=driver.study.dir) as folder:
            tuner = tune.Tuner(
                tune.with_resources(_run_worker, _resources),
                tune_config=tune.TuneConfig(
                    search_alg=_brain_searcher(driver, events, stopping), num_samples=-1, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    storage_path=folder, verbose=0, failure_config=tune.FailureConfig(max_failures=NODE_LOSSES)
                ),
            )
            tuner.fit()
        events.put(None)
    except BaseException as error:
        events.put(error)


def _run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs inside the Ray actor: one worker process, like the local engine's."""
    folder = Path(config["folder"])
    with (folder / WORKER_LOG).open("wb") as log:
        code = subprocess.call(
            worker_command(folder), env=worker_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    return {"exit_code": code}


def _worker_log(driver: Driver, spec: TrialSpec) -> Path:
    """A file that exists once the trial has left Tune's queue."""
    return trial_dir(driver.study, spec.trial_id) / WORKER_LOG


def _resources(config: dict[str, Any]) -> Any:
    """One bundle per trial: everything it needs on one node, fractions of a GPU or a gang."""
    from ray import tune

    spec = config["spec"]
    bundle = {"CPU": spec["cpus"], "GPU": spec["gpus"]}
    return tune.PlacementGroupFactory([{kind: amount for kind, amount in bundle.items() if amount}])


def _brain_searcher(driver: Driver, events: Events, stopping: threading.Event) -> Any:
    """The brain in Tune's clothes."""
    from ray.tune.search import Searcher

    @contextmanager
    def passed_on() -> Iterator[None]:
        """Errors belong to whoever reads the events; Tune would wrap them in its own."""
        try:
            yield
        except Exception as error:
            stopping.set()
            events.put(error)

    class BrainSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__()
            self._specs: dict[str, TrialSpec] = {}

        def __reduce__(self) -> Any:
            return Searcher, ()  # Tune pickles what it would restore from; there is nothing here to restore

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the trial folders are the record."""

        def suggest(self, trial_id: str) -> Any:
            said: TrialSpec | Wait | Done = Done()
            if not stopping.is_set():
                with passed_on():
                    said = driver.next()
            if isinstance(said, Done):
                return Searcher.FINISHED
            if isinstance(said, Wait):
                return None
            self._specs[trial_id] = said
            _worker_log(driver, said).unlink(missing_ok=True)
            events.put(said)
            return {"folder": str(trial_dir(driver.study, said.trial_id)), "spec": to_plain(said)}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            spec = self._specs.pop(trial_id)
            code = (result or {}).get("exit_code")
            if stopping.is_set() or code == EXIT_UNFINISHED:  # called off: unfinished, not failed
                driver.release(spec)
                return
            how = "Ray lost the worker" if error or result is None else f"the worker ended with exit code {code}"
            with passed_on():
                events.put(Finished(spec=spec, result=driver.finish(spec, failure=f"{how} and left no result")))

    return BrainSearcher()
