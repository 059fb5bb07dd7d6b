"""Learn Atari Pong from raw pixels with policy gradients: numpy, one file, all cores.

    python pg_pong.py                         train from scratch, until Ctrl-C
    python pg_pong.py --resume                go on from save.p exactly where it stopped
    python pg_pong.py --learning-rate 1e-3    learn faster than the post did
    python pg_pong.py --help                  all the flags

The algorithm is the one of "Deep Reinforcement Learning: Pong from Pixels" (Andrej Karpathy, 2016): play, and then
make every action that was taken a little more likely if it was followed by a won point, a little less if by a lost one.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the products here are tiny: BLAS threads would only get in the way

import argparse
import datetime
import gc
import itertools
import math
import multiprocessing
import pickle
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait

import ale_py
import gymnasium
import numpy as np

# hyperparameters
BATCH_SIZE = 10          # episodes per update
LEARNING_RATE = 1e-4
GAMMA = 0.99             # discount: a reward counts 0.99 times as much for the action one step earlier
DECAY_RATE = 0.99        # of RMSProp's running mean of squared gradients

# the model and the game
D = 80 * 80              # input: the pixels of a difference frame
H = 200                  # hidden neurons
UP, DOWN = 2, 3          # the only two of the six actions of the game that are used
RELU_FLOOR = np.float32(0)
SAVE_EVERY = 100         # episodes
FORMAT = 1               # of save.p
STOP_SIGNALS = signal.SIGINT, signal.SIGTERM


# ---- preprocessing: from the screen to the 80x80 picture that the network sees

# which values of a pixel are background (0) and which are paddles and ball (1): by the red of an RGB frame, and by the
# emulator's own colour codes, which it hands out 20 times faster
LIT_RED, LIT_CODE = np.ones((2, 256), np.float32)
LIT_RED[[0, 144, 109]] = 0
LIT_CODE[[0, 34, 228]] = 0


def prepro(frame):
    """(210, 160, 3) uint8 frame -> (6400,) float32: crop to the field, take every second pixel, erase the background."""
    return LIT_RED[frame[35:195:2, ::2, 0].ravel()]


def crop(screen):
    """(210, 160) uint8 screen of colour codes -> (6400,) uint8: LIT_CODE of it is what prepro makes of the RGB frame."""
    return screen.view("<u2")[35:195:2].astype(np.uint8).ravel()   # the lower byte of each pair is its first pixel


def difference(codes, previous):
    """The difference frame: this picture minus the previous one, so that the network sees motion.

    Only a few dozen of its 6400 pixels are not zero, and only those are kept, as (indices, values +1 or -1).
    """
    changed, = (codes != previous).nonzero()
    return changed, LIT_CODE.take(codes.take(changed)) - LIT_CODE.take(previous.take(changed))


# ---- policy: two layers, no biases; W1 (200, 6400) is stored by columns, so that the 200 weights of a pixel lie together

def new_model(rng):
    """Gaussian weights divided by the square root of the fan-in ("Xavier")."""
    return {"W1": np.asfortranarray(rng.standard_normal((H, D)) / np.sqrt(D), np.float32),
            "W2": (rng.standard_normal(H) / np.sqrt(H)).astype(np.float32)}


def policy_forward(model, x):
    """Probability of going UP, and the hidden layer (200,), for the difference frame x.

    W1 x needs only the columns of W1 whose pixels changed: the zeros of x add nothing.
    """
    changed, values = x
    h = values.dot(model["W1"].T.take(changed, axis=0))    # h = W1 x
    np.maximum(h, RELU_FLOOR, out=h)                       # relu
    logit = model["W2"].dot(h)
    return 0.5 + 0.5 * math.tanh(0.5 * logit), h           # sigmoid(logit) = 1/(1+exp(-logit)), which could overflow


def policy_backward(model, xs, hs, dlogits, gradient):
    """Write the gradient of sum_t dlogits[t] * logit[t] into gradient, a dict like the model.

    xs: the T difference frames, hs: (T, 200) hidden layers, dlogits: (T,), all float32. By the chain rule, where
    logit = W2 h, h = relu(W1 x):  dW2 = sum_t dlogit h,  dh = dlogit W2 where h > 0,  dW1 = sum_t dh x^T.
    """
    gradient["W2"][:] = dlogits @ hs
    dhs = np.outer(dlogits, model["W2"]) * (hs > 0)
    gradient["W1"][:] = 0
    for t in range(0, len(xs), 32):                        # 32 steps at a time, and again only the pixels that changed
        x = np.zeros((len(xs[t:t+32]), D), np.float32)
        for row, (changed, values) in zip(x, xs[t:t+32]):
            row[changed] = values
        active, = x.any(axis=0).nonzero()
        gradient["W1"].T[active] += x[:, active].T @ dhs[t:t+32]


# ---- returns

def discount_rewards(rewards, gamma=GAMMA):
    """Discounted return of every step, float64: G_t = r_t + gamma G_{t+1}, starting anew where a point was scored."""
    returns, running = np.empty(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] if rewards[t] != 0 else running * gamma
        returns[t] = running
    return returns


def standardize(returns):
    """Shift to mean 0, scale to standard deviation 1; returns that are all equal teach nothing and become 0."""
    spread = returns.std() if np.ptp(returns) > 0 else 1.0
    return (returns - returns.mean()) / spread


# ---- one episode

def make_env(**kwargs):
    """Pong as the post had it (Pong-v0): actions last 2 to 4 frames, and each frame ignores them one time in four."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return gymnasium.make("ALE/Pong-v5", frameskip=(2, 5), obs_type="ram", disable_env_checker=True, **kwargs)


