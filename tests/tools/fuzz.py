"""Throw mutated files at pg_pong.load.

    python tests/tools/fuzz.py --files 5000 [--seed 0]

The mutants are of the shipped save.p. Each goes to a child process, so that a crash is counted and is not the end. load
must return a run or refuse the file with one line, and an audit hook must see nothing but the reading of it.
"""
import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "save.p"
sys.path.insert(0, str(SHIPPED.parent))
import pg_pong
import numpy as np

ADMITTED, REFUSED = 10, 11                                 # exit statuses of the child; 1 is a fault that it tells

def mutate(data, rng, hot):
    """Between one and four mutations, most of them in the hot spans of the data."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        low, high = hot[rng.integers(len(hot))] if rng.random() < 0.8 else (0, len(data))
        at, some = min(int(rng.integers(low, high)), len(data) - 1), int(rng.integers(1, 20))
        number = rng.choice([0, 1, -1, 2**31 - 1, -2**31, 640, 6400]).astype("<i4").tobytes()
        opcode = rng.choice(list(b"c\x93Rb\x81iopPQ\x82\x8e\x96(.0\x85\x86\x87t]}N\x88hjqr\x94KMI"))
        old, new = [(1, rng.bytes(1)), (1, [data[at] ^ 1 << int(rng.integers(8))]), (1, [opcode]), (4, number),
                    (some, b""), (0, data[at:at + some]), (len(data) * (some == 1), b"")][rng.integers(7)]
        data[at:at + old] = new or b"." * (at == 0)
    return bytes(data)

def judge(mutant, path, events):
    """What load makes of the mutant."""
    Path(path).write_bytes(mutant)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        events.clear()
        try:
            outcome = pg_pong.load(path) and ADMITTED
        except SystemExit as end:
            outcome = REFUSED if end.code == 2 else 1
        foreign = [(e, a) for e, a in events if not (e == "open" and a[0] == path and a[2] & os.O_ACCMODE == 0)]
    line = err.getvalue()
    told = line[-1:] == "\n" and line[:-1].isprintable() and len(line) < 400
    return f"{foreign}, {line!r}" if foreign or told != (outcome == REFUSED) else outcome

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args, run, data, events, endings = parser.parse_args(), pg_pong.load(str(SHIPPED)), SHIPPED.read_bytes(), [], []
    places = [data.find(w.tobytes("C")) + end for part in (run.model, run.rmsprop_cache)
              for w in part.values() for end in (0, w.nbytes)]             # where the pickle's structure is
    hot = [(max(at - 150, 0), at + 150) for at in [0, *places, data.rfind(b"scores"), len(data)]]
    b"x".decode("raw-unicode-escape")                      # pickletools uses it: its import is no mutant's doing
    sys.addaudithook(lambda event, args: events.append((event, args)))
    with tempfile.TemporaryDirectory() as folder:
        def work(number):
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))     # a length of 60 GB is an error and no more
            mutant = mutate(data, np.random.default_rng([args.seed, number]), hot)
            sys.exit(judge(mutant, os.path.join(folder, "save.p"), events))
        for number in range(args.files):
            process = multiprocessing.get_context("fork").Process(target=work, args=(number,), daemon=True)
            process.start()
            process.join(60)
            endings.append(process.exitcode)               # None if it hangs, negative if it crashed
            if process.exitcode not in (ADMITTED, REFUSED):
                print(f"number {number} with seed {args.seed}: status {process.exitcode}", flush=True)
                process.kill()
    good, crashed = endings.count(ADMITTED) + endings.count(REFUSED), sum(e is not None and e < 0 for e in endings)
    print(f"{args.files} files: {endings.count(ADMITTED)} admitted, {endings.count(REFUSED)} refused, "
          f"{crashed} crashed, {args.files - good - crashed} misled or hung", flush=True)
    sys.exit(args.files != good)

if __name__ == "__main__":
    main()
