"""pg_pong.py with something changed: the environment's PATCHES names functions of this file.

    PATCHES="saves_often spawns" python tests/patched.py --episodes 4

The changes are made when this file is imported, so they hold in spawned processes, too. A change of
something that pg_pong.py does not have is an error, or a test could pass because nothing happens.
"""
import multiprocessing
import os
import signal
import sys
import time

import pg_pong


def change(name, value, owner=pg_pong):
    """Put a value in the place of what has this name now. Returns what had it before."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def saves_often():
    """It saves every 2 episodes."""
    change("SAVE_EVERY", 2)


def spawns():
    """It starts its processes as on macOS and Windows."""
    change("CONTEXT", multiprocessing.get_context("spawn"))


def invisible_window():
    """Its window is one that nobody sees, so that it needs no display."""
    change("VISIBLE", "dummy")


def slow_episodes():
    """Each episode takes a quarter of a second longer."""
    def episode_gradient(*args):
        time.sleep(0.25)
        return original(*args)
    original = change("episode_gradient", episode_gradient)


def kills_worker_once():
    """A worker is killed when it begins episode 3 for the first time."""
    def episode_gradient(model, seed, settings):
        if seed[1] == 3 and is_first("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(model, seed, settings)
    original = change("episode_gradient", episode_gradient)


def is_first(name):
    """Whether nobody has asked this with this name before, in any process in this folder."""
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


for patch in os.environ["PATCHES"].split():
    globals()[patch]()

if __name__ == "__main__":
    sys.exit(pg_pong.main())
