"""Looking in never disturbs the training."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import DUMMY, HEADLESS, ROOT, SHORT, Trainer, children, read_until, same

import pg_pong

class Terminal:
    """pg_pong.py in a pseudo-terminal of that size."""
    def __init__(self, folder, *flags, columns=80, lines=24, env=HEADLESS):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen([sys.executable, ROOT / "pg_pong.py", *map(str, flags)], cwd=folder, env=env,
                                        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(theirs)
        self.bytes = b""

    def read(self, until=None):
        """Read until that text appears (None: until the process ends) and return all the text so far."""
        end = time.monotonic() + 60
        while until is None or until.encode() not in self.bytes:
            assert time.monotonic() < end, self.bytes[-2000:]
            try:
                self.bytes += os.read(self.ours, 65536) if select.select([self.ours], [], [], 0.2)[0] else b""
            except OSError:                                # the other end is closed
                self.process.wait(timeout=10)
                assert until is None, self.bytes[-2000:]
                break
        return self.bytes.decode(errors="ignore")          # the last character may be half

@pytest.fixture
def terminals():
    """Makes terminals, and ends what still runs in them when the test ends."""
    made = []
    yield lambda *args, **kwargs: made.append(Terminal(*args, **kwargs)) or made[-1]
    for terminal in made:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)

@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A folder with a run of two batches."""
    trainer = Trainer(tmp_path_factory.mktemp("played"))
    trainer("--batch-size", 2, "--episodes", 4, "--workers", 1)
    return trainer

# ---- the window

def test_a_window_does_not_change_the_training(trainer, played):
    process = trainer.start("--batch-size", 2, "--episodes", 4, "--workers", 1, "--render", env=DUMMY)
    read_until(process, "episode 2 ")
    assert len(children(process.pid)) == 2                             # the worker and the window
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err.startswith("pg_pong.py: save.p holds") and err.count("\n") == 1
    assert same(trainer.load(), played.load())

def test_render_without_a_display_points_to_watch_and_trains(trainer):
    result = trainer(*SHORT, "--render", "--workers", 9, env=HEADLESS)
    assert "workers 2\n" in result.out                     # one for each episode of a batch
    assert "there is no display for a window; --watch in a terminal with UTF-8 shows games there\n" in result.err
    assert trainer.load()[1]["episode_number"] == 2

def test_watching_needs_a_run_and_a_terminal_or_a_display_that_lives(trainer, played):
    assert "there is no save.p" in trainer("--watch", status=2, env=DUMMY).err
    assert "there is no display" in played("--watch", status=2, env=HEADLESS).err
    result = played("--watch", status=2, env=HEADLESS | {"DISPLAY": ":987"})
    assert result.err.count("\n") == 1 and "cannot open a window" in result.err and result.out == ""

def test_r_and_enter_open_and_close_the_window(trainer, terminals):
    terminal = terminals(trainer.folder, "--batch-size", 2, "--workers", 1, env=DUMMY)
    terminal.read("episode 2 ")
    for expected in [2, 1] * 2:                                        # the worker, and the window or not
        os.write(terminal.ours, b"r\n")
        end = time.monotonic() + 20
        while len(children(terminal.process.pid)) != expected:
            assert time.monotonic() < end, children(terminal.process.pid)
            time.sleep(0.05)
    terminal.process.send_signal(signal.SIGINT)
    assert "save.p holds the run up to episode" in terminal.read() and terminal.process.returncode == 0

# ---- the terminal

def test_a_terminal_that_cannot_show_the_dots_is_refused(played, terminals):
    terminal = terminals(played.folder, "--watch", env=HEADLESS | {"PYTHONIOENCODING": "latin1"})
    assert "a terminal with UTF-8" in terminal.read() and terminal.process.returncode == 2

def test_the_terminal_view_is_what_prepro_makes_of_the_screen(episode):
    places = (0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)        # of Unicode's dots 1 to 8
    for frame in episode.frames[:200:10]:
        codes = np.array([[ord(c) for c in line] for line in pg_pong.braille(pg_pong.prepro(frame)).split("\n")])
        picture = np.zeros((80, 80))
        for bit, (row, column) in enumerate(places):
            picture[row::4, column::2] = codes - 0x2800 >> bit & 1
        assert codes.shape == (20, 40) and np.array_equal(picture.ravel(), pg_pong.prepro(frame)) and picture.any()

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_the_terminal_view_plays_until_it_is_stopped(played, number, terminals):
    terminal = terminals(played.folder, "--watch")
    frames = terminal.read("score -1").split("\x1b[H\x1b[J")
    assert len(set(frames)) > 20
    lines = frames[-2].splitlines()                                    # 21 lines, which fit 80x24
    assert [len(line) for line in lines[:20]] == [40] * 20 and len(lines) == 21 and "score +0" in lines[20], lines
    os.killpg(terminal.process.pid, number)
    assert "Traceback" not in terminal.read() and terminal.process.returncode == 0

