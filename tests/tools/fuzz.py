"""Throw mutated files at pg_pong.load, and mutated emulator states at the emulator.

    python tests/tools/fuzz.py --files 5000 --states 1000 [--seed 0]

The mutants are of the shipped save.p and of a state in it. Each goes to a child process, so that a crash is counted and
is not the end. load must return a run or refuse the file with one line, and an audit hook must see nothing but the
reading of it: no import, no other file. begin_episode must accept or refuse the state, and the game then goes on.
"""
import argparse
import contextlib
import io
import multiprocessing
import os
import re
import resource
import sys
import tempfile
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "save.p"
sys.path.insert(0, str(SHIPPED.parent))
import pg_pong
import numpy as np

ADMITTED, REFUSED = 10, 11                                 # exit statuses of the child; 1 is a fault that it tells
MURMUR = "SystemError: deallocated bytearray object has exported buffers\n"    # Python's own, where memory is short

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

def judge_file(mutant, path, events):
    """What load makes of the mutant."""
    Path(path).write_bytes(mutant)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        events.clear()
        try:
            outcome = pg_pong.load(path) and ADMITTED
        except SystemExit as end:
            outcome = REFUSED if end.code == 2 else 1
        foreign = [(e, a) for e, a in events if not (e == "sys.excepthook" and str(a[2]) in MURMUR)
                   and not (e == "open" and a[0] == path and a[2] & os.O_ACCMODE == os.O_RDONLY)]
    line = err.getvalue().replace(MURMUR, "")
    told = line[-1:] == "\n" and line[:-1].isprintable() and len(line) < 400
    return f"{foreign}, {line!r}" if foreign or told != (outcome == REFUSED) else outcome

def judge_state(mutant, env):
    """What the emulator makes of the mutant."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)           # what it says of them
    outcome, rng = ADMITTED, np.random.default_rng(0)
    try:
        pg_pong.begin_episode(env, rng, mutant)
    except Exception:
        outcome = REFUSED
        pg_pong.begin_episode(env, rng)
    for _ in range(30):
        env.step(pg_pong.UP)
    return outcome

def fuzz(what, count, seed, original, hot, judge, *args):
    """Have child processes judge that many mutants. Returns how many of them ended as they must not."""
    def work(number):
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))     # a length of 60 GB is an error and no more
        sys.exit(judge(mutate(original, np.random.default_rng([seed, number]), hot), *args))
    endings = []
    for number in range(count):
        process = multiprocessing.get_context("fork").Process(target=work, args=(number,), daemon=True)
        process.start()
        process.join(60)
        endings.append(process.exitcode)                   # None if it hangs, negative if it crashed
        if process.exitcode not in (ADMITTED, REFUSED):
            print(f"{what}, number {number} with seed {seed}: status {process.exitcode}", flush=True)
            process.kill()
    good, crashed = endings.count(ADMITTED) + endings.count(REFUSED), sum(e is not None and e < 0 for e in endings)
    print(f"{count} {what}: {endings.count(ADMITTED)} admitted, {endings.count(REFUSED)} refused, "
          f"{crashed} crashed, {count - good - crashed} misled or hung", flush=True)
    return count - good

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in ("--files", 1000), ("--states", 200), ("--seed", 0):
        parser.add_argument(name, type=int, default=default)
    args, run, data, events = parser.parse_args(), pg_pong.load(str(SHIPPED)), SHIPPED.read_bytes(), []
    arrays = [*run.model.values(), *run.rmsprop_cache.values(), run.episode_rewards]
    spans = [(end - 150, end + 150) for w in arrays for end in np.array([0, w.nbytes]) + data.find(w.tobytes("A"))]
    np.seterr(all="ignore")                                # as the script does
    sys.addaudithook(lambda event, args: events.append((event, args)))
    with tempfile.TemporaryDirectory() as folder:
        spans += [(0, 150), (len(data) - 150, len(data))]
        bad = fuzz("files", args.files, args.seed, data, spans, judge_file, os.path.join(folder, "save.p"), events)
    state = run.emulator_states[0]                         # numbers, which are the random stream, and structure
    spans = [found.span() for found in re.finditer(rb"[^ ]{12,}", state)]
    bad += fuzz("states", args.states, args.seed, state, spans, judge_state, pg_pong.make_env())
    sys.exit(1 if bad else 0)

if __name__ == "__main__":
    main()
