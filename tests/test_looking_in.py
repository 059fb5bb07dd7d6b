"""Looking in: the window, the terminal, the score and the pictures show what is there, and change
nothing."""
import os
import pickle
import pty
import re
import shlex
import signal
import statistics
import subprocess
import threading
import unicodedata
from contextlib import closing, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (ENVIRONMENT, HEADLESS, PATIENCE, SHIPPED, Trainer, children, command_of,
                     file_of, is_stopped, killed_when_late, parts, read_until, same, session, stop,
                     wait_until)
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
        for pid in session(self.process.pid):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        self.end()
        os.close(self.ours)


@pytest.fixture
def played(trainer, saved):
    """A trainer in whose folder lies the save.p of a new agent, and nothing else."""
    trainer.save.write_bytes(saved)
    return trainer


# ---- the window


def test_the_window_shows_newer_and_newer_agents_and_does_not_change_the_training(trainer):
    process = trainer.start(*ONE_WORKER, "--render", patched="short_games")
    shown = []
    with killed_when_late(process):
        while len(set(shown)) < 3:
            line = process.stdout.readline()
            assert line, "it has ended"
            if line.startswith("agent "):
                shown.append(line)
    stop(process)
    weights, rest = trainer.load()
    run = pg_pong.new_run(pg_pong.Settings(batch_size=2))
    alone = [run, *pg_pong.train(run, len(rest["scores"]))]
    agents = [f"agent {float(run.model['W2'][0])}\n" for run in alone]
    ages = [agents.index(line) for line in shown]

    assert ages == sorted(ages)
    assert same(weights, alone[-1].model)
    assert rest["scores"] == alone[-1].scores


def test_each_game_of_watch_is_played_with_the_newest_save(played, saved):
    weights, rest = parts(saved)
    older = float(weights["W2"][0])
    weights["W2"][0] = 0.75
    newer = played.folder / "newer.p"
    newer.write_bytes(file_of(weights, rest))

    process = played.start("--watch", patched="short_games")
    read_until(process, f"agent {older}\n")
    os.replace(newer, played.save)
    read_until(process, "agent 0.75\n")
    err = stop(process)

    assert err == ""
    assert process.returncode == 130


@pytest.mark.parametrize("variables", [
    {"SDL_VIDEODRIVER": "dummy"},     # which images without a display set, and which shows nothing
    {"DISPLAY": ":987"},              # there is no such display
], ids=str)
def test_watch_with_neither_display_nor_terminal_says_so_in_one_line(played, variables):
    result = played("--watch", status=1, env=HEADLESS | variables)

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

    assert re.fullmatch("pg_pong.py: no window: .*; use --watch in another terminal\n", line)
    assert re.fullmatch("pg_pong.py: .* go on with --resume .*\n", err)
    assert process.returncode == 0


# ---- r and Enter, which open and close the window


def start_in_terminal(folder, *flags):
    """Start the script in a terminal of its own, with a window that nobody sees."""
    command, env = command_of(*flags, patched="invisible_window", env=HEADLESS)
    return Terminal(folder, command, env)


def test_r_and_enter_open_and_close_the_window_and_other_lines_do_not(tmp_path):
    with closing(start_in_terminal(tmp_path, *ONE_WORKER)) as terminal:
        trainer = terminal.process.pid
        terminal.read_until("episode 2 ")

        terminal.type("rr\n")
        terminal.read_on("running mean")
        assert len(children(trainer)) == 1  # the worker

        for _ in range(2):
            terminal.type("r\n")
            wait_until(lambda: len(children(trainer)) == 2)  # the worker and the window
            terminal.type("r\n")
            wait_until(lambda: len(children(trainer)) == 1)
        terminal.type(CTRL_C)

        assert "no window" not in terminal.end()
        assert terminal.process.returncode == 0


def test_in_the_background_r_is_for_other_programs_and_after_fg_it_works_again(tmp_path):
    command, env = command_of(*ONE_WORKER, patched="invisible_window", env=HEADLESS)
    with closing(Terminal(tmp_path, ["sh", "-i"], env)) as shell:
        shell.type(shlex.join(command) + "\n")
        shell.read_until("episode 2 ")
        [trainer] = children(shell.process.pid)

        shell.type(CTRL_Z)
        wait_until(lambda: is_stopped(trainer))
        shell.type("bg\n")
        wait_until(lambda: not is_stopped(trainer))
        shell.type("sleep 1000\n")  # it reads nothing, so the trainer could
        wait_until(lambda: os.tcgetpgrp(shell.ours) not in (trainer, shell.process.pid))
        shell.type("r\n")
        shell.read_on("running mean")  # who reads in the background is stopped
        assert len(children(trainer)) == 1

        shell.type(CTRL_C)  # for sleep, and with it, what was typed is gone
        wait_until(lambda: os.tcgetpgrp(shell.ours) == shell.process.pid)
        shell.type("fg\n")
        wait_until(lambda: os.tcgetpgrp(shell.ours) == trainer)
        shell.type("r\n")
        wait_until(lambda: len(children(trainer)) == 2)


