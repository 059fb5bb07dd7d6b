"""What the tests share: the script as a command, its files, and its processes."""
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SCRIPT = ROOT / "pg_pong.py"
SHIPPED = ROOT / "save.p"
PATIENCE = 60                          # seconds: none of what is waited for takes so long
ONE_BATCH = ["--batch-size", 2, "--episodes", 2]

# tests/patched.py imports pg_pong, and processes that it spawns do so, too.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
ENVIRONMENT.pop("JPY_PARENT_PID", None)
DISPLAYS = ["DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR"]  # where a window finds its screen
HEADLESS = {k: v for k, v in ENVIRONMENT.items() if k not in DISPLAYS}


def command_of(*flags, patched=None, env=ENVIRONMENT):
    """The words that start the script, changed if that is asked for, and its environment."""
    script = SCRIPT
    if patched:
        script = TESTS / "patched.py"
        env = env | {"PATCHES": patched}
    return [sys.executable, *map(str, [script, *flags])], env


class Trainer:
    """Runs pg_pong.py in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.save = folder / "save.p"

    def start(self, *flags, patched=None, env=ENVIRONMENT, **kwargs):
        """Start the script, changed by the functions of patched.py that are named. Returns its
        Popen."""
        command, env = command_of(*flags, patched=patched, env=env)
        kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | kwargs
        return subprocess.Popen(command, cwd=self.folder, env=env, text=True,
                                stderr=subprocess.PIPE, **kwargs)

    def __call__(self, *flags, status=0, **kwargs):
        """Run to the end, which must have that exit status. Returns its out, err and lines."""
        process = self.start(*flags, **kwargs)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()  # and with it, its workers end
        assert process.returncode == status, (process.returncode, out, err)
        assert "Traceback" not in err, err
        return SimpleNamespace(out=out, err=err, lines=(out or "").splitlines())

    def load(self, name="save.p"):
        return parts((self.folder / name).read_bytes())

    def names(self):
        """Of the files in the folder, without the lock, which stays."""
        return sorted(set(os.listdir(self.folder)) - {"save.p.lock"})


def parts(data):
    """Of the bytes of a save.p: the weights, and a dict of all the rest."""
    f = io.BytesIO(data)
    return pickle.load(f), pickle.load(f)


def file_of(weights, rest):
    """The opposite of parts."""
    return pickle.dumps(weights) + pickle.dumps(rest)


def old_file_of(weights, rest):
    """A save.p as older versions wrote it: the rest is a text in JSON, and mean_square in bytes."""
    others = rest.copy()
    squares = others.pop("mean_square")
    second = [json.dumps(others), squares["W1"].tobytes(), squares["W2"].tobytes()]
    return pickle.dumps(weights, 4) + pickle.dumps(second, 4)


def same(a, b):
    """Equal to the last bit, all the way down, except for the time that it took."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@contextmanager
def killed_when_late(process):
    """For reading from a process: its death ends its output, so that nobody waits for ever."""
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_until(process, start):
    """Read what the process prints up to the first line that starts like this. Returns it."""
    with killed_when_late(process):
        for line in process.stdout:
            if line.startswith(start):
                return line
    raise AssertionError((start, process.stderr.read()))


def stop(process, number=signal.SIGINT):
    """Send a stop signal to the process alone. Returns what it wrote to stderr until its end."""
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    return err


def alive(pid):
    """Whether this process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return ") Z " not in stat


def is_stopped(pid):
    """Whether this process stands still, as after Ctrl-Z."""
    return ") T " in Path(f"/proc/{pid}/stat").read_text()


def children(pid):
    """The ids of the living processes that a trainer has begun: workers, and an open window."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # this thread has just ended
            for child in (task / "children").read_text().split():
                if alive(child) and not is_pythons_own(child):
                    found.append(int(child))
    return found


def is_pythons_own(pid):
    """Whether a process is the one that Python starts beside spawned ones."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        return "resource_tracker" in Path(f"/proc/{pid}/cmdline").read_text()
    return True


def wait_until(condition):
    """Look again and again until the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def finish(process):
    """Wait for the end of the process. Returns what it still wrote to stdout and stderr."""
    try:
        return process.communicate(timeout=PATIENCE)
    finally:
        process.kill()


def session(leader):
    """The ids of the living processes in the session that a process with this id began."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            if words[0] != "Z" and int(words[3]) == leader:
                found.append(int(folder.name))
    return found