def test_each_game_is_played_with_the_newest_save(tmp_path, monkeypatch):
    path, seen = str(tmp_path / "save.p"), []
    def play(env, model, rng):
        seen.append(model["W2"].tolist())
        pg_pong.save(runs[1], path, True)
        pg_pong.stop_signals.extend(seen[1:])
        yield None, None, 0.5, True, 0.0
    for name, value in dict(play=play, stop_signals=[], note_stop_signals=lambda: None).items():
        monkeypatch.setattr(pg_pong, name, value)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    runs = [replace(pg_pong.new_run(seed), running_reward=0.0) for seed in (1, 2)]
    pg_pong.save(runs[0], path, False)
    pg_pong.show_games(path)
    assert seen == [run.model["W2"].tolist() for run in runs]

# ---- the score

def test_eval_gives_the_same_score_twice_and_with_any_number_of_workers(played):
    before = played.save.read_bytes()
    results = [played("--eval", 3, "--workers", n, "--seed", 3) for n in (1, 2)]
    assert results[0].out == results[1].out != played("--eval", 3, "--seed", 4).out
    assert results[0].err == "" and played.save.read_bytes() == before
    assert "95% interval -inf to +inf" in played("--eval", 1).out
    mean, low, high, won = map(float, re.fullmatch(
        r"save.p at episode 4, 3 episodes with seed 3: mean score (-\d+\.\d\d) "
        r"\(95% interval (-\d+\.\d\d) to (-\d+\.\d\d)\), (\d+\.\d)% won\n", results[0].out).groups())
    rng, scores, env = [np.random.default_rng([3, n, 1]) for n in range(3)], [], pg_pong.make_env()
    for chance in rng:                                                 # the same episodes, played here
        pg_pong.begin_episode(env, chance)
        scores.append(sum(step[-1] for step in pg_pong.play(env, played.load()[0], chance)))
    assert mean == pytest.approx(np.mean(scores), abs=0.005) and won == 0
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(scores, ddof=1) / 3**0.5, abs=0.01)

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_an_evaluation(played, terminals, number):
    terminal = terminals(played.folder, "--eval", 5000)
    terminal.read("2 of 5000")
    time.sleep(0.5)                                        # until it waits for the workers
    os.killpg(terminal.process.pid, number)                # SIGTERM ends the workers too, which are not to be blamed
    assert re.search(r"\r\x1b\[Kpg_pong.py: stopped\r\n$", terminal.read()) and terminal.process.returncode == 130

def test_an_evaluation_whose_result_cannot_be_written_has_failed(played):
    with open("/dev/full", "w") as full:
        process = subprocess.Popen([sys.executable, ROOT / "pg_pong.py", "--eval", "1"], cwd=played.folder, text=True,
                                   stdout=full, stderr=subprocess.PIPE)
        assert "No space left" in process.communicate(timeout=60)[1] and process.returncode == 2

# ---- the picture

@pytest.mark.parametrize("name, head", [("pong.png", b"\x89PNG"), ("other.svg", b"<?xml")])
def test_plot_draws_what_its_name_says(played, name, head):
    result = played("--plot", *([name] if name != "pong.png" else []))
    assert result.out.startswith(f"{name} shows save.p at episode 4") and result.err == ""
    assert (played.folder / name).read_bytes().startswith(head) and (played.folder / name).stat().st_size > 50_000

def test_plot_says_what_is_wrong(played, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")")
    result = played("--plot", status=2, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.err == "pg_pong.py: No module named 'matplotlib': pip install matplotlib\n"
    for name, word in ("nowhere/pong.png", "nowhere/pong.png"), ("pong.xyz", "pong.xyz"):
        result = played("--plot", name, status=2)
        assert result.out == "" and word in result.err.splitlines()[-1] and not (played.folder / name).exists()

# ---- progress

@pytest.mark.parametrize("columns", [40, 60, 200])
def test_the_live_line_never_wraps_and_leaves_no_remains(trainer, columns, terminals):
    text = terminals(trainer.folder, "--batch-size", 2, "--episodes", 6, "--workers", 1, columns=columns).read()
    lines = re.split(r"\r\n|\r\x1b\[K", text)
    status = [line for line in lines if line.startswith("episode ")]
    assert len(status) == 3 and all(len(line) < columns for line in status[:2]), status
    assert text.count("\r\x1b[Kepisode ") == 3 and re.search(r"episode 6  score -\d[^\n]* left\r\n", text), text
