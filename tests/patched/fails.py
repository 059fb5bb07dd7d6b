"""pg_pong.py, but from episode 3 on, an error comes up whenever a worker plays."""
import sys

import pg_pong

original = pg_pong.episode_gradient


def episode_gradient(model, seed, gamma):
    number = seed[1]
    if number > 2:
        raise ArithmeticError("an error that nobody expects")
    return original(model, seed, gamma)


if __name__ == "__main__":
    pg_pong.episode_gradient = episode_gradient
    sys.exit(pg_pong.main())
