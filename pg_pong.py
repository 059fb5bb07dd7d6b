"""Learn Atari Pong from raw pixels by policy gradients: one file of numpy, on all cores.

    python pg_pong.py                            train from scratch until Ctrl-C, saving to save.p along the way
    python pg_pong.py --resume                   go on from save.p as if it had never stopped
    python pg_pong.py --learning-rate 1e-3       learn faster than in the post
    python pg_pong.py --resume --render          train, and show the game in a window
    python pg_pong.py --watch                    only show the game, in a window or in the terminal
    python pg_pong.py --eval 100                 play 100 episodes without learning, and tell the score
    python pg_pong.py --plot                     draw what was learned, to pong.png
    python pg_pong.py --help                     all flags

The algorithm is that of "Deep Reinforcement Learning: Pong from Pixels" (Andrej Karpathy, 2016): play by chance, then
make each action a little more likely if it led to a point won, and a little less likely if it led to a point lost.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")   # the products are tiny: threads within numpy would only slow them down

import argparse
import contextlib
import errno
import gc
import io
import itertools
import math
import multiprocessing
import pickle
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import resource_tracker
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
SIZE_LIMIT = 256 << 20       # bytes of a file that is read
RANGES = {                   # what is admitted, from the command line and from files
    "batch_size": (int, 1, 100), "learning_rate": (float, 0, 1), "gamma": (float, 0, 1), "decay_rate": (float, 0, 1),
    "seed": (int, 0, 2**32 - 1), "episodes": (int, 1, 10**9), "workers": (int, 1, 1000), "eval": (int, 1, 10**6),
    "episode_number": (int, 1, 10**9), "running_reward": (float, -21, 21), "steps": (int, 1, 10**15),
    "seconds": (float, 0, 10**12),
}
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


# ---- preprocessing: the 80x80 picture that the network sees

# 1 if a pixel belongs to a paddle or the ball, 0 if to the background: looked up by the red of its color, or by the
# emulator's code for that color, which is much cheaper to get
LIT_RED, LIT_CODE = np.ones(256, np.float32), np.ones(256, np.float32)
LIT_RED[[0, 109, 144]] = 0
LIT_CODE[[0, 228, 34]] = 0

def prepro(frame):
    """(210, 160, 3) uint8 RGB frame -> (6400,) float32: the field, every second row and column, no background."""
    return LIT_RED[frame[35:195:2, ::2, 0].ravel()]

def crop(screen):
    """(210, 160) uint8 color codes -> (6400,) uint8. LIT_CODE[crop(screen)] is prepro(frame), bit for bit."""
    # screen[35:195:2, ::2].ravel(), but faster: two neighbors are read as one number, whose low byte is the left one
    return screen.view("<u2")[35:195:2].astype(np.uint8).ravel()

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
    """Pong as in Pong-v0: an action lasts 2 to 4 frames, in each of which the emulator repeats the previous action
    instead with probability 0.25."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return gymnasium.make("ALE/Pong-v5", frameskip=(2, 5), obs_type="ram", **kwargs).unwrapped

def begin_episode(env, rng, state):
    """Start a game. It has two sources of chance: rng, for the sampling of actions and the frame skips, and a stream
    inside the emulator, for the repeated actions. The latter continues from state, the emulator's state (bytes) after
    an earlier episode; without one, or if the emulator refuses it, it is seeded from rng, and False is returned."""
    accepted = state is not None
    if accepted:
        try:
            env.ale.restoreState(ale_py.ALEState(state))
            env.reset()
        except Exception:                                  # of a damaged state, or one of another version
            accepted = False
    if not accepted:
        env.reset(seed=int(rng.integers(2**31)))           # loads the game anew
    env.np_random = rng
    return accepted

def play(env, model, rng):
    """Play an episode. Yields (difference frame, hidden layer, p(UP), whether it went UP, reward) for each step."""
    codes, over = crop(env.ale.getScreen()), False
    while not over:
        previous, codes = codes, crop(env.ale.getScreen())   # the same at first: that difference is all zeros
        x = difference(codes, previous)
        p, h = policy_forward(model, x)
        up = rng.random() < p                              # sampled: the chance is what explores
        _, reward, terminated, truncated, _ = env.step(UP if up else DOWN)
        over = terminated or truncated
        yield x, h, p, up, reward

