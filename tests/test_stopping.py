"""However a training ends, it ends soon, saved, and without a process left behind."""
import fcntl
import os
import pty
import re
import resource
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from helpers import (ENVIRONMENT, ONE_BATCH, PATIENCE, SCRIPT, TESTS, children, command_of,
                     finish, killed_when_late, read_until, session, stop, wait_until)

BATCHES = ["--batch-size", 2]
TWO_BATCHES = [*BATCHES, "--episodes", 4]


def episodes_in(trainer, name="save.p"):
    return len(trainer.load(name)[1]["scores"])


def closing_line(trainer):
    """What the trainer says last when the run is saved, with the number that the file holds."""
    path = trainer.save
    return (f"pg_pong.py: {path} holds {episodes_in(trainer)} episodes; "
            f"go on with --resume --save {shlex.quote(str(path))}")


# ---- stop signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_to_all_ends_the_run_saved_and_more_during_the_save_change_nothing(trainer,
                                                                                        number):
    process = trainer.start(*BATCHES, patched="waits_to_replace", start_new_session=True,
                            stdin=subprocess.PIPE)
    read_until(process, "episode 2 ")
    os.killpg(process.pid, number)
    read_until(process, "saving")

    os.killpg(process.pid, number)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = finish(process)  # which ends its input

    assert process.returncode == 0
    assert err == closing_line(trainer) + "\n"
    assert trainer.names() == ["save.p"]
    assert session(process.pid) == []


def test_ctrl_c_right_after_the_first_replacement_does_not_move_the_runs_own_file_away(trainer):
    result = trainer(*BATCHES, patched="saves_often interrupted_after_replacing")

    assert result.err == closing_line(trainer) + "\n"
    assert trainer.names() == ["save.p"]


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_under_nohup_a_terminal_that_closes_ends_nothing(trainer):
    process = trainer.start(*TWO_BATCHES, preexec_fn=ignore_hangup, start_new_session=True)
    read_until(process, "episode 2 ")

    os.killpg(process.pid, signal.SIGHUP)
    finish(process)

    assert process.returncode == 0
    assert episodes_in(trainer) == 4


