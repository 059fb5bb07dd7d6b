"""Learn Atari Pong from raw pixels by policy gradients: one file of numpy, on all cores.

    python pg_pong.py                            train from scratch until Ctrl-C, saving to save.p along the way
    python pg_pong.py --resume                   go on from save.p as if it had never stopped
    python pg_pong.py --learning-rate 1e-3       learn faster than in the post
    python pg_pong.py --help                     all flags

The algorithm is that of "Deep Reinforcement Learning: Pong from Pixels" (Andrej Karpathy, 2016): play by chance, then
make each action a little more likely if it led to a point won, and a little less likely if it led to a point lost.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")   # the products are tiny: threads within numpy would only slow them down

import argparse
import gc
import math
import multiprocessing
import pickle
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import wait

import ale_py
import gymnasium
import numpy as np

# hyperparameters, as published; each is also a flag
HYPERPARAMETERS = {
    "batch_size": 10,        # episodes per update of the weights
    "learning_rate": 1e-4,
    "gamma": 0.99,           # discount: a reward counts this much less for each step that lies between
    "decay_rate": 0.99,      # of RMSProp's running mean of squared gradients
}
D, H = 80 * 80, 200          # the network: pixels of the input, hidden neurons
UP, DOWN = 2, 3              # the two of the game's six actions that are used
SAVE_EVERY = 100             # episodes


# ---- preprocessing: the 80x80 picture that the network sees

LIT_RED, LIT_CODE = np.ones((2, 256), np.float32)   # 1 for paddles and ball, 0 for the background, by a pixel's red ...
LIT_RED[[0, 109, 144]] = 0
LIT_CODE[[0, 228, 34]] = 0                          # ... or by its colour code, which the emulator tells much faster

def prepro(frame):
    """(210, 160, 3) uint8 RGB frame -> (6400,) float32: the field, every second row and column, no background."""
    return LIT_RED[frame[35:195:2, ::2, 0].ravel()]

def crop(screen):
    """(210, 160) uint8 colour codes -> (6400,) uint8. LIT_CODE[crop(screen)] is prepro(frame), bit for bit."""
    return screen.view("<u2")[35:195:2].astype(np.uint8).ravel()   # a pair of pixels as one number: keep its low byte

def difference(codes, previous):
    """This picture minus the previous one: what moved. Of its 6400 pixels only the few dozen that are not zero are
    kept, which leaves every sum over pixels as it is: (their indices, their values +1 or -1 as float32)."""
    changed, = (codes != previous).nonzero()
    return changed, LIT_CODE.take(codes.take(changed)) - LIT_CODE.take(previous.take(changed))


# ---- policy: W1 (200, 6400) and W2 (200,), no biases. W1 is stored by columns: a pixel's 200 weights lie together

def new_model(rng):
    """Gaussian weights divided by the square root of the fan-in."""
    return {"W1": np.asfortranarray(rng.standard_normal((H, D)) / np.sqrt(D), np.float32),
            "W2": np.asarray(rng.standard_normal(H) / np.sqrt(H), np.float32)}

def policy_forward(model, x):
    """Difference frame x -> probability of UP, hidden layer h (200,)."""
    pixels, values = x
    h = values.dot(model["W1"].T.take(pixels, axis=0))     # h = W1 x
    np.maximum(h, 0, out=h)                                # relu
    logit = model["W2"].dot(h)
    return 0.5 + 0.5 * math.tanh(0.5 * logit), h           # the sigmoid 1 / (1 + exp(-logit)), safe for all logits

def policy_backward(model, xs, hs, dlogits, gradient):
    """Gradient of sum_t dlogits[t] logit[t], by the chain rule backwards through policy_forward.

    xs: the episode's T difference frames, hs (T, 200), dlogits (T,), float32. Written into gradient, shaped like model.
    """
    gradient["W2"][:] = dlogits @ hs                       # dW2 = sum_t dlogit h
    dhs = np.outer(dlogits, model["W2"]) * (hs > 0)        # dh = dlogit W2, where the relu let it through
    gradient["W1"][:] = 0                                  # dW1 = sum_t dh x^T, 32 steps at a time, where x is not zero
    for t in range(0, len(xs), 32):
        x = np.zeros((len(xs[t:t + 32]), D), np.float32)
        for row, (pixels, values) in zip(x, xs[t:t + 32]):
            row[pixels] = values
        active, = x.any(axis=0).nonzero()
        gradient["W1"].T[active] += x[:, active].T @ dhs[t:t + 32]


# ---- returns

def discount_rewards(rewards, gamma=0.99):
    """Return of each step, (T,) float64: G_t = r_t + gamma G_{t+1}, cut off wherever a point was scored."""
    returns, running = np.empty(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] if rewards[t] != 0 else gamma * running
        returns[t] = running
    return returns

def standardize(returns):
    """Mean 0, standard deviation 1; all 0 if the returns are all equal and so have nothing to teach."""
    return (returns - returns.mean()) / (returns.std() if np.ptp(returns) > 0 else 1)


# ---- one episode

def make_env(**kwargs):
    """Pong with the dynamics of Pong-v0: an action lasts 2 to 4 frames, and each of them ignores it one time in four."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return gymnasium.make("ALE/Pong-v5", frameskip=(2, 5), obs_type="ram", disable_env_checker=True, **kwargs)

