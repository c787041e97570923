"""A cluster of several nodes, all pretended by this machine: Ray's own test utility, fake GPUs, real trials and kills.

The trials' scripts only sleep and report; everything around them is what a user runs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from pgolf_model.config import RunConfig
from search.brain.driver import Driver
from search.brain.maker import Made
from search.engines.machine import Machine
from search.engines.ray_tune import QUIET, run_ray
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord, read_records
from space.params import FloatParam, Space
from trials.rungs import Rung
from trials.spec import RESULT_FILE

SCRIPT = """
import hashlib, json, os, sys, time
seed = int(sys.argv[sys.argv.index("--seed") + 1])
node, ancestor = None, os.getpid()  # the actor's environment says it; a script's is without Ray's variables
while node is None:
    ancestor = int(open(f"/proc/{ancestor}/stat").read().rpartition(")")[2].split()[1])
    told = dict(word.split("=", 1) for word in open(f"/proc/{ancestor}/environ").read().split(chr(0)) if "=" in word)
    node = told.get("RAY_RAYLET_PID")
stay = {"start": time.time(), "node": node, "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}
rank = int(os.environ.get("RANK", 0))
json.dump(stay, open(f"stay{rank}.json", "w"))
time.sleep(SECONDS)
if rank == 0:
    open("../ran.txt", "a").write(f"{time.time()}\\n")
    open("final_model.pgolf", "wb").write(b"x")
    names = "val_loss pre_quant_val_bpb model_bytes code_bytes steps tokens_seen num_params train_seconds eval_seconds"
    names += " total_seconds peak_memory_bytes"
    metrics = dict.fromkeys(names.split(), 1) | {"seed": seed, "val_bpb": BPB, "status": "complete", "versions": {}}
    metrics |= {"artifact_sha256": "", "end": time.time(), "total_seconds": SECONDS}
    json.dump(metrics, open("metrics.json.part", "w"))
    os.replace("metrics.json.part", "metrics.json")
"""
SPACE = Space(
    name="nap",
    params=(FloatParam(name="x", low=0.0, high=1.0, tag="scale_free"),),
    make_config=lambda values, vocab_size: RunConfig(),
    control={"x": 0.5},
)


@dataclass(frozen=True)
class NapMaker:
    """Trials that sleep for so many seconds, by rung."""

    data: Path
    seconds: dict[str, float]
    space: Space = SPACE
    predict_bytes: None = None

    def make(self, rung: Rung, params: dict[str, Any], seed: int) -> Made:
        script = SCRIPT.replace("SECONDS", str(self.seconds[rung.name])).replace("BPB", str(1 + params["x"]))
        return Made(config=RunConfig(), script=script.encode(), data_dir=str(self.data), tokenizer=str(self.data))

    def script(self, config: RunConfig) -> bytes:
        return b""

    def freeze(self, folder: Path) -> None:
        pass


NODE = {"object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in QUIET.items():
            patch.setenv(key, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        from ray.cluster_utils import Cluster

        found = patiently(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE}))
        yield found
        found.shutdown()


def nodes(cluster: Any, number: int) -> list[Any]:
    """So many living nodes of 8 GPUs and 32 cores."""
    alive = [node for node in cluster.worker_nodes if node.live_processes()]
    return alive + [
        patiently(lambda: cluster.add_node(num_cpus=32, num_gpus=8, **NODE)) for _ in range(number - len(alive))
    ]


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to come up, which a machine that does ten other things does not always keep."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


def make_driver(folder: Path, *rungs: Rung, seconds: dict[str, float]) -> Driver:
    folder.mkdir(exist_ok=True)
    study = StudyConfig(
        name="nap",
        space="nap",
        data=(str(folder),),
        rungs=rungs,
        folder=str(folder / "study"),
        sampler="random",
        anomaly_ratio=0,
    )
    return Driver(study, NapMaker(folder, seconds))


def drive(driver: Driver, cluster: Any, look: Callable[[], object] = lambda: None) -> None:
    """The study to its end; `look` is called after everything that happens, and twice a second."""
    deadline = time.monotonic() + 300
    with closing(run_ray(driver, Machine(cpus=1), address=cluster.address)) as events:
        for _ in events:
            assert time.monotonic() < deadline, "the study hangs"
            look()


@dataclass(frozen=True)
class Seen:
    """What a trial's script saw."""

    record: TrialRecord
    asked: float
    start: float
    end: float
    node: int  # process of its raylet
    gpus: tuple[str, ...]


def seen(driver: Driver) -> list[Seen]:
    found = []
    for record in read_records(driver.study):
        folder = driver.study.dir / record.spec.trial_id
        seed = folder / f"seed{record.spec.seeds[0]}"
        stay = json.loads((seed / "stay0.json").read_text())
        found.append(
            Seen(
                record=record,
                asked=(folder / "spec.json").stat().st_mtime,
                start=stay["start"],
                end=json.loads((seed / "metrics.json").read_text())["end"],
                node=int(stay["node"]),
                gpus=tuple(stay["gpus"].split(",")),
            )
        )
    return found


def running(driver: Driver) -> dict[str, int]:
    """Trials whose script is at it, and the raylet of each."""
    found = {}
    for stay in driver.study.dir.glob("*/*/seed*/stay0.json"):
        folder = stay.parent.parent
        if not (folder / RESULT_FILE).exists() and (text := stay.read_text()):
            found[f"{folder.parent.name}/{folder.name}"] = int(json.loads(text)["node"])
    return found


def assert_told_once(driver: Driver) -> None:
    """Every trial is complete, has its result in its folder, and Optuna holds it once."""
    import optuna

    records = read_records(driver.study)
    assert {r.status for r in records} == {"complete"}, [r.result for r in records]
    for rung in driver.study.rungs:
        told = optuna.load_study(study_name=f"nap/{rung.name}", storage=driver.study.storage_url)
        mine = {r.spec.number: r.result.val_bpb for r in records if r.spec.rung == rung.name and r.result}
        assert {t.number: t.values[0] for t in told.trials if t.values} == pytest.approx(mine)


def actor_of(trial_id: str) -> int:
    """The Ray actor above the worker of a trial."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "trials.worker" in words and words[-3].endswith(trial_id):
            return int(words[-2])
    raise AssertionError(f"no worker of {trial_id}")


def test_small_trials_share_nodes_a_gang_gets_one_and_deaths_cost_nothing(tmp_path: Path, cluster: Any) -> None:
    """An actor and then a whole node are killed with -9 while trials run there."""
    nodes(cluster, 2)
    proxy = Rung(name="proxy", trials=7, steps=1, gpus=0.5, cpus=12)  # two on a node at a time, on one GPU
    full = Rung(name="full", keep=0.1, min_promote=1, seconds=9, gpus=8, processes=8, cpus=8)
    driver = make_driver(tmp_path, proxy, full, seconds={"proxy": 3.0, "full": 1.0})
    killed: dict[str, Any] = {}
    kept: dict[Path, bytes] = {}

    def kill() -> None:
        at_it = {trial: node for trial, node in running(driver).items() if trial.startswith("proxy")}
        if len(killed) == 0 and at_it:
            trial = min(at_it)
            killed[trial] = actor_of(trial)
            os.kill(killed[trial], signal.SIGKILL)
        elif len(killed) == 1 and at_it and any(driver.study.dir.glob(f"*/*/{RESULT_FILE}")):
            kept.update({path: path.read_bytes() for path in driver.study.dir.glob(f"*/*/{RESULT_FILE}")})
            killed["node"] = max(at_it.values())
            os.kill(killed["node"], signal.SIGKILL)

    drive(driver, cluster, kill)
    assert_told_once(driver)
    assert "node" in killed, "no node was killed"
    assert kept
    assert all(path.read_bytes() == text for path, text in kept.items()), "what was finished was run again"
    stays = seen(driver)
    proxies = [s for s in stays if s.record.spec.rung == "proxy"]
    assert any(a.node == b.node and a.gpus == b.gpus and a.start < b.start < a.end for a in proxies for b in proxies), (
        "nothing shared a GPU"
    )
    gangs = [s for s in stays if s.record.spec.rung == "full"]
    assert len(gangs) == 2
    for gang in gangs:
        assert len(gang.gpus) == 8
        assert gang.node != killed["node"]
        ranks = (driver.study.dir / gang.record.spec.trial_id / "seed1337").glob("stay*.json")
        assert [json.loads(r.read_text())["node"] for r in ranks] == [str(gang.node)] * 8, "a trial spans nodes"
        assert not [
            s for s in stays if s is not gang and s.node == gang.node and s.start < gang.end and gang.start < s.end
        ]


@pytest.mark.slow
def test_a_storm_of_dying_actors_and_nodes_loses_nothing(tmp_path: Path, cluster: Any) -> None:
    """A dozen times, at random moments, an actor or a whole node is killed with -9; another node takes its place.

    A trial is hit twice at most: more is its own failure by rule.
    """
    nodes(cluster, 2)
    proxy = Rung(name="proxy", trials=40, steps=1, gpus=1, cpus=1)
    full = Rung(name="full", keep=0.1, min_promote=2, seconds=9, gpus=8, processes=8, cpus=8)
    driver = make_driver(tmp_path, proxy, full, seconds={"proxy": 2.0, "full": 1.0})
    rng, hits, died = random.Random(5), Counter[str](), Counter[str]()
    kept: dict[Path, bytes] = {}
    pause = time.monotonic() + 3

    def strike() -> None:
        nonlocal pause
        kept.update(
            {path: path.read_bytes() for path in driver.study.dir.glob(f"*/*/{RESULT_FILE}") if path not in kept}
        )
        at_it = running(driver)
        if time.monotonic() < pause or not at_it or died.total() == 12:
            return
        pause = time.monotonic() + rng.uniform(0.5, 2.0)
        node = rng.choice(sorted(set(at_it.values())))
        there = [trial for trial in at_it if at_it[trial] == node]
        if rng.random() < 0.3 and all(hits[trial] < 2 for trial in there):
            os.kill(node, signal.SIGKILL)
            died["node"] += 1
            hits.update(there)
            nodes(cluster, 2)
        elif hits[trial := rng.choice(sorted(there))] < 2:
            with suppress(AssertionError, ProcessLookupError):  # it has ended meanwhile
                os.kill(actor_of(trial), signal.SIGKILL)
                died["actor"] += 1
                hits[trial] += 1

    drive(driver, cluster, strike)
    assert_told_once(driver)
    assert died["node"] >= 2, died
    assert died["actor"] >= 4, died
    assert all(path.read_bytes() == text for path, text in kept.items()), "what was finished was run again"
    assert sum(r.spec.rung == "proxy" for r in read_records(driver.study)) == 40


@pytest.mark.slow
def test_while_a_gang_waits_one_node_drains_and_the_other_is_refilled(tmp_path: Path, cluster: Any) -> None:
    """The control asks for 8 GPUs after the first proxy; twelve others are waiting then, four fit on a node."""
    nodes(cluster, 2)
    proxy = Rung(name="proxy", trials=20, steps=1, gpus=1, cpus=8)
    full = Rung(name="full", keep=0.05, min_promote=0, seconds=9, gpus=8, processes=8, cpus=32)
    driver = make_driver(tmp_path, proxy, full, seconds={"proxy": 8.0, "full": 1.0})
    drive(driver, cluster)
    assert_told_once(driver)
    stays = seen(driver)
    gang = next(s for s in stays if s.record.spec.label == "control" and s.record.spec.rung == "full")
    proxies = [s for s in stays if s.record.spec.rung == "proxy"]
    meanwhile = [s for s in proxies if gang.asked < s.asked and s.start < gang.start]
    assert meanwhile, "all nodes waited for the gang"
    assert {s.node for s in meanwhile}.isdisjoint({gang.node})
    assert max(s.start for s in proxies) > gang.start, "the gang was starved"


@pytest.mark.slow
def test_a_removed_node_and_then_no_node_at_all(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node is taken away politely, its trials go elsewhere; with the last one gone the study says so and ends.

    A node comes back, the same study goes on.
    """
    monkeypatch.setattr("search.engines.ray_searcher.NO_NODE_SECONDS", 5.0)
    alive = nodes(cluster, 2)
    rungs = (Rung(name="proxy", trials=6, steps=1, gpus=1, cpus=16),)
    driver = make_driver(tmp_path, *rungs, seconds={"proxy": 5.0})
    gone: list[Any] = []

    def remove() -> None:
        done = len(list(driver.study.dir.glob(f"*/*/{RESULT_FILE}")))
        if len(running(driver)) > len(gone) and done >= 2 * len(gone) and alive:
            gone.append(alive.pop())
            os.kill(gone[-1].all_processes["raylet"][0].process.pid, signal.SIGTERM)

    with pytest.raises(ValueError, match=r"no node is left .*go on with the same command"):
        drive(driver, cluster, remove)
    assert len(gone) == 2
    kept = {path: path.read_bytes() for path in driver.study.dir.glob(f"*/*/{RESULT_FILE}")}
    assert 2 <= len(kept) < 6
    nodes(cluster, 1)
    again = make_driver(tmp_path, *rungs, seconds={"proxy": 1.0})
    drive(again, cluster)
    assert_told_once(again)
    assert all(path.read_bytes() == text for path, text in kept.items())


@pytest.mark.slow
def test_a_node_that_does_not_see_the_data_is_named(tmp_path: Path, cluster: Any) -> None:
    nodes(cluster, 1)
    driver = make_driver(tmp_path, Rung(name="proxy", trials=2, steps=1, gpus=1), seconds={"proxy": 1.0})
    nowhere = tmp_path / "mounted elsewhere"
    there = Driver(driver.study, NapMaker(nowhere, {"proxy": 1.0}))
    with refused(f"does not see {nowhere}", hint=".*same path on all nodes"):
        drive(there, cluster)
    assert not list(driver.study.dir.glob(f"*/*/{RESULT_FILE}"))


@pytest.mark.slow
def test_the_command_line_uses_a_running_cluster(tmp_path: Path, tiny_data: Path, cluster: Any) -> None:
    """Real trainings, on cores; the cluster is still there afterwards. An impossible rung is refused as on one node."""
    nodes(cluster, 1)
    study = tmp_path / "mini.toml"
    study.write_text(
        f"""name = "mini"\nspace = "tiny"\ndata = "{tiny_data}"\nwarm_starts = false\n"""
        """[caps]\nartifact_bytes = 600_000\n"""
        """[[rungs]]\nname = "proxy"\ntrials = 2\nsteps = 2\nbatch_tokens = 1024\nval_tokens = 4096\n"""
    )
    command = [sys.executable, "-m", "search.cli", "search", str(study), "--ray-address", cluster.address, "--json"]
    said = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=400, check=False)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["best"]["trial"].startswith("proxy/")
    stays = [json.loads(path.read_text())["status"] for path in (tmp_path / "runs").glob(f"mini/*/*/{RESULT_FILE}")]
    assert stays == ["complete"] * 2
    study.write_text(study.read_text().replace('"mini"', '"large"') + "gpus = 16\nprocesses = 16\n")
    said = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=400, check=False)
    assert "needs 1 cpus and 16 gpus per trial, the largest machine has 32 and 8" in said.stderr
