"""pg_pong.py, where /dev/shm is full, so that multiprocessing can make no memory or lock there."""
import _multiprocessing
import errno
import multiprocessing.heap
import os
import sys

import pg_pong


def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    multiprocessing.heap.Arena = fail
    _multiprocessing.SemLock = fail
    sys.exit(pg_pong.main())
