"""pg_pong.py, but a game that it shows has one step, and prints which agent plays.

Its window is one that nobody sees. An agent is told apart by its first weight in W2.
"""
import sys

import pg_pong

play = pg_pong.play


def first_step(game, model, rng):
    print("agent", float(model["W2"][0]), flush=True)
    yield next(play(game, model, rng))


pg_pong.VISIBLE = "dummy"  # in spawned processes, too
pg_pong.play = first_step

if __name__ == "__main__":
    sys.exit(pg_pong.main())
