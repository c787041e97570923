"""The worker turns whatever a script does into a result, and never outlives the one who asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import processes, wait_for
from submissions import CONFIG, finished_study

from pgolf_model.config import RunConfig
from pgolf_model.errors import EXIT_DISK_FULL
from pgolf_model.files import ARTIFACT_FILE, FAULT_FILE, METRICS_FILE
from search.bundle.script import bundle
from search.engines.machine import worker_command
from search.ladder.retry import second_attempt
from trials.files import append_line, read_lines, read_noun, read_progress, write_json
from trials.run import BEGAN_FILE, run_trial
from trials.spec import (
    EXIT_UNFINISHED,
    LOG_FILE,
    RESULT_FILE,
    SCRIPT_FILE,
    SPEC_FILE,
    STOP_FILE,
    TrialResult,
    TrialSpec,
)

METRICS = {
    "status": "complete",
    "val_bpb": 1.5,
    "val_loss": 2.5,
    "pre_quant_val_bpb": 1.4,
    "model_bytes": 900,
    "code_bytes": 100,
    "steps": 3,
    "tokens_seen": 300,
    "num_params": 10,
    "train_seconds": 0.5,
    "eval_seconds": 0.1,
    "total_seconds": 1.0,
    "peak_memory_bytes": 1,
    "artifact_sha256": "ab",
    "versions": {"torch": "0"},
}
ANSWER = f"""
import json, sys
seed = int(sys.argv[sys.argv.index("--seed") + 1])
metrics = {METRICS!r} | {{"seed": seed, "val_bpb": 1.0 + seed}}
open("{ARTIFACT_FILE}", "wb").write(b"x")
open("runs.txt", "a").write("ran\\n")
json.dump(metrics, open("{METRICS_FILE}", "w"))
"""


def trial_folder(
    tmp_path: Path, script: str, *, seeds: tuple[int, ...] = (1,), timeout: float = 30.0, processes: int = 1
) -> Path:
    folder = tmp_path / "trial"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCRIPT_FILE).write_text(script)
    spec = TrialSpec(
        study="s", rung="r", number=0, params={}, config=RunConfig(), seeds=seeds, data_dir="d", tokenizer="t",
        timeout_seconds=timeout, processes=processes,
    )  # fmt: skip
    write_json(folder / SPEC_FILE, spec)
    return folder


def test_every_seed_runs_and_the_score_is_their_mean(tmp_path: Path) -> None:
    result = run_trial(trial_folder(tmp_path, ANSWER, seeds=(1, 2, 6)))
    assert result.status == "complete"
    assert [run.seed for run in result.runs] == [1, 2, 6]
    assert result.val_bpb == pytest.approx(4.0)
    assert result.artifact_bytes == 1000
    assert result.versions == {"torch": "0"}


def test_a_seed_that_finished_is_not_run_again(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, ANSWER, seeds=(1, 2))
    assert run_trial(folder).runs == run_trial(folder).runs
    assert (folder / "seed1" / "runs.txt").read_text() == "ran\n"


def test_a_crash_is_a_failed_result_with_the_end_of_its_log(tmp_path: Path) -> None:
    result = run_trial(trial_folder(tmp_path, "raise RuntimeError('out of luck')"))
    assert result.status == "failed"
    assert "exit code 1" in result.error
    assert "out of luck" in result.error


def test_a_killed_script_is_a_failed_result(tmp_path: Path) -> None:
    result = run_trial(trial_folder(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert (result.status, result.fault, "signal 9" in result.error) == ("failed", "signal", True)


def test_a_script_without_metrics_is_a_failed_result(tmp_path: Path) -> None:
    result = run_trial(trial_folder(tmp_path, f"open({ARTIFACT_FILE!r}, 'w'); open({METRICS_FILE!r}, 'w').write('{{')"))
    assert (result.status, result.fault) == ("failed", "script")
    assert "without usable metrics" in result.error


def test_a_nan_in_the_metrics_never_becomes_a_score(tmp_path: Path) -> None:
    """json.loads accepts NaN; a result that carries one could win a comparison."""
    script = ANSWER.replace('"val_bpb": 1.0 + seed', '"val_bpb": float("nan")')
    result = run_trial(trial_folder(tmp_path, script))
    assert result.status == "failed"


def test_a_full_disk_is_no_result_but_a_reason_to_stop(tmp_path: Path) -> None:
    """The trial stays unfinished, to be run again when there is space."""
    folder = trial_folder(tmp_path, f"raise SystemExit({EXIT_DISK_FULL})")
    with pytest.raises(OSError, match="No space left on device"):
        run_trial(folder)
    answer = subprocess.run(worker_command(folder), text=True, capture_output=True, check=False)
    assert answer.returncode == EXIT_DISK_FULL
    assert "No space left on device" in answer.stderr
    assert not (folder / RESULT_FILE).exists()


def test_a_script_that_cannot_say_that_the_disk_is_full_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's script, or torchrun for its ranks, ends with 1: then the free space decides, not the message."""
    folder = trial_folder(tmp_path, "with open('/dev/full', 'wb') as full: full.write(b'x')")
    assert run_trial(folder).fault == "script", "there is space: the script wrote to something else"
    monkeypatch.setattr("trials.files.FULL_BYTES", 2**62)
    with pytest.raises(OSError, match="No space left on device"):
        run_trial(folder)