def make_it_the_terminal():
    """As a session's terminal, standard input sends it SIGHUP when it is closed."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_closes_leaves_the_new_run_saved_and_the_old_file_moved(trainer, saved):
    """Though what it says of the old file can no longer be written anywhere."""
    trainer.save.write_bytes(saved)
    terminal, far_end = pty.openpty()
    command, env = command_of(*BATCHES)
    process = subprocess.Popen(command, cwd=trainer.folder, env=env, start_new_session=True,
                               stdin=far_end, stdout=far_end, stderr=far_end,
                               preexec_fn=make_it_the_terminal)
    os.close(far_end)
    with killed_when_late(process), open(terminal, "rb", buffering=0) as lines:
        while not lines.readline().startswith(b"episode 2 "):
            pass

    process.wait(PATIENCE)  # what is closed now sends SIGHUP

    assert (trainer.folder / "save.p.1").read_bytes() == saved
    assert episodes_in(trainer) >= 2
    assert trainer.names() == ["save.p", "save.p.1"]


def is_importing(pid):
    """Whether a spawned worker has come to its imports. A forked one inherits them."""
    return "numpy" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("patched", [None, "spawns"], ids=["forked", "spawned"])
def test_ctrl_c_while_the_workers_start_ends_the_run(trainer, patched):
    process = trainer.start(patched=patched, start_new_session=True)
    wait_until(lambda: any(map(is_importing, children(process.pid))))

    os.killpg(process.pid, signal.SIGINT)
    _, err = finish(process)

    assert process.returncode == 0
    assert "pg_pong.py: nothing was saved\n" in err
    if not patched:  # a spawned worker shows that its imports were interrupted
        assert err.count("\n") == 1
    wait_until(lambda: not session(process.pid))  # Python's own helper of spawned ones is last


# ---- programs that run the script in their own process


def test_a_program_may_import_it_and_train_twice_and_finds_all_as_it_was(trainer):
    process = subprocess.Popen([sys.executable, TESTS / "host.py"], cwd=trainer.folder, text=True,
                               env=ENVIRONMENT, stdout=subprocess.PIPE)
    before = read_until(process, "changed by the import: ")
    read_until(process, "episode 2 ")

    process.send_signal(signal.SIGINT)
    out, _ = finish(process)

    told = [line for line in out.splitlines() if not line.startswith(("Learning", "episode"))]
    assert before == "changed by the import: []\n"
    assert told == ["status 0", "status 0", "changed in the end: []", "the handler was called"]
    assert process.returncode == 0
    assert episodes_in(trainer) >= 4


def run_python(trainer, *arguments, **kwargs):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=trainer.folder, text=True,
                          capture_output=True, timeout=PATIENCE, **kwargs)


def test_python_i_gives_its_prompt_when_the_run_is_over(trainer):
    result = run_python(trainer, "-i", SCRIPT, *ONE_BATCH, input="print('still', 'here')\n")

    assert "episode 2 " in result.stdout
    assert "still here" in result.stdout


def test_a_profiler_can_run_the_script(trainer):
    result = run_python(trainer, "-m", "cProfile", SCRIPT, *ONE_BATCH)

    assert result.returncode == 0, result.stderr
    assert "function calls" in result.stdout
    assert episodes_in(trainer) == 2


# ---- workers


def test_there_are_never_more_workers_than_episodes_in_a_batch(trainer):
    process = trainer.start(*BATCHES, "--workers", 9)
    read_until(process, "episode 2 ")

    workers = children(process.pid)
    stop(process)

    assert len(workers) == 2


def use_one_core():
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def test_there_is_a_worker_for_each_core_that_the_trainer_may_use(trainer):
    process = trainer.start(*BATCHES, preexec_fn=use_one_core)
    read_until(process, "episode 2 ")

    workers = children(process.pid)
    stop(process)

    assert len(workers) == 1


def test_an_error_in_a_worker_is_shown_and_ends_the_run_saved(trainer):
    process = trainer.start(*BATCHES, patched="fails")

    _, err = finish(process)

    assert "ArithmeticError: an error that nobody expects" in err
    assert closing_line(trainer) in err.splitlines()
    assert re.match("pg_pong.py: .*error", err.splitlines()[-1])
    assert process.returncode == 1
    assert episodes_in(trainer) == 2


def test_a_worker_killed_in_an_evaluation_does_not_change_its_result(trainer, saved):
    """With this seed, the scores of the two episodes differ."""
    trainer.save.write_bytes(saved)
    flags = ["--eval", 2, "--seed", 15]
    calm = trainer(*flags, "--workers", 1)
    process = trainer.start(*flags, "--workers", 2, patched="slow_evaluation")
    wait_until(lambda: len(children(process.pid)) == 2)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    out, err = finish(process)

    assert "a worker was killed" in err
    assert out == calm.out
    assert out.startswith("2 sampled episodes")
    assert process.returncode == 0


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
    process.wait()

    try:
        wait_until(lambda: not session(process.pid))
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)


def test_a_storm_of_kills_loses_nothing(trainer):
    storm = run_python(trainer, TESTS / "tools" / "storm.py", "--kills", 2)

    assert storm.returncode == 0, storm.stdout + storm.stderr
    assert "bit-identical to a calm run" in storm.stdout


# ---- what the system does not give


def test_a_run_whose_reader_has_gone_ends_saved(trainer):
    process = trainer.start(*BATCHES)
    read_until(process, "episode 2 ")

    process.stdout.close()
    _, err = finish(process)

    closing, reason = err.splitlines()
    assert closing == closing_line(trainer)
    assert "[Errno 32]" in reason
    assert process.returncode == 1


def test_ctrl_c_that_ends_the_reader_too_is_no_error(trainer):
    """As it does with: python pg_pong.py | tee log."""
    process = trainer.start(*BATCHES, patched="slow_episodes")
    read_until(process, "episode 2 ")

    process.send_signal(signal.SIGINT)
    process.stdout.close()
    _, err = finish(process)

    assert process.returncode == 0
    assert err == closing_line(trainer) + "\n"


def test_a_standard_output_that_is_full_at_once_lets_nothing_begin(trainer):
    with open("/dev/full", "w") as full:
        process = trainer.start(stdout=full)
        _, err = finish(process)

    assert "[Errno 28]" in err
    assert err.count("\n") == 1
    assert process.returncode == 1
    assert trainer.names() == []


def test_a_standard_output_that_gets_full_ends_the_run_saved(trainer):
    result = trainer(*BATCHES, patched="full_stdout", status=1)

    closing, reason = result.err.splitlines()
    assert closing == closing_line(trainer)
    assert "[Errno 28]" in reason
    assert episodes_in(trainer) >= 2


def allow_40_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


def test_too_few_open_files_end_the_run_with_a_message_and_no_process_left(trainer):
    process = trainer.start("--workers", 30, "--batch-size", 30, preexec_fn=allow_40_files,
                            start_new_session=True)
    _, err = finish(process)

    outcome, reason = err.splitlines()
    assert outcome == "pg_pong.py: nothing was saved"
    assert "[Errno 24]" in reason
    assert process.returncode == 1
    assert trainer.names() == []
    assert session(process.pid) == []