def begin_episode(env, rng, state):
    """Reset the game. Its chance comes from rng and, as to ignored actions, from a stream inside the emulator, which
    goes on where it stood in state, the emulator's state after an earlier episode (bytes; None seeds it anew)."""
    if state is not None:
        env.unwrapped.ale.restoreState(ale_py.ALEState(state))
    env.reset(seed=int(rng.integers(2**31)) if state is None else None)
    env.unwrapped.np_random = rng

def play(env, model, rng):
    """Play an episode. Yields (difference frame, hidden layer, p(UP), whether it went UP, reward) for each step."""
    codes, over = crop(env.unwrapped.ale.getScreen()), False
    while not over:
        previous, codes = codes, crop(env.unwrapped.ale.getScreen())   # the same at first: that difference is all zeros
        x = difference(codes, previous)
        p, h = policy_forward(model, x)
        up = rng.random() < p                              # sampled: the chance is what explores
        _, reward, terminated, truncated, _ = env.step(UP if up else DOWN)
        over = terminated or truncated
        yield x, h, p, up, reward

def learn_from_episode(env, model, rng, gamma, gradient):
    """Play an episode and compute its policy gradient. Returns its score and its number of steps."""
    xs, hs, ps, ups, rewards = zip(*play(env, model, rng))
    advantages = standardize(discount_rewards(rewards, gamma))
    # the heart of it: the label pretends that each action taken was right; label - p is the gradient of its log
    # probability; the advantage turns that into "more of this" or "less of this"
    labels = np.array(ups)                                 # 1 for UP, 0 for DOWN
    dlogits = (labels - np.array(ps)) * advantages
    policy_backward(model, xs, np.array(hs), dlogits.astype(np.float32), gradient)
    return sum(rewards), len(rewards)


# ---- update

def rmsprop(model, cache, gradient, learning_rate, decay_rate):
    """A step uphill, each weight's scaled by the recent size of its gradient (RMSProp; Tieleman and Hinton, 2012)."""
    for k, g in gradient.items():
        cache[k][:] = decay_rate * cache[k] + (1 - decay_rate) * g**2
        model[k] += learning_rate * g / (np.sqrt(cache[k]) + 1e-5)


# ---- checkpoint

@dataclass
class Run:
    """All that a run is: what save.p holds and --resume goes on from."""
    hyperparameters: dict
    seed: int
    model: dict                          # W1, W2
    rmsprop_cache: dict                  # likewise
    episode_number: int = 0
    running_reward: float = None         # running mean of the scores: the first one, then 0.99 old + 0.01 new
    episode_rewards: np.ndarray = field(default_factory=lambda: np.empty(0, np.int8))   # the score of each episode
    emulator_states: list = field(default_factory=list)   # for each place in the batch, see begin_episode
    steps: int = 0
    seconds: float = 0.0                 # spent training

def new_run(seed, hyperparameters):
    """A run with random weights. All chance in it comes from [seed, 0] and, for its n-th episode, from [seed, n]."""
    model = new_model(np.random.default_rng([seed, 0]))
    return Run(hyperparameters, seed, model, {k: np.zeros_like(w) for k, w in model.items()})

def fingerprint(path):
    """Tells one version of a file from another; None if there is no file."""
    if os.path.exists(path):
        found = os.stat(path)
        return found.st_ino, found.st_size, found.st_mtime_ns

def kept_name(path):
    """The first free one of path.1, path.2, ..."""
    return next(name for n in range(1, 10**9) if not os.path.lexists(name := f"{path}.{n}"))