def learn_from_episode(env, model, rng, gamma, gradient):
    """Play an episode and compute its policy gradient. Returns the rewards of its steps."""
    xs, hs, ps, ups, rewards = zip(*play(env, model, rng))
    advantages = standardize(discount_rewards(rewards, gamma))
    # the heart of it: pretend that each action taken was the right one, its label. Then label - p is the gradient of
    # the log probability of that action by the logit: a step along it makes the action likelier. Multiplied by the
    # advantage, it makes those likelier that did better than the episode's average, and the others less likely
    labels = np.array(ups)                                 # 1 for UP, 0 for DOWN
    dlogits = (labels - np.array(ps)) * advantages
    policy_backward(model, xs, np.array(hs), dlogits.astype(np.float32), gradient)
    return rewards


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

def new_run(seed, hyperparameters, model=None):
    """A run from random weights, or given ones. Its chance comes from [seed, 0] and, in its n-th episode, [seed, n]."""
    model = model or new_model(np.random.default_rng([seed, 0]))
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
            try:
                os.link(path, kept_name(path))             # and leave it there, so that there is a file all the time
            except OSError:                                # on a disk that knows no second names
                os.rename(path, kept_name(path))
        os.replace(temporary, path)                        # at each instant there is the old file or the new
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return fingerprint(path)

def expect(condition, otherwise):
    if not condition:
        raise ValueError(otherwise)

def load(path):
    """Read a run back, or begin one with the weights in a file of the post's script. Returns (Run, fingerprint).

    Raises OSError, or ValueError saying why the file is refused, for it may come from anybody.
    """
    expect(os.stat(path).st_size <= SIZE_LIMIT and os.path.isfile(path),
           f"it is no file of at most {SIZE_LIMIT >> 20} MB")
    mark = fingerprint(path)
    with open(path, "rb") as f:
        data = io.BytesIO(f.read(SIZE_LIMIT))
    try:
        model = checked("model", Unpickler(data).load())
        if data.tell() == len(data.getbuffer()):
            return new_run(0, dict(HYPERPARAMETERS), model), mark
        rest = Unpickler(data).load()
        expect(rest.pop("format") == 1, "it is of another format")
        rest["rmsprop_cache"] = checked("rmsprop_cache", rest["rmsprop_cache"])
        rest["episode_rewards"] = rest["episode_rewards"].value
        run = Run(model=model, **rest)
        expect(all((g >= 0).all() for g in run.rmsprop_cache.values()), "rmsprop_cache is negative")
        expect(run.hyperparameters.keys() == HYPERPARAMETERS.keys(), "it has other hyperparameters")
        run.hyperparameters = {k: run.hyperparameters[k] for k in HYPERPARAMETERS}
        for name, value in (vars(run) | run.hyperparameters).items():
            kind, low, high = RANGES.get(name, (object, 0, 0))
            expect(kind is object or type(value) is kind and low <= value <= high, f"{name} is out of range")
        scores, states = run.episode_rewards, run.emulator_states
        expect(scores.dtype == np.int8 and scores.shape == (run.episode_number,), "episode_rewards do not fit")
        expect(type(states) is list and all(type(s) is bytes for s in states), "emulator_states are not bytes")
    except Exception as damage:                            # whatever it is, it is the file that is to blame
        reason = ascii(str(damage))[1:-1][:200]
        if type(damage) is not ValueError:
            reason = f"damaged ({type(damage).__name__}: {reason})"
        raise ValueError(reason) from None
    return run, mark

def checked(name, weights):
    """The dict {"W1": Array, "W2": Array} as it must be, with float32 arrays; ValueError if it is not."""
    expect(type(weights) is dict and weights.keys() == {"W1", "W2"}, f"{name} is not W1 and W2")
    weights = {k: weights[k].value for k in ("W1", "W2")}
    shapes = [w.shape for w in weights.values()]
    expect(shapes == [(H, D), (H,)], f"{name} has the shapes {shapes}, not {[(H, D), (H,)]}")
    with np.errstate(all="ignore"):
        weights = {k: np.array(w, np.float32, order="F") for k, w in weights.items()}
    expect(finite(weights), f"{name} is not finite")
    return weights

def finite(*models):
    return all(np.isfinite(w).all() for model in models for w in model.values())

class Array:
    """Stands for an array or a dtype while a file is read: pickles make them empty and fill them later."""
    def __init__(self, value=None):
        self.value = value

    def fill(self, state):
        if isinstance(self.value, np.dtype):
            self.value = self.value.newbyteorder(state[1])
        else:
            _, shape, dtype, fortran, data = state
            data = data.encode("latin1") if isinstance(data, str) else data            # Python 2 has no bytes
            self.value = make_array(data, dtype, shape, "F" if fortran else "C").value

