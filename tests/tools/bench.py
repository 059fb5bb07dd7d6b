"""How fast is the trainer? Compared with the bare emulator and a textbook loop, in alternating rounds.

    python tests/tools/bench.py [--rounds 5] [--episodes 100] [--workers 1 2] [--against older_pg_pong.py]

Machines are shared and their clocks wander, so only ratios within one run mean anything: the medians over the rounds.
Starting up and the first batch do not count, and each round plays the same games.
"""
import argparse
import itertools
import multiprocessing
import pickle
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
    """Steps/s of the emulator with random actions and frame skips, if nobody looks at the screen."""
    env, rng, steps = pg_pong.make_env(), np.random.default_rng(0), 0
    actions = [env._action_set[pg_pong.UP], env._action_set[pg_pong.DOWN]]
    env.reset(seed=0)
    begun = time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        if env.ale.game_over():
            env.reset()
        action = actions[rng.random() < 0.5]
        for _ in range(rng.integers(2, 5)):
            env.ale.act(action)
        steps += 1
    return steps / elapsed

def textbook_loop(episodes):
    """Steps/s of tests/textbook.py: RGB frames, dense, float64, one process."""
    W1, W2 = (w.astype(np.float64) for w in pg_pong.new_run(0).model.values())
    learning = textbook.train(W1, W2, 0, 10, 1e-3, 0.99, 0.99)
    next(learning)                                         # starts the emulator and seeds it ten times
    begun = time.perf_counter()
    steps = sum(len(rewards) for *_, batch in itertools.islice(learning, episodes // 10) for rewards in batch)
    return steps / (time.perf_counter() - begun)

def trainer(script, workers, episodes):
    """Steps/s of a script from its first batch to its last, a multiple of 10 episodes later."""
    def run(count):
        with tempfile.TemporaryDirectory() as folder:
            flags = "--save", f"{folder}/save.p", "--episodes", str(count), "--workers", str(workers), "--seed", "0"
            process = subprocess.Popen([sys.executable, script, *flags, "--learning-rate", "1e-3"], text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            times = [time.perf_counter() for line in process.stdout if line.startswith("episode ")]
            process.wait()
            with open(f"{folder}/save.p", "rb") as f:
                return times, [pickle.load(f), pickle.load(f)][1]["steps"]
    times, steps = run(episodes + 10)
    return (steps - run(10)[1]) / (times[-1] - times[0])

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100, help="per measurement of a trainer (default: 100)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--against", metavar="SCRIPT", help="an older version to compare with")
    args, rounds = parser.parse_args(), []
    for number in range(args.rounds):
        rounds.append({"textbook loop": textbook_loop(10)})
        for n in args.workers:
            with multiprocessing.Pool(n) as pool:
                rounds[-1][f"bare emulator x{n}"] = sum(pool.map(bare, [args.episodes / 10] * n, chunksize=1))
            rounds[-1][f"trainer x{n}"] = trainer(TESTS.parent / "pg_pong.py", n, args.episodes)
            if args.against:
                rounds[-1][f"older trainer x{n}"] = trainer(args.against, n, args.episodes)
        print(f"round {number + 1}, steps/s:", ", ".join(f"{k} {v:.0f}" for k, v in rounds[-1].items()), flush=True)
    for n in args.workers:
        for other in [f"bare emulator x{n}", "textbook loop"] + [f"older trainer x{n}"] * bool(args.against):
            ratio = median(rates[f"trainer x{n}"] / rates[other] for rates in rounds)
            print(f"trainer x{n}: {ratio:.2f} times the {other}")

if __name__ == "__main__":
    main()