def begin_episode(env, state, rng):
    """Reset the game. All its chance comes from rng and, for the ignored actions, from a stream inside the emulator."""
    if state is None:
        env.reset(seed=int(rng.integers(2**31)))
    else:                                                  # the stream goes on where an earlier episode left it
        env.unwrapped.ale.restoreState(ale_py.ALEState(state))
        env.reset()
    env.unwrapped.np_random = rng


def play_episode(env, model, rng):
    """Play until one side has 21 points, sampling each action. Yields (x, h, p, up, reward) for every step."""
    read_screen, over = env.unwrapped.ale.getScreen, False
    codes = crop(read_screen())                            # so that the first difference is all zeros
    while not over:
        previous, codes = codes, crop(read_screen())
        x = difference(codes, previous)
        p, h = policy_forward(model, x)
        up = rng.random() < p
        _, reward, terminated, truncated, _ = env.step(UP if up else DOWN)
        over = terminated or truncated
        yield x, h, p, up, reward


def learn_from_episode(env, model, gradient, rng, gamma):
    """Play one episode and write its policy gradient. Returns its score and its number of steps."""
    xs, hs, ps, ups, rewards = zip(*play_episode(env, model, rng))
    advantages = standardize(discount_rewards(rewards, gamma))
    # the fake label is 1 for UP, 0 for DOWN: label - p is the gradient of log p(action) with respect to the logit.
    # the next line is where the magic happens: good actions are encouraged, bad ones discouraged
    dlogits = (np.array(ups) - np.array(ps)) * advantages
    policy_backward(model, xs, np.array(hs), dlogits.astype(np.float32), gradient)
    return sum(rewards), len(rewards)


# ---- update

def rmsprop(model, cache, gradient, learning_rate, decay_rate):
    """One step uphill, each weight scaled by the recent size of its own gradient (RMSProp, Tieleman & Hinton 2012)."""
    for k, g in gradient.items():
        cache[k] *= decay_rate
        cache[k] += (1 - decay_rate) * g**2
        model[k] += learning_rate * g / (np.sqrt(cache[k]) + 1e-5)


# ---- checkpoint

@dataclass
class Run:
    """All that a run is: what save.p holds, and from which --resume goes on as if it had never stopped."""
    hyperparameters: dict            # batch_size, learning_rate, gamma, decay_rate
    seed: int
    model: dict                      # W1 (200, 6400), W2 (200,), float32
    rmsprop_cache: dict              # the same two
    episode_number: int = 0          # episodes that were learned from
    running_reward: float = None     # running mean of the scores: the first one, then 0.99 old + 0.01 new
    episode_rewards: np.ndarray = field(default_factory=lambda: np.empty(0, np.int8))   # the score of every episode
    emulator_states: list = field(default_factory=list)   # bytes, one for each place in the batch (see begin_episode)
    steps: int = 0
    seconds: float = 0.0


def new_run(seed, hyperparameters):
    """A run before its first episode."""
    model = new_model(np.random.default_rng([seed, 0]))   # episode n will have default_rng([seed, n])
    return Run(hyperparameters, seed, model, {k: np.zeros_like(v) for k, v in model.items()})


def fingerprint(path):
    """What tells whether a file is still the one that this run wrote or resumed from; None if there is none."""
    return (s := os.stat(path)) and (s.st_ino, s.st_size, s.st_mtime_ns) if os.path.exists(path) else None


