"""A program, as a notebook is one, that trains twice in its own process.

It has a thread, a child process and a handler of Ctrl-C of its own. At the end it prints what is
not as it was before.
"""
import multiprocessing
import signal
import sys
import threading
import time

import pg_pong
from changes import state, tell_changes


def handle(number, frame):
    print("the program itself got the signal", flush=True)


def train(*flags):
    sys.argv = ["pg_pong.py", "--batch-size", "2", *flags]
    print("status", pg_pong.main(), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, handle)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    multiprocessing.Process(target=time.sleep, args=[1000], daemon=True).start()
    before = state()
    train()
    train("--resume", "--episodes", "4")
    tell_changes(before)
