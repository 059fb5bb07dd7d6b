"""pg_pong.py, but in one update, a number becomes NaN or infinite.

The environment says which: in UPDATE number 1, 2 ... the first NUMBER of W2 in PLACE, which is the
model or mean_square.
"""
import os
import sys

import pg_pong

rmsprop_of_the_script = pg_pong.rmsprop
updates = []


def rmsprop(*args):
    updates.append(args)
    model, mean_square = rmsprop_of_the_script(*args)
    place = {"model": model, "mean_square": mean_square}[os.environ["PLACE"]]
    if len(updates) == int(os.environ["UPDATE"]):
        place["W2"][0] = float(os.environ["NUMBER"])
    return model, mean_square


if __name__ == "__main__":
    pg_pong.rmsprop = rmsprop
    sys.exit(pg_pong.main())