def make_dtype(code, *_):
    expect(type(code) is str and re.fullmatch("b1|[iu][1248]|f[248]", code), f"refused dtype {str(code)[:20]}")
    return Array(np.dtype(code))

def make_array(data, dtype, shape, order):
    return Array(np.frombuffer(data, dtype.value).reshape(shape, order=order))

def expect_small(item):
    expect(not isinstance(item, (list, dict, tuple)) and sys.getsizeof(item) < 1000, "it repeats itself")

class Counted(dict):
    """The instructions of the pickle machine, of which a run takes some hundreds: no more than 2,000 are obeyed."""
    left = 2000

    def __getitem__(self, code):
        self.left -= 1
        expect(code in self and self.left, f"refused pickle instruction {bytes([code])}")
        return super().__getitem__(code)

class Unpickler(pickle._Unpickler):
    """A pickle is a program that may do anything. Here runs the library's own machine for it, the one in Python, with
    only those instructions that build containers, numbers, strings, bytes and arrays, and with no functions but those
    by which numpy, old and new, pickles its arrays."""
    safe = """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING
        BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT DICT
        EMPTY_LIST LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS PUT BINPUT LONG_BINPUT
        MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD""".split()
    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in safe}
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]     # which does not take the length on trust
    dispatch[pickle.BUILD[0]] = lambda self: Array.fill(self.stack[-2], self.stack.pop())
    for code in pickle.GET, pickle.BINGET, pickle.LONG_BINGET:         # nothing large may be used twice: no bombs
        dispatch[code[0]] = lambda self, get=dispatch[code[0]]: (get(self), expect_small(self.stack[-1]))
    functions = {
        "numpy.dtype": make_dtype, "numpy.ndarray": None, "_codecs.encode": lambda text, _: text.encode("latin1"),
        "numpy.core.multiarray._reconstruct": lambda *_: Array(), "numpy.core.numeric._frombuffer": make_array,
        "numpy._core.multiarray._reconstruct": lambda *_: Array(), "numpy._core.numeric._frombuffer": make_array,
    }

    def __init__(self, f):
        super().__init__(f, encoding="latin1")
        self.dispatch = Counted(self.dispatch)

    def find_class(self, module, name):
        expect(f"{module}.{name}" in self.functions, f"refused {module}.{name}")
        return self.functions[f"{module}.{name}"]

def lock(path):
    """Keep others from training on path, or end the script if another process does. Returns an open file that holds the
    lock until it is closed or this process ends, however it ends: the file that it leaves behind locks nothing."""
    try:
        f = open(path + ".lock", "a")
    except OSError as problem:
        fail(f"cannot write beside {path} ({problem.strerror}); choose another place with --save")
    try:
        if os.name == "nt":
            import msvcrt
            msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):         # otherwise the disk knows no locks
            fail(f"another process is training on {path}; stop it first, or choose another file with --save")
    return f


# ---- viewing

def has_display():
    return sys.platform in ("win32", "darwin") or any(os.environ.get(k) for k in ("DISPLAY", "WAYLAND_DISPLAY"))

def silence_libraries():
    """Keep the noise of the emulator and the sound system, which is not Python's, off the terminal."""
    if sys.stderr and sys.stderr.fileno() == 2:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

def show_games(newest_model, draw=None):
    """Play one episode after another, each with the model of the moment, in the emulator's window or by draw."""
    silence_libraries()
    if sys.platform == "linux":                            # or else the library pretends to draw where it cannot
        os.environ.setdefault("SDL_VIDEODRIVER", "wayland,x11" if os.environ.get("WAYLAND_DISPLAY") else "x11")
    try:
        env, rng = make_env(render_mode=None if draw else "human"), np.random.default_rng()
    except RuntimeError as problem:
        fail(f"cannot open a window ({problem}); python pg_pong.py --watch --terminal shows the game in the terminal")
    begin_episode(env, rng, None)
    while True:
        points, began = [0, 0], time.monotonic()
        for step, (_, _, p, _, reward) in enumerate(play(env, newest_model(), rng), 1):
            points[reward > 0] += reward != 0
            if draw:
                time.sleep(max(0, began + step * 3 / 60 - time.monotonic()))   # a step is 3 frames on average, at 60/s
                speed = step / (time.monotonic() - began)
                draw(env.ale, f"{points[0]} : {points[1]}   p(UP) {p:.2f}   {speed:.0f} steps/s")
        env.reset()

