"""pg_pong.py, but Ctrl-C comes at the moment that INTERRUPTED_AT in the environment names.

It names functions by module and name. The signal comes when all were called in this order. The
function <module> of a module is its own code, which runs when it is imported.
"""
import os
import runpy
import signal
import sys
from pathlib import Path

awaited = os.environ["INTERRUPTED_AT"].split()


def interrupt(frame, event, _):
    """Python calls this at each call of a function."""
    name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
    if event == "call" and name == awaited[0]:
        awaited.pop(0)
    if not awaited:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.setprofile(interrupt)
    runpy.run_path(str(Path(__file__).parents[2] / "pg_pong.py"), run_name="__main__")
