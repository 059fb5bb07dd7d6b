"""pg_pong.py, but it starts its processes as on macOS and Windows."""
import multiprocessing
import sys

import pg_pong

if __name__ == "__main__":
    pg_pong.CONTEXT = multiprocessing.get_context("spawn")
    sys.exit(pg_pong.main())
