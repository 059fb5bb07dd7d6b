"""pg_pong.py with something changed: the environment's PATCHES names functions of this file.

    PATCHES="saves_often spawns" python tests/patched.py --episodes 4

The changes are made when this file is imported, so they hold in spawned processes, too. A change of
something that pg_pong.py does not have is an error, or a test could pass because nothing happens.
"""
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

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


def slow_evaluation():
    """Each episode of --eval takes half a second longer."""
    def play_for_score(*args):
        time.sleep(0.5)
        return original(*args)
    original = change("play_for_score", play_for_score)


def full_disk():
    """After the start, no file may grow beyond 1 MB, until the run has FULL_UNTIL episodes."""
    def train(*args):
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        for run in original(*args):
            is_full = len(run.scores) < int(os.environ["FULL_UNTIL"])
            limit = 1 << 20 if is_full else most
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
            yield run
    original = change("train", train)


def diverges():
    """The gradient of the second update has a NaN in it."""
    def rmsprop(model, mean_square, gradient, *rates):
        updates.append(rates)
        if len(updates) == 2:
            gradient["W1"][0, 0] = float("nan")
        return original(model, mean_square, gradient, *rates)
    updates = []
    original = change("rmsprop", rmsprop)


def instant_episodes():
    """An episode takes no time, and nothing is learned from it."""
    def episode_gradient(model, seed, settings):
        return {k: 0 * weights for k, weights in model.items()}, [-1] * 21
    change("episode_gradient", episode_gradient)


def dies_in_mid_message():
    """The first worker that sends a gradient is killed when half of it was sent."""
    def send(pipe, data, *args):
        if len(data) < 10**6 or not is_first("killed"):
            original(pipe, data, *args)
            return
        original(pipe, data[:len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    original = change("_send", send, Connection)


def fails():
    """From episode 3 on, an error comes up whenever a worker plays."""
    def episode_gradient(model, seed, settings):
        if seed[1] > 2:
            raise ArithmeticError("an error that nobody expects")
        return original(model, seed, settings)
    original = change("episode_gradient", episode_gradient)


def waits_to_replace():
    """Before a save takes the old one's place, it says so, and waits for the end of its input."""
    def replace(*args):
        print("saving", flush=True)
        sys.stdin.read()
        original(*args)
    original = change("replace", replace, os)


def interrupted_after_replacing():
    """Ctrl-C comes as soon as a save has taken its place."""
    def replace(*args):
        original(*args)
        signal.raise_signal(signal.SIGINT)
    original = change("replace", replace, os)


def full_stdout():
    """When the first batch is reported, the disk to which its output goes gets full."""
    def report(*args):
        original(*args)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, sys.stdout.fileno())
    original = change("report", report)


def is_first(name):
    """Whether nobody has asked this with this name before, in any process in this folder."""
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def short_games():
    """A game in its window, which nobody sees, has one step, and prints which agent plays.

    An agent is told apart by its first weight in W2.
    """
    def open_window(game):
        change("rollout", first_step)  # the process plays for its window alone
        return original_window(game)

    def first_step(game, model, rng, *args):
        print("agent", float(model["W2"][0]), flush=True)
        yield next(original_rollout(game, model, rng, *args))

    invisible_window()
    original_window = change("open_window", open_window)
    original_rollout = pg_pong.rollout


def known_scores():
    """The four episodes of --eval 4 are not played: their scores are these."""
    scores = [-19, 21, 21, 21]
    change("play_for_score", lambda greedy, model, seed, settings: scores[seed[1]])


def endless_evaluation():
    """An episode of --eval says that it has begun, and never ends."""
    def play_for_score(*args):
        print("begun", flush=True)
        threading.Event().wait()
    change("play_for_score", play_for_score)


def noted_pauses():
    """It notes in a file how many seconds each pause takes, and makes it four times as short."""
    def sleep(seconds):
        with open("pauses", "a") as f:
            print(seconds, file=f)
        original(seconds / 4)
    original = change("sleep", sleep, time)


def no_pictures():
    """The packages that draw pictures are not installed."""
    for name in ["matplotlib", "PIL"]:
        sys.modules[name] = None  # so that Python finds no such module


for patch in os.environ["PATCHES"].split():
    globals()[patch]()

if __name__ == "__main__":
    sys.exit(pg_pong.main())
