"""pg_pong.py, but from episode 3 on, a worker is killed whenever it plays."""
import os
import signal
import sys

import pg_pong

original = pg_pong.episode_gradient


def episode_gradient(model, seed, gamma):
    number = seed[1]
    if number > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(model, seed, gamma)


if __name__ == "__main__":
    pg_pong.episode_gradient = episode_gradient
    sys.exit(pg_pong.main())
