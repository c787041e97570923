"""Engine 2: Ray Tune runs trials on one node or many; the brain decides everything (the only file that talks to Ray).

Tune owns actors and notices what dies, and no truth: the brain is a `Searcher`, no scheduler stops anything, and
after a crash a new Tuner asks the brain again, never `Tuner.restore` (automl T4). A trial goes to Ray when it can start
and with the node on which it is to start (search.engines.placement): left to itself Ray lets small trials starve a gang
of 8 GPUs (automl R8), or a waiting gang keep whole nodes idle. A trial whose node or actor dies is started again; the
worker on a node that is only cut off notices that its actor is gone, and two workers never share a folder.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgolf_model.errors import UserError
from search.brain.driver import Driver
from search.engines.dispatch import Dispatcher, Start
from search.engines.events import Event, Finished, Started, Tick
from search.engines.machine import Machine, refuse_impossible, worker_command, worker_environment
from search.engines.placement import Node
from search.ladder.promote import Done
from search.study.ledger import trial_dir
from trials.spec import EXIT_UNFINISHED, RESULT_FILE, SPEC_FILE, WORKER_LOG, TrialSpec

Events = queue.Queue[Event | TrialSpec | BaseException | None]  # a spec: handed to Tune; None: the study is over

TUNE_PREFIX = ".tune_"  # of the folder in which Tune keeps its own books, which nobody reads
TICK_SECONDS = 0.5
WIND_DOWN_SECONDS = 20.0  # for workers to leave and for Tune to notice, when a study is stopped
NODE_LOSSES = 2  # times a trial is started again after Ray lost its actor or node; its finished seeds are kept
NODES_SECONDS = 1.0  # between looks at which nodes are alive
NO_NODE_SECONDS = 60.0  # that a study waits when no node is left on which anything could run
NODE_LABEL = "ray.io/node-id"  # that Ray gives every node
OBJECT_STORE_BYTES = 100_000_000  # trials exchange files, not objects; Ray's floor is 75 MB
LOCAL = {"RAY_AUTH_MODE": "disabled"}  # Ray 2.60 writes a token into the home folder otherwise (automl R1)
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # Tune's thread would start a second cluster after our shutdown
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without GPUs sees none (automl R6)
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # started at the same time; what waits for room waits with us
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_ray(driver: Driver, machine: Machine, *, address: str = "") -> Generator[Event, None, None]:
    """Drive the study to its end under Ray Tune. Closing the generator stops Ray and with it all workers.

    Args:
        machine: what a local cluster may use; ignored when `address` names a running one.
    Raises:
        UserError: Ray is not installed, a rung asks for more than the largest node has, a node does not see the
            study's folder or data or cannot run trials, or no node is left.
    """
    for key, value in (QUIET if address else QUIET | LOCAL).items():
        os.environ.setdefault(key, value)
    try:
        import ray
    except ImportError:
        raise UserError("engine 'ray' needs Ray: install ray[tune], or use --engine local") from None
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
            nodes = alive_nodes()
            refuse_impossible(
                driver.study, cpus=max((n.cpus for n in nodes), default=0), gpus=max((n.gpus for n in nodes), default=0)
            )
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


def alive_nodes() -> tuple[Node, ...]:
    """The nodes of the cluster by id, as Ray knows them now."""
    import ray

    found = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    found.sort(key=lambda node: str(node["NodeID"]))
    return tuple(
        Node(name=n["NodeID"], cpus=n["Resources"].get("CPU", 0.0), gpus=int(n["Resources"].get("GPU", 0)))
        for n in found
    )


def _tune(driver: Driver, events: Events, stopping: threading.Event) -> None:
    """Run one Tuner to its end; what goes wrong in it is raised where the events are read."""
    from ray import tune

    try:
        for left in driver.study.dir.glob(f"{TUNE_PREFIX}*"):  # by a driver that was killed
            shutil.rmtree(left, ignore_errors=True)
        searcher, scheduler = _brain_and_undertaker(driver, events, stopping)
        with tempfile.TemporaryDirectory(prefix=TUNE_PREFIX, dir=driver.study.dir) as folder:
            tuner = tune.Tuner(
                tune.with_resources(_run_worker, _resources),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=True
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[_silence()]),
            )
            tuner.fit()
        events.put(None)
    except BaseException as error:
        events.put(error)


def _silence() -> Any:
    """In place of Tune's callback that prints trials which end without a result: stdout is the command's."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silence(TrialProgressCallback):
        def _print(self, msg: str) -> None:
            pass

    return Silence()


