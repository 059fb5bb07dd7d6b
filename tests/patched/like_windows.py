"""pg_pong.py, but it takes the system for Windows, where nobody can wait for more than 63 things.

Its processes are still those of Linux, and an episode of --eval costs nothing.
"""
import sys

import pg_pong

wait = pg_pong.wait


def wait_like_windows(things, timeout):
    if len(things) > 63:
        raise ValueError("need at most 63 handles")
    return wait(things, timeout)


def play_for_score(model, seed):
    return -21


pg_pong.play_for_score = play_for_score

if __name__ == "__main__":
    sys.platform = "win32"
    pg_pong.wait = wait_like_windows
    sys.exit(pg_pong.main())
