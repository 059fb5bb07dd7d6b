"""A program, as a notebook is one, that imports pg_pong.py, and trains twice in its own process.

It has a thread, a child process and a handler of Ctrl-C of its own. It prints what is not as it was
before, once after the import and once at the end, and whether its handler still works.
"""
import multiprocessing
import signal
import sys
import threading
import time


def state():
    """What must stay as it is."""
    return {
        "handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "threads": threading.enumerate(),
        "child processes": set(multiprocessing.active_children()),
    }


def tell_changes(when, before):
    now = state()
    changed = [name for name in before if now[name] != before[name]]
    print(f"changed {when}: {changed}", flush=True)


def handle(number, frame):
    print("the handler was called", flush=True)


def train(*flags):
    sys.argv = ["pg_pong.py", "--batch-size", "2", *flags]
    print("status", pg_pong.main(), flush=True)


signal.signal(signal.SIGINT, handle)
threading.Thread(target=threading.Event().wait, daemon=True).start()
multiprocessing.get_context("fork").Process(target=time.sleep, args=[1000], daemon=True).start()
before = state()

import pg_pong
tell_changes("by the import", before)
train()
train("--resume", "--episodes", "4")
tell_changes("in the end", before)
signal.raise_signal(signal.SIGINT)
