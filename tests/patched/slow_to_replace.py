"""pg_pong.py, but a save that was written takes the old one's place a second later.

When that second begins, it says so.
"""
import os
import sys
import time

import pg_pong

replace = os.replace


def replace_slowly(*args):
    print("saving", flush=True)
    time.sleep(1)
    replace(*args)


if __name__ == "__main__":
    os.replace = replace_slowly
    sys.exit(pg_pong.main())