# ---- the view in the terminal


@pytest.fixture(scope="module")
def view(tmp_path_factory, saved):
    """--watch in a terminal, which was ended by Ctrl-C after the first point was lost."""
    folder = tmp_path_factory.mktemp("view")
    (folder / "save.p").write_bytes(saved)
    flags = ["--watch", "--seed", 23, "--game", "PongDeterministic-v4"]
    command, env = command_of(*flags, patched="noted_pauses", env=HEADLESS)
    with closing(Terminal(folder, command, env)) as terminal:
        terminal.read_until("score -1", times=2)
        terminal.type(CTRL_C)
        text = terminal.end()
    before, _, _ = text.partition("^C")
    _, *frames, _ = before.split("\x1b[H\x1b[J")  # this clears the screen; the last may be half
    pauses = (folder / "pauses").read_text().split()
    return SimpleNamespace(text=text, status=terminal.process.returncode,
                           pauses=[float(pause) for pause in pauses],
                           frames=[frame.splitlines() for frame in frames])


def undo_braille(lines):
    """The picture (6400,) that is drawn so. Unicode's names have the numbers of the dots."""
    rows_and_columns = {"1": (0, 0), "2": (1, 0), "3": (2, 0), "7": (3, 0),
                        "4": (0, 1), "5": (1, 1), "6": (2, 1), "8": (3, 1)}
    picture = np.zeros((80, 80), int)
    for top, line in zip(range(0, 80, 4), lines):
        for left, character in zip(range(0, 80, 2), line):
            _, _, dots = unicodedata.name(character).partition("-")
            for dot in dots:
                row, column = rows_and_columns[dot]
                picture[top + row, left + column] = 1
    return picture.ravel()


def test_the_terminal_view_is_what_the_network_saw_with_the_p_that_it_made_of_it(view, tmp_path,
                                                                                 saved):
    (tmp_path / "save.p").write_bytes(saved)
    model = pg_pong.load(tmp_path / "save.p").model
    game = pg_pong.Pong("PongDeterministic-v4")
    picture = game.reset(np.random.default_rng(23)).astype(int)
    steps = pg_pong.rollout(game, model, np.random.default_rng(23))
    score = 0

    assert len(view.frames) > 50
    for frame, (x, _, p, _, reward) in zip(view.frames, steps):
        wall, *lines, same_wall, words = frame
        picture += x  # the difference to the one before

        assert wall == same_wall == "=" * 40
        assert np.array_equal(undo_braille(lines), picture)
        assert words == f"score {score:+}  p(UP) {p:.2f}"

        score += reward
    assert score == -1


def test_the_terminal_view_fits_a_terminal_of_80_by_24(view):
    lengths = [len(frame) for frame in view.frames]
    widths = [len(line) for frame in view.frames for line in frame]

    assert max(lengths) < 24
    assert max(widths) <= 80


def test_the_terminal_view_keeps_the_pace_of_the_game(view):
    """A step has 4 frames, of which there are 60 a second."""
    assert len(view.pauses) >= len(view.frames) > 50
    assert view.pauses == pytest.approx([4 / 60] * len(view.pauses))


def test_ctrl_c_ends_the_terminal_view_without_a_word(view):
    assert "Traceback" not in view.text
    assert "pg_pong.py" not in view.text
    assert view.status == 130


# ---- the score


def report_of(folder, seed=0, game="Pong-v0", greedy=False):
    """What --eval 2 shall say of the agent in folder/save.p, by games that are played here."""
    model = pg_pong.load(folder / "save.p").model
    scores = []
    for n in range(2):
        rng = np.random.default_rng([seed, n, 1])
        steps = list(pg_pong.rollout(pg_pong.get_game(game), model, rng, greedy))
        if greedy:
            assert all(goes_up == (p > 0.5) for _, _, p, goes_up, _ in steps)
        scores.append(sum(reward for *_, reward in steps))
    mean = statistics.mean(scores)
    error = statistics.stdev(scores) / 2**0.5
    won = sum(score > 0 for score in scores) / 2
    how = "greedy" if greedy else "sampled"
    return (f"2 {how} episodes of {game}, seed {seed}: mean score {mean:+.2f}, "
            f"standard error {error:.2f}, {won:.1%} won\n")


def figures(report):
    return report.partition(":")[2]


