"""Real engines, real trainings, real kills: what a user sees when a study is run from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
import pytest
from processes import processes, wait_for

from search.study.config import load_study
from search.study.ledger import read_records
from trials.spec import RESULT_FILE

STUDY = """
name = "mini"
space = "tiny"
data = "{data}"
engine = "{engine}"
warm_starts = false
cpus = 2
[caps]
artifact_bytes = 600_000
[[rungs]]
name = "proxy"
trials = 3
steps = 2
batch_tokens = 1024
val_tokens = 4096
timeout_seconds = 120
[[rungs]]
name = "full"
keep = 0.3
min_promote = 1
steps = 4
batch_tokens = 1024
val_tokens = 4096
cpus = 2
timeout_seconds = 120
"""


def write_study(tmp_path: Path, tiny_data: Path, engine: str) -> Path:
    path = tmp_path / "mini.toml"
    path.write_text(STUDY.format(data=tiny_data, engine=engine))
    return path


def pgolf(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """The command as a user's shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "search.cli", *words],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=listen_to_ctrl_c,
    )


def listen_to_ctrl_c() -> None:
    """A shell starts background jobs, and so perhaps these tests, with Ctrl-C ignored; that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def results(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob(f"*/*/{RESULT_FILE}")}


def wait_for_results(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(results(folder)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no results in two minutes"
        time.sleep(0.05)


def kill_after_the_first_result(study: Path, folder: Path) -> dict[str, bytes]:
    """Start the study, kill -9 its driver in the middle; what was finished when its last worker had noticed."""
    driver = pgolf("search", str(study), cwd=study.parent)
    wait_for_results(folder, 1, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    wait_for(lambda: str(folder) not in processes(), 60)
    return results(folder)


def assert_complete(tmp_path: Path) -> None:
    """Every planned trial ran once, and Optuna holds each of them once."""
    study = load_study(str(tmp_path / "runs" / "mini"))
    records = read_records(study)
    ran = [r for r in records if r.status != "infeasible"]
    assert all(r.status in ("complete", "diverged") for r in ran), [r.result for r in ran]
    assert sum(r.spec.rung == "proxy" for r in ran) == 3
    top = [r for r in ran if r.spec.rung == "full"]
    assert len(top) == len({r.spec.parent for r in top}) >= 1
    for rung in study.rungs:
        told = optuna.load_study(study_name=f"mini/{rung.name}", storage=study.storage_url)
        assert sorted(t.number for t in told.trials if t.state != optuna.trial.TrialState.FAIL) == sorted(
            r.spec.number for r in records if r.spec.rung == rung.name
        )


def test_kill_nine_in_mid_study_then_the_same_command_again(tmp_path: Path, tiny_data: Path) -> None:
    study = write_study(tmp_path, tiny_data, "local")
    folder = tmp_path / "runs" / "mini"
    kept = kill_after_the_first_result(study, folder)

    code, _, err = finish(pgolf("search", str(study), cwd=tmp_path))
    assert code == 0, err
    assert "going on with" in err
    assert kept.items() <= results(folder).items(), "a finished result was run again or changed"
    assert_complete(tmp_path)

    whole = results(folder)
    code, out, err = finish(pgolf("search", str(study), "--json", cwd=tmp_path))
    assert code == 0, err
    assert "is complete" in err
    assert results(folder) == whole
    best = json.loads(out)["best"]
    assert best["trial"].startswith("full/")


def test_ray_survives_kill_nine_and_ctrl_c_and_prints_how_to_go_on(tmp_path: Path, tiny_data: Path) -> None:
    """Killed after the first result, interrupted while the next trial runs, then left alone."""
    study = write_study(tmp_path, tiny_data, "ray")
    folder = tmp_path / "runs" / "mini"
    kept = kill_after_the_first_result(study, folder)

    interrupted = pgolf("search", str(study), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while f"{folder}/" not in processes():
        assert interrupted.poll() is None, interrupted.communicate()[1]
        assert time.monotonic() < deadline, "no trial in two minutes"
        time.sleep(0.05)
    interrupted.send_signal(signal.SIGINT)
    code, _, err = finish(interrupted)
    assert kept.items() <= results(folder).items()
    assert code == 130, err
    assert f"pgolf search {study}" in err
    assert "Traceback" not in err
    kept = results(folder)
    assert all(json.loads(text)["status"] == "complete" for text in kept.values()), "stopping is not failing"

    code, _, err = finish(pgolf("search", str(study), cwd=tmp_path))
    assert code == 0, err
    assert kept.items() <= results(folder).items()
    assert_complete(tmp_path)


def test_ray_absent_when_asked_for_is_named_with_the_way_out(tmp_path: Path, tiny_data: Path) -> None:
    study = write_study(tmp_path, tiny_data, "ray")
    program = (
        "import sys; sys.modules['ray'] = None\n"  # what an installation without Ray does to `import ray`
        f"sys.argv = ['pgolf', 'search', {str(study)!r}]\n"
        "import search.cli; search.cli.main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, check=False, timeout=120
    )
    assert answer.returncode == 1
    assert "error: engine 'ray' needs Ray" in answer.stderr


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_rung_too_big_for_the_machine_is_refused_before_anything_runs(
    tmp_path: Path, tiny_data: Path, engine: str
) -> None:
    study = write_study(tmp_path, tiny_data, engine)
    study.write_text(study.read_text() + "gpus = 8\nprocesses = 8\n")
    code, _, err = finish(pgolf("search", str(study), cwd=tmp_path))
    assert code == 1
    assert "error: rung 'full' needs 2 cpus and 8 gpus per trial, the largest machine has 2 and 0" in err
    assert "hint: lower the rung's cpus and gpus" in err
    assert not results(tmp_path / "runs" / "mini")


JOIN = """
import ray, sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)  # what joining begins with; ray.init would try for 20 s
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()))
"""


def test_nobody_joins_a_local_cluster_without_its_secret(tmp_path: Path, tiny_data: Path) -> None:
    """Ray's head listens on all addresses. Without the secret, or with another, a stranger runs nothing; the holder of
    the secret does, so it is the secret that decides. Nothing is written to the home folder, and no trial sees it.
    """
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    study = write_study(tmp_path, tiny_data, "ray")
    study.write_text(study.read_text().replace("steps = 2\n", "steps = 100000\n"))
    command = [sys.executable, "-m", "search.cli", "search", str(study)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment | {"HOME": str(home)}, stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        try:
            script = wait_for_process(driver, "train_gpt.py")
            assert not [name for name in script.environ() if name.startswith("RAY_")]
            node = wait_for_process(driver, "--gcs-address=")
            address = next(word.partition("=")[2] for word in node.cmdline() if word.startswith("--gcs-address="))
            secret = node.environ()["RAY_AUTH_TOKEN"]

            def join(**changes: str) -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [sys.executable, "-c", JOIN, address],
                    env=environment | {"HOME": str(home)} | changes,
                    text=True,
                    capture_output=True,
                    check=False,
                    timeout=100,
                )

            for changes in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
                refused = join(**changes)
                assert refused.returncode != 0
                assert "joined" not in refused.stdout
                assert "InvalidAuthToken" in refused.stderr, refused.stderr
            assert join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secret).stdout == "joined 7\n"
            assert not list(home.rglob("auth_token"))
        finally:
            driver.send_signal(signal.SIGTERM)
            driver.wait(timeout=60)


def wait_for_process(driver: subprocess.Popen[bytes], name: str) -> psutil.Process:
    """The first descendant of the driver with `name` in its command line."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        for process in psutil.Process(driver.pid).children(recursive=True):
            with suppress(psutil.Error):
                if any(name in word for word in process.cmdline()):
                    found.append(process)
        return bool(found)

    wait_for(is_there, 60)
    return found[0]
