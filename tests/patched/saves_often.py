"""pg_pong.py, but it saves every 2 episodes."""
import sys

import pg_pong

if __name__ == "__main__":
    pg_pong.SAVE_EVERY = 2
    sys.exit(pg_pong.main())