def _run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs inside the Ray actor: one worker process, like the local engine's."""
    folder = Path(config["folder"])
    missing = [path for path in (str(folder / SPEC_FILE), *config["files"]) if not Path(path).exists()]
    if missing:
        return {"missing": missing[0], "host": os.uname().nodename}
    with (folder / WORKER_LOG).open("wb") as log:
        code = subprocess.call(
            worker_command(folder), env=worker_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    return {"exit_code": code}


def _worker_log(driver: Driver, spec: TrialSpec) -> Path:
    """A file that exists once the trial has left Tune's queue."""
    return trial_dir(driver.study, spec.trial_id) / WORKER_LOG


def _resources(config: dict[str, Any]) -> Any:
    """One bundle per trial, on the node that was chosen: fractions of a GPU or a gang."""
    from ray import tune

    bundle = {kind: amount for kind, amount in (("CPU", config["cpus"]), ("GPU", config["gpus"])) if amount}
    where = [{NODE_LABEL: config["node"]}]
    return tune.PlacementGroupFactory([bundle], strategy="STRICT_PACK", bundle_label_selector=where)


def _brain_and_undertaker(driver: Driver, events: Events, stopping: threading.Event) -> tuple[Any, Any]:
    """The brain in Tune's clothes; and a scheduler that only buries trials whose node died before they began."""
    from ray.exceptions import RayTaskError
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    dispatcher = Dispatcher(driver, alive_nodes())
    given: dict[str, Start] = {}  # by Tune's id of the trial
    losses: Counter[str] = Counter()
    looked = idle_since = time.monotonic()

    @contextmanager
    def passed_on() -> Iterator[None]:
        """Errors belong to whoever reads the events; Tune would wrap them in its own."""
        try:
            yield
        except Exception as error:
            stopping.set()
            events.put(error)

    def look_at_nodes() -> None:
        nonlocal looked
        if time.monotonic() - looked > NODES_SECONDS:
            dispatcher.nodes = alive_nodes()
            looked = time.monotonic()

    class BrainSearcher(Searcher):
        def __reduce__(self) -> Any:
            return Searcher, ()  # Tune pickles what it would restore from; there is nothing here to restore

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the trial folders are the record."""

        def suggest(self, trial_id: str) -> Any:
            nonlocal idle_since
            said: object = Done()
            if not stopping.is_set():
                with passed_on():
                    look_at_nodes()
                    said = dispatcher.next(time.monotonic())
                    if given or isinstance(said, Start):
                        idle_since = time.monotonic()
                    elif not isinstance(said, Done) and time.monotonic() - idle_since > NO_NODE_SECONDS:
                        raise UserError(
                            "no node is left on which a trial could run",
                            hint=("finished trials are kept: bring nodes back and go on with the same command"),
                        )
            if isinstance(said, Done):
                return Searcher.FINISHED
            if not isinstance(said, Start):
                return None
            spec = said.spec
            given[trial_id] = said
            _worker_log(driver, spec).unlink(missing_ok=True)
            events.put(spec)
            return {
                "folder": str(trial_dir(driver.study, spec.trial_id)),
                "files": [spec.data_dir, spec.tokenizer],
                "cpus": spec.cpus,
                "gpus": spec.gpus,
                "node": said.node,
            }

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            spec = given.pop(trial_id).spec
            dispatcher.ended(spec)
            said = result or {}
            code = said.get("exit_code")
            if stopping.is_set() or code == EXIT_UNFINISHED:  # called off: unfinished, not failed
                driver.release(spec)
                return
            with passed_on():
                if "missing" in said:
                    raise UserError(
                        f"node {said['host']} does not see {said['missing']}",
                        hint=(
                            "the study's folder and its data must be "
                            "at the same path on all nodes: put them on storage that all share, or leave that node out"
                        ),
                    )
                lost = code is None and not (trial_dir(driver.study, spec.trial_id) / RESULT_FILE).exists()
                losses[spec.trial_id] += lost and _worker_log(driver, spec).exists()  # it had begun
                if lost and losses[spec.trial_id] <= NODE_LOSSES:
                    driver.release(spec)  # unfinished: it comes again
                    return
                how = "Ray lost the worker" if code is None else f"the worker ended with exit code {code}"
                ended = driver.finish(spec, f"{how} and left no result", exit_code=code)
                events.put(Finished(spec=spec, result=ended))

    class Undertaker(FIFOScheduler):
        def __reduce__(self) -> Any:
            return FIFOScheduler, ()

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            error = trial.get_pickled_error()
            if isinstance(error, RayTaskError):  # the actor lives and cannot run what it was given
                with passed_on():
                    reason = str(error).strip().splitlines()[-1]
                    raise UserError(
                        f"a node cannot run trials: {reason}", hint="install pgolf in the same way on all nodes"
                    )

        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            alive = {node.name for node in dispatcher.nodes}
            for trial in tune_controller.get_trials():
                if trial.status == "PENDING" and trial.config["node"] not in alive:
                    tune_controller.stop_trial(trial)  # its placement group would wait for ever
            return super().choose_trial_to_run(tune_controller)

    return BrainSearcher(), Undertaker()  # type: ignore[no-untyped-call]
