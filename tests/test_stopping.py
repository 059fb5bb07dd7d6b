"""However a training ends, it ends soon, saved, and without a process left behind."""
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import (ENVIRONMENT, ONE_BATCH, PATIENCE, SCRIPT, TESTS, Trainer, alive,
                     children, finish, read_until, same, session, stop, wait_until)

BATCHES = ["--batch-size", 2]
RUN = [*BATCHES, "--episodes", 4]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A run that nothing disturbed."""
    trainer = Trainer(tmp_path_factory.mktemp("calm"))
    trainer(*RUN)
    return trainer.load()


# ---- stop signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_that_comes_twice_and_to_all_ends_the_run_saved(trainer, number):
    process = trainer.start(*BATCHES, start_new_session=True)
    read_until(process, "episode 2 ")

    os.killpg(process.pid, number)
    time.sleep(0.03)  # or the two would be one
    os.killpg(process.pid, number)
    _, err = finish(process)

    assert process.returncode == 0
    assert err == f"pg_pong.py: {trainer.save} holds 2 episodes; go on with --resume\n"
    assert len(trainer.load()[1]["scores"]) == 2
    assert trainer.names() == ["save.p"]
    assert session(process.pid) == []


def test_more_signals_during_the_save_change_nothing(trainer):
    process = trainer.start(*BATCHES, patched="slow_to_replace", start_new_session=True)
    read_until(process, "episode 2 ")
    os.killpg(process.pid, signal.SIGINT)
    read_until(process, "saving")

    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = finish(process)

    assert process.returncode == 0
    assert err == f"pg_pong.py: {trainer.save} holds 2 episodes; go on with --resume\n"
    assert trainer.names() == ["save.p"]


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_under_nohup_a_terminal_that_closes_ends_nothing(trainer):
    process = trainer.start(*RUN, preexec_fn=ignore_hangup, start_new_session=True)
    read_until(process, "episode 2 ")

    os.killpg(process.pid, signal.SIGHUP)
    _, err = finish(process)

    assert "holds 4 episodes;" in err


@pytest.mark.parametrize("moment", [
    "numpy.<module>",
    "numpy.<module> importlib._bootstrap.cb",  # inside Python, where an exception is ignored
    "ale_py.<module> enum._create_",           # inside a library in C++, where it is a crash
    "pickletools.<module>",
    "__main__.Settings",                       # the code of the class
    "__main__.parse_flags",
])
def test_ctrl_c_while_the_script_is_read_ends_it_without_a_word(trainer, moment):
    environment = ENVIRONMENT | {"INTERRUPTED_AT": moment}

    process = trainer.start(*ONE_BATCH, patched="interrupted", env=environment)
    out, err = finish(process)

    assert process.returncode in (130, -signal.SIGINT)  # which a shell calls 130, too
    assert out == ""
    assert err == ""


def is_importing(pid):
    """Whether a spawned worker has come to its imports. A forked one inherits them."""
    return "numpy" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("patched, reached", [
    (None, alive),
    ("spawns", alive),
    ("spawns", is_importing),
], ids=["forked", "spawned", "spawned and importing"])
def test_ctrl_c_while_the_workers_start_ends_the_run(trainer, patched, reached):
    process = trainer.start(patched=patched, start_new_session=True)
    wait_until(lambda: any(map(reached, children(process.pid))))

    os.killpg(process.pid, signal.SIGINT)
    _, err = finish(process)

    assert process.returncode == 0
    assert err == "pg_pong.py: nothing was saved\n"


# ---- programs that run the script in their own process


def test_a_program_may_train_again_after_an_interrupt_and_finds_all_as_it_was(trainer):
    process = trainer.start(patched="host")
    read_until(process, "episode 2 ")

    process.send_signal(signal.SIGINT)
    out, _ = finish(process)

    told = [line for line in out.splitlines() if not line.startswith(("Learning", "episode"))]
    assert told == ["status 0", "status 0"]
    assert process.returncode == 0
    assert len(trainer.load()[1]["scores"]) == 4


def test_an_import_starts_nothing_and_changes_no_handler(trainer):
    result = trainer(patched="only_imports")

    assert result.out == "imported pg_pong\n"


def run_python(trainer, *arguments, **kwargs):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=trainer.folder, text=True,
                          capture_output=True, timeout=PATIENCE, **kwargs)


def test_ctrl_c_still_works_in_a_notebook_where_a_package_is_missing(trainer):
    program = f"""
