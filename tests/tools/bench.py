"""How fast is the trainer? Compared with the bare emulator and a textbook loop, in alternating rounds.

    python tests/tools/bench.py [--rounds 5] [--episodes 100] [--workers 1 2] [--save save.p] [--against older.py]

Machines are shared and their clocks wander, so only ratios within one run mean anything: the medians over the rounds.
Starting up and the first batch do not count, and each round plays the same games: those of a run's beginning or, if
a saved run is given, those that come after it.
"""
import argparse
import itertools
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
import pg_pong
import numpy as np
import textbook

def bare(seconds):
    """Steps/s of the emulator with random actions, if nobody looks at the screen."""
    env, rng, steps, held = pg_pong.make_env(), np.random.default_rng(0), 0, pg_pong.NOOP
    env.reset()
    begun = time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        if env.ale.game_over():
            env.reset()
        held = pg_pong.step(env, pg_pong.UP if rng.random() < 0.5 else pg_pong.DOWN, held, rng)[1]
        steps += 1
    return steps / elapsed

def textbook_loop(episodes):
    """Steps/s of tests/textbook.py: RGB frames, dense, float64, one process."""
    W1, W2 = (w.astype(np.float64) for w in pg_pong.new_run(pg_pong.SETTINGS).model.values())
    learning = textbook.train(W1, W2, 0, 10, 1e-3, 0.99, 0.99)
    next(learning)                                         # starts the emulator
    begun = time.perf_counter()
    steps = sum(len(rewards) for *_, batch in itertools.islice(learning, episodes // 10) for rewards in batch)
    return steps / (time.perf_counter() - begun)

def trainer(script, workers, episodes, save):
    """Steps/s of a script from its first batch to its last, a multiple of 10 episodes later."""
    def rest(path):
        with open(path, "rb") as f:
            _, rest = pickle.load(f), pickle.load(f)
        return json.loads(rest[0]) if isinstance(rest, list) else rest     # else: an older script's
    def run(count):
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--save", f"{folder}/save.p", "--workers", str(workers), "--batch-size", "10"]
            if not save:
                flags += ["--seed", "0", "--learning-rate", "1e-3"]
            else:
                shutil.copy(save, f"{folder}/save.p")
                count += len(rest(save)["scores"])
                flags += ["--resume"]
            process = subprocess.Popen([sys.executable, script, *flags, "--episodes", str(count)], text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            times = [time.perf_counter() for line in process.stdout if line.startswith("episode ")]
            process.wait()
            return times, rest(f"{folder}/save.p")["steps"]
    times, steps = run(episodes + 10)
    return (steps - run(10)[1]) / (times[-1] - times[0])

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100, help="per measurement of a trainer (default: 100)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--against", metavar="SCRIPT", help="an older version to compare with")
    parser.add_argument("--save", metavar="FILE", help="a run to go on with; take at least 60 episodes then")
    args, rounds = parser.parse_args(), []
    for number in range(args.rounds):
        rounds.append({"textbook loop": textbook_loop(10)})
        for n in args.workers:
            with multiprocessing.Pool(n) as pool:
                rounds[-1][f"bare emulator x{n}"] = sum(pool.map(bare, [args.episodes / 10] * n, chunksize=1))
            rounds[-1][f"trainer x{n}"] = trainer(TESTS.parent / "pg_pong.py", n, args.episodes, args.save)
            if args.against:
                rounds[-1][f"older trainer x{n}"] = trainer(args.against, n, args.episodes, args.save)
        print(f"round {number + 1}, steps/s:", ", ".join(f"{k} {v:.0f}" for k, v in rounds[-1].items()), flush=True)
    for n in args.workers:
        for other in [f"bare emulator x{n}", "textbook loop"] + [f"older trainer x{n}"] * bool(args.against):
            ratio = median(rates[f"trainer x{n}"] / rates[other] for rates in rounds)
            print(f"trainer x{n}: {ratio:.2f} times the {other}")

if __name__ == "__main__":
    main()