def terminal_frame(rgb, columns, lines, status):
    """(80, 80, 3) uint8 as a screen of text: two pixels to a character, the upper one in the color of a half block."""
    if columns < 80 or lines < 41:
        return f"\x1b[0m\x1b[H\x1b[JThis terminal has {columns}x{lines} characters; the picture needs 80x41"
    parts = []
    for y in range(0, 80, 2):
        parts.append(f"\x1b[{y // 2 + 1}H")
        for colors, pairs in itertools.groupby(rgb[y:y + 2].swapaxes(0, 1).reshape(80, 6).tolist()):
            parts.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*colors) + "\u2580" * len(list(pairs)))
    return "".join(parts) + f"\x1b[0m\x1b[41H{status[:columns - 1]}\x1b[K"

def watch(path, in_terminal):
    """Show the games of the run in path, each with its newest save, until Ctrl-C or until the window is closed."""
    run, _ = loaded(path)
    def newest_model():
        nonlocal run
        with contextlib.suppress(OSError, ValueError):     # a file that cannot be read now leaves the one before in use
            run, _ = load(path)
        return run.model
    def draw(ale, status):
        rgb = ale.getScreenRGB()[35:195:2, ::2]            # what prepro looks at, in the colors of the game
        size = os.get_terminal_size(sys.stdout.fileno())
        print(terminal_frame(rgb, *size, f"{status}   {described(run)}"), end="", flush=True)
    if in_terminal and not sys.stdout.isatty():
        fail("there is no terminal to show the game in" + ", and no display" * (not has_display()))
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(0))       # passing through the last line below
    try:
        print("\x1b[?1049h\x1b[?25l\x1b[2J" * in_terminal, end="")      # another screen, without a cursor
        show_games(newest_model, draw if in_terminal else None)
    finally:
        print("\x1b[0m\x1b[?25h\x1b[?1049l" * in_terminal, end="", flush=True)

def running_means(scores, before=None):
    """The running mean after each episode: it begins with the first score, or with what it was before, which is then
    put in front, and goes on as 0.99 old + 0.01 new."""
    step = lambda mean, score: 0.99 * mean + 0.01 * score
    return list(itertools.accumulate(map(float, scores), step, initial=before))

def plot(path, picture):
    """Draw the run in path: the score of every episode, and what its most influential neurons look for."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        fail("drawing needs matplotlib: pip install matplotlib")
    run, _ = loaded(path)
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=[1, 1.15])
    axes = above.subplots()
    episodes, size = np.arange(1, run.episode_number + 1), run.hyperparameters["batch_size"]
    axes.plot(episodes, run.episode_rewards, ".", markersize=2, alpha=0.3, label="score of an episode")
    axes.plot(episodes, running_means(run.episode_rewards), color="tab:red", label="running mean")
    axes.axhline(0, color="black", linewidth=0.8, linestyle="--", label="even with the built-in opponent")
    axes.set(xlabel="episode", ylabel="score", ylim=(-21.5, 21.5), xlim=(0, max(run.episode_number, 1)),
             title=f"{described(run)}: {run.steps / 1e6:.1f} million steps, {run.seconds / 3600:.1f} hours")
    axes.secondary_xaxis("top", functions=(lambda x: x / size, lambda x: x * size)).set_xlabel("update")
    axes.legend(loc="upper left", markerscale=4)
    W1, W2 = run.model["W1"], run.model["W2"]
    strongest = np.argsort(-np.linalg.norm(W1, axis=1) * np.abs(W2))[:40]
    limit = np.percentile(np.abs(W1[strongest]), 99.8)
    below.suptitle("Weights of the 40 neurons with the largest effect on the output: white positive, black negative")
    for axes, neuron in zip(below.subplots(4, 10).flat, strongest):
        axes.imshow(W1[neuron].reshape(80, 80), cmap="gray", vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{'UP' if W2[neuron] > 0 else 'DOWN'} {abs(W2[neuron]):.1f}", fontsize=7, pad=2)
    try:
        figure.savefig(picture, dpi=120)
    except OSError as problem:
        fail(f"cannot write {picture}: {problem.strerror}")
    show(f"{picture} shows {path} at {described(run)}")


# ---- processes: the weights change only between batches, so the episodes of a batch may be played side by side by any
# number of processes. Their gradients are summed in the order of the episodes, so the result is the same to the bit.

SPAWN = multiprocessing.get_context("spawn")               # the way that works alike on every system

def as_models(memory):
    """Shared memory as dicts like the model: first the weights, then the gradient of each episode of a batch."""
    return [{"W1": flat[:D * H].reshape(D, H).T, "W2": flat[D * H:]}
            for flat in np.frombuffer(memory, np.float32).reshape(-1, D * H + H)]

def share(model, gradients=0):
    """Shared memory that begins with the weights of the model."""
    memory = SPAWN.RawArray("f", (1 + gradients) * (D * H + H))
    for k, w in as_models(memory)[0].items():
        w[:] = model[k]
    return memory

def start(target, *args):
    """A process of the script's own. Ctrl-C and the like, which reach all processes, mean nothing to it."""
    process = SPAWN.Process(target=attend, args=(target, *args), name=target.__name__, daemon=True)
    if not hasattr(signal, "pthread_sigmask"):             # Windows
        process.start()
        return process
    resource_tracker.ensure_running()                      # which else is started below, and then unblocks signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)      # the process inherits that; for us they wait
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process

