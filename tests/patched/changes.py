"""What pg_pong.py must leave as it was in a program that imports it or trains with it."""
import multiprocessing
import signal
import threading


def state():
    return {
        "handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "threads": threading.enumerate(),
        "child processes": multiprocessing.active_children(),
    }


def tell_changes(before):
    now = state()
    for name in before:
        if now[name] != before[name]:
            print("changed:", name, before[name], "->", now[name])
