"""Looking in never disturbs the training."""
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from PIL import Image
from conftest import DUMMY, HEADLESS, ROOT, Trainer, children, read_until, same
import pg_pong

SEED = 5                                                   # of a drawn game: it loses a point, and wins the next

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

    def read(self, until=None, times=1):
        """Read until that text appears so often (None: until the process ends) and return all the text so far."""
        end = time.monotonic() + 60
        while until is None or self.bytes.count(until.encode()) < times:
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
    assert process.returncode == 0 and err == f"pg_pong.py: {trainer.save} holds 4 episodes; go on with --resume\n"
    assert same(trainer.load(), played.load())

def test_render_without_a_display_says_so_in_one_line_and_trains_on(trainer):
    process = trainer.start("--batch-size", 2, "--workers", 9, "--render", env=HEADLESS)
    assert re.fullmatch("pg_pong.py: no window: .*; try a terminal, or --watch FILE.gif\n", process.stderr.readline())
    for _ in range(2):
        read_until(process, "episode ")
    assert len(children(process.pid)) == 2                             # a worker for each episode of a batch
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].startswith("pg_pong.py: ") and process.returncode == 0

def test_watching_needs_a_run_and_a_terminal_or_a_display_that_lives(trainer, played):
    assert "there is no save.p" in trainer("--watch", status=2, env=DUMMY).err
    for env in HEADLESS, HEADLESS | {"DISPLAY": ":987"}:
        result = played("--watch", status=2, env=env)
        assert result.err.count("\n") == 1 and "no window: " in result.err and result.out == ""

def test_r_and_enter_open_and_close_the_window(trainer, terminals):
    terminal = terminals(trainer.folder, "--batch-size", 2, "--workers", 1, env=DUMMY)
    terminal.read("episode 2 ")
    for typed, expected in [("r", 2), ("x", 2), ("r", 1)] * 2:         # the worker, and the window or not
        os.write(terminal.ours, f"{typed}\n".encode())
        time.sleep(0.5 * (typed == "x"))                               # until it would have opened or closed one
        end = time.monotonic() + 20
        while len(children(terminal.process.pid)) != expected:
            assert time.monotonic() < end, children(terminal.process.pid)
            time.sleep(0.05)
    terminal.process.send_signal(signal.SIGINT)
    assert "save.p holds" in terminal.read() and terminal.process.returncode == 0

@pytest.mark.filterwarnings("ignore")
def test_each_game_is_played_with_the_newest_save(tmp_path, monkeypatch):
    path, seen, runs = str(tmp_path / "save.p"), [], [pg_pong.new_run(pg_pong.SETTINGS | {"seed": n}) for n in (1, 2)]
    def play(env, model, rng):
        seen.append(model["W2"].tolist())
        pg_pong.save(runs[1], path, False)
        if seen[1:]:
            raise KeyboardInterrupt
        yield None, None, 0.5, True, 0
    monkeypatch.setattr(pg_pong, "play", play)
    monkeypatch.setattr(sys, "argv", ["pg_pong.py", "--watch", "--save", path])
    for name in "DISPLAY", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER":
        monkeypatch.setenv(name, DUMMY[name])
    pg_pong.save(runs[0], path, False)
    with pytest.raises(KeyboardInterrupt):
        pg_pong.main()
    assert seen == [run.model["W2"].tolist() for run in runs]

# ---- the terminal

def test_the_terminal_view_is_what_prepro_makes_of_the_screen(episode):
    places = (0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)        # of Unicode's dots 1 to 8
    for frame in episode.frames[:200:10]:
        codes = np.array([[ord(c) for c in line] for line in pg_pong.braille(pg_pong.prepro(frame)).split("\n")])
        picture = np.zeros((80, 80))
        for bit, (row, column) in enumerate(places):
            picture[row::4, column::2] = codes - 0x2800 >> bit & 1
        assert codes.shape == (20, 40) and np.array_equal(picture.ravel(), pg_pong.prepro(frame)) and picture.any()

def test_the_terminal_view_plays_until_it_is_stopped(played, terminals):
    terminal = terminals(played.folder, "--watch")
    frames = terminal.read("p(UP)", times=60).split("\x1b[H\x1b[J")
    assert len(set(frames)) > 30
    lines = frames[-2].splitlines()                                    # 21 lines, which fit 80x24
    assert [len(line) for line in lines[:20]] == [40] * 20 and len(lines) == 21, lines
    assert re.fullmatch(r"score \+0  p\(UP\) 0\.\d\d", lines[20])
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert "Traceback" not in terminal.read() and terminal.process.returncode == 130

