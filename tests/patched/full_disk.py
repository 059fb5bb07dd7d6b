"""pg_pong.py, but it saves every 2 episodes, and after the start, the disk is full for a while.

It has room again as soon as the run has as many episodes as the environment's FULL_UNTIL says.
"""
import os
import resource
import sys

import pg_pong

train_of_the_script = pg_pong.train


def train(*args):
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for run in train_of_the_script(*args):
        is_full = len(run.scores) < int(os.environ["FULL_UNTIL"])
        limit = 1 << 20 if is_full else most
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        yield run


if __name__ == "__main__":
    pg_pong.SAVE_EVERY = 2
    pg_pong.train = train
    sys.exit(pg_pong.main())
