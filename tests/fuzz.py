"""Throw mutated files at pg_pong.load, and mutated emulator states at the emulator.

    python tests/fuzz.py --files 10000 --states 2000 [--seed 0]

Files: mutants of a real save.p (bytes changed, cut, doubled, swapped, mostly where the structure is). load must return a
run or raise ValueError, promptly. States: mutants of a real one go through begin_episode in a process of their own,
which then plays a while; it must neither die nor hang.
"""
import argparse
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np

import pg_pong


def mutate(data, rng, hot=()):
    """Between one and four mutations, each with even chance in the hot spans of the data or anywhere."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        low, high = hot[rng.integers(len(hot))] if len(hot) and rng.random() < 0.8 else (0, len(data))
        low, high = min(low, len(data) - 1), min(high, len(data))
        at = int(rng.integers(low, max(high, low + 1)))
        match rng.integers(7):
            case 0:
                data[at] = rng.integers(256)
            case 1:
                data[at] ^= 1 << rng.integers(8)
            case 2:
                data[at:at + 4] = rng.choice([0, 1, -1, 2**31 - 1, -2**31, 640, 6400]).astype("<i4").tobytes()
            case 3:
                del data[at:at + rng.integers(1, 20)]
            case 4:
                data[at:at] = data[at:at + rng.integers(1, 20)]
            case 5:
                data[at:at + 1] = bytes(rng.choice(list(b"c\x93Rb\x81iopPQ\x82\x8e\x96(.0\x85\x86\x87t]}N\x88hjqr\x94KMI"), 1))
            case 6 if rng.random() < 0.1:
                del data[at:]
        if not data:
            return b""
    return bytes(data)


def fuzz_files(count, rng):
    model = pg_pong.new_model(rng)
    rest = {"format": 1} | vars(pg_pong.new_run(0, dict(pg_pong.HYPERPARAMETERS), model)) | {
        "episode_number": 10, "running_reward": -20.5, "episode_rewards": np.full(10, -20, np.int8), "steps": 9,
        "emulator_states": [rng.bytes(14_000) for _ in range(10)]}
    del rest["model"]
    data = pickle.dumps(model, 4) + pickle.dumps(rest, 4)
    second = len(pickle.dumps(model, 4))
    # where the structure is: around the four big arrays, wherever they begin and end
    edges = [0, second, len(data)] + [data.find(w.tobytes("A")) + shift for d in (model, rest["rmsprop_cache"])
                                      for w in d.values() for shift in (0, w.nbytes)]
    hot = [(max(e - 150, 0), e + 150) for e in edges]
    counts, slowest = Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "save.p")
        for _ in range(count):
            with open(path, "wb") as f:
                f.write(mutate(data, rng, hot))
            begun = time.monotonic()
            try:
                pg_pong.load(path)
                counts["admitted"] += 1
            except ValueError as reason:
                counts["refused"] += 1
                assert "\n" not in str(reason) and len(str(reason)) < 300, reason
            slowest = max(slowest, time.monotonic() - begun)
    print(f"{count} files: {counts['admitted']} admitted, {counts['refused']} refused, 0 crashed, "
          f"slowest {slowest:.2f} s", flush=True)


def play_states(connection):
    """Process: begins an episode with each state it gets and plays 30 steps."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    env = pg_pong.make_env()
    while True:
        state = connection.recv()
        carried = pg_pong.begin_episode(env, np.random.default_rng(0), state)
        for _ in range(30):
            env.step(pg_pong.UP)
        connection.send(carried)


def fuzz_states(count, rng):
    env = pg_pong.make_env()
    pg_pong.begin_episode(env, rng, None)
    for _ in range(100):
        env.step(pg_pong.DOWN)
    state = env.unwrapped.ale.cloneState(include_rng=True).serialize()
    digits = max(state.split(b"\x00"), key=len)            # the random stream, as text; the rest is structure
    begin = state.find(digits)
    hot = [(0, begin + 40), (begin + len(digits) - 40, len(state))]
    counts, process = Counter(), None
    for number in range(count):
        if process is None:
            connection, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=play_states, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
        mutant = mutate(state, rng, hot)
        connection.send(mutant)
        try:
            if connection.poll(30):
                counts["accepted" if connection.recv() else "refused"] += 1
                continue
            counts["hung"] += 1
        except EOFError:
            counts["crashed"] += 1
        Path(tempfile.gettempdir(), f"state-{number}").write_bytes(mutant)
        process.kill()
        process = None
    print(f"{count} states: {counts['accepted']} accepted, {counts['refused']} refused, {counts['crashed']} crashed, "
          f"{counts['hung']} hung", flush=True)
    return counts["crashed"] + counts["hung"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--states", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    fuzz_files(args.files, rng)
    sys.exit(1 if fuzz_states(args.states, rng) else 0)


if __name__ == "__main__":
    main()