def attend(target, *args):
    """In such a process: leave all signals to its parent, and end with it, however that ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    with contextlib.suppress(EOFError):                    # it has ended
        target(*args)

def view(memory):
    """Process: shows how the agent plays with the weights of the moment."""
    show_games(lambda: as_models(memory)[0])

def open_view(memory, path):
    """Show the game in a window, or say why not."""
    if not has_display():
        return complain("there is no display for a window; run this in a second terminal after the first save: "
                        + command("--watch", path))
    try:
        start(view, memory)
    except OSError as problem:
        complain(f"cannot open a window: {problem.strerror}")

def close_view():
    """Close the window if it is open. Returns whether it was."""
    views = [process for process in multiprocessing.active_children() if process.name == "view"]
    for process in views:
        process.kill()
        process.join()
    return bool(views)

def work(connection, memory, gamma):
    """Process: plays the episodes that it is told to; if it is given a gamma, it computes their gradients too."""
    silence_libraries()
    model, *gradients = as_models(memory)
    env = make_env()
    np.seterr(all="ignore")                                # learn() looks whether the weights are finite
    gc.disable()                                           # there are no reference cycles, and the search costs 1%
    while True:
        place, seed, state = connection.recv()
        rng = np.random.default_rng(seed)
        refused = not begin_episode(env, rng, state) and state is not None
        if gamma is None:
            rewards = [step[-1] for step in play(env, model, rng)]
        else:
            rewards = learn_from_episode(env, model, rng, gamma, gradients[place])
        state = env.ale.cloneState(include_rng=True).serialize()
        connection.send((place, (rewards.count(1), rewards.count(-1), len(rewards), state, refused)))

class RunEnded(Exception):
    """It cannot go on; says why."""

@contextlib.contextmanager
def worker_processes(count, memory, gamma=None):
    """Start them, give a connection to each, and see to it that they end."""
    processes, connections = [], []
    try:
        for _ in range(count):
            connection, far_end = SPAWN.Pipe()
            connections.append(connection)
            processes.append(start(work, far_end, memory, gamma))
            far_end.close()
        yield connections
    finally:
        for process in processes:
            process.kill()

def hand_out(tasks, connections, stopped=lambda: False):
    """Have tasks done, one at a time by each worker, since episodes differ in length. Yields (place, result) as they
    come; ends early if stopped(). Raises RunEnded if a worker died."""
    idle, left, tasks = connections, len(tasks), iter(tasks)           # left: results still to come
    while left and not stopped():
        try:
            for connection, task in zip(idle, tasks):      # takes no task that there is no idle worker for
                connection.send(task)
            idle = wait(connections, timeout=0.2)          # those that have answered, and those that died
            results = [connection.recv() for connection in idle]
        except (EOFError, OSError):
            if stopped():
                return
            raise RunEnded("a worker process died (killed? out of memory?)") from None
        yield from results
        left -= len(results)

def evaluate(path, count, workers, seed):
    """Play that many episodes with the weights in path, without learning, and tell the score."""
    run, _ = loaded(path)
    results, begun = {}, time.monotonic()
    with worker_processes(min(workers, count), share(run.model)) as connections:
        for place, result in hand_out([(n, [seed, n, 1], None) for n in range(count)], connections):
            results[place] = result
            if sys.stdout.isatty():
                show(f"{len(results)} of {count} episodes, mean score "
                     f"{np.mean([won - lost for won, lost, *_ in results.values()]):+.2f}", lasting=False)
    won, lost, steps = np.array([results[n][:3] for n in range(count)]).T
    score = won - lost
    deviation = score.std(ddof=1) if count > 1 else math.nan
    mean, margin = score.mean(), 1.96 * deviation / count**0.5
    show(f"{path} at {described(run)}: {count} episodes, seed {seed}")
    show(f"mean score {mean:+.2f} (95% interval {mean - margin:+.2f} to {mean + margin:+.2f}), "
         f"standard deviation {deviation:.2f}")
    show(f"won {np.mean(score > 0):.1%} of the episodes; points {won.sum()} for, {lost.sum()} against")
    show(f"mean length {steps.mean():.0f} steps; {steps.sum() / (time.monotonic() - begun):.0f} steps/s")


# ---- training loop

def learn(run, workers, memory, stopped=lambda: False):
    """Play a batch and update the weights, time and again until stopped(). Yields the scores of each batch.

    memory: what share() made of run.model, with a gradient for each episode of a batch. Raises RunEnded if a worker
    died, with run as of the last complete batch, or if the weights are no longer finite."""
    settings = run.hyperparameters
    size = settings["batch_size"]
    run.model, *gradients = as_models(memory)
    with worker_processes(min(workers, size), memory, settings["gamma"]) as connections:
        while True:
            begun = time.monotonic()
            states = run.emulator_states + [None] * size
            tasks = [(n, [run.seed, run.episode_number + 1 + n], states[n]) for n in range(size)]
            results = dict(hand_out(tasks, connections, stopped))
            if len(results) < size:
                return
            with np.errstate(all="ignore"):
                gradient = {k: sum(g[k] for g in gradients) for k in run.model}
                rmsprop(run.model, run.rmsprop_cache, gradient, settings["learning_rate"], settings["decay_rate"])
            if not finite(run.model, run.rmsprop_cache):
                raise RunEnded(f"the weights are no longer finite after episode {run.episode_number + size}; they were "
                               "not saved. Resume the last save with a smaller --learning-rate")
            won, lost, steps, states, refused = zip(*(results[n] for n in range(size)))
            scores = np.subtract(won, lost).astype(np.int8)
            run.running_reward = running_means(scores, run.running_reward)[-1]
            run.episode_rewards = np.append(run.episode_rewards, scores)
            run.episode_number += size
            run.emulator_states = list(states)
            run.steps += sum(steps)
            run.seconds += time.monotonic() - begun
            if any(refused):
                complain(f"the emulator refused {sum(refused)} of its saved states and was seeded anew; "
                         "the run is no longer identical to one without a stop")
            yield scores

def write(text, stream):
    """Print. A full disk is ignored. Raises OSError if nobody reads any more, and then drops what is shown later."""
    try:
        print(text, end="", file=stream, flush=True)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            if stream is sys.stdout:
                sys.stdout = open(os.devnull, "w")
            raise

def show(line, lasting=True):
    """Print a line; on a terminal the next one takes its place unless it is lasting."""
    if not sys.stdout.isatty():
        return write(line + "\n", sys.stdout)
    columns = os.get_terminal_size(sys.stdout.fileno()).columns or 80
    while "  " in line and len(line) >= columns:           # what does not fit of a status line goes, from the right
        line = line.rpartition("  ")[0]
    rows_above = max(show.width - 1, 0) // columns         # that the last one takes if the terminal is narrower now
    show.width = 0 if lasting else len(line)
    write(f"\x1b[{rows_above}A" * (rows_above > 0) + "\r\x1b[J" + line + "\n" * lasting, sys.stdout)
show.width = 0

def complain(message):
    """One line on stderr, in the place of the live line if there is one, if anybody reads it."""
    with contextlib.suppress(OSError):
        if sys.stdout.isatty():
            show("", lasting=False)
        write(f"pg_pong.py: {message}\n", sys.stderr)

def fail(message, status=2):
    complain(message)
    sys.exit(status)

def command(flag, path):
    return f"python pg_pong.py {flag}" + (f" --save {shlex.quote(path)}" if path != "save.p" else "")

def read_keys(keys):
    """Thread: collects the lines that are typed."""
    typed = True
    while typed:
        try:
            typed = os.read(0, 1000)
            keys.append(typed.decode(errors="replace").strip())
        except OSError:                                    # we are in the background of the terminal
            time.sleep(1)

def train(run, path, known, workers, episodes, render):
    """Train run until it has that many episodes or Ctrl-C or SIGTERM comes, and save it at path."""
    received, keys = [], []                                # signals that came, lines that were typed
    saved, failing, error = run.episode_number, False, None
    began, first_episode, first_step = time.monotonic(), run.episode_number, run.steps
    size = run.hyperparameters["batch_size"]
    memory = share(run.model, size)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:             # as nohup has it
            signal.signal(number, lambda number, frame: received.append(number))
    show(f"{min(workers, size)} workers play; {path} is saved every {SAVE_EVERY} episodes and on Ctrl-C. "
         f"Go on with: {command('--resume', path)}")
    if sys.stdin and sys.stdin.isatty():
        show("r and Enter opens or closes a view of the game; q and Enter saves and ends")
        if hasattr(signal, "SIGTTIN"):
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)              # else to read in the background would stop us
        threading.Thread(target=read_keys, args=(keys,), daemon=True).start()

    def stopped():
        while keys:
            write("\x1b[A\r\x1b[J" * sys.stdout.isatty(), sys.stdout)   # back to the line that Enter left
            match keys.pop(0):
                case "r":
                    close_view() or open_view(memory, path)
                case "q":
                    received.append("q")
        return received or run.episode_number >= episodes

    try:
        if render:
            open_view(memory, path)
        for scores in learn(run, workers, memory, stopped):
            elapsed = time.monotonic() - began
            rate = (run.episode_number - first_episode) / elapsed
            parts = [f"episode {run.episode_number}", f"score {np.mean(scores):+.1f}",
                     f"running mean {run.running_reward:+.2f}"]
            if run.episode_number > SAVE_EVERY:                        # now it is a mean of something
                parts.append(f"best {max(running_means(run.episode_rewards)[SAVE_EVERY:]):+.2f}")
            parts += [f"{(run.steps - first_step) / elapsed:.0f} steps/s", f"{rate:.1f} episodes/s",
                      str(timedelta(seconds=round(elapsed)))]
            if episodes < math.inf:
                parts.append(f"{timedelta(seconds=round(max(episodes - run.episode_number, 0) / rate))} left")
            due = run.episode_number % SAVE_EVERY < size               # it has just reached or passed a multiple
            show("  ".join(parts), lasting=due or run.episode_number >= episodes)
            if due:
                try:
                    known, saved, failing = save(run, path, known), run.episode_number, False
                except OSError as problem:
                    if not failing:
                        complain(f"cannot save to {path} ({problem.strerror}); training goes on, "
                                 "and the next save tries again")
                    failing = True
    except RunEnded as reason:
        error = reason
    except OSError as problem:                                         # as when the reader of a pipe went away
        error = f"training ended: {problem.strerror}"
    finally:
        close_view()
    if run.episode_number > saved and finite(run.model, run.rmsprop_cache):
        path, saved = save_somewhere(run, path, known), run.episode_number
    closing = "stopped before the first save; there is nothing to resume"
    if saved:
        closing = f"{path} holds the run up to episode {saved}. Go on with: {command('--resume', path)}"
    try:
        show(closing)
    except OSError:                                                    # as when Ctrl-C ended the reader of the pipe too
        complain(closing)
    if error:
        fail(error, status=1)

def save_somewhere(run, path, known):
    """Save at the end of a run: at path, or else in the home folder or that for temporary files. Returns where."""
    for place in path, os.path.expanduser("~/pg_pong-save.p"), os.path.join(tempfile.gettempdir(), "pg_pong-save.p"):
        try:
            save(run, place, known)
            return place
        except OSError as problem:
            complain(f"cannot save to {place} ({problem.strerror})")
    fail("what was learned since the last save is lost", status=1)


# ---- command line

def available_cores():
    """The cores that this process may use, which in a container are not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

