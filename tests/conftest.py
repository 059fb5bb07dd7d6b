"""Shared by the tests: the script as a module and as a command, and one real episode recorded with RGB frames."""
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")              # before numpy, or the textbook's products take long
import gymnasium
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SHORT = "--batch-size", "2", "--episodes", "2"             # for where one small batch does
HEADLESS = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
DUMMY = HEADLESS | {"DISPLAY": ":0", "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}   # a window nobody sees
sys.path.insert(0, str(ROOT))                              # so that the tests can import pg_pong
signal.signal(signal.SIGINT, signal.default_int_handler)   # shells let background jobs ignore it, and so their children

class Trainer:
    """Runs pg_pong.py in a folder of its own."""
    def __init__(self, folder):
        self.folder, self.save = folder, folder / "save.p"

    def start(self, *flags, code=None, env=os.environ | {"PYTHONPATH": str(ROOT)}, **kwargs):
        """Start the script, or a code that may change it first."""
        command = [sys.executable, *(["-c", code] if code else [ROOT / "pg_pong.py"]), *map(str, flags)]
        return subprocess.Popen(command, cwd=self.folder, text=True, env=env, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)

    def __call__(self, *flags, status=0, **kwargs):
        process = self.start(*flags, **kwargs)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()                                 # and with it, its workers end
        assert process.returncode == status and "Traceback" not in out + err, (out, err)
        return SimpleNamespace(out=out, err=err, lines=out.splitlines())

    def stop_after(self, line, *flags, number=signal.SIGINT):
        """Start, wait for such a line, stop all its processes, and return (stderr, seconds that it took to stop)."""
        process = self.start(*flags, start_new_session=True)
        read_until(process, line)
        time.sleep(0.1)                                    # within the next batch, however many cores play it
        begun = time.monotonic()
        for _ in range(2):                                 # a second signal changes nothing
            os.killpg(process.pid, number)
            time.sleep(0.02)                               # or the two would be one
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and err.startswith("pg_pong.py: ") and err.count("\n") == 1, err
        return err, time.monotonic() - begun

    def load(self, name="save.p"):
        return parts((self.folder / name).read_bytes())

def parts(data):
    """Of a save.p: the weights, and a dict of all the rest, with the bytes of the cache."""
    f = io.BytesIO(data)
    weights, (text, W1, W2) = pickle.load(f), pickle.load(f)
    return weights, json.loads(text) | {"rmsprop_cache": {"W1": W1, "W2": W2}}

def read_until(process, start):
    """Read what the process prints up to the first line that starts like this."""
    assert any(line.startswith(start) for line in process.stdout), (start, process.stderr.read())

def alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False

def children(pid):
    """The ids of the living processes that a trainer has begun: workers, and a window if one is open."""
    ids = [i for task in Path(f"/proc/{pid}/task").iterdir() for i in (task / "children").read_text().split()]
    return [int(i) for i in ids if alive(i) and "resource_tracker" not in Path(f"/proc/{i}/cmdline").read_text()]

@pytest.fixture
def trainer(tmp_path):
    return Trainer(tmp_path)

@pytest.fixture(scope="session")
def episode():
    """A whole episode of random play: RGB frames, color codes, actions and rewards, as the trainer's emulator gives."""
    env, rng = gymnasium.make("ALE/Pong-v5", frameskip=(2, 5)).unwrapped, np.random.default_rng(0)
    frame, _ = env.reset(seed=0)
    frames, screens, ups, rewards = [], [], [], []
    while not env.ale.game_over():
        frames.append(frame)
        screens.append(env.ale.getScreen())
        ups.append(bool(rng.random() < 0.5))
        frame, reward, *_ = env.step(2 if ups[-1] else 3)
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
