"""Throw mutants of the shipped run, in the new and the old format, at pg_pong.load.

    python tests/tools/fuzz.py --files 5000 [--seed 0]

load must return a run or end the program with one line, and an audit hook must see nothing but the
reading of the file. Each mutant goes to a child process, so that a crash is counted and is not the
end.
"""
import argparse
import contextlib
import io
import multiprocessing
import os
import pickletools
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
from helpers import PATIENCE, SHIPPED, file_of, old_file_of, parts

import pg_pong

ADMITTED, REFUSED = 10, 11  # exit statuses of a child process; 1 is a fault, which it prints

OPCODES = b"c\x93Rb\x81iopPQ\x82\x8e\x96(.0\x85\x86\x87t]}N\x88hjqr\x94KMI"
NUMBERS = [0, 1, -1, 2**31 - 1, -2**31, 640, 6400]
MUTATIONS = ["byte", "bit", "opcode", "number", "cut out", "twice", "cut off"]

# CPython up to 3.11 says so of a bytearray for which there is no memory. It is no fault of ours.
PYTHONS_OWN = "SystemError: deallocated bytearray object has exported buffers\n"

events = []                 # that the audit hook has seen


def both_formats():
    """The bytes of the shipped run in the format of now, and in the old one."""
    run = pg_pong.load(str(SHIPPED))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "save.p"
        pg_pong.write(run, str(path))
        data = path.read_bytes()
    weights, rest = parts(data)
    assert data == file_of(weights, rest)
    return [data, old_file_of(weights, rest)]


def hot_spans(data):
    """Where mutations matter most: around each step of the pickles, except those of single scores,
    and amid the text in JSON."""
    f = io.BytesIO(data)
    places = [data.rfind(b"scores")]
    while f.tell() < len(data):
        for step, _, place in pickletools.genops(f):
            if step.name not in ("BININT", "BININT1"):
                places.append(place)
    return [(place, place + 20) for place in places]


def mutate(data, rng, hot):
    """Between one and four mutations, most of them in hot spans."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        low, high = 0, len(data)
        if rng.random() < 0.8:
            low, high = hot[rng.integers(len(hot))]
        place = min(rng.integers(low, high), len(data) - 1)
        mutate_once(data, place, rng)
    return bytes(data)


def mutate_once(data, place, rng):
    """Change the data at this place. A cut leaves the first byte, so that it is never empty."""
    some = rng.integers(1, 20)
    match rng.choice(MUTATIONS):
        case "byte":
            data[place] = rng.integers(256)
        case "bit":
            data[place] ^= 1 << rng.integers(8)
        case "opcode":
            data[place] = rng.choice(list(OPCODES))
        case "number":
            data[place:place + 4] = np.int32(rng.choice(NUMBERS)).tobytes()
        case "cut out":
            del data[place + 1:place + 1 + some]
        case "twice":
            data[place:place] = data[place:place + some]
        case "cut off":
            del data[place + 1:]


def judge(mutant, path):
    """Load the mutant. Returns the exit status, or a text that says what is wrong."""
    Path(path).write_bytes(mutant)
    printed = io.StringIO()
    line = None
    with contextlib.redirect_stderr(printed):
        events.clear()
        try:
            pg_pong.load(path)
        except SystemExit as end:
            line = end.code  # Python prints it, if it is a text, and ends with status 1
        seen = list(events)
    if printed.getvalue() not in ("", PYTHONS_OWN):
        return f"it prints {printed.getvalue()!r}"
    if line is not None and not is_refusal(line):
        return f"it ends with {line!r}"
    for event, args in seen:
        is_reading = event == "open" and args[0] == path and args[2] & os.O_ACCMODE == os.O_RDONLY
        is_pythons_own = event == "sys.excepthook" and printed.getvalue() == PYTHONS_OWN
        if not is_reading and not is_pythons_own:
            return f"it does {event} {args}"
    return ADMITTED if line is None else REFUSED


def is_refusal(line):
    is_one_line = isinstance(line, str) and line.isprintable() and len(line) < 400
    return is_one_line and line.startswith("pg_pong.py: ")


def work(mutant, path):
    """In a child process: end with what comes of the mutant."""
    limit = 4 << 30  # bytes: to ask for a terabyte is an error then, and no more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit(judge(mutant, path))


def ending(mutant, path):
    """What a child process ends with: None if it hangs, and a negative number if it crashes."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=work, args=(mutant, path), daemon=True)
    process.start()
    process.join(PATIENCE)
    status = process.exitcode
    process.kill()
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    formats = [(data, hot_spans(data)) for data in both_formats()]
    b"x".decode("raw-unicode-escape")  # pickletools uses it: its import is no mutant's doing
    sys.addaudithook(lambda event, args: events.append((event, args)))
    endings = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.files):
            data, hot = formats[number % 2]
            mutant = mutate(data, np.random.default_rng([args.seed, number]), hot)
            status = ending(mutant, os.path.join(folder, "save.p"))
            endings.append(status)
            if status not in (ADMITTED, REFUSED):
                print(f"number {number} with seed {args.seed}: status {status}", flush=True)
            events.clear()
    admitted = endings.count(ADMITTED)
    refused = endings.count(REFUSED)
    crashed = sum(status is not None and status < 0 for status in endings)
    others = args.files - admitted - refused - crashed
    print(f"{args.files} files: {admitted} admitted, {refused} refused, "
          f"{crashed} crashed, {others} misled or hung", flush=True)
    if crashed + others > 0:
        sys.exit(1)


if __name__ == "__main__":
    main()
