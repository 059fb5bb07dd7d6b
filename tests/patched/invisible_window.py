"""pg_pong.py, but its window is one that nobody sees, so that it needs no display."""
import sys

import pg_pong

pg_pong.VISIBLE = "dummy"  # in spawned processes, too

if __name__ == "__main__":
    sys.exit(pg_pong.main())
