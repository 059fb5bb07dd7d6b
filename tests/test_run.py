"""A run is a pure function of its seed, and nothing of it is lost."""
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SHORT, Trainer, same

import pg_pong

FLAGS = "--learning-rate", "1e-3"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """30 episodes without a stop, by two workers."""
    trainer = Trainer(tmp_path_factory.mktemp("reference"))
    result = trainer("--episodes", 30, "--workers", 2, *FLAGS)
    return trainer.load(), result


# ---- exactness

@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_run_to_the_last_bit(trainer, reference, workers):
    trainer("--episodes", 30, "--workers", workers, *FLAGS)
    assert same(trainer.load(), reference[0])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(trainer, reference):
    trainer("--episodes", 10, "--seed", 0, *FLAGS)
    assert np.array_equal(trainer.load()[1]["episode_rewards"], reference[0][1]["episode_rewards"][:10])
    trainer("--episodes", 10, "--seed", 1, "--save", "other.p", *FLAGS)
    assert not same(trainer.load("other.p")[0], trainer.load()[0])


def test_a_run_stopped_and_resumed_twice_is_the_run_without_a_stop(trainer, reference):
    """Stopped by Ctrl-C in mid-batch and by SIGTERM; what is lost is played again exactly."""
    out, took = trainer.stop_after("episode 10 ", *FLAGS)
    assert took < 2
    assert "save.p holds the run up to episode 10. Go on with: python pg_pong.py --resume" in out
    assert trainer.load()[1]["episode_number"] == 10
    out, took = trainer.stop_after("episode 20 ", "--resume", "--workers", 1, number=signal.SIGTERM)
    assert took < 2 and "up to episode 20" in out
    result = trainer("--resume", "--episodes", 30)
    assert "Resuming save.p at episode 20, running mean" in result.out and "learning rate 0.001" in result.out
    assert same(trainer.load(), reference[0])
    result = trainer("--resume", "--episodes", 30)
    assert "save.p has 30 episodes already" in result.out and same(trainer.load(), reference[0])


def test_a_ctrl_c_that_reaches_the_whole_process_group_says_nothing_but_where_to_go_on(trainer):
    process = trainer.start(*FLAGS, start_new_session=True)
    lines = [process.stdout.readline() for _ in range(2)]
    os.killpg(process.pid, signal.SIGINT)                              # while the workers are starting
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and err == ""
    assert "nothing to resume" in out and not trainer.save.exists(), lines


# ---- what is saved

def test_the_first_pickle_is_the_bare_model_and_the_second_holds_the_rest(reference):
    weights, rest = reference[0]
    assert {k: (v.shape, v.dtype) for k, v in weights.items()} == {"W1": ((200, 6400), np.float32),
                                                                   "W2": ((200,), np.float32)}
    assert rest["format"] == 1 and rest["episode_number"] == 30 and rest["seed"] == 0
    assert rest["hyperparameters"] == {"batch_size": 10, "learning_rate": 1e-3, "gamma": 0.99, "decay_rate": 0.99}
    assert {k: v.shape for k, v in rest["rmsprop_cache"].items()} == {"W1": (200, 6400), "W2": (200,)}
    scores = rest["episode_rewards"]
    assert scores.dtype == np.int8 and len(scores) == 30 and set(abs(scores)) <= set(range(22))
    assert len(rest["emulator_states"]) == 10 and len(set(rest["emulator_states"])) == 10
    mean = float(scores[0])
    for score in scores[1:]:
        mean = 0.99 * mean + 0.01 * score
    assert rest["running_reward"] == mean
    assert 30 * 700 < rest["steps"] < 30 * 4000 and 0 < rest["seconds"] < 100


def test_a_run_that_is_not_resumed_is_kept_and_the_opening_says_so(trainer):
    trainer(*SHORT)
    (trainer.folder / "save.p.1").write_bytes(b"taken")
    first = trainer.save.read_bytes()
    result = trainer(*SHORT, "--seed", 1)
    mean = trainer.load("save.p.2")[1]["running_reward"]
    assert (f"save.p holds a run at episode 2, running mean {mean:+.2f}; it will be kept as save.p.2; "
            "use --resume to continue it") in result.out
    assert (trainer.folder / "save.p.2").read_bytes() == first
    assert (trainer.folder / "save.p.1").read_bytes() == b"taken"
    assert trainer.load()[1]["seed"] == 1