def save(run, path, known):
    """Write run to path, durably, and return the fingerprint of the new file.

    The file is two pickles: the weights alone, as the post's script pickles them, then all else. A file at path whose
    fingerprint is not known is somebody's other run, and is kept as path.1, path.2, ... Raises OSError.
    """
    rest = {"format": FORMAT, **vars(run)}
    weights = rest.pop("model")
    temporary = path + ".tmp"
    try:
        with open(temporary, "wb") as f:
            pickle.dump(weights, f, protocol=4)
            pickle.dump(rest, f, protocol=4)
            f.flush()
            os.fsync(f.fileno())                           # on the disk before the old file goes
        if fingerprint(path) not in (None, known):
            os.link(path, kept_as(path))
        os.replace(temporary, path)                        # at every instant path is one whole file or the other
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return fingerprint(path)


def kept_as(path):
    """The next free one of path.1, path.2, ..."""
    return next(name for n in itertools.count(1) if not os.path.exists(name := f"{path}.{n}"))


def load(path):
    """Read back what save wrote."""
    with open(path, "rb") as f:
        weights = pickle.load(f)
        rest = pickle.load(f)
    rest.pop("format")
    return Run(model=weights, **rest)


# ---- training: the weights change only between batches, so the episodes of a batch may be played in any order, by any
# number of processes. Summing their gradients in the order of the episodes makes the result the same to the last bit.

def as_models(memory, count):
    """Dicts like the model over shared memory: the weights themselves, then the gradients that workers write."""
    for flat in np.frombuffer(memory, np.float32).reshape(count, -1):
        yield {"W1": flat[:D * H].reshape(D, H).T, "W2": flat[D * H:]}


def work(connection, memory, slots, seed, gamma):
    """A worker process: plays the episodes that it is sent, until the trainer is gone."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)              # Ctrl-C reaches all processes; the trainer decides
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    model, *gradients = as_models(memory, 1 + slots)
    env = make_env()
    gc.disable()                                           # looking for reference cycles, of which there are none, costs 1%
    while True:
        place, episode, state, slot = connection.recv()
        rng = np.random.default_rng([seed, episode])
        begin_episode(env, state, rng)
        score, steps = learn_from_episode(env, model, gradients[slot], rng, gamma)
        state = env.unwrapped.ale.cloneState(include_rng=True).serialize()
        connection.send((place, slot, score, steps, state))


def available_cores():
    """Cores that this process may use: fewer than the machine has, in many a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def start_workers(run, count, slots):
    """Start the processes. Returns them, a connection to each, the shared weights and the shared gradients."""
    context = multiprocessing.get_context("spawn")         # the only way that works alike on every system
    memory = context.RawArray("f", (1 + slots) * (D * H + H))
    model, *gradients = as_models(memory, 1 + slots)
    processes, connections = [], []
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C must not hit a worker half started
    for _ in range(count):
        connection, far_end = context.Pipe()
        process = context.Process(target=work, daemon=True,
                                  args=(far_end, memory, slots, run.seed, run.hyperparameters["gamma"]))
        process.start()
        far_end.close()
        processes.append(process)
        connections.append(connection)
    signal.signal(signal.SIGINT, handler)
    return processes, connections, model, gradients


class WorkerDied(Exception):
    """A worker process ended before it was told to."""


def play_batch(run, connections, gradients, total, stopped):
    """Have one batch played; its gradient is left in total. Returns (scores, steps), or None if stopped meanwhile."""
    size = run.hyperparameters["batch_size"]
    states = run.emulator_states[:size] + [None] * (size - len(run.emulator_states))
    scores, all_steps, waiting = [], 0, {}
    idle, free, sent = list(connections), list(range(len(gradients))), 0
    for g in total.values():
        g[:] = 0
    while len(scores) < size:
        while idle and free and sent < size:               # episodes differ in length: hand them out one at a time
            idle.pop().send((sent, run.episode_number + sent + 1, states[sent], free.pop()))
            sent += 1
        for connection in wait(connections, timeout=0.2):
            try:
                place, *result = connection.recv()
            except (EOFError, OSError):
                raise WorkerDied("a worker process died: killed, or out of memory?") from None
            waiting[place] = result
            idle.append(connection)
        while len(scores) in waiting:                      # add up in the order of the episodes
            slot, score, steps, states[len(scores)] = waiting.pop(len(scores))
            for k in total:
                total[k] += gradients[slot][k]
            free.append(slot)
            scores.append(score)
            all_steps += steps
        if stopped():
            return None
    run.emulator_states = states
    return scores, all_steps