def test_a_script_that_left_word_of_lost_memory_is_out_of_memory(tmp_path: Path) -> None:
    """Whatever its log says; and a log that only talks about memory is the script's own fault."""
    left = f"open({FAULT_FILE!r}, 'w').write('{{\"fault\": \"oom\"}}'); raise SystemExit(1)"
    assert run_trial(trial_folder(tmp_path / "a", left)).fault == "oom"
    assert run_trial(trial_folder(tmp_path / "b", "raise ValueError('out of memory')")).fault == "script"


def test_a_divergence_is_a_result(tmp_path: Path) -> None:
    script = (
        f"import json; json.dump({{'status': 'diverged', 'steps': 7, 'versions': {{}}}}, open({METRICS_FILE!r}, 'w'))"
    )
    result = run_trial(trial_folder(tmp_path, f"import time; time.sleep(0.3); {script}"))
    assert result.status == "diverged"
    assert "after 7 steps" in result.error
    assert result.seconds >= 0.3, "it held its GPUs"


def test_a_run_past_its_timeout_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    nap = f"{600 + os.getpid() / 1e7:.7f}"  # recognisable among all processes
    script = f"import subprocess, time; subprocess.Popen(['sleep', '{nap}']); time.sleep(600)"
    started = time.monotonic()
    result = run_trial(trial_folder(tmp_path, script, timeout=1.0))
    assert (result.status, result.fault) == ("timeout", "timeout")
    assert "timeout_seconds" in result.error
    assert time.monotonic() - started < 10
    wait_for(lambda: f"sleep {nap}" not in processes())