def test_what_is_no_run_at_all_is_kept_too(trainer):
    trainer.save.write_bytes(b"my novel")
    assert "it will be kept as save.p.1" in trainer(*SHORT).out
    assert (trainer.folder / "save.p.1").read_bytes() == b"my novel"


# ---- what is printed

def test_into_a_pipe_there_is_a_line_for_each_batch(reference):
    lines = reference[1].lines
    status = [line for line in lines if line.startswith("episode ")]
    assert [line.split()[1] for line in status] == ["10", "20", "30"]
    for line in status:
        assert re.fullmatch(r"episode \d+  score -\d\d\.\d  running mean -\d\d\.\d\d  \d+ steps/s  \d+\.\d episodes/s  "
                            r"\d:\d\d:\d\d  \d:\d\d:\d\d left", line), line
    assert len(lines) == 6 and reference[1].err == ""


def test_on_a_terminal_there_is_one_live_line(trainer):
    import pty
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, str(ROOT / "pg_pong.py"), "--episodes", "20"], cwd=trainer.folder, stdout=theirs,
                   timeout=60, check=True)
    os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 65536):
            text += chunk
    except OSError:                                                    # the terminal's end
        pass
    lines = text.decode().replace("\r\n", "\n").split("\n")
    assert [line.count("\r\x1b[Jepisode") for line in lines if "episode 20  " in line] == [2], lines


# ---- the command line

@pytest.mark.parametrize("flags", ["--episodes 0", "--workers 0", "--workers two", "--seed -1", "--batch-size 0",
                                   "--learning-rate nan", "--learning-rate -1", "--gamma 1.01", "--decay-rate inf",
                                   "--unknown", "--batch-size 2.5", "extra", "--resume", "--resume --save nowhere.p"])
def test_bad_flags_are_refused_with_one_line_and_status_2(trainer, flags):
    result = trainer(*flags.split(), status=2)
    assert result.out == "" and len(result.err.splitlines()) == 1
    assert result.err.startswith("pg_pong.py: ")
    assert not list(trainer.folder.glob("save.p"))


def test_any_number_of_cores_will_do(monkeypatch, tmp_path):
    """As a default, more cores than the flag admits are no bad flag."""
    monkeypatch.setattr(pg_pong, "available_cores", lambda: 5000)
    monkeypatch.setattr(sys, "argv", ["pg_pong.py", "--plot", "--save", str(tmp_path / "none.p")])
    monkeypatch.setattr(pg_pong, "loaded", lambda path: (_ for _ in ()).throw(LookupError(path)))
    with pytest.raises(LookupError):
        pg_pong.main()


def test_help_gives_a_sentence_and_the_default_of_every_flag(trainer):
    text = re.sub(r"\s+", " ", trainer("--help").out)
    for flag, default in {"--save": "save.p", "--episodes": "on Ctrl-C", "--workers": "one per core", "--seed": "0",
                          "--batch-size": "10", "--learning-rate": "1e-4", "--gamma": "0.99",
                          "--decay-rate": "0.99"}.items():
        assert re.search(rf"{flag} [A-Z]+ [^()]{{10,}}\(default: {default}\)", text), flag
    assert "python pg_pong.py --resume" in text


def test_import_starts_nothing():
    code = ("import threading, multiprocessing, signal; before = signal.getsignal(signal.SIGINT); import pg_pong; "
            "print(threading.active_count(), multiprocessing.active_children(), before is signal.getsignal(signal.SIGINT))")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "1 [] True\n" and result.stderr == ""


# ---- the documents

def test_the_commands_of_the_readme_are_the_ones_that_are_tested():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in "pip install -r requirements.txt && python pg_pong.py", "pip install -r tests/requirements.txt && pytest":
        assert f"\n    {command}\n" in readme and command in ci, command


def test_the_readme_names_every_flag_and_no_other():
    flags = set(re.findall(r"--[a-z-]+", subprocess.run([sys.executable, str(ROOT / "pg_pong.py"), "--help"],
                                                        capture_output=True, text=True).stdout)) - {"--help"}
    readme = (ROOT / "README.md").read_text()
    assert flags <= set(re.findall(r"--[a-z-]+", readme))
