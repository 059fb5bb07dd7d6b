"""pg_pong.py, where the package is not installed that PACKAGE in the environment names."""
import os
import sys

sys.modules[os.environ["PACKAGE"]] = None  # so that Python finds no such module
import pg_pong

if __name__ == "__main__":
    sys.exit(pg_pong.main())
