"""A run is a pure function of its seed, and nothing of it is lost."""
import os
import pty
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, Trainer, read_until, same
import pg_pong

BATCH = "--batch-size", "4", "--seed", "1"
RUN = *BATCH, "--episodes", "12"

@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """12 episodes without a stop, by two workers: what was saved, and what was printed."""
    trainer = Trainer(tmp_path_factory.mktemp("reference"))
    result = trainer(*RUN, "--workers", 2)
    return trainer.load(), result

@pytest.mark.parametrize("method, workers", [("fork", 1), ("fork", 3), ("spawn", 2)])
def test_any_workers_forked_or_spawned_give_the_same_run_to_the_last_bit(trainer, reference, method, workers):
    """Processes are forked on Linux, and spawned on macOS and Windows."""
    code = ("import multiprocessing, threading, pg_pong; pg_pong.PROCESSES = multiprocessing.get_context(%r); "
            "learn = pg_pong.learn_from_batch; pg_pong.learn_from_batch = lambda *a: (learn(*a), "
            "print(multiprocessing.active_children()))[0]; pg_pong.main(); print(*threading.enumerate(), sep='\\n')")
    result = trainer(*RUN, "--workers", workers, code=code % method)
    assert result.out.lower().count(f"<{method}process") == 3 * workers
    assert result.err == f"pg_pong.py: {trainer.save} holds 12 episodes; go on with --resume\n"
    assert "_MainThread" in result.out and "_ExecutorManagerThread" not in result.out          # the pool has ended
    assert same(trainer.load(), reference[0])

def test_training_without_workers_as_in_a_notebook_gives_the_same_run(reference):
    *_, run = pg_pong.train(pg_pong.new_run(pg_pong.SETTINGS | {"batch_size": 4, "seed": 1}), 12)
    weights, rest = reference[0]
    assert run.scores == rest["scores"] and run.steps == rest["steps"] and same(run.model, weights)
    assert {k: w.tobytes() for k, w in run.rmsprop_cache.items()} == rest["rmsprop_cache"]

def test_a_run_stopped_and_resumed_twice_is_the_run_without_a_stop(trainer, reference):
    """Stopped in mid-batch, by Ctrl-C and by SIGTERM; what is lost is played again exactly."""
    err, took = trainer.stop_after("episode 4 ", *BATCH)
    assert took < 5 and err == f"pg_pong.py: {trainer.save} holds 4 episodes; go on with --resume\n"
    err, took = trainer.stop_after("episode 8 ", "--resume", "--workers", 1, number=signal.SIGTERM)
    assert took < 5 and len(trainer.load()[1]["scores"]) == 8
    assert trainer("--resume", "--episodes", 12).out.startswith("Learning Pong from episode 8 on: {'batch_size': 4, ")
    assert same(trainer.load(), reference[0])
    before = trainer.save.stat()
    assert trainer("--resume", "--episodes", 12).err.endswith("save.p holds 12 episodes; go on with --resume\n")
    assert trainer.save.stat() == before and sorted(os.listdir(trainer.folder)) == ["save.p", "save.p.lock"]

def test_a_resumed_run_takes_new_settings_and_keeps_the_others(trainer, reference):
    trainer(*BATCH, "--episodes", 4)
    trainer("--resume", "--episodes", 6, "--batch-size", 2, "--learning-rate", 0)
    weights, rest = trainer.load()
    assert rest["settings"] == reference[0][1]["settings"] | {"batch_size": 2, "learning_rate": 0.0}
    assert rest["scores"][:4] == reference[0][1]["scores"][:4] and len(rest["scores"]) == 6

@pytest.mark.parametrize("handler, episodes", [(signal.SIG_DFL, 4), (signal.SIG_IGN, 12)])
def test_a_terminal_that_closes_ends_the_run_but_not_under_nohup(trainer, handler, episodes):
    process = trainer.start(*RUN, preexec_fn=lambda: signal.signal(signal.SIGHUP, handler))
    read_until(process, "episode 4 ")
    process.send_signal(signal.SIGHUP)
    assert f"holds {episodes} episodes;" in process.communicate(timeout=60)[1]

