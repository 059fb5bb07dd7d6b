"""How fast is the trainer? Compared with the bare emulator and a textbook loop, in rounds.

    python tests/tools/bench.py [--rounds 5] [--episodes 100] [--workers 1 2]
                                [--save save.p] [--against older.py]

Machines are shared and their clocks wander, so only ratios within one run mean anything: the
medians over the rounds. Starting up and the first batch do not count. Each round plays the same
games: those of a run's beginning or, if a saved run is given, those that come after it.
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
SCRIPT = TESTS.parent / "pg_pong.py"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
import pg_pong
import numpy as np
import textbook

BATCH_SIZE = 10    # episodes


def bare(seconds):
    """Steps/s of the emulator with random actions, if nobody looks at the screen."""
    game = pg_pong.Pong()
    rng = np.random.default_rng(0)
    game.reset(rng)
    steps = 0
    began = time.perf_counter()
    elapsed = 0
    while elapsed < seconds:
        if game.ale.game_over():
            game.reset(rng)
        action = pg_pong.UP if rng.random() < 0.5 else pg_pong.DOWN
        blind_step(game, action)
        steps += 1
        elapsed = time.perf_counter() - began
    return steps / elapsed


def blind_step(game, action):
    """What Pong.step does, but without a picture of the screen."""
    for _ in range(game.rng.integers(2, 5)):
        sticky = game.rng.random() < 0.25
        if not sticky:
            game.last_action = action
        game.ale.act(game.last_action)


def textbook_loop(episodes):
    """Steps/s of tests/textbook.py: RGB frames, dense, float64, one process."""
    settings = pg_pong.Settings(batch_size=BATCH_SIZE, seed=0)
    model = pg_pong.new_run(settings).model
    W1 = model["W1"].astype(np.float64)
    W2 = model["W2"].astype(np.float64)
    learning = textbook.train(W1, W2, **settings._asdict())
    next(learning)    # starts the emulator
    steps = 0
    began = time.perf_counter()
    for learned in itertools.islice(learning, episodes // BATCH_SIZE):
        for rewards in learned.batch:
            steps += len(rewards)
    return steps / (time.perf_counter() - began)


def trainer(script, workers, episodes, save):
    """Steps/s of a script from its first batch to its last, a multiple of 10 episodes later."""
    _, steps_of_first = run_script(script, workers, BATCH_SIZE, save)
    times, steps = run_script(script, workers, BATCH_SIZE + episodes, save)
    return (steps - steps_of_first) / (times[-1] - times[0])


def run_script(script, workers, episodes, save):
    """Train for so many episodes, from the saved run on if there is one.

    Returns the times at which the batches were done, and the run's steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/save.p"
        flags = ["--save", path, "--workers", workers, "--batch-size", BATCH_SIZE]
        if save:
            shutil.copy(save, path)
            episodes += len(counters(path)["scores"])
            flags += ["--resume"]
        else:
            flags += ["--seed", 0, "--learning-rate", 1e-3]
        flags += ["--episodes", episodes]
        command = [sys.executable, script, *map(str, flags)]
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)
        times = []
        for line in process.stdout:
            if line.startswith("episode "):
                times.append(time.perf_counter())
        process.wait()
        return times, counters(path)["steps"]


def counters(path):
    """What a save.p holds besides arrays: a dict with scores, steps and more."""
    with open(path, "rb") as f:
        pickle.load(f)    # the model
        rest = pickle.load(f)
    if isinstance(rest, dict):    # as older scripts wrote it
        return rest
    return json.loads(rest[0])


def play_round(args):
    """Returns a dict: the steps/s of all that is compared."""
    rates = {"textbook loop": textbook_loop(BATCH_SIZE)}
    for n in args.workers:
        seconds = [args.episodes / 10] * n
        with multiprocessing.Pool(n) as pool:
            rates[f"bare emulator x{n}"] = sum(pool.map(bare, seconds, chunksize=1))
        rates[f"trainer x{n}"] = trainer(SCRIPT, n, args.episodes, args.save)
        if args.against:
            rates[f"older trainer x{n}"] = trainer(args.against, n, args.episodes, args.save)
    return rates


def report(rounds, name, other):
    """Print the median of the ratios of these two."""
    ratio = median(rates[name] / rates[other] for rates in rounds)
    print(f"{name}: {ratio:.2f} times the {other}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5)
    add("--episodes", type=int, default=100,
        help="per measurement of a trainer (default: 100)")
    add("--workers", type=int, nargs="+", default=[1, 2])
    add("--against", metavar="SCRIPT", help="an older version to compare with")
    add("--save", metavar="FILE", help="a run to go on with; take at least 60 episodes then")
    args = parser.parse_args()

    rounds = []
    for number in range(1, args.rounds + 1):
        rates = play_round(args)
        rounds.append(rates)
        words = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        print(f"round {number}, steps/s: {words}", flush=True)
    for n in args.workers:
        report(rounds, f"trainer x{n}", f"bare emulator x{n}")
        report(rounds, f"trainer x{n}", "textbook loop")
        if args.against:
            report(rounds, f"trainer x{n}", f"older trainer x{n}")


if __name__ == "__main__":
    main()