# ---- the score

def test_eval_gives_the_same_score_twice_and_with_any_number_of_workers(played):
    before = played.save.read_bytes()
    results = [played("--eval", 3, "--workers", n, "--seed", 3) for n in (1, 2)]
    assert results[0].out == results[1].out != played("--eval", 3, "--seed", 4).out
    assert results[0].err == results[1].err == "\n".join(f"{k} of 3" for k in (1, 2, 3)) + "\n"     # \r, as text=True
    assert played.save.read_bytes() == before
    mean, low, high, won = map(float, re.fullmatch(
        r"3 episodes of save.p, seed 3: mean score (-\d+\.\d\d) \(95% interval (-\d+\.\d\d) to (-\d+\.\d\d)\), "
        r"(\d+\.\d)% won\n", results[0].out).groups())
    rngs, model, env = [np.random.default_rng([3, n, 1]) for n in range(3)], played.load()[0], pg_pong.make_env()
    scores = [sum(step[-1] for step in pg_pong.play(env, model, rng)) for rng in rngs]     # the same, played here
    assert mean == pytest.approx(np.mean(scores), abs=0.005) and won == 0
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(scores, ddof=1) / 3**0.5, abs=0.01)

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_an_evaluation(played, terminals, number):
    terminal = terminals(played.folder, "--eval", 5000)
    terminal.read("2 of 5000")
    begun = time.monotonic()
    os.killpg(terminal.process.pid, number)                # the workers get it, too, and are not to be blamed
    text = terminal.read()
    assert re.fullmatch(r"(\d+ of 5000\r)+(\^C)?", text) and terminal.process.returncode == 130, text
    assert time.monotonic() - begun < 5

# ---- the picture

@pytest.mark.parametrize("name, head", [("pong.png", b"\x89PNG"), ("other.svg", b"<?xml")])
def test_plot_draws_what_its_name_says(played, name, head):
    assert played("--plot", *([name] if name != "pong.png" else [])).err == ""
    assert (played.folder / name).read_bytes().startswith(head) and (played.folder / name).stat().st_size > 50_000

@pytest.mark.parametrize("package, flags", [("matplotlib", ["--plot"]), ("PIL", ["--watch", "game.gif"])])
def test_a_package_that_is_missing_is_named_in_one_line(played, tmp_path, package, flags):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{package}'\")")
    result = played(*flags, status=2, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.err == f"pg_pong.py: No module named '{package}'; try pip install matplotlib pillow\n"

@pytest.mark.parametrize("flags", ["--plot nowhere/pong.png", "--plot pong.xyz", "--plot pong.gif", "--watch pong",
                                   "--watch game.png", "--watch nowhere/pong.gif"])
def test_a_picture_that_cannot_be_written_is_refused(played, flags):
    if "watch nowhere" in flags:
        shutil.copy(ROOT / "save.p", played.folder / "shipped.p")      # which comes to its first point soon
    result = played(*flags.split(), *(["--save", "shipped.p"] if "watch nowhere" in flags else []), status=2)
    assert result.out == "" and re.search("nowhere/pong|--watch draws a .gif, --plot a .png or .svg", result.err)
    assert not (played.folder / flags.split()[1]).exists()

def test_watch_draws_a_game_up_to_the_first_point_won_and_what_the_network_sees(trainer):
    shutil.copy(ROOT / "save.p", trainer.save)
    trainer("--watch", "game.gif", "--seed", SEED)
    model, env, pictures = pg_pong.load(str(trainer.save)).model, pg_pong.make_env(), [0]
    for *_, reward in pg_pong.play(env, model, np.random.default_rng(SEED)):           # the same game, played here
        pictures.append(pg_pong.prepro(env.ale.getScreen()))
        if reward > 0:
            break
    assert reward > 0 and len(pictures) > 300               # so that a point was lost before
    with Image.open(trainer.folder / "game.gif") as gif:
        durations = [gif.seek(n) or gif.info["duration"] for n in range(gif.n_frames)]
        assert gif.size == (640, 320) and gif.info["loop"] == 0 and sum(durations) == 50 * (len(pictures) - 2)
        last = np.array(gif.convert("RGB"))[::2, ::2].astype(int)
    assert np.abs(last[:, :160] - env.ale.getScreenRGB()[35:195]).max() < 9            # 32 colors
    seen = np.sign(last[::2, 160::2, 0] // 64 - 2 + (last[::2, 160::2, 0] > 200))      # 0, 128, 255
    assert np.array_equal(seen.ravel(), pictures[-1] - pictures[-2])
    assert (trainer.folder / "game.gif").stat().st_size < 400_000
