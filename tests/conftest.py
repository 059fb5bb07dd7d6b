"""Shared by the tests: the script as a module and as a command, and one real episode recorded with RGB frames."""
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SHORT = "--batch-size", "2", "--episodes", "2"             # for where one small batch does
HEADLESS = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
DUMMY = HEADLESS | {"DISPLAY": ":0", "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}   # a window nobody sees
sys.path.insert(0, str(ROOT))                              # so that the tests can import pg_pong


class Trainer:
    """Runs pg_pong.py in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.save = folder, folder / "save.p"

    def start(self, *flags, **kwargs):
        return subprocess.Popen([sys.executable, str(ROOT / "pg_pong.py"), *map(str, flags)], cwd=self.folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **kwargs)

    def __call__(self, *flags, status=0, **kwargs):
        process = self.start(*flags, **kwargs)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, (out, err)
        assert "Traceback" not in out + err, err
        return SimpleNamespace(out=out, err=err, lines=out.splitlines())

    def stop_after(self, line, *flags, number=signal.SIGINT):
        """Start, wait for a status line that starts like this, stop, and return (output, seconds it took to stop)."""
        process = self.start(*flags)
        read_until(process, line)
        time.sleep(0.1)                                    # within the next batch, however many cores play it
        begun = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        took = time.monotonic() - begun
        assert process.returncode == 0 and err == "", (process.returncode, err)
        return out, took

    def load(self, name="save.p"):
        with open(self.folder / name, "rb") as f:
            return pickle.load(f), pickle.load(f)


def read_until(process, start):
    """Read what the process prints up to the first line that starts like this."""
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"no line starts with {start!r}: {process.stderr.read()}")


def children(pid):
    """The ids of the processes that a trainer has begun: workers, and a view if one is open."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in pids if b"import spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.fixture
def trainer(tmp_path):
    return Trainer(tmp_path)


@pytest.fixture(scope="session")
def episode():
    """A whole episode of random play: RGB frames, colour codes, actions and rewards, as the trainer's emulator gives."""
    env = gymnasium.make("ALE/Pong-v5", frameskip=(2, 5))
    rng = np.random.default_rng(0)
    frame, _ = env.reset(seed=0)
    frames, screens, ups, rewards, over = [], [], [], [], False
    while not over:
        frames.append(frame)
        screens.append(env.unwrapped.ale.getScreen())
        ups.append(bool(rng.random() < 0.5))
        frame, reward, terminated, truncated, _ = env.step(2 if ups[-1] else 3)
        over = terminated or truncated
        rewards.append(reward)
    return SimpleNamespace(frames=frames, screens=screens, ups=np.array(ups), rewards=rewards)


def same(a, b):
    """Equal to the last bit, all the way down."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
