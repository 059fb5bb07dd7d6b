"""pg_pong.py, where a package has the version that PACKAGE in the environment names."""
import os
import sys

import pg_pong

found = pg_pong.version
name, number = os.environ["PACKAGE"].split()


def version(package):
    return number if package == name else found(package)


if __name__ == "__main__":
    pg_pong.version = version
    sys.exit(pg_pong.main())