def test_a_trainer_in_the_background_of_a_terminal_goes_on_while_somebody_types_there(trainer):
    ours, theirs = pty.openpty()
    shell = ["setsid", "--ctty", "sh", "-mc", '"$@" & wait $!', "sh"]  # with job control: & is a group of its own
    process = subprocess.Popen([*shell, sys.executable, ROOT / "pg_pong.py", *RUN], cwd=trainer.folder,
                               stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    read_until(process, "episode 4 ")
    os.write(ours, b"ls\n")
    assert "holds 12 episodes;" in process.communicate(timeout=60)[1] and process.returncode == 0

def test_the_first_pickle_is_the_bare_model_and_the_second_holds_the_rest(reference):
    weights, rest = reference[0]
    assert {k: (w.shape, str(w.dtype)) for k, w in weights.items()} == {
        "W1": ((200, 6400), "float32"), "W2": ((200,), "float32")}
    assert all(w.flags.c_contiguous for w in weights.values())
    assert set(rest) == {"settings", "scores", "steps", "seconds", "rmsprop_cache"}
    assert rest["settings"] == {"batch_size": 4, "learning_rate": 1e-3, "gamma": 0.99, "decay_rate": 0.99, "seed": 1}
    assert {type(score) for score in rest["scores"]} == {int} and len(rest["scores"]) == 12
    assert set(map(abs, rest["scores"])) <= set(range(22)) and len(set(rest["scores"])) > 1
    assert type(rest["steps"]) is int and 12 * 700 < rest["steps"] < 12 * 4000
    assert type(rest["seconds"]) is float and 0 < rest["seconds"] < 100

def test_there_is_a_line_for_each_batch_that_says_what_was_played(reference):
    (_, rest), result = reference
    mean, expected = rest["scores"][0], []
    for n, score in enumerate(rest["scores"][1:], 2):
        mean = 0.99 * mean + 0.01 * score
        if n % 4 == 0:
            expected.append(f"episode {n}  score {np.mean(rest['scores'][n - 4:n]):+.1f}  running mean {mean:+.2f}  ")
    first, *lines = result.lines
    assert first == f"Learning Pong from episode 0 on: {rest['settings']}"
    assert [re.sub(r"\d+ steps/s  \d\.\d\d h$", "", line) for line in lines] == expected

@pytest.mark.parametrize("flags", [
    "--episodes 0", "--workers 0", "--workers two", "--seed -1", "--batch-size 0", "--batch-size 2.5", "--unknown",
    "--learning-rate nan", "--learning-rate -1", "--gamma 1.01", "--decay-rate inf", "--decay-rate 1", "--eval 1",
    "--seed 4294967296", "extra", "--watch game.avi", "--resume", "--eval 5", "--plot", "--watch a.gif"])
def test_bad_flags_are_refused_with_one_line_and_status_2(trainer, flags):
    result = trainer(*flags.split(), status=2)
    assert result.out == "" and not trainer.save.exists()
    assert re.fullmatch("(usage: pg_pong.py [^:]*\npg_pong.py: error: |pg_pong.py: there is no .*save.p; a run )"
                        ".*\n", result.err), result.err

def test_import_starts_nothing_and_changes_no_signal_handler():
    code = ("import multiprocessing, signal, threading; now = lambda: [signal.getsignal(n) for n in range(1, 32)]; "
            "before = now(); import pg_pong; "
            "print(threading.active_count(), multiprocessing.active_children(), before == now())")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "1 [] True\n" and result.stderr == ""

def test_readme_names_the_flags_of_help_and_no_others_and_the_commands_that_are_tested(trainer):
    readme, ci, told = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text(), trainer("--help").out
    for command in "requirements.txt && python pg_pong.py", "tests/requirements.txt && pytest":
        assert f"\n    pip install -r {command}\n" in readme and f"pip install -r {command}" in ci, command
    flags = set(re.findall(r"--[a-z-]+", told))
    ours = "\n".join(line for line in readme.splitlines() if "tests/tools/" not in line)
    assert flags - {"--help"} <= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", ours)) <= flags
