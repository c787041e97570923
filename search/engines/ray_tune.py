"""Engine 2: Ray Tune runs trials on one node or many; the brain decides everything.

Tune owns actors and notices which of them die. It owns no truth: the brain is its searcher (`ray_searcher`), no
scheduler stops a trial, and after a crash a new Tuner asks the brain again; `Tuner.restore` is never used, for Tune's
own books may be behind the trial folders.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pgolf_model.errors import UserError
from search.brain.driver import Driver
from search.engines.events import Event, Started, Tick
from search.engines.machine import Machine, refuse_impossible, worker_command, worker_environment
from search.engines.ray_searcher import Events, RaySearcher, alive_nodes, tune_parts, worker_log
from trials.spec import SPEC_FILE, WORKER_LOG, TrialSpec

TUNE_PREFIX = ".tune_"  # of the folder in which Tune keeps its own books, which nobody reads
TICK_SECONDS = 0.5
WIND_DOWN_SECONDS = 20.0  # for workers to leave and for Tune to notice, when a study is stopped
NODE_LABEL = "ray.io/node-id"  # that Ray gives every node
OBJECT_STORE_BYTES = 100_000_000  # trials exchange files, not objects; Ray's floor is 75 MB
TOKEN_BYTES = 32  # of a local cluster's secret
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # Tune's thread would start a second cluster after our shutdown
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without GPUs sees none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # at the same time; trials without room wait in our own queue
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
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if not address:
        os.environ.update(secret())
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
            for spec in [s for s in queued if worker_log(driver, s).exists()]:
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


def secret() -> dict[str, str]:
    """The environment of a cluster with a secret, without which nobody joins it or runs anything on it.

    Ray's head, nodes and workers listen on all addresses of the machine. The secret is in the environment of Ray's own
    processes alone: trials do not get it (`trials.environment`), and nothing is written to the home folder. A process
    keeps its secret, for Ray reads it once.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(TOKEN_BYTES),
    }


def _tune(driver: Driver, events: Events, stopping: threading.Event) -> None:
    """Run one Tuner to its end. Its errors go into the queue of events and are raised by `run_ray`."""
    from ray import tune

    try:
        for left in driver.study.dir.glob(f"{TUNE_PREFIX}*"):  # by a driver that was killed
            shutil.rmtree(left, ignore_errors=True)
        searcher, scheduler = tune_parts(RaySearcher(driver, events, stopping))
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
    """A silent callback in place of Tune's, which prints trials that end without a result: stdout is the command's."""
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


def _resources(config: dict[str, Any]) -> Any:
    """One bundle per trial, on the node that was chosen: fractions of a GPU or a gang."""
    from ray import tune

    bundle = {kind: amount for kind, amount in (("CPU", config["cpus"]), ("GPU", config["gpus"])) if amount}
    where = [{NODE_LABEL: config["node"]}]
    return tune.PlacementGroupFactory([bundle], strategy="STRICT_PACK", bundle_label_selector=where)