def test_eval_plays_games_that_its_seed_alone_determines(played):
    report = report_of(played.folder, seed=15)

    by_one = played("--eval", 2, "--seed", 15, "--workers", 1)
    by_two = played("--eval", 2, "--seed", 15, "--workers", 2)

    assert by_one.out == by_two.out == report
    assert figures(report) != figures(report_of(played.folder))  # with another seed


def test_a_greedy_eval_takes_the_likelier_action(played):
    report = report_of(played.folder, greedy=True)

    assert played("--eval", 2, "--greedy").out == report
    assert figures(report) != figures(report_of(played.folder))  # where it is sampled


def test_an_agent_is_evaluated_in_the_game_that_it_learned_unless_another_is_named(trainer, saved):
    weights, rest = parts(saved)
    rest["settings"]["game"] = "PongDeterministic-v4"
    trainer.save.write_bytes(file_of(weights, rest))
    learned = report_of(trainer.folder, seed=7, game="PongDeterministic-v4")
    other = report_of(trainer.folder, seed=7, game="Pong-v4")

    assert trainer("--eval", 2, "--seed", 7).out == learned
    assert trainer("--eval", 2, "--seed", 7, "--game", "Pong-v4").out == other
    assert figures(learned) != figures(other)


def test_eval_reports_mean_standard_error_and_share_won_and_changes_no_file(played):
    """Of -19, 21, 21 and 21: the standard deviation is 20, so the error of the mean is 10."""
    before = played.save.stat()

    result = played("--eval", 4, patched="known_scores")

    after = played.save.stat()
    assert result.out == ("4 sampled episodes of Pong-v0, seed 0: mean score +11.00, "
                          "standard error 10.00, 75.0% won\n")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(played.folder) == ["save.p"]


def test_eval_starts_no_more_workers_than_episodes(played):
    process = played.start("--eval", 2, "--workers", 5, patched="endless_evaluation")
    read_until(process, "begun")  # so all workers were started
    workers = children(process.pid)
    stop(process)

    assert len(workers) == 2


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, saved):
    """--eval in a terminal, where somebody types r and Enter, and then Ctrl-C."""
    trainer = Trainer(tmp_path_factory.mktemp("evaluation"))
    trainer.save.write_bytes(saved)
    flags = ["--eval", 5000, "--workers", 1]
    with closing(start_in_terminal(trainer.folder, *flags)) as terminal:
        terminal.read_until("2 of 5000")
        terminal.type("r\n")
        terminal.read_on("of 5000")
        processes = children(terminal.process.pid)
        terminal.type(CTRL_C)
        text = terminal.end()
    return SimpleNamespace(trainer=trainer, processes=processes, text=text,
                           status=terminal.process.returncode)


def test_during_eval_r_opens_no_window(evaluation):
    assert len(evaluation.processes) == 1  # the worker


def test_an_interrupted_eval_reports_what_was_played(evaluation):
    report = re.search(r"(\d+) sampled episodes .* won", evaluation.text)
    count = int(report[1])

    assert evaluation.status == 130
    assert 2 < count < 5000
    assert "Traceback" not in evaluation.text
    assert evaluation.trainer("--eval", count).lines == [report[0]]


# ---- the plot


@pytest.fixture(scope="module")
def plot(tmp_path_factory, saved):
    """The brightness of the plot's pixels, and which are orange. It shows a run that lost its first
    games and won its last. Its 40 strongest neurons alone speak for DOWN.
    """
    trainer = Trainer(tmp_path_factory.mktemp("plot"))
    weights, rest = parts(saved)
    strong = np.random.default_rng(0).permutation(200)[:40]
    weights["W1"][:] = -1
    weights["W2"][:] = -0.01
    weights["W2"][strong] = 1
    rest["scores"] = [-20] * 500 + [20] * 500
    trainer.save.write_bytes(file_of(weights, rest))
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # which is not installed

    trainer("--plot", env=ENVIRONMENT | notebook)
    with Image.open(trainer.folder / "pong.png") as image:
        assert image.format == "PNG"
        red, green, blue = np.moveaxis(np.array(image.convert("RGB")), 2, 0)
        brightness = np.array(image.convert("L"))
    orange = (red > 200) & (green < 160) & (blue < 60)
    return SimpleNamespace(brightness=brightness, orange=orange)


def test_the_plot_draws_the_running_mean(plot):
    """Here it is low at first, and then rises."""
    height, width = plot.orange.shape
    rows, columns = np.nonzero(plot.orange)
    left_half = columns < (columns.min() + columns.max()) / 2

    assert columns.max() - columns.min() > width / 2
    assert rows[left_half].mean() > rows[~left_half].mean() + height / 20