def save(run, path, known):
    """Write run to path and return the new file's fingerprint. A file at path whose fingerprint is not known belongs
    to another run and is kept under another name. Raises OSError, and then leaves path as it was."""
    rest = {"format": 1} | vars(run)
    weights, temporary = rest.pop("model"), path + ".tmp"
    try:
        with open(temporary, "wb") as f:
            pickle.dump(weights, f, protocol=4)            # first the weights alone: all that the post's script expects
            pickle.dump(rest, f, protocol=4)
            f.flush()
            os.fsync(f.fileno())                           # on the disk before the old file goes
        if fingerprint(path) not in (None, known):
            os.link(path, kept_name(path))
        os.replace(temporary, path)                        # at each instant there is the old file or the new, never half
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return fingerprint(path)

def load(path):
    """Read a run back: (Run, the file's fingerprint). Raises OSError, or ValueError if the file holds no run."""
    try:
        with open(path, "rb") as f:
            weights, rest = pickle.load(f), pickle.load(f)
            del rest["format"]
            return Run(model=weights, **rest), fingerprint(path)
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as reason:
        raise ValueError(f"{path} holds no run of this script: {reason}") from reason


# ---- training loop: the weights change only between batches, so the episodes of a batch may be played side by side by
# any number of processes. Their gradients are summed in the order of the episodes, so the result is the same to the bit.

def as_models(memory):
    """Shared memory as dicts like the model: first the weights, then the gradient of each episode of a batch."""
    return [{"W1": flat[:D * H].reshape(D, H).T, "W2": flat[D * H:]}
            for flat in np.frombuffer(memory, np.float32).reshape(-1, D * H + H)]

def work(connection, memory, seed, gamma):
    """A worker process: plays the episodes that it is told to, as long as the trainer lives."""
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)              # Ctrl-C is for the trainer, but reaches every process
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    model, *gradients = as_models(memory)
    env = make_env()
    gc.disable()                                           # there are no reference cycles, and the search costs 1%
    while True:
        place, episode, state = connection.recv()
        rng = np.random.default_rng([seed, episode])
        begin_episode(env, rng, state)
        score, steps = learn_from_episode(env, model, rng, gamma, gradients[place])
        connection.send((place, (score, steps, env.unwrapped.ale.cloneState(include_rng=True).serialize())))

def learn(run, workers, stopped=lambda: False):
    """Play a batch and update the weights, time and again until stopped(). Yields the scores of each batch."""
    size, learning_rate, gamma, decay_rate = run.hyperparameters.values()
    context = multiprocessing.get_context("spawn")         # the way that works on every system
    memory = context.RawArray("f", (1 + size) * (D * H + H))
    model, *gradients = as_models(memory)
    for k in model:
        model[k][:] = run.model[k]
    run.model = model
    processes, connections = [], []
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)   # inherited, so that Ctrl-C spares a worker half started
    for _ in range(min(workers, size)):
        connection, far_end = context.Pipe()
        connections.append(connection)
        processes.append(context.Process(target=work, args=(far_end, memory, run.seed, gamma), daemon=True))
        processes[-1].start()
        far_end.close()
    signal.signal(signal.SIGINT, handler)
    try:
        while True:
            begun, idle, results = time.monotonic(), list(connections), {}
            states = (run.emulator_states + [None] * size)[:size]
            tasks = [(place, run.episode_number + 1 + place, states[place]) for place in range(size)]
            while len(results) < size:
                while idle and tasks:                      # one at a time, since episodes differ in length
                    idle.pop().send(tasks.pop(0))
                for connection in wait(connections, timeout=0.2):
                    place, results[place] = connection.recv()
                    idle.append(connection)
                if stopped():
                    return
            gradient = gradients[0]
            for k in gradient:
                for other in gradients[1:]:
                    gradient[k] += other[k]
            rmsprop(model, run.rmsprop_cache, gradient, learning_rate, decay_rate)
            scores, steps, states = zip(*(results[place] for place in range(size)))
            for score in scores:
                run.running_reward = score if run.running_reward is None else 0.99 * run.running_reward + 0.01 * score
            run.episode_rewards = np.append(run.episode_rewards, np.array(scores, np.int8))
            run.emulator_states = list(states)
            run.episode_number += size
            run.steps += sum(steps)
            run.seconds += time.monotonic() - begun
            yield scores
    finally:
        for process in processes:
            process.kill()
            process.join()

