"""Fixtures: a trainer in an empty folder, a real save.p, and one real episode."""
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported, or the textbook takes long
import gymnasium
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the tests can import pg_pong
from helpers import ONE_BATCH, PATIENCE, Trainer, children

# A shell lets its background jobs ignore Ctrl-C, and what they start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup; with a handler, only pytest does
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(autouse=True)
def nothing_left():
    """Kills what a test has started: at its end, and if it hangs, so that it fails instead."""

    def kill_all():
        for pid in children(os.getpid()):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(2 * PATIENCE, kill_all)
    timer.start()
    yield
    timer.cancel()
    timer.join()
    kill_all()


@pytest.fixture
def trainer(tmp_path):
    return Trainer(tmp_path)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The bytes of a real save.p after one batch of two episodes."""
    trainer = Trainer(tmp_path_factory.mktemp("saved"))
    trainer(*ONE_BATCH)
    return trainer.save.read_bytes()


@pytest.fixture(scope="session")
def episode():
    """A whole episode of random play: RGB frames, color codes, and actions."""
    env = gymnasium.make("ALE/Pong-v5", frameskip=(2, 5)).unwrapped
    rng = np.random.default_rng(0)
    frame, _ = env.reset(seed=0)
    frames, screens, ups = [], [], []
    while not env.ale.game_over():
        frames.append(frame)
        screens.append(env.ale.getScreen())
        ups.append(bool(rng.random() < 0.5))
        frame, *_ = env.step(2 if ups[-1] else 3)
    return SimpleNamespace(frames=frames, screens=screens, ups=np.array(ups))