def test_the_script_dies_with_the_driver_even_when_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of whoever started the worker leaves neither worker nor script, and the trial stays unfinished."""
    folder = trial_folder(tmp_path, "import time; open('up', 'w').close(); time.sleep(986)")
    program = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, '-m', 'trials.worker', {str(folder)!r}, str(os.getpid())]\n"
        "subprocess.Popen(command, start_new_session=True)\n"
        "time.sleep(600)"
    )
    driver = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: (folder / "seed1" / "up").exists())
    driver.kill()
    driver.wait()
    wait_for(lambda: str(folder) not in processes())
    assert not (folder / RESULT_FILE).exists()


def test_a_polite_stop_leaves_the_trial_unfinished(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, "import time; open('up', 'w').close(); time.sleep(985)")
    worker = subprocess.Popen(worker_command(folder))
    wait_for(lambda: (folder / "seed1" / "up").exists())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=10) == 128 + signal.SIGTERM
    wait_for(lambda: str(folder) not in processes())
    assert not (folder / RESULT_FILE).exists()


def test_the_worker_writes_the_result(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, ANSWER)
    assert subprocess.run(worker_command(folder), check=False).returncode == 0
    result = read_noun(TrialResult, folder / RESULT_FILE)
    assert result.status == "complete"
    assert result.runs[0].val_bpb == 2.0


def test_a_gang_trains_the_shipped_script_under_torchrun(tmp_path: Path, tiny_data: Path) -> None:
    """Two gloo ranks: what eight GPUs do. The score is that of one rank, up to the order of float sums."""
    alone = read_noun(TrialResult, finished_study(tiny_data).dir / "top" / "0000" / RESULT_FILE)
    (tmp_path / SCRIPT_FILE).write_bytes(bundle(CONFIG))
    spec = TrialSpec(
        study="s", rung="r", number=0, params={}, config=CONFIG, seeds=(CONFIG.seed,), data_dir=str(tiny_data),
        tokenizer=str(tiny_data / "tokenizer.model"), cpus=2, processes=2, timeout_seconds=120,
    )  # fmt: skip
    write_json(tmp_path / SPEC_FILE, spec)
    result = run_trial(tmp_path)
    assert result.status == "complete", result.error
    assert result.val_bpb == pytest.approx(alone.runs[0].val_bpb, abs=1e-3)
    metrics = json.loads((tmp_path / f"seed{CONFIG.seed}" / METRICS_FILE).read_text())
    assert (metrics["world_size"], metrics["threads"]) == (2, 1)


def test_a_gang_past_its_timeout_leaves_no_rank_behind(tmp_path: Path) -> None:
    """torchrun gives every rank a session of its own, so no process group holds them all."""
    folder = trial_folder(tmp_path, "import time; open('up', 'w').close(); time.sleep(600)", timeout=10.0, processes=2)
    result = run_trial(folder)
    assert result.status == "timeout", result.error
    assert (folder / "seed1" / "up").exists(), "the ranks never began"
    wait_for(lambda: f"{folder}/{SCRIPT_FILE}" not in processes())


def test_a_gang_whose_rank_a_signal_ended_says_so(tmp_path: Path) -> None:
    """torchrun ends with exit code 1 whatever happened to its ranks; a dead rank deserves a second attempt."""
    script = "import os\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\nimport time; time.sleep(600)"
    result = run_trial(trial_folder(tmp_path, script, timeout=60.0, processes=2))
    assert (result.status, result.fault) == ("failed", "signal"), result.error


DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("daemon", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists("daemon") or not open("daemon").read(): time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)"])
def test_a_daemon_of_the_script_ends_with_its_trial(tmp_path: Path, end: str) -> None:
    """Forked twice, in a session of its own, deaf to SIGTERM, its parent gone."""
    folder = trial_folder(tmp_path, DAEMON + (end or ANSWER))
    result = run_trial(folder)
    assert result.status == ("failed" if end else "complete")
    assert not psutil.pid_exists(int((folder / "seed1" / "daemon").read_text()))


def test_a_killed_worker_leaves_processes_that_the_next_one_ends(tmp_path: Path) -> None:
    """kill -9 of the worker: the daemon lives on until the second attempt begins, and never beside it."""
    script = DAEMON + "\nif os.path.exists('../again'): raise SystemExit(3)\ntime.sleep(600)"
    folder = trial_folder(tmp_path, script)
    worker = subprocess.Popen(worker_command(folder))
    left = folder / "seed1" / "daemon"
    wait_for(lambda: left.exists() and left.read_text() != "")
    daemon = psutil.Process(int(left.read_text()))
    worker.kill()
    worker.wait()
    assert daemon.is_running()
    (folder / "again").touch()
    assert subprocess.run(worker_command(folder), check=False).returncode == 0
    assert not daemon.is_running()


def test_a_scripts_environment_is_an_allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's ranks and a user's tokens stay out; paths, threads and what GPUs need go in."""
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "TORCHELASTIC_RUN_ID",
        "HF_TOKEN",
        "AWS_SECRET_KEY",
    ):
        monkeypatch.setenv(name, "7")
    for name in ("NCCL_DEBUG", "LC_ALL", "TRITON_CACHE_DIR", "CUDA_HOME"):
        monkeypatch.setenv(name, "x")
    folder = trial_folder(tmp_path, "import json, os; json.dump(dict(os.environ), open('../env', 'w'))")
    run_trial(folder)
    seen = json.loads((folder / "env").read_text())
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "HF_TOKEN"} & set(seen)
    assert "A_KEY" not in seen
    assert {seen[name] for name in ("NCCL_DEBUG", "LC_ALL", "TRITON_CACHE_DIR", "CUDA_HOME")} == {"x"}
    assert seen["PATH"] == os.environ["PATH"]
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"]) == ("", "1")


def test_a_stop_file_calls_the_worker_off(tmp_path: Path) -> None:
    """How a driver reaches workers on other machines; the trial stays unfinished."""
    folder = trial_folder(tmp_path, "import time; open('up', 'w').close(); time.sleep(600)")
    worker = subprocess.Popen(worker_command(folder))
    wait_for(lambda: (folder / "seed1" / "up").exists())
    (folder / STOP_FILE).touch()
    assert worker.wait(timeout=10) == EXIT_UNFINISHED
    wait_for(lambda: f"{folder}/{SCRIPT_FILE}" not in processes())
    assert not (folder / RESULT_FILE).exists()


def test_what_fails_after_the_metrics_are_written_is_only_teardown(tmp_path: Path) -> None:
    """A rank that aborts while it closes its connections does not cost a finished run."""
    result = run_trial(trial_folder(tmp_path, ANSWER + "\nimport os; os.abort()"))
    assert (result.status, result.val_bpb) == ("complete", 2.0)


def test_a_failed_gang_says_what_its_rank_said(tmp_path: Path) -> None:
    """torchrun buries a rank's last words under 40 lines of its own."""
    result = run_trial(trial_folder(tmp_path, "raise SystemExit('error: the reason')", timeout=60.0, processes=2))
    assert result.status == "failed"
    assert "error: the reason" in result.error


def test_a_worker_whose_driver_died_before_it_began_stops_at_once(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, ANSWER)
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    command = [sys.executable, "-m", "trials.worker", str(folder), gone]
    assert subprocess.run(command, check=False, capture_output=True).returncode == EXIT_UNFINISHED
    assert not (folder / RESULT_FILE).exists()


