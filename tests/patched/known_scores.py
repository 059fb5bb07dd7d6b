"""pg_pong.py, but the four episodes of --eval 4 are not played: their scores are these."""
import sys

import pg_pong

SCORES = [-19, 21, 21, 21]


def play_for_score(model, seed):
    _, n, _ = seed
    return SCORES[n]


pg_pong.play_for_score = play_for_score  # in spawned processes, too

if __name__ == "__main__":
    sys.exit(pg_pong.main())
