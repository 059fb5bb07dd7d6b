"""Looking in never disturbs the training."""
import codecs
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

import numpy as np
import pytest
from conftest import DUMMY, HEADLESS, ROOT, SHORT, Trainer, children, read_until, same

import pg_pong


def available_workers():
    return min(pg_pong.available_cores(), 10)


class Terminal:
    """pg_pong.py in a pseudo-terminal of that size."""

    def __init__(self, folder, *flags, columns=80, lines=45, env=HEADLESS):
        self.ours, theirs = pty.openpty()
        self.resize(columns, lines)
        self.process = subprocess.Popen([sys.executable, str(ROOT / "pg_pong.py"), *map(str, flags)], cwd=folder, env=env,
                                        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.text, self.decoder = "", codecs.getincrementaldecoder("utf-8")()

    def resize(self, columns, lines):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, until=None, seconds=40):
        """Read until that text appears (None: until the process ends) and return all the text so far."""
        end = time.monotonic() + seconds
        while until is None or until not in self.text:
            assert time.monotonic() < end, self.text[-2000:]
            if select.select([self.ours], [], [], 0.2)[0]:
                try:
                    self.text += self.decoder.decode(os.read(self.ours, 65536))
                except OSError:                                        # the other end is closed
                    assert until is None, self.text[-2000:]
                    self.process.wait(timeout=10)
                    return self.text
        return self.text

    def type(self, text):
        os.write(self.ours, text.encode())


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A folder with a run of 20 episodes."""
    trainer = Trainer(tmp_path_factory.mktemp("played"))
    trainer("--episodes", 20)
    return trainer


# ---- the window

def test_a_view_does_not_change_the_training(trainer, played):
    process = trainer.start("--episodes", "20", "--render", env=DUMMY)
    read_until(process, "episode 10 ")
    assert len(children(process.pid)) == available_workers() + 1       # the workers and the view
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""
    assert same(trainer.load(), played.load())


def test_render_without_a_display_points_to_watch_and_trains(trainer):
    result = trainer(*SHORT, "--render", env=HEADLESS)
    assert result.err == ("pg_pong.py: there is no display for a window; run this in a second terminal after the first "
                          "save: python pg_pong.py --watch\n")
    assert trainer.load()[1]["episode_number"] == 2


def test_a_display_that_is_dead_is_named(played):
    result = played("--watch", status=2, env=HEADLESS | {"DISPLAY": ":987"})
    assert len(result.err.splitlines()) == 1 and "cannot open a window" in result.err and "--terminal" in result.err


def test_keys_open_and_close_the_view_and_end_the_run(trainer):
    terminal = Terminal(trainer.folder, env=DUMMY, columns=120)
    terminal.read("r and Enter")
    terminal.read("episode 10 ")
    workers = available_workers()
    for expected in [workers + 1, workers] * 5:
        terminal.type("r\n")
        end = time.monotonic() + 5
        while len(children(terminal.process.pid)) != expected and time.monotonic() < end:
            time.sleep(0.1)
        assert len(children(terminal.process.pid)) == expected
    terminal.type("q\n")
    assert "save.p holds the run up to episode" in terminal.read()
    assert terminal.process.returncode == 0 and trainer.load()[1]["episode_number"] >= 10


# ---- the terminal

def test_the_terminal_view_plays_and_leaves_the_screen_as_it_was(played):
    terminal = Terminal(played.folder, "--watch")
    text = terminal.read("p(UP) 0.")
    assert text.startswith("\x1b[?1049h\x1b[?25l")
    frames = terminal.read("episode 20").split("\x1b[1H")
    assert frames[1].count("\u2580") == 80 * 40
    assert "38;2;144;72;17" in text and "92;186;92" in text            # field and paddle
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.read().endswith("\x1b[?25h\x1b[?1049l") and "Traceback" not in terminal.text
    assert terminal.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_by_other_ends_too(played, number):
    terminal = Terminal(played.folder, "--watch", "--terminal", env=DUMMY)
    terminal.read("p(UP) 0.")
    terminal.process.send_signal(number)
    assert terminal.read().endswith("\x1b[?25h\x1b[?1049l")


def test_a_small_terminal_is_told_and_a_larger_one_is_used_at_once(played):
    terminal = Terminal(played.folder, "--watch", columns=60, lines=20)
    assert "\u2580" not in terminal.read("This terminal has 60x20 characters; the picture needs 80x41")
    terminal.resize(80, 41)
    terminal.read("p(UP)")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read()


def test_the_picture_in_the_terminal_is_what_prepro_looks_at(episode):
    frame = episode.frames[50]
    rgb = frame[35:195:2, ::2]
    text = pg_pong.terminal_frame(rgb, 80, 41, "status")
    pixels, color = np.zeros((80, 80, 3), np.uint8), None
    for y, line in enumerate(re.split(r"\x1b\[\d+H", text)[1:41]):
        x = 0
        for token in re.findall(r"\x1b\[([\d;]+)m|(\u2580)", line):
            if token[1]:
                pixels[2 * y, x], pixels[2 * y + 1, x] = color
                x += 1
            elif token[0] != "0":
                values = [int(v) for v in token[0].split(";")]
                color = values[2:5], values[7:10]
        assert x == 80
    assert np.array_equal(pixels, rgb)


def test_watching_needs_a_terminal_and_a_run(trainer, played):
    assert "no save.p" in trainer("--watch", status=2).err
    assert "no display" in played("--watch", status=2, env=HEADLESS).err


def test_watching_picks_up_a_newer_save_and_survives_a_broken_one(tmp_path, monkeypatch, played):
    """The model of each episode, with an emulator that is not asked to play."""
    path, models = tmp_path / "save.p", []
    path.write_bytes(played.save.read_bytes())

    def three_episodes(newest_model, draw):
        models.append(newest_model()["W2"].copy())
        path.write_bytes(b"broken")
        models.append(newest_model()["W2"].copy())
        run = pg_pong.load(str(played.save))[0]
        run.model["W2"] += 1
        pg_pong.save(run, str(path), pg_pong.fingerprint(str(path)))
        models.append(newest_model()["W2"].copy())
    monkeypatch.setattr(pg_pong, "show_games", three_episodes)
    monkeypatch.setattr(pg_pong, "STOP_SIGNALS", [])
    monkeypatch.setattr(pg_pong, "has_display", lambda: True)
    pg_pong.watch(str(path), False)
    assert np.array_equal(models[0], models[1]) and np.allclose(models[2], models[0] + 1)


# ---- the score

def test_eval_gives_the_same_score_twice_and_with_any_number_of_workers(played):
    before = played.save.read_bytes()
    results = [played("--eval", 4, "--workers", n, "--seed", 3).lines for n in (1, 2, 2)]
    assert results[0][:3] == results[1][:3] == results[2][:3]
    other = played("--eval", 4, "--seed", 4).lines
    assert other[1:3] != results[0][1:3]
    assert re.fullmatch(r"save.p at episode 20, running mean -\d+\.\d\d: 4 episodes, seed 3", results[0][0])
    score = re.fullmatch(r"mean score (-\d+\.\d\d) \(95% interval (-\d+\.\d\d) to (-\d+\.\d\d)\), standard deviation "
                         r"(\d\.\d\d)", results[0][1])
    mean, low, high, deviation = map(float, score.groups())
    assert mean - low == pytest.approx(1.96 * deviation / 2, abs=0.02) and high - mean == pytest.approx(mean - low, abs=0.02)
    points = re.fullmatch(r"won (\d+\.\d)% of the episodes; points (\d+) for, (\d+) against", results[0][2])
    assert (int(points[2]) - int(points[3])) / 4 == pytest.approx(mean, abs=0.01)
    assert re.fullmatch(r"mean length \d+ steps; \d+ steps/s", results[0][3])
    assert played.save.read_bytes() == before and not (played.folder / "save.p.tmp").exists()


def test_evaluating_needs_no_lock(trainer, played):
    process = trainer.start()
    read_until(process, f"{available_workers()} workers play")
    trainer.save.write_bytes(played.save.read_bytes())
    assert "1 episodes, seed 0" in trainer("--eval", 1).out and process.poll() is None
    process.kill()
    process.communicate()


def test_ctrl_c_ends_an_evaluation_without_a_word(played):
    process = played.start("--eval", "5000")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and out == err == ""


# ---- the picture

@pytest.mark.parametrize("name, head", [("pong.png", b"\x89PNG"), ("other.svg", b"<?xml")])
def test_plot_draws_what_its_name_says(played, name, head):
    result = played("--plot", *([name] if name != "pong.png" else []))
    assert result.lines == [f"{name} shows save.p at episode 20, running mean "
                            f"{played.load()[1]['running_reward']:+.2f}"] and result.err == ""
    data = (played.folder / name).read_bytes()
    assert data.startswith(head) and len(data) > 50_000


def test_plot_without_matplotlib_says_how_to_install_it(played, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    result = played("--plot", status=2, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.err == "pg_pong.py: drawing needs matplotlib: pip install matplotlib\n"


@pytest.mark.parametrize("flags", [["--plot", "pong.jpg"], ["--plot", "nowhere/pong.png"], ["--eval", "0"],
                                   ["--watch", "--eval", "3"], ["--terminal"], ["--watch", "--render"], ["--watch", "--resume"]])
def test_flags_that_do_not_fit_are_refused(played, flags):
    result = played(*flags, status=2)
    assert result.out == "" and len(result.err.splitlines()) == 1


# ---- progress

def screen_of(text, columns, lines=30):
    """What a terminal shows after this text: enough of one for the trainer's line. Fails if a line wraps."""
    screen, y, x = [""], 0, 0
    for token in re.findall(r"\x1b\[(\d*)([A-Z])|([^\x1b])", text):
        if token[1] == "A":
            y -= int(token[0] or 1)
        elif token[1] == "J":
            screen[y] = screen[y][:x]
            del screen[y + 1:]
        elif token[2] == "\r":
            x = 0
        elif token[2] == "\n":
            y += 1
            screen += [""] * (y + 1 - len(screen))
        else:
            screen[y] = screen[y][:x].ljust(x) + token[2] + screen[y][x + 1:]
            x += 1
    return screen


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_the_live_line_never_wraps_and_leaves_no_remains(trainer, columns):
    terminal = Terminal(trainer.folder, "--batch-size", 4, "--episodes", 12, columns=columns)
    text = terminal.read()
    status = [line for line in screen_of(text, columns) if line.startswith("episode")]
    assert len(status) == 1, status                     # one live line, and nothing of the others
    for part in re.findall(r"episode \d+  [^\x1b\r\n]*", text):
        assert len(part) < columns, part
    last = re.findall(r"episode 12  [^\x1b\r\n]*", text)[-1]
    if columns == 200:
        assert re.search(r"steps/s  \d+\.\d episodes/s  0:00:\d\d  0:00:00 left", last), last
    assert re.match(r"episode 12  score -\d", last)


def test_the_live_line_survives_a_terminal_that_becomes_narrower(monkeypatch, capsys):
    """A terminal that reflows has put the old line on three rows; all three are taken back."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    size = [100]
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((size[0], 24)))
    pg_pong.show("x" * 90, lasting=False)
    size[0] = 40
    pg_pong.show("y" * 30, lasting=False)
    assert capsys.readouterr().out == "\r\x1b[J" + "x" * 90 + "\x1b[2A\r\x1b[J" + "y" * 30
    pg_pong.show.width = 0


def test_best_and_running_means_of_the_history(played):
    rest = played.load()[1]
    means = pg_pong.running_means(rest["episode_rewards"])
    assert means[-1] == rest["running_reward"] and means[0] == rest["episode_rewards"][0]