import runpy, signal, sys
sys.modules["ale_py"] = None  # so that Python finds no such module
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit as end:
    print("status", end.code, "blocked", signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""

    result = run_python(trainer, "-c", program)

    assert result.stdout == "status 2 blocked set()\n"


def test_ctrl_c_while_a_missing_package_is_imported_adds_no_traceback(trainer):
    (trainer.folder / "ale_py.py").write_text("raise ImportError('no ale_py')")
    environment = ENVIRONMENT | {"INTERRUPTED_AT": "ale_py.<module>",
                                 "PYTHONPATH": str(trainer.folder)}

    result = trainer(status=2, patched="interrupted", env=environment)

    assert result.err == "pg_pong.py: no ale_py; try pip install -r requirements.txt\n"


def test_python_i_gives_its_prompt_when_the_run_is_over(trainer):
    result = run_python(trainer, "-i", SCRIPT, *ONE_BATCH, input="print('still', 'here')\n")

    assert "episode 2 " in result.stdout
    assert "still here" in result.stdout


def test_a_profiler_can_run_the_script(trainer):
    result = run_python(trainer, "-m", "cProfile", SCRIPT, *ONE_BATCH)

    assert result.returncode == 0, result.stderr
    assert "function calls" in result.stdout
    assert len(trainer.load()[1]["scores"]) == 2


# ---- workers


def test_there_are_never_more_workers_than_episodes_in_a_batch(trainer):
    process = trainer.start(*BATCHES, "--workers", 9)
    read_until(process, "episode 2 ")

    workers = children(process.pid)
    stop(process)

    assert len(workers) == 2


def test_there_is_a_worker_for_each_core_that_the_trainer_may_use(trainer):
    one = min(os.sched_getaffinity(0))
    process = trainer.start(*BATCHES, preexec_fn=lambda: os.sched_setaffinity(0, [one]))
    read_until(process, "episode 2 ")

    workers = children(process.pid)
    stop(process)

    assert len(workers) == 1


@pytest.mark.parametrize("patched", [None, "spawns"], ids=["forked", "spawned"])
def test_a_killed_worker_is_replaced_and_the_run_is_the_same(trainer, calm, patched):
    process = trainer.start(*RUN, "--workers", 1, patched=patched)
    read_until(process, "episode 2 ")
    worker = children(process.pid)[0]

    os.kill(worker, signal.SIGKILL)
    _, err = finish(process)

    killed, closing = err.splitlines()
    assert "a worker was killed" in killed
    assert "holds 4 episodes;" in closing
    assert process.returncode == 0
    assert same(trainer.load(), calm)


def test_a_worker_killed_in_the_middle_of_its_message_is_replaced_too(trainer, calm):
    result = trainer(*RUN, "--workers", 2, patched="dies_in_mid_message")

    assert result.err.count("a worker was killed") == 1
    assert same(trainer.load(), calm)


def test_workers_that_are_killed_again_and_again_end_the_run_saved(trainer):
    result = trainer(*RUN, patched="dies_each_time", status=2)

    *losses, closing, reason = result.err.splitlines()
    assert all("a worker was killed" in line for line in losses)
    assert "holds 2 episodes;" in closing
    assert "killed again and again" in reason
    assert len(trainer.load()[1]["scores"]) == 2


def test_an_error_in_a_worker_ends_the_run_saved_and_is_shown(trainer):
    process = trainer.start(*RUN, patched="fails")

    _, err = finish(process)

    assert "Traceback" in err
    assert "ArithmeticError: an error that nobody expects" in err
    assert err.splitlines()[-1].startswith("pg_pong.py: a worker ended by an error")
    assert process.returncode == 2
    assert len(trainer.load()[1]["scores"]) == 2


@pytest.mark.parametrize("patched, flags, count", [
    ("invisible_window", ["--render"], 3),
    ("spawns", [], 2),
], ids=["forked, and a window", "spawned"])
def test_a_killed_trainer_leaves_no_process(trainer, patched, flags, count):
    process = trainer.start(*BATCHES, "--workers", 2, *flags, patched=patched,
                            start_new_session=True)
    read_until(process, "episode 2 ")
    assert len(children(process.pid)) == count

    process.kill()

    wait_until(lambda: not session(process.pid))


def test_a_storm_of_kills_loses_nothing():
    storm = subprocess.run([sys.executable, TESTS / "tools" / "storm.py", "--kills", "2"],
                           capture_output=True, text=True)

    assert storm.returncode == 0, storm.stdout + storm.stderr
    assert "bit-identical to a calm run" in storm.stdout


# ---- what the system does not give


def test_a_run_whose_reader_has_gone_ends_saved(trainer):
    process = trainer.start(*BATCHES)
    read_until(process, "episode 2 ")

    process.stdout.close()
    _, err = finish(process)

    closing, reason = err.splitlines()
    assert "go on with --resume" in closing
    assert "[Errno 32]" in reason
    assert process.returncode == 2
    assert len(trainer.load()[1]["scores"]) >= 2


def test_ctrl_c_that_ends_the_reader_too_is_no_error(trainer):
    """As it does with: python pg_pong.py | tee log."""
    process = trainer.start(*BATCHES)
    read_until(process, "episode 2 ")

    process.send_signal(signal.SIGINT)
    process.stdout.close()
    _, err = finish(process)

    assert process.returncode == 0
    assert err.count("\n") == 1


def test_a_standard_output_that_is_full_at_once_lets_nothing_begin(trainer):
    with open("/dev/full", "w") as full:
        process = trainer.start(stdout=full)
        _, err = finish(process)

    assert "[Errno 28]" in err
    assert err.count("\n") == 1
    assert process.returncode == 2
    assert trainer.names() == []


def test_a_standard_output_that_gets_full_ends_the_run_saved(trainer):
    result = trainer(*BATCHES, patched="full_stdout", status=2)

    closing, reason = result.err.splitlines()
    assert "holds 6 episodes;" in closing
    assert "[Errno 28]" in reason
    assert len(trainer.load()[1]["scores"]) == 6


def allow_40_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


def test_too_few_open_files_end_the_run_with_one_line(trainer):
    result = trainer("--workers", 30, "--batch-size", 30, status=2, preexec_fn=allow_40_files)

    assert "[Errno 24]" in result.err
    assert result.err.count("\n") == 1
    assert trainer.names() == []


def test_a_full_dev_shm_does_not_matter(trainer):
    trainer(*ONE_BATCH, patched="no_room_in_shm")

    assert len(trainer.load()[1]["scores"]) == 2
