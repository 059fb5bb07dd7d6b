"""pg_pong.py, where the packages that draw pictures are not installed."""
import sys

import pg_pong

if __name__ == "__main__":
    sys.modules["matplotlib"] = None  # so that Python finds no such module
    sys.modules["PIL"] = None
    sys.exit(pg_pong.main())
