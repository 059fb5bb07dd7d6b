"""pg_pong.py, but after the second batch, the disk is full to which its output goes."""
import os
import sys

import pg_pong

report = pg_pong.report


def report_and_fill(previous, run):
    report(previous, run)
    if len(run.scores) == 4:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, sys.stdout.fileno())


if __name__ == "__main__":
    pg_pong.report = report_and_fill
    sys.exit(pg_pong.main())
