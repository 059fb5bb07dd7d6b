"""How fast is the trainer? Compared with the bare emulator and a textbook loop, in rounds.

    python tests/tools/bench.py [--rounds 5] [--episodes 100] [--workers 1 2]
                                [--save save.p] [--against older.py]

Prints a line for each round, with the steps per second of all that is compared, and then, for each
number of workers, the ratios between them: the medians over the rounds. Machines are shared and
their clocks wander, so only these ratios mean anything. Starting up and the first batch do not
count. The exit status is 0, or 1 if a trainer fails, and then what it wrote to stderr is shown.

Each round plays the same games: those of a run's beginning or, if a saved run is given, those that
come after it. (The textbook loop always plays the beginning of a run of Pong-v0.)
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


def bare(game, seconds):
    """Steps/s of the emulator with random actions, if nobody looks at the screen."""
    pong = pg_pong.Pong(game)
    rng = np.random.default_rng(0)
    pong.reset(rng)
    steps = 0
    began = time.perf_counter()
    elapsed = 0
    while elapsed < seconds:
        if pong.ale.game_over():
            pong.reset(rng)
        action = pg_pong.UP if rng.random() < 0.5 else pg_pong.DOWN
        blind_step(pong, action)
        steps += 1
        elapsed = time.perf_counter() - began
    return steps / elapsed


def blind_step(pong, action):
    """What Pong.step does, but without a picture of the screen."""
    for _ in range(pong.rng.integers(pong.least, pong.most + 1)):
        sticks = pong.rng.random() < pong.stickiness
        if not sticks:
            pong.last_action = action
        pong.ale.act(pong.last_action)


def bare_emulators(game, count, seconds):
    """Steps/s of several bare emulators at the same time, together."""
    with multiprocessing.Pool(count) as pool:
        rates = pool.starmap(bare, [(game, seconds)] * count, chunksize=1)
    return sum(rates)


def textbook_loop(episodes):
    """Steps/s of tests/textbook.py: RGB frames, dense, float64, one process."""
    settings = pg_pong.Settings(batch_size=BATCH_SIZE)
    model = pg_pong.new_run(settings).model
    W1 = model["W1"].astype(np.float64)
    W2 = model["W2"].astype(np.float64)
    _, learning_rate, gamma, decay_rate, seed, _ = settings
    learning = textbook.train(W1, W2, seed, BATCH_SIZE, learning_rate, gamma, decay_rate)
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
        times = times_of_batches([sys.executable, script, *map(str, flags)])
        return times, counters(path)["steps"]


def times_of_batches(command):
    """Run a trainer to its end, and note when it reports a batch."""
    times = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=errors)
        for line in process.stdout:
            if line.startswith("episode "):
                times.append(time.perf_counter())
        status = process.wait()
        errors.seek(0)
        if status != 0:
            said = errors.read().strip()
            sys.exit(f"bench.py: {command[1]} ended with status {status}: {said}")
    return times


def counters(path):
    """What a save.p holds besides the model: a dict with settings, scores, steps and more."""
    with open(path, "rb") as f:
        pickle.load(f)    # the model
        rest = pickle.load(f)
    if isinstance(rest, dict):
        return rest
    return json.loads(rest[0])    # as older versions wrote it


def game_of(save):
    if not save:
        return "Pong-v0"
    return counters(save)["settings"].get("game", "Pong-v0")    # older versions had no other


def play_round(args):
    """Returns a dict: the steps/s of all that is compared."""
    rates = {"textbook loop": textbook_loop(BATCH_SIZE)}
    for n in args.workers:
        rates[f"bare emulator x{n}"] = bare_emulators(args.game, n, args.episodes / 10)
        rates[f"trainer x{n}"] = trainer(SCRIPT, n, args.episodes, args.save)
        if args.against:
            rates[f"older trainer x{n}"] = trainer(args.against, n, args.episodes, args.save)
    return rates


def report(rounds, name, other):
    """Print the median of the ratios of these two."""
    ratio = median(rates[name] / rates[other] for rates in rounds)
    print(f"{name}: {ratio:.2f} times the {other}")


def tens(text):
    """A positive multiple of 10."""
    number = int(text)
    if number < BATCH_SIZE or number % BATCH_SIZE:
        raise argparse.ArgumentTypeError(f"must be a multiple of {BATCH_SIZE}")
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5)
    add("--episodes", type=tens, default=100,
        help="per measurement of a trainer (default: 100)")
    add("--workers", type=int, nargs="+", default=[1, 2])
    add("--against", metavar="SCRIPT", help="an older version to compare with")
    add("--save", metavar="FILE", help="a run to go on with; take at least 60 episodes then")
    args = parser.parse_args()
    args.game = game_of(args.save)

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