def test_the_plot_draws_the_40_strongest_neurons(plot):
    """Here they are black. The others are weak, so among them, they would be gray."""
    lower_half = plot.brightness[len(plot.brightness) // 2:]
    is_black = lower_half < 10
    is_gray = abs(lower_half - 127.0) < 10
    columns = is_black.mean(axis=0) > 0.3
    rows = is_black.mean(axis=1) > 0.3

    assert np.count_nonzero(np.diff(columns, prepend=False) & columns) == 10
    assert np.count_nonzero(np.diff(rows, prepend=False) & rows) == 4
    assert is_gray.sum() < is_black.sum() / 40 / 2  # not even half a square


# ---- the GIF


def play_until_a_point_is_won(game, model, seed, greedy):
    """The number of steps, and of the last one the playing field (160, 160, 3) and the difference
    frame (80, 80). The number is 0 if no point is won.
    """
    pong = pg_pong.Pong(game)
    pong.reset(None)
    screen = pong.ale.getScreenRGB()
    rng = np.random.default_rng(seed)
    steps = pg_pong.rollout(pong, model, rng, greedy)
    for count, (x, _, p, goes_up, reward) in enumerate(steps, start=1):
        assert not greedy or goes_up == (p > 0.5)
        if reward > 0:
            return count, screen[35:195].astype(int), x.reshape(80, 80)
        screen = pong.ale.getScreenRGB()
    return 0, None, None


@pytest.mark.parametrize("game, frames, scale, flags, seed", [
    ("Pong-v0", 3, 1, [], 4),  # a step has 3 frames, on average
    ("ALE/Pong-v5", 4, 0.02, ["--greedy"], 17),
], ids=["sampled", "four frames a step, greedy"])
def test_watch_draws_the_20_seconds_before_the_first_point_won(
        trainer, game, frames, scale, flags, seed):
    """With its W2 scaled down, an agent's p(UP) is near 0.5, so that sampled games go otherwise."""
    model = pg_pong.load(SHIPPED).model
    model = model | {"W2": model["W2"] * np.float32(scale)}
    trainer.save.write_bytes(pickle.dumps(model))
    most = 20 * 60 / frames
    count = 0
    while count <= most:
        seed += 1  # until a game is long enough, as the first one is now
        count, field, difference = play_until_a_point_is_won(game, model, seed, bool(flags))

    trainer("--watch", "game.gif", "--seed", seed, "--game", game, *flags)
    with Image.open(trainer.folder / "game.gif") as gif:
        drawn = gif.n_frames
        gif.seek(drawn - 1)
        pixels = np.array(gif.convert("RGB")).astype(int)
        info = gif.info
    left, right = pixels[::2, :320:2], pixels[::4, 320::4, 0]

    assert count > drawn == most
    assert abs(info["duration"] - 1000 * frames / 60) < 10  # milliseconds; a GIF counts in tens
    assert info["loop"] == 0  # for ever
    assert abs(left - field).max() < 10
    assert difference.any()
    assert np.array_equal(np.digitize(right, [64, 192]), difference + 1)


# ---- weights alone, and pictures that cannot be drawn


def test_weights_alone_can_be_evaluated_watched_and_plotted(trainer):
    weights, _ = parts(SHIPPED.read_bytes())
    trainer.save.write_bytes(pickle.dumps(weights))

    evaluation = trainer("--eval", 4, patched="known_scores")
    trainer("--watch", "game.gif", "--game", "PongDeterministic-v4")
    trainer("--plot")

    assert evaluation.out.startswith("4 sampled episodes of Pong-v0, seed 0: mean score +11.00")
    with Image.open(trainer.folder / "game.gif") as gif, \
            Image.open(trainer.folder / "pong.png") as png:
        assert gif.n_frames > 10
        assert png.convert("L").getextrema()[0] < 10  # there are black pixels


@pytest.mark.parametrize("package, flags", [
    ("matplotlib", ["--plot"]),
    ("PIL", ["--watch", "game.gif"]),
])
def test_a_package_that_is_missing_for_pictures_is_named_in_one_line(played, package, flags):
    result = played(*flags, status=1, patched="no_pictures")

    assert re.fullmatch(f"pg_pong.py: .*{package}.*; try pip install matplotlib pillow\n",
                        result.err)


def test_a_picture_that_cannot_be_written_is_refused_in_one_line(trainer):
    trainer.save.write_bytes(SHIPPED.read_bytes())  # an agent that wins a point soon

    for flags in [["--plot", "nowhere/pong.png"],
                  ["--watch", "nowhere/game.gif", "--game", "PongDeterministic-v4"]]:
        result = trainer(*flags, status=1)

        assert re.fullmatch("pg_pong.py: .*nowhere/.*\n", result.err)
        assert os.listdir(trainer.folder) == ["save.p"]