def described(run):
    return f"episode {run.episode_number}" + (f", running mean {run.running_reward:+.2f}" if run.episode_number else "")

def loaded(path):
    """load(), or one line that says what is wrong with the file."""
    try:
        return load(path)
    except FileNotFoundError:
        fail(f"there is no {path} (a run first saves at episode {SAVE_EVERY}); start one with python pg_pong.py")
    except OSError as problem:
        fail(f"cannot read {path}: {problem.strerror}")
    except ValueError as reason:
        fail(f"{path} is no run of this script: {reason}. It was left as it is")

def open_run(args):
    """The run that the command line asks for. Returns it, its file's fingerprint, and a line that says what it is."""
    flags = {k: getattr(args, k) for k in HYPERPARAMETERS if getattr(args, k) is not None}
    if args.resume:
        run, known = loaded(args.save)
        run.hyperparameters |= flags
        run.seed = run.seed if args.seed is None else args.seed
        news = "" if run.episode_number else " with new optimizer and counters: it holds weights only"
        return run, known, f"Resuming {args.save} at {described(run)}{news}"
    opening = "Starting from scratch"
    if os.path.lexists(args.save):
        try:
            held, hint = f"a run at {described(load(args.save)[0])}", "; use --resume to continue it"
        except (OSError, ValueError):
            held, hint = "no run of this script", ""
        opening = f"{args.save} holds {held}; it will be kept as {kept_name(args.save)}{hint}"
    return new_run(args.seed or 0, HYPERPARAMETERS | flags), None, opening

