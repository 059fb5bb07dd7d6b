"""pg_pong.py, but each episode takes a quarter of a second longer."""
import sys
import time

import pg_pong

original = pg_pong.episode_gradient


def episode_gradient(*args):
    time.sleep(0.25)
    return original(*args)


if __name__ == "__main__":
    pg_pong.episode_gradient = episode_gradient
    sys.exit(pg_pong.main())
