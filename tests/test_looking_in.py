"""Looking in: the window, the terminal, the score and the pictures show what is there, and change
nothing."""
import os
import pty
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
import unicodedata
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (HEADLESS, PATIENCE, SCRIPT, SHIPPED, TESTS, children, file_of, finish,
                     killed_when_late, parts, read_until, same, stop, wait_until)
from PIL import Image
import pg_pong

ONE_WORKER = ["--batch-size", 2, "--workers", 1]
CTRL_C = "\x03"
CTRL_Z = "\x1a"


class Terminal:
    """A pseudo-terminal, in which a program runs. The test types there, and reads."""

    def __init__(self, folder, command, env=HEADLESS):
        self.ours, theirs = pty.openpty()
        words = ["setsid", "--ctty", *command]  # so that Ctrl-C and Ctrl-Z work
        self.process = subprocess.Popen(words, cwd=folder, env=env,
                                        stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.bytes = b""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        with suppress(OSError):  # every program in it has ended
            while True:
                self.bytes += os.read(self.ours, 65536)

    def text(self):
        return self.bytes.decode(errors="ignore")  # the last character may be half

    def type(self, keys):
        os.write(self.ours, keys.encode())

    def read_until(self, text, times=1):
        wait_until(lambda: self.text().count(text) >= times)

    def read_on(self, text):
        """Read until the text has come two more times. Until then, a typed line was looked at."""
        self.read_until(text, self.text().count(text) + 2)

    def end(self):
        """Wait until the program ends. Returns all that was on the terminal."""
        self.process.wait(timeout=PATIENCE)
        self.reader.join()
        return self.text()

    def close(self):
        if self.process.poll() is None:
            for pid in [*children(self.process.pid), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
        self.end()
        os.close(self.ours)


@pytest.fixture
def terminals(tmp_path):
    """Makes terminals, and closes them when the test ends."""
    made = []

    def make(command, **kwargs):
        made.append(Terminal(tmp_path, command, **kwargs))
        return made[-1]

    yield make
    for terminal in made:
        terminal.close()


def command_of(*flags, patched=None):
    """The words that start pg_pong.py, or the file of that name in tests/patched."""
    script = TESTS / "patched" / f"{patched}.py" if patched else SCRIPT
    return [sys.executable, *map(str, [script, *flags])]


@pytest.fixture(autouse=True)
def nothing_left():
    """Kills what a test has started: at its end, and if it hangs, so that it fails instead."""

    def kill_all():
        for pid in children(os.getpid()):
            os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(2 * PATIENCE, kill_all)
    timer.start()
    yield
    timer.cancel()
    timer.join()
    kill_all()


@pytest.fixture
def played(trainer, saved):
    """A trainer in whose folder lies the save.p of a new agent, and nothing else."""
    trainer.save.write_bytes(saved)
    return trainer


# ---- the window


def test_a_window_does_not_change_the_training(trainer):
    process = trainer.start(*ONE_WORKER, "--render", patched="invisible_window")
    read_until(process, "episode 4 ")
    worker_and_window = children(process.pid)
    err = stop(process)
    weights, rest = trainer.load()

    run = pg_pong.new_run(pg_pong.Settings(batch_size=2))
    *_, alone = pg_pong.train(run, len(rest["scores"]))

    assert len(worker_and_window) == 2
    assert "no window" not in err
    assert same(weights, alone.model)
    assert rest["scores"] == alone.scores


def test_the_window_beside_the_training_shows_newer_and_newer_agents(trainer):
    run = pg_pong.new_run(pg_pong.Settings(batch_size=2))
    runs = [run, *pg_pong.train(run, 8)]
    agents = [f"agent {float(run.model['W2'][0])}" for run in runs]

    result = trainer(*ONE_WORKER, "--episodes", 8, "--render", patched="short_games")
    shown = [agents.index(line) for line in result.lines if line in agents]

    assert shown == sorted(shown)
    assert len(set(shown)) > 1


def test_each_game_of_watch_is_played_with_the_newest_save(trainer, saved):
    weights, rest = parts(saved)
    weights["W2"][0] = 0.25
    trainer.save.write_bytes(file_of(weights, rest))

    process = trainer.start("--watch", patched="short_games")
    read_until(process, "agent 0.25\n")
    weights["W2"][0] = 0.75
    newer = trainer.folder / "newer.p"
    newer.write_bytes(file_of(weights, rest))
    os.replace(newer, trainer.save)
    read_until(process, "agent 0.75\n")
    err = stop(process)

    assert err == ""
    assert process.returncode == 130


@pytest.mark.parametrize("variables", [
    {},
    {"DISPLAY": ":987"},              # there is no such display
    {"SDL_VIDEODRIVER": "dummy"},     # which images without a display set, and which shows nothing
], ids=str)
def test_watch_without_a_display_or_a_terminal_says_so_in_one_line(played, variables):
    result = played("--watch", status=2, env=HEADLESS | variables)

    assert result.out == ""
    assert re.fullmatch("pg_pong.py: no window: .*; try .* --watch FILE.gif\n", result.err)


def test_render_without_a_display_says_so_in_one_line_and_trains_on(trainer):
    process = trainer.start(*ONE_WORKER, "--render", env=HEADLESS)
    with killed_when_late(process):
        line = process.stderr.readline()
    wait_until(lambda: len(children(process.pid)) == 1)  # the worker alone
    for _ in range(3):
        read_until(process, "episode ")
    err = stop(process)

    assert line.startswith("pg_pong.py: no window: ")
    assert re.fullmatch("pg_pong.py: .* go on with --resume\n", err)
    assert process.returncode == 0


# ---- r and Enter, which open and close the window


def test_r_and_enter_open_and_close_the_window(terminals):
    terminal = terminals(command_of(*ONE_WORKER, patched="invisible_window"))
    trainer = terminal.process.pid
    terminal.read_until("episode 2 ")

    for _ in range(2):
        terminal.type("r\n")
        wait_until(lambda: len(children(trainer)) == 2)  # the worker and the window
        terminal.type("r\n")
        wait_until(lambda: len(children(trainer)) == 1)
    terminal.type(CTRL_C)

    assert "no window" not in terminal.end()
    assert terminal.process.returncode == 0


def test_other_lines_neither_open_nor_close_the_window(terminals):
    terminal = terminals(command_of(*ONE_WORKER, patched="invisible_window"))
    terminal.read_until("episode 2 ")

    terminal.type("rr\n")
    terminal.read_on("running mean")

    assert len(children(terminal.process.pid)) == 1


def test_during_eval_r_opens_no_window(terminals, played):
    command = command_of("--eval", 5000, "--workers", 1, patched="invisible_window")
    terminal = terminals(command)
    terminal.read_until("of 5000")

    terminal.type("r\n")
    terminal.read_on("of 5000")

    assert len(children(terminal.process.pid)) == 1  # the worker


@pytest.fixture
def shell(terminals):
    """A terminal with a shell, where programs can be stopped, and sent to the background."""
    return terminals(["sh", "-i"])


def start_in(shell, end_of_line=""):
    """Start a training in a shell. Returns its process id."""
    command = command_of(*ONE_WORKER, patched="invisible_window")
    shell.type(shlex.join(command) + end_of_line + "\n")
    shell.read_until("episode 2 ")
    return children(shell.process.pid)[0]


def is_stopped(pid):
    return ") T " in Path(f"/proc/{pid}/stat").read_text()


def test_r_still_works_after_ctrl_z_bg_and_fg(shell):
    trainer = start_in(shell)

    shell.type(CTRL_Z)
    wait_until(lambda: is_stopped(trainer))
    shell.type("bg\n")
    wait_until(lambda: not is_stopped(trainer))
    shell.read_on("running mean")
    shell.type("fg\n")
    wait_until(lambda: os.tcgetpgrp(shell.ours) == trainer)
    shell.type("r\n")

    wait_until(lambda: len(children(trainer)) == 2)


def test_a_trainer_in_the_background_reads_nothing_and_goes_on(shell):
    """What is typed there is for the program in the foreground, although it may read it later."""
    trainer = start_in(shell, " &")
    shell.type("sleep 1000\n")
    wait_until(lambda: os.tcgetpgrp(shell.ours) != shell.process.pid)

    shell.type("r\n")
    shell.read_on("running mean")

    assert len(children(trainer)) == 1  # no window


# ---- the view in the terminal


@pytest.fixture(scope="module")
def view(tmp_path_factory, saved):
    """--watch in a terminal, where it was ended by Ctrl-C after the first point was lost."""
    folder = tmp_path_factory.mktemp("view")
    (folder / "save.p").write_bytes(saved)
    began = time.monotonic()
    terminal = Terminal(folder, command_of("--watch", "--seed", 23))
    terminal.read_until("score -1", times=2)
    seconds = time.monotonic() - began
    terminal.type(CTRL_C)
    text = terminal.end()
    terminal.close()
    before, _, _ = text.partition("^C")
    _, *frames, _ = before.split("\x1b[H\x1b[J")  # this clears the screen; the last may be half
    return SimpleNamespace(text=text, seconds=seconds, status=terminal.process.returncode,
                           frames=[frame.splitlines() for frame in frames])


def undo_braille(lines):
    """The picture (80, 80) that is drawn so. Unicode's names have the numbers of the dots."""
    rows_and_columns = {"1": (0, 0), "2": (1, 0), "3": (2, 0), "7": (3, 0),
                        "4": (0, 1), "5": (1, 1), "6": (2, 1), "8": (3, 1)}
    picture = np.zeros((80, 80), int)
    for top, line in zip(range(0, 80, 4), lines):
        for left, character in zip(range(0, 80, 2), line):
            _, _, dots = unicodedata.name(character).partition("-")
            for dot in dots:
                row, column = rows_and_columns[dot]
                picture[top + row, left + column] = 1
    return picture


def test_the_terminal_view_is_what_the_network_sees_of_the_game(view, tmp_path, saved):
    (tmp_path / "save.p").write_bytes(saved)
    model = pg_pong.load(tmp_path / "save.p").model
    same_game = pg_pong.play(pg_pong.Pong(), model, np.random.default_rng(23))
    score = 0

    for frame, (p, reward, _, picture) in zip(view.frames, same_game):
        *lines, words = frame
        score += reward

        assert np.array_equal(undo_braille(lines).ravel(), picture)
        assert words == f"score {score:+}  p(UP) {p:.2f}"


def test_the_terminal_view_fits_a_small_terminal(view):
    for frame in view.frames:
        assert len(frame) < 24
        assert max(map(len, frame)) <= 80


def test_the_terminal_view_keeps_the_pace_of_the_game(view):
    """A step has some 3 frames, so the game has some 20 steps a second."""
    assert view.seconds > len(view.frames) / 30


def test_ctrl_c_ends_the_terminal_view_without_a_word(view):
    assert "Traceback" not in view.text
    assert "pg_pong.py:" not in view.text
    assert view.status == 130


@pytest.mark.parametrize("variables, expected", [
    ({"JPY_PARENT_PID": "1"}, "no window: .* --watch FILE.gif"),
    ({"PYTHONIOENCODING": "latin1"}, "this terminal cannot show the game; .* --watch FILE.gif"),
], ids=["in a notebook", "without UTF-8"])
def test_a_terminal_that_cannot_show_the_game_gets_one_line(
        terminals, played, variables, expected):
    terminal = terminals(command_of("--watch"), env=HEADLESS | variables)

    text = terminal.end()

    assert re.fullmatch(f"pg_pong.py: {expected}\r\n", text)
    assert terminal.process.returncode == 2


# ---- the score


def test_eval_plays_games_that_its_seed_alone_determines(played):
    model = pg_pong.load(played.save).model
    game = pg_pong.Pong()
    scores = []
    for n in range(2):
        steps = pg_pong.play(game, model, np.random.default_rng([7, n, 1]))
        scores.append(sum(reward for _, reward, _, _ in steps))

    by_one = played("--eval", 2, "--seed", 7, "--workers", 1)
    by_two = played("--eval", 2, "--seed", 7, "--workers", 2)

    assert f"mean score {statistics.mean(scores):+.2f}," in by_one.out
    assert by_one.out == by_two.out


def test_eval_reports_mean_standard_error_and_share_won(played):
    """Of -19, 21, 21 and 21: the standard deviation is 20, so the error of the mean is 10."""
    result = played("--eval", 4, patched="known_scores")

    assert result.out == ("4 episodes of save.p, seed 0: mean score +11.00, "
                          "standard error 10.00, 75.0% won\n")


def test_eval_changes_no_file_and_computes_no_gradient(played):
    before = played.save.stat()

    played("--eval", 2, patched="no_gradients")

    after = played.save.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(played.folder) == ["save.p"]


def test_eval_starts_no_more_workers_than_episodes(played):
    process = played.start("--eval", 2, "--workers", 5, patched="endless_episodes")
    read_until(process, "begun")  # so all workers were started
    workers = children(process.pid)
    stop(process)

    assert len(workers) == 2


def test_an_interrupted_eval_reports_what_was_played(played):
    process = played.start("--eval", 5000, start_new_session=True)
    with killed_when_late(process):
        for _ in range(2):
            process.stderr.readline()

    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, so the workers get it, too
    out, err = finish(process)
    count = int(out.split()[0])

    assert process.returncode == 130
    assert re.fullmatch(r"(\d+ of 5000|\n)*", err)
    assert 2 <= count < 5000
    assert out == played("--eval", count).out


# ---- the plot


def test_the_plot_draws_the_running_mean(trainer, saved):
    """A run that lost its first games and won its last has a curve that rises."""
    weights, rest = parts(saved)
    rest["scores"] = [-20] * 500 + [20] * 500
    trainer.save.write_bytes(file_of(weights, rest))

    trainer("--plot")
    with Image.open(trainer.folder / "pong.png") as image:
        red, green, blue = np.moveaxis(np.array(image.convert("RGB")), 2, 0)
    rows, columns = np.nonzero((red > 200) & (green < 160) & (blue < 60))  # orange
    left_half = columns < (columns.min() + columns.max()) / 2

    assert image.format == "PNG"
    assert columns.max() - columns.min() > image.width / 2
    assert rows[left_half].mean() > rows[~left_half].mean() + image.height / 20


def test_the_plot_draws_the_40_strongest_neurons(trainer, saved):
    """They alone speak for DOWN, and are black. The others are weak: among them, they are gray."""
    weights, rest = parts(saved)
    strong = np.random.default_rng(0).permutation(200)[:40]
    weights["W1"][:] = -1
    weights["W2"][:] = -0.01
    weights["W2"][strong] = 1
    trainer.save.write_bytes(file_of(weights, rest))

    trainer("--plot", "neurons.png")
    with Image.open(trainer.folder / "neurons.png") as image:
        brightness = np.array(image.convert("L"))
    lower_half = brightness[len(brightness) // 2:]
    is_black = lower_half < 10
    is_gray = abs(lower_half - 127.0) < 10
    columns = is_black.mean(axis=0) > 0.3
    rows = is_black.mean(axis=1) > 0.3

    assert np.count_nonzero(np.diff(columns, prepend=False) & columns) == 10
    assert np.count_nonzero(np.diff(rows, prepend=False) & rows) == 4
    assert is_gray.sum() < is_black.sum() / 40 / 2  # not even half a square


# ---- the GIF


def test_watch_draws_the_20_seconds_before_the_first_point_won(trainer):
    trainer.save.write_bytes(SHIPPED.read_bytes())
    model = pg_pong.load(SHIPPED).model
    game = pg_pong.Pong()
    screens, differences, rewards = [], [], []
    for step in pg_pong.play(game, model, np.random.default_rng(5)):
        _, reward, previous, picture = step
        screens.append(game.ale.getScreenRGB()[35:195].astype(int))
        differences.append((picture - previous).reshape(80, 80))
        rewards.append(reward)
        if reward > 0:
            break

    trainer("--watch", "game.gif", "--seed", 5)
    durations = []
    with Image.open(trainer.folder / "game.gif") as gif:
        for n in range(gif.n_frames):
            gif.seek(n)
            durations.append(gif.info["duration"])
        pixels = np.array(gif.convert("RGB")).astype(int)
    left, right = pixels[::2, :320:2], pixels[::4, 320::4, 0]

    assert len(rewards) > 400 and min(rewards) == -1  # it is long, and a point was lost before
    assert sum(durations) == 20_000  # milliseconds
    assert gif.info["loop"] == 0  # for ever
    assert abs(left - screens[-1]).max() < 10
    assert np.array_equal(np.digitize(right, [64, 192]), differences[-1] + 1)


def test_watch_draws_a_game_without_a_point_won_in_little_memory(played):
    model = pg_pong.load(played.save).model
    game = pg_pong.Pong()
    seed = 0
    while any(reward > 0 for _, reward, _, _ in pg_pong.play(game, model,
                                                             np.random.default_rng(seed))):
        seed += 1

    result = played("--watch", "game.gif", "--seed", seed, patched="tells_memory")
    kilobytes = int(re.search(r"VmHWM:\s+(\d+) kB", result.out)[1])

    assert kilobytes < 300_000
    with Image.open(played.folder / "game.gif") as gif:
        assert gif.n_frames > 100


# ---- pictures that cannot be drawn


@pytest.mark.parametrize("package, flags", [
    ("matplotlib", ["--plot"]),
    ("PIL", ["--watch", "game.gif"]),
])
def test_a_package_that_is_missing_for_pictures_is_named_in_one_line(played, package, flags):
    result = played(*flags, status=2, patched="no_pictures")

    assert result.err.count("\n") == 1
    assert package in result.err
    assert re.search("try pip install .*matplotlib pillow\n", result.err)


@pytest.mark.parametrize("flags", [
    ["--plot", "nowhere/pong.png"],
    ["--watch", "nowhere/game.gif"],
], ids=str)
def test_a_picture_that_cannot_be_written_is_refused_in_one_line(trainer, flags):
    trainer.save.write_bytes(SHIPPED.read_bytes())  # an agent that wins a point soon

    result = trainer(*flags, status=2)

    assert re.fullmatch("pg_pong.py: .*nowhere/.*\n", result.err)
    assert os.listdir(trainer.folder) == ["save.p"]