def main():
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__.partition("\n\nThe algorithm")[0])
    parser.error = lambda message: fail(f"{message}; see python pg_pong.py --help")
    def add(flag, help, group=parser, default=None):
        kind = RANGES[flag[2:].replace("-", "_")][0]
        group.add_argument(flag, help=help, type=kind, default=default, metavar="N" if kind is int else "X")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--resume", action="store_true",
                      help="go on from the saved run, with its seed and hyperparameters unless given anew")
    what.add_argument("--watch", action="store_true", help="show games of the saved run, without training")
    add("--eval", "play N episodes with the saved run without learning, and tell the score", what)
    what.add_argument("--plot", metavar="FILE", nargs="?", const="pong.png",
                      help="draw the saved run as PNG or SVG, by the name's ending (default: pong.png)")
    parser.add_argument("--save", metavar="PATH", default="save.p", help="where the run is saved (default: save.p)")
    parser.add_argument("--render", action="store_true", help="show the game in a window while training")
    parser.add_argument("--terminal", action="store_true",
                        help="with --watch: in the terminal even if there is a display")
    add("--episodes", "stop when the run has N episodes in all, in whole batches (default: on Ctrl-C)")
    add("--workers", "processes that play, at most one per episode of a batch (default: one per core)",
        default=min(available_cores(), RANGES["workers"][2]))
    add("--seed", "the same seed gives the same run, bit for bit (default: 0)")
    add("--batch-size", "episodes per update of the weights (default: 10)")
    add("--learning-rate", "step size of RMSProp (default: 1e-4)")
    add("--gamma", "discount of rewards per step (default: 0.99)")
    add("--decay-rate", "memory of RMSProp per update (default: 0.99)")
    args = parser.parse_args()
    for name, (_, low, high) in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not low <= value <= high:
            parser.error(f"argument --{name.replace('_', '-')}: {value} is not between {low} and {high}")
    if args.terminal and not args.watch or args.render and (args.watch or args.eval or args.plot):
        parser.error("--terminal goes with --watch, and --render with training")
    if args.plot is not None and not args.plot.endswith((".png", ".svg")):
        parser.error(f"the name of the picture {args.plot!r} must end in .png or .svg")
    if args.watch:
        return watch(args.save, args.terminal or not has_display())
    if args.eval:
        return evaluate(args.save, args.eval, args.workers, args.seed or 0)
    if args.plot:
        return plot(args.save, args.plot)

    if os.path.islink(args.save):
        args.save = os.path.realpath(args.save)            # to be replaced where it is, and not the link
    if os.path.lexists(args.save) and not os.path.isfile(args.save) or not os.path.basename(args.save):
        fail(f"{args.save!r} is no file; choose another with --save")
    with lock(args.save):
        run, known, opening = open_run(args)
        if args.episodes and run.episode_number >= args.episodes:
            return show(f"{args.save} has {run.episode_number} episodes already; nothing to do")
        settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in run.hyperparameters.items())
        show(f"Learning Pong from pixels with seed {run.seed}, {settings}. {opening}")
        train(run, args.save, known, args.workers, args.episodes or math.inf, args.render)


if __name__ == "__main__":
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")
    try:
        main()
    except KeyboardInterrupt:                              # anywhere but in training, which ends by itself
        sys.exit(130)
    except (RunEnded, OSError) as problem:
        fail(problem, status=1)
