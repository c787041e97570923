"""The brain as Ray Tune's searcher: Tune asks it for trials to start and tells it which ones have ended.

A trial goes to Ray when it can start, and with the node on which it is to start (search.engines.placement): left to
itself, Ray lets small trials starve a gang of eight GPUs, or a waiting gang keep whole nodes idle. A trial whose node
or actor dies is started again. A worker on a node that is only cut off notices that its actor is gone, so two workers
never share a folder.

Only this file and `ray_tune` talk to Ray. They import it inside functions, because local studies run without it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgolf_model.errors import UserError
from search.brain.driver import Driver
from search.engines.dispatch import Dispatcher, Launch
from search.engines.events import Event, Finished
from search.engines.placement import Node
from search.ladder.promote import Done
from search.study.ledger import trial_dir
from trials.spec import EXIT_UNFINISHED, RESULT_FILE, WORKER_LOG, TrialSpec

Events = queue.Queue[Event | TrialSpec | BaseException | None]  # a spec: handed to Tune; None: the study is over

NODE_LOSSES = 2  # times a trial is started again after Ray lost its actor or node; its finished seeds are kept
NODES_SECONDS = 1.0  # between looks at which nodes are alive
NO_NODE_SECONDS = 60.0  # that a study waits when no node is left on which anything could run


class RaySearcher:
    """What Tune's searcher and scheduler do for a study. Tune calls it from one thread."""

    def __init__(self, driver: Driver, events: Events, stopping: threading.Event) -> None:
        """Nothing runs yet.

        Args:
            events: gets every trial that is handed to Tune, every end, and every error.
            stopping: set by whoever reads the events, or here after an error: no trial is started any more.
        """
        self._driver, self._events, self._stopping = driver, events, stopping
        self._dispatcher = Dispatcher(driver, alive_nodes())
        self._given: dict[str, Launch] = {}  # by Tune's id of the trial
        self._losses: Counter[str] = Counter()  # of each trial: how often its node or actor was lost after it had begun
        self._looked = self._idle_since = time.monotonic()

    def suggest(self, trial_id: str) -> dict[str, Any] | Done | None:
        """What Tune's next trial is to run, as `ray_tune` reads it; None when nothing can start now.

        Args:
            trial_id: Tune's.
        """
        said: object = Done()
        if not self._stopping.is_set():
            with self._passing_errors_on():
                said = self._next()
        if isinstance(said, Done):
            return said
        if not isinstance(said, Launch):
            return None
        spec = said.spec
        self._given[trial_id] = said
        worker_log(self._driver, spec).unlink(missing_ok=True)
        self._events.put(spec)
        return {
            "folder": str(trial_dir(self._driver.study, spec.trial_id)),
            "files": [spec.data_dir, spec.tokenizer],
            "cpus": spec.cpus,
            "gpus": spec.gpus,
            "node": said.node,
        }

    def _next(self) -> object:
        """The dispatcher's answer on the nodes that are alive.

        Raises:
            UserError: for NO_NODE_SECONDS nothing has run and nothing could start.
        """
        now = time.monotonic()
        if now - self._looked > NODES_SECONDS:
            self._dispatcher.nodes = alive_nodes()
            self._looked = now
        said = self._dispatcher.next(time.monotonic())
        if self._given or isinstance(said, Launch):
            self._idle_since = time.monotonic()
        elif not isinstance(said, Done) and time.monotonic() - self._idle_since > NO_NODE_SECONDS:
            raise UserError(
                "no node is left on which a trial could run",
                hint=("finished trials are kept: bring nodes back and go on with the same command"),
            )
        return said

    def completed(self, trial_id: str, answer: Mapping[str, Any]) -> None:
        """A trial has left Tune.

        Args:
            trial_id: Tune's.
            answer: what the actor returned (`ray_tune`); empty when Ray lost the actor.
        """
        spec = self._given.pop(trial_id).spec
        self._dispatcher.ended(spec)
        code = answer.get("exit_code")
        if self._stopping.is_set() or code == EXIT_UNFINISHED:  # called off: unfinished, not failed
            self._driver.release(spec)
            return
        with self._passing_errors_on():
            if "missing" in answer:
                raise UserError(
                    f"node {answer['host']} does not see {answer['missing']}",
                    hint=(
                        "the study's folder and its data must be "
                        "at the same path on all nodes: put them on storage that all share, or leave that node out"
                    ),
                )
            lost = code is None and not (trial_dir(self._driver.study, spec.trial_id) / RESULT_FILE).exists()
            had_begun = worker_log(self._driver, spec).exists()
            self._losses[spec.trial_id] += lost and had_begun
            if lost and self._losses[spec.trial_id] <= NODE_LOSSES:
                self._driver.release(spec)  # unfinished: it comes again
                return
            how = "Ray lost the worker" if code is None else f"the worker ended with exit code {code}"
            result = self._driver.finish(spec, f"{how} and left no result", exit_code=code)
            self._events.put(Finished(spec=spec, result=result))

    def cannot_run(self, reason: str) -> None:
        """A node's actor lives and cannot run what it was given: the study stops."""
        with self._passing_errors_on():
            raise UserError(f"a node cannot run trials: {reason}", hint="install pgolf in the same way on all nodes")

    def sees(self, node: str) -> bool:
        """Whether a node was alive at the last look."""
        return any(known.name == node for known in self._dispatcher.nodes)

    @contextmanager
    def _passing_errors_on(self) -> Iterator[None]:
        """Errors belong to whoever reads the events; Tune would wrap them in its own."""
        try:
            yield
        except Exception as error:
            self._stopping.set()
            self._events.put(error)


def tune_parts(brain: RaySearcher) -> tuple[Any, Any]:
    """Tune's searcher and scheduler. Both only translate; the scheduler stops no trial that could still run."""
    from ray.exceptions import RayTaskError
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    class BrainSearcher(Searcher):
        """Tune's calls, passed to the brain."""

        def __reduce__(self) -> Any:
            return Searcher, ()  # Tune pickles what it would restore from; there is nothing here to restore

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the trial folders are the record."""

        def suggest(self, trial_id: str) -> Any:
            said = brain.suggest(trial_id)
            return Searcher.FINISHED if isinstance(said, Done) else said

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            brain.completed(trial_id, result or {})

    class Undertaker(FIFOScheduler):
        """Trials in order; those whose node died before they began are taken off the queue."""

        def __reduce__(self) -> Any:
            return FIFOScheduler, ()

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            error = trial.get_pickled_error()
            if isinstance(error, RayTaskError):
                brain.cannot_run(str(error).strip().splitlines()[-1])

        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            for trial in tune_controller.get_trials():
                if trial.status == "PENDING" and not brain.sees(trial.config["node"]):
                    tune_controller.stop_trial(trial)  # its placement group would wait for ever
            return super().choose_trial_to_run(tune_controller)

    return BrainSearcher(), Undertaker()  # type: ignore[no-untyped-call]


def alive_nodes() -> tuple[Node, ...]:
    """The nodes of the cluster by id, as Ray knows them now."""
    import ray

    found = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    found.sort(key=lambda node: str(node["NodeID"]))
    return tuple(
        Node(name=n["NodeID"], cpus=n["Resources"].get("CPU", 0.0), gpus=int(n["Resources"].get("GPU", 0)))
        for n in found
    )


def worker_log(driver: Driver, spec: TrialSpec) -> Path:
    """A file that exists once the trial has left Tune's queue."""
    return trial_dir(driver.study, spec.trial_id) / WORKER_LOG
