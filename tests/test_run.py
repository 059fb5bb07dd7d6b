"""A run is a pure function of its seed, and nothing of it is lost."""
import functools
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    code = ("import multiprocessing, pg_pong; pg_pong.PROCESSES = multiprocessing.get_context(%r); "
            "start = pg_pong.start_workers; pg_pong.start_workers = lambda *a: (start(*a), "
            "print(multiprocessing.active_children()))[0]; pg_pong.main()")
    result = subprocess.run([sys.executable, "-c", code % method, *RUN, "--workers", str(workers)], cwd=trainer.folder,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert result.stdout.lower().count(f"<{method}process") == workers and result.stderr == reference[1].err
    assert same(trainer.load(), reference[0])

def test_a_run_stopped_and_resumed_twice_is_the_run_without_a_stop(trainer, reference):
    """Stopped in mid-batch, by Ctrl-C and by SIGTERM; what is lost is played again exactly."""
    out, took = trainer.stop_after("episode 4 ", *BATCH)
    assert took < 5 and out.endswith("pg_pong.py: save.p holds the run up to episode 4; go on with --resume\n")
    out, took = trainer.stop_after("episode 8 ", "--resume", "--workers", 1, number=signal.SIGTERM)
    assert took < 5 and trainer.load()[1]["episode_number"] == 8
    opening = trainer("--resume", "--episodes", 12).out
    assert re.match("Learning Pong from episode 8 on: seed 1, workers \\d+\nbatch size 4, ", opening)
    assert same(trainer.load(), reference[0])
    assert trainer("--resume", "--episodes", 12).err == "pg_pong.py: nothing new was saved\n"

def test_a_ctrl_c_at_any_instant_leaves_neither_a_traceback_nor_half_a_file(trainer):
    """From the script's first lines on (Python's own start is not ours), while it imports, starts workers, plays."""
    for number, instant in enumerate(np.linspace(0, 1.4, 12)):
        path = trainer.folder / f"{number}.p"
        process = trainer.start("--batch-size", 2, "--workers", 2, "--save", path.name, start_new_session=True)
        status, end = Path(f"/proc/{process.pid}/status"), time.monotonic() + 20
        for caught in "2367abef", "014589cd":              # Python takes the signal, and these lines give it back
            while not re.search(rf"SigCgt:.*[{caught}]\n", status.read_text()):
                assert time.monotonic() < end
                time.sleep(0.001)
        time.sleep(instant)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGINT) and re.fullmatch(r"(pg_pong.py: .*\n)?", err), (instant, err)
        assert not path.exists() or trainer.load(path.name)[1]["episode_number"] > 0

@pytest.mark.parametrize("handler, episodes", [(signal.SIG_DFL, 4), (signal.SIG_IGN, 12)])
def test_a_terminal_that_closes_ends_the_run_but_not_under_nohup(trainer, handler, episodes):
    process = trainer.start(*RUN, preexec_fn=lambda: signal.signal(signal.SIGHUP, handler))
    read_until(process, "episode 4 ")
    process.send_signal(signal.SIGHUP)
    assert f"up to episode {episodes};" in process.communicate(timeout=60)[1]

def test_a_trainer_in_the_background_of_a_terminal_goes_on_while_somebody_types_there(trainer):
    ours, theirs = pty.openpty()
    shell = ["setsid", "--ctty", "sh", "-mc", '"$@" & wait $!', "sh"]  # with job control: & is a group of its own
    process = subprocess.Popen([*shell, sys.executable, ROOT / "pg_pong.py", *RUN], cwd=trainer.folder,
                               stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    read_until(process, "episode 4 ")
    os.write(ours, b"ls\n")
    assert "up to episode 12;" in process.communicate(timeout=60)[1] and process.returncode == 0

def test_the_first_pickle_is_the_bare_model_and_the_second_holds_the_rest(reference):
    weights, rest = reference[0]
    for model in weights, rest["rmsprop_cache"]:
        shapes = {k: (w.shape, str(w.dtype)) for k, w in model.items()}
        assert shapes == {"W1": ((200, 6400), "float32"), "W2": ((200,), "float32")}
    assert rest["format"] == 1 and rest["episode_number"] == 12 and rest["seed"] == 1
    assert rest["hyperparameters"] == {"batch_size": 4, "learning_rate": 1e-3, "gamma": 0.99, "decay_rate": 0.99}
    scores = rest["episode_rewards"]
    assert scores.dtype == np.int8 and len(scores) == 12 and set(abs(scores)) <= set(range(22))
    assert len(set(rest["emulator_states"])) == len(rest["emulator_states"]) == 4
    assert rest["running_reward"] == functools.reduce(lambda mean, x: 0.99 * mean + 0.01 * x, map(float, scores))
    assert 12 * 700 < rest["steps"] < 12 * 4000 and 0 < rest["seconds"] < 100

def test_into_a_pipe_there_is_a_line_for_each_batch(reference):
    assert re.fullmatch(
        r"Learning Pong from episode 0 on: seed 1, workers 2\nbatch size 4, learning rate 0.001, gamma 0.99, "
        r"decay rate 0.99\nsave.p is saved every 100 episodes and on Ctrl-C\n(episode (4|8|12)  score -\d\d\.\d  "
        r"running mean -\d\d\.\d\d  \d+ steps/s  0:\d\d:\d\d  0:\d\d:\d\d left\n){3}", reference[1].out)

@pytest.mark.parametrize("flags", [
    "--episodes 0", "--workers 0", "--workers two", "--seed -1", "--batch-size 0", "--batch-size 2.5", "--unknown",
    "--learning-rate nan", "--learning-rate -1", "--gamma 1.01", "--decay-rate inf", "--eval 0", "extra", "--resume",
    "--eval 5 --learning-rate 1", "--eval 5 --plot", "--plot --seed 3", "--watch --resume", "--watch --render"])
def test_bad_flags_are_refused_with_the_usage_and_one_line_and_status_2(trainer, flags):
    result = trainer(*flags.split(), status=2)
    assert result.out == "" and not trainer.save.exists()
    assert re.fullmatch("(usage: pg_pong.py [^:]*\npg_pong.py: error|pg_pong.py: there is no save.p;).*\n", result.err)

def test_import_starts_nothing_and_changes_no_signal_handler():
    code = ("import multiprocessing, signal, threading; now = lambda: [signal.getsignal(n) for n in range(1, 32)]; "
            "before = now(); import pg_pong; "
            "import importlib.util as u; other = u.spec_from_file_location('other', pg_pong.__file__); "
            "other.loader.exec_module(u.module_from_spec(other)); "
            "print(threading.active_count(), multiprocessing.active_children(), before == now())")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "1 [] True\n" and result.stderr == ""

def test_readme_and_help_name_every_flag_its_default_and_the_commands_that_are_tested(trainer):
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in "requirements.txt && python pg_pong.py", "tests/requirements.txt && pytest":
        assert f"\n    pip install -r {command}\n" in readme and f"pip install -r {command}" in ci, command
    text = re.sub(r"\s+", " ", trainer("--help").out)
    assert set(re.findall(r"--[a-z-]+", text)) - {"--help"} <= set(re.findall(r"--[a-z-]+", readme))
    for flag, default in {"save": "save.p", "episodes": "on Ctrl-C", "workers": "one per core", "seed": "0",
                          **pg_pong.HYPERPARAMETERS}.items():
        said = re.search(rf"--{flag.replace('_', '-')} [A-Z]+ [^()]{{10,}}\(default: (.*?)\)", text)[1]
        assert said == default or float(said) == default, flag
