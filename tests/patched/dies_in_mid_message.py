"""pg_pong.py, but the first worker that sends a gradient is killed when half of it was sent."""
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pg_pong

send = Connection._send


def send_half(pipe, data, *args):
    if len(data) < 10**6 or not is_first():
        send(pipe, data, *args)
        return
    send(pipe, data[:len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def is_first():
    try:
        Path("killed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    Connection._send = send_half
    sys.exit(pg_pong.main())