def show(line, lasting=True):
    """Print a line; on a terminal the next one takes its place unless it is lasting."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        line = "\r" + line[:None if lasting else width].ljust(width)
    print(line, end="\n" if lasting or not sys.stdout.isatty() else "", flush=True)

def train(run, path, known, workers, episodes):
    """Train run until it has that many episodes (None: for ever) or Ctrl-C or SIGTERM comes, and save it at path."""
    if episodes and run.episode_number >= episodes:
        return show(f"{path} has {run.episode_number} episodes already; nothing to do")
    received, saved = [], run.episode_number
    start, first_episode, first_step = time.monotonic(), run.episode_number, run.steps
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda number, frame: received.append(number))
    resume = "python pg_pong.py --resume" + (f" --save {path}" if path != "save.p" else "")
    show(f"{min(workers, run.hyperparameters['batch_size'])} workers play; {path} is saved every {SAVE_EVERY} episodes "
         f"and on Ctrl-C. Go on with: {resume}")
    for scores in learn(run, workers, stopped=lambda: received):
        elapsed, due = time.monotonic() - start, run.episode_number // SAVE_EVERY > saved // SAVE_EVERY
        show(f"episode {run.episode_number}  score {np.mean(scores):+.1f}  running mean {run.running_reward:+.2f}  "
             f"{(run.steps - first_step) / elapsed:.0f} steps/s  "
             f"{(run.episode_number - first_episode) / elapsed:.1f} episodes/s  "
             f"{timedelta(seconds=round(elapsed))}", lasting=due)
        if due:
            known, saved = save(run, path, known), run.episode_number
        if episodes and run.episode_number >= episodes:
            break
    if run.episode_number > saved:
        save(run, path, known)
    show(f"{path} holds the run up to episode {run.episode_number}. Go on with: {resume}" if run.episode_number
         else "stopped before the first update; nothing to save")


# ---- command line

def fail(message):
    """End with one line on stderr and exit status 2."""
    print(f"pg_pong.py: {message}", file=sys.stderr)
    sys.exit(2)

def number(kind, low, high):
    """For argparse: a number from low to high."""
    def parse(text):
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return kind(text)
    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse

def available_cores():
    """The cores that this process may use, which in a container are not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

def main():
    """Read the command line and train."""
    parser = argparse.ArgumentParser(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__.partition("\n\nThe algorithm")[0])
    parser.error = lambda message: fail(f"{message}; see python pg_pong.py --help")
    def add(flag, help, *limits, default=None):
        parser.add_argument(flag, help=help, type=number(*limits), metavar="N" if limits[0] is int else "X",
                            default=default)
    parser.add_argument("--resume", action="store_true",
                        help="go on from the saved run, with its seed and hyperparameters unless given anew")
    parser.add_argument("--save", metavar="PATH", default="save.p", help="where the run is saved (default: save.p)")
    add("--episodes", "stop when the run has N episodes in all, in whole batches (default: on Ctrl-C)", int, 1, 10**9)
    add("--workers", "processes that play, at most one per episode of a batch (default: one per core)", int, 1, 1000,
        default=available_cores())
    add("--seed", "the same seed gives the same run, bit for bit (default: 0)", int, 0, 2**32 - 1)
    add("--batch-size", "episodes per update of the weights (default: 10)", int, 1, 100)
    add("--learning-rate", "step size of RMSProp (default: 1e-4)", float, 0, 1)
    add("--gamma", "discount of rewards per step (default: 0.99)", float, 0, 1)
    add("--decay-rate", "memory of RMSProp per update (default: 0.99)", float, 0, 1)
    args = parser.parse_args()

    given = {k: getattr(args, k) for k in HYPERPARAMETERS if getattr(args, k) is not None}
    try:
        run, known = load(args.save) if os.path.exists(args.save) or args.resume else (None, None)
    except (OSError, ValueError) as reason:
        if args.resume:
            fail(reason)
        run, known = None, None
    if args.resume:
        run.hyperparameters |= given
        run.seed = run.seed if args.seed is None else args.seed
        opening = f"Resuming {args.save} at episode {run.episode_number}, running mean {run.running_reward:+.2f}"
    else:
        opening = "Starting from scratch"
        if os.path.exists(args.save):
            held = f"a run at episode {run.episode_number}, running mean {run.running_reward:+.2f}" if run else "something else"
            opening = (f"{args.save} holds {held}; it will be kept as {kept_name(args.save)}; "
                       "use --resume to continue it")
        run, known = new_run(args.seed or 0, HYPERPARAMETERS | given), None
    settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in run.hyperparameters.items())
    show(f"Learning Pong from pixels with seed {run.seed}, {settings}. {opening}")
    train(run, args.save, known, args.workers, args.episodes)


if __name__ == "__main__":
    main()