def test_seconds_count_seeds_that_finished_before_a_restart(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, ANSWER, seeds=(1, 2))
    run_trial(folder)
    assert run_trial(folder).seconds == 2.0  # what the two runs reported


def test_a_second_attempt_keeps_finished_seeds_and_counts_every_second_once(tmp_path: Path) -> None:
    """Seed 1 reports a second, seed 2 dies after some tenths: those are lost, the second is not paid twice."""
    dies = f"if seed == 2:\n  import os; os.unlink('{METRICS_FILE}'); os.kill(os.getpid(), 9)"
    folder = trial_folder(tmp_path, f"{ANSWER}\n{dies}", seeds=(1, 2))
    spec, first = read_noun(TrialSpec, folder / SPEC_FILE), run_trial(folder)
    assert (first.status, len(first.runs)) == ("failed", 1)
    again = second_attempt(spec, first)
    assert again is not None
    assert (again.attempt, again.seeds_done) == (2, 1)
    assert again.earlier_seconds == pytest.approx(first.seconds - 1.0)
    write_json(folder / SPEC_FILE, again)
    (folder / SCRIPT_FILE).write_text(ANSWER)
    second = run_trial(folder)
    assert (second.status, second.seconds) == ("complete", 2.0)
    assert (folder / "seed1" / "runs.txt").read_text() == "ran\n"


def leave_remains(seed_dir: Path, *, before: str, seconds: int) -> None:
    """What a run leaves that was killed after so many seconds."""
    seed_dir.mkdir(parents=True)
    for name, text, at in ((BEGAN_FILE, before, 1000), (LOG_FILE, "step 1", 1000 + seconds)):
        (seed_dir / name).write_text(text)
        os.utime(seed_dir / name, (at, at))


def test_what_killed_runs_cost_is_counted_once(tmp_path: Path) -> None:
    """Two killed runs of seed 2 took 2.5 and 40 s; each seed reports one second when it finishes."""
    folder = trial_folder(tmp_path, ANSWER, seeds=(1, 2))
    leave_remains(folder / "seed2", before="2.5", seconds=40)
    assert run_trial(folder).seconds == 44.5
    assert run_trial(folder).seconds == 44.5, "a worker that finds all seeds finished says the same"


def test_a_second_attempt_is_not_charged_for_runs_killed_in_the_first(tmp_path: Path) -> None:
    """The first attempt's result has them; a run killed after that is the second's."""
    folder = trial_folder(tmp_path, "raise ValueError")
    leave_remains(folder / "seed1", before="0", seconds=40)
    assert run_trial(folder).seconds >= 40
    (folder / SCRIPT_FILE).write_text(ANSWER)
    assert run_trial(folder).seconds == 1.0


def test_a_worker_that_is_killed_leaves_its_seconds_to_the_next(tmp_path: Path) -> None:
    """kill -9 after the script's last word, at least 0.3 s after it began."""
    speaks = "import time\ntime.sleep(0.3)\nprint('here', flush=True)\ntime.sleep(60)"
    folder = trial_folder(tmp_path, speaks)
    worker = subprocess.Popen([sys.executable, "-m", "trials.worker", str(folder), str(os.getpid())])
    log = folder / "seed1" / LOG_FILE
    wait_for(lambda: log.exists() and "here" in log.read_text())
    worker.kill()
    worker.wait()
    (folder / SCRIPT_FILE).write_text(ANSWER)
    assert 1.25 < run_trial(folder).seconds < 20


def test_a_torn_result_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / RESULT_FILE
    path.write_text('{"status": "comp')
    with pytest.raises(ValueError, match=r"result\.json: not whole JSON .*delete the file"):
        read_noun(TrialResult, path)


def test_a_torn_last_progress_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(json.dumps({"step": 1.0}) + "\n" + '{"step": 2')
    assert list(read_progress(path)) == [{"step": 1.0}]


@given(values=st.lists(st.one_of(st.integers(), st.text(), st.lists(st.floats(0, 1)))), cut=st.integers(1, 10**6))
def test_a_line_added_after_a_torn_one_is_whole(values: list[object], cut: int) -> None:
    """Whatever a kill left of the file, what is added afterwards is read back, and so is every whole line before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        for value in values:
            append_line(path, value)
        assert list(read_lines(path)) == values
        kept = path.read_bytes()[: cut % (path.stat().st_size + 1)] if values else b""
        path.write_bytes(kept)
        before = list(read_lines(path))
        append_line(path, {"last": 1})
        assert list(read_lines(path)) == [*before, {"last": 1}]
        assert before[: kept.count(b"\n")] == values[: kept.count(b"\n")]