def learn(run, workers, stopped=lambda: False):
    """Play a batch and update the weights, over and over until stopped() is true. Yields the scores of each batch."""
    size = run.hyperparameters["batch_size"]
    workers = min(workers, size)
    processes, connections, shared, gradients = start_workers(run, workers, min(size, workers + 8))
    for k in shared:
        shared[k][:] = run.model[k]
    run.model = shared
    total = {k: np.empty_like(v) for k, v in shared.items()}
    try:
        while True:
            begun = time.monotonic()
            played = play_batch(run, connections, gradients, total, stopped)
            if played is None:
                return
            scores, steps = played
            rmsprop(run.model, run.rmsprop_cache, total, run.hyperparameters["learning_rate"],
                    run.hyperparameters["decay_rate"])
            for score in scores:
                run.running_reward = score if run.running_reward is None else 0.99 * run.running_reward + 0.01 * score
            run.episode_rewards = np.append(run.episode_rewards, np.array(scores, np.int8))
            run.episode_number += size
            run.steps += steps
            run.seconds += time.monotonic() - begun
            yield scores
    finally:
        for process in processes:
            process.kill()


def status(run, scores, start, start_steps, start_episode):
    """What there is to say after a batch: one line."""
    elapsed = time.monotonic() - start
    return (f"episode {run.episode_number}  score {np.mean(scores):+.1f}  running mean {run.running_reward:+.2f}  "
            f"{(run.steps - start_steps) / elapsed:.0f} steps/s  "
            f"{(run.episode_number - start_episode) / elapsed:.2f} episodes/s  "
            f"{datetime.timedelta(seconds=round(elapsed))}")


def show(line, lasting):
    """Print a line; on a terminal the next one takes its place unless it is lasting."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + line[:width].ljust(width), end="\n" if lasting else "", flush=True)
    else:
        print(line, flush=True)


def train(run, path, known, workers, episodes):
    """Train until the run has that many episodes (None: for ever), or until Ctrl-C or SIGTERM; save along the way."""
    received, saved = [], run.episode_number
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    start = time.monotonic(), run.steps, run.episode_number
    error = None
    try:
        for scores in learn(run, workers, stopped=lambda: received):
            due = run.episode_number // SAVE_EVERY > saved // SAVE_EVERY
            show(status(run, scores, *start), lasting=due)
            if due:
                known, saved = save(run, path, known), run.episode_number
            if episodes and run.episode_number >= episodes:
                break
    except WorkerDied as died:
        error = str(died)
    if run.episode_number > saved:
        known, saved = save(run, path, known), run.episode_number
    show(f"saved {path} at episode {saved}", lasting=True)
    if error:
        fail(error, status=1)


# ---- command line

def fail(message, status=2):
    """End with one line on stderr."""
    print(f"pg_pong.py: {message}", file=sys.stderr)
    sys.exit(status)


def number(kind, low, high):
    """For argparse: a number of that kind from low to high."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value
    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def main():
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description="Learn Atari Pong from raw pixels with policy gradients.",
                                     allow_abbrev=False)
    parser.error = lambda message: fail(f"{message}; see python pg_pong.py --help")
    add = parser.add_argument
    add("--resume", action="store_true", help="go on from the saved run, with its hyperparameters and seed unless given")
    add("--save", metavar="PATH", default="save.p", help="where the run is saved (default save.p)")
    add("--episodes", type=number(int, 1, 10**9), metavar="N", help="stop when the run has N episodes in all, "
        "rounded up to whole batches (default: train until Ctrl-C)")
    add("--workers", type=number(int, 1, 1000), metavar="N", help="processes that play, at most one for each episode of a "
        "batch (default: one for each core)")
    add("--seed", type=number(int, 0, 2**32 - 1), metavar="N", help="of all the chance in the run (default 0)")
    add("--batch-size", type=number(int, 1, 1000), metavar="N", help=f"episodes per update (default {BATCH_SIZE})")
    add("--learning-rate", type=number(float, 1e-12, 1), metavar="X", help=f"of RMSProp (default {LEARNING_RATE})")
    add("--gamma", type=number(float, 0, 1), metavar="X", help=f"discount of rewards per step (default {GAMMA})")
    add("--decay-rate", type=number(float, 0, 1), metavar="X", help=f"of RMSProp's mean square (default {DECAY_RATE})")
    args = parser.parse_args()
    flags = {k: v for k in ("batch_size", "learning_rate", "gamma", "decay_rate") if (v := getattr(args, k)) is not None}
    known = None
    if args.resume:
        run = load(args.save)
        known = fingerprint(args.save)
        run.hyperparameters |= flags
        run.seed = run.seed if args.seed is None else args.seed
    else:
        run = new_run(args.seed or 0, {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "gamma": GAMMA,
                                       "decay_rate": DECAY_RATE} | flags)
    train(run, args.save, known, args.workers or available_cores(), args.episodes)


if __name__ == "__main__":
    main()
