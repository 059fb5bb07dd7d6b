"""Learn Atari Pong from raw pixels by policy gradients: one file of numpy, on all cores.

    python pg_pong.py                   learn from scratch until Ctrl-C, saving to save.p along the way
    python pg_pong.py --resume          go on from save.p as if it had never stopped
    python pg_pong.py --watch           show games of the agent in save.p, in a window or in the terminal
    python pg_pong.py --eval 100        play 100 episodes without learning, and report the score
    python pg_pong.py --plot            draw what was learned, to pong.png

The algorithm is that of Andrej Karpathy's "Deep Reinforcement Learning: Pong from Pixels" (2016): play, and sample each
action from a policy. Then make the actions before a point won a bit likelier, those before a point lost less likely.
"""
import os
import signal
if __name__ in ("__main__", "__mp_main__") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)           # when run, not imported: Ctrl-C leaves no traceback
os.environ.setdefault("OMP_NUM_THREADS", "1")              # the matrix products are too small for threads

import argparse
import contextlib
import gc
import itertools
import math
import multiprocessing.connection
import pickle
import select
import sys
import time
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta

import ale_py
import gymnasium
import numpy as np
np.seterr(all="ignore")      # no warnings: learn_from_batch checks that the weights are finite

# hyperparameters, as in the script that the post links to, but for its learning rate of 1e-4. The post does not state a
# rate, only a result: even with the opponent after some 8,000 episodes. 1e-3 gets there, 1e-4 does not come near it
HYPERPARAMETERS = {
    "batch_size": 10,        # episodes per update
    "learning_rate": 1e-3,
    "gamma": 0.99,           # discount: the weight of a reward shrinks by this factor for each step that it is away
    "decay_rate": 0.99,      # of RMSProp's running mean of squared gradients
}
D, H = 80 * 80, 200          # the network: input pixels, hidden neurons
UP, DOWN = 2, 3              # the two of the emulator's actions that are used
SAVE_EVERY = 100             # episodes

# ---- preprocessing: from the screen to the difference frame

# lookup tables, 1 for paddle or ball and 0 for background: by a pixel's red value, and by the emulator's color code
LIT_RED = np.float32(~np.isin(range(256), [0, 109, 144]))
LIT_CODE = np.float32(~np.isin(range(256), [0, 228, 34]))

def crop(screen):
    """(210, 160) uint8 -> (6400,) uint8: screen[35:195:2, ::2], every second row and column of the playing field."""
    return screen.view("<u2")[35:195:2].astype(np.uint8).ravel()       # faster: pairs of bytes, cut to the first

def prepro(frame):
    """(210, 160, 3) uint8 RGB frame -> (6400,) float32 of 0 and 1. Training reads the screen as the emulator's color
    codes, which come 20 times faster than RGB: LIT_CODE[crop(screen)] is the same picture."""
    return LIT_RED[frame[35:195:2, ::2, 0].ravel()]

def difference(codes, previous):
    """This picture minus the one before: what moved. Some 20 of the 6400 pixels are not zero. Only they are kept, since
    zeros add nothing to a sum: returns (their indices, their values, as float32)."""
    changed, = (codes != previous).nonzero()               # a tuple of one; below, a.take(i) is a faster a[i]
    return changed, LIT_CODE.take(codes.take(changed)) - LIT_CODE.take(previous.take(changed))

# ---- policy: W1 (200, 6400) and W2 (200,), no biases. W1 is stored by columns: a pixel's 200 weights lie together

def new_model(rng):
    """Gaussian weights, divided by the square root of the number of inputs."""
    return {"W1": np.asfortranarray(rng.standard_normal((H, D)) / np.sqrt(D), np.float32),
            "W2": np.asarray(rng.standard_normal(H) / np.sqrt(H), np.float32)}

def policy_forward(model, x):
    """Difference frame x -> probability of UP, hidden layer h (200,) float32."""
    pixels, values = x
    h = values.dot(model["W1"].T.take(pixels, axis=0))     # h = W1 x, only the columns of moved pixels
    np.maximum(h, 0, out=h)                                # relu
    logit = model["W2"].dot(h)
    return 0.5 + 0.5 * math.tanh(0.5 * logit), h           # the sigmoid 1 / (1 + exp(-logit)), but cannot overflow

def policy_backward(model, xs, hs, dlogits, gradient):
    """Gradient of sum_t dlogits[t] logit[t], by the chain rule backwards through policy_forward, written into gradient.
    xs: the difference frames of an episode's T steps, hs (T, 200), dlogits (T,), float32."""
    gradient["W2"][:] = dlogits @ hs                       # dW2 = sum_t dlogit h
    dhs = np.outer(dlogits, model["W2"]) * (hs > 0)        # dh = dlogit W2, where the relu let it through
    gradient["W1"][:] = 0                                  # dW1 = sum_t dh x^T, 32 steps at a time: fits the cache
    for t in range(0, len(xs), 32):
        x = np.zeros((len(xs[t:t + 32]), D), np.float32)
        for row, (pixels, values) in zip(x, xs[t:t + 32]):
            row[pixels] = values
        active, = x.any(axis=0).nonzero()                  # the other pixels add nothing
        gradient["W1"].T[active] += x[:, active].T @ dhs[t:t + 32]

# ---- returns

def discount_rewards(rewards, gamma):
    """Return of each step, (T,) float64: G_t = r_t + gamma G_{t+1}, begun anew at each point."""
    returns, running = np.empty(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] if rewards[t] != 0 else gamma * running   # a point ends a rally: later ones do not count
        returns[t] = running
    return returns

def standardize(returns):
    """Mean 0, standard deviation 1; all 0 if the returns are all equal (max - min, ptp, is 0): nothing to teach."""
    return (returns - returns.mean()) / (returns.std() if np.ptp(returns) > 0 else 1)

# ---- one episode

def make_env(**kwargs):
    """Pong-v0, but no end at 10,000 steps. Actions last 2 to 4 frames; in each, the one before may go on (p = 0.25)."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return gymnasium.make("ALE/Pong-v5", frameskip=(2, 5), obs_type="ram", **kwargs).unwrapped   # 2 to 4; ram: unread

def begin_episode(env, rng, state=None):
    """Start a game. rng draws actions (in play) and frame skips. The repeats come from a random stream in the emulator,
    which goes on from state (bytes), the emulator's state after an earlier episode, or else is seeded by rng."""
    if state is None:
        env.reset(seed=int(rng.integers(2**31)))
    else:
        env.ale.restoreState(ale_py.ALEState(state))       # for its random stream alone: seeding takes 90 ms
        env.reset()                                        # a new game, which leaves the stream as it is
    env.np_random = rng                                    # gymnasium draws the frame skips from it

def play(env, model, rng):
    """Play a begun episode. Yields (difference frame, hidden layer, p(UP), whether it went UP, reward) of each step."""
    codes, over = crop(env.ale.getScreen()), False
    while not over:
        previous, codes = codes, crop(env.ale.getScreen())   # the same at first: that difference is zero
        x = difference(codes, previous)
        p, h = policy_forward(model, x)
        up = rng.random() < p                              # sampled: chance is what explores
        _, reward, terminated, truncated, _ = env.step(UP if up else DOWN)
        over = terminated or truncated
        yield x, h, p, up, reward

def learn_from_episode(env, model, rng, gamma, gradient):
    """Play an episode and write its policy gradient into gradient. Returns the rewards of its steps."""
    xs, hs, ps, ups, rewards = zip(*play(env, model, rng))
    advantages = standardize(discount_rewards(rewards, gamma))
    # the heart of it: pretend that the sampled action was the right one, the label. Then label - p is
    # d log p(action) / d logit: a step along it makes the action likelier. Times the advantage, it makes an action
    # likelier if it did better than the episode's average, and less likely if it did worse
    labels = np.array(ups, float)                          # 1 for UP, 0 for DOWN
    dlogits = (labels - np.array(ps)) * advantages
    policy_backward(model, xs, np.array(hs), dlogits.astype(np.float32), gradient)
    return rewards

# ---- update

def rmsprop(model, cache, gradient, learning_rate, decay_rate):
    """RMSProp (Tieleman and Hinton, 2012), uphill: divide each gradient by the size of the weight's recent ones."""
    cache = {k: decay_rate * cache[k] + (1 - decay_rate) * g**2 for k, g in gradient.items()}
    return {k: model[k] + learning_rate * g / (np.sqrt(cache[k]) + 1e-5) for k, g in gradient.items()}, cache

# ---- checkpoint: save.p is two pickles, first the weights alone, as in the linked script's file, then all the rest

@dataclass
class Run:
    """All that a run is: what save.p holds and --resume goes on from. Each batch makes a new one."""
    hyperparameters: dict
    seed: int
    model: dict                          # W1, W2
    rmsprop_cache: dict                  # of W1 and W2: running means of squared gradients
    episode_number: int = 0
    running_reward: float = None         # running mean of the scores
    episode_rewards: np.ndarray = field(default_factory=lambda: np.empty(0, np.int8))   # the score of each episode
    emulator_states: list = field(default_factory=list)   # for each place in the batch, see begin_episode
    steps: int = 0
    seconds: float = 0.0                 # spent learning

def new_run(seed, model=None):
    """A run from random weights, or given ones. Seeds: [seed, 0] for the weights, [seed, n] in the n-th episode."""
    model = model or new_model(np.random.default_rng([seed, 0]))
    return Run(dict(HYPERPARAMETERS), seed, model, {k: np.zeros_like(w) for k, w in model.items()})

def save(run, path, ours):
    """Write run to path, wholly or not at all. A file that is there and is not ours is kept as path.1, path.2, ...
    Returns True if it worked; says why if not."""
    rest, temporary = {"format": 1} | vars(run), path + ".tmp"
    try:
        with open(temporary, "wb") as f:
            pickle.dump(rest.pop("model"), f, protocol=4)
            pickle.dump(rest, f, protocol=4)
            f.flush()
            os.fsync(f.fileno())                           # on the disk before the old file goes
        if os.path.exists(path) and not ours:
            kept = next(name for name in (f"{path}.{n}" for n in itertools.count(1)) if not os.path.lexists(name))
            try:
                os.link(path, kept)                        # a hard link, so that path is never without a file
            except OSError:                                # a disk without hard links
                os.rename(path, kept)
        os.replace(temporary, path)
        return True
    except OSError as problem:
        complain(f"cannot save episode {run.episode_number} to {path}: {problem.strerror}")
        with contextlib.suppress(OSError):
            os.remove(temporary)

class Call(list):
    __setstate__ = list.append       # pickle calls it with an object's state. So: [name, *arguments, state]

class Unpickler(pickle.Unpickler):
    """A pickle is a program that may call any function. Here it may call those by which numpy pickles arrays, and even
    these are only noted, as a Call for as_array: numpy itself would follow a pointer in a forged dtype."""
    admitted = ("numpy.core.multiarray._reconstruct", "numpy.core.numeric._frombuffer", "numpy.ndarray", "numpy.dtype",
                "_codecs.encode")
    def find_class(self, module, name):
        name = f"{module}.{name}".replace("numpy._core.", "numpy.core.")           # as numpy 2 and numpy 1 write it
        if name not in self.admitted:
            raise ValueError(f"it calls {name}")
        return lambda *arguments: Call([name, *arguments])

def as_array(call):
    """The array of float32, float64 or int8 that a Call describes, by rows or columns. Raises an exception if none."""
    match call:
        case ["numpy.core.multiarray._reconstruct", _, _, _, [_, shape, [_, kind, _, _, [_, endian, *_]], order, data]]:
            order = "F" if order else "C"                  # the fields: see __reduce__() of an array and of a dtype
        case ["numpy.core.numeric._frombuffer", data, [_, kind, _, _, [_, endian, *_]], shape, order]:
            pass                                           # protocol 5; the case above: protocols 0 to 4
        case _:
            raise ValueError("no array where one should be")
    if endian + kind not in ("<f4", "<f8", ">f4", ">f8", "|i1"):
        raise ValueError(f"an array of {kind!r:.30}")
    data = data[1] if isinstance(data, Call) else data     # bytes, in old protocols: text to be encoded
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, endian + kind).reshape(shape, order=order)

def as_weights(found):
    """W1 and W2 of a file as the script computes with them. Raises an exception if they do not fit."""
    weights = {k: np.array(as_array(found[k]), np.float32, order="F") for k in ("W1", "W2")}
    if any(w.shape != shape or not np.isfinite(w).all() for w, shape in zip(weights.values(), [(H, D), (H,)])):
        raise ValueError("weights of another shape, or not finite")
    return weights

def load(path):
    """Read a run, or begin one with the weights in a file of the linked script. As files may come from anybody, nothing
    in one is executed, and the script ends with one line if it is no good. Raises OSError if it cannot be opened."""
    if not os.path.exists(path):
        fail(f"there is no {path}; a run without --resume makes it, every {SAVE_EVERY} episodes and on Ctrl-C")
    with open(path, "rb") as f:
        try:
            model = as_weights(Unpickler(f, encoding="latin1").load())         # latin1: for the files of Python 2
            if not f.peek(1):                              # no second pickle: a file of the linked script
                return new_run(0, model)
            rest = Unpickler(f).load()
            rest["rmsprop_cache"] = as_weights(rest["rmsprop_cache"])
            rest["episode_rewards"] = as_array(rest["episode_rewards"])
            version, run = rest.pop("format"), Run(model=model, **rest)
            if not (version == 1 and all(type(getattr(run, part.name)) is part.type for part in fields(run))
                    and {*run.hyperparameters} == {*HYPERPARAMETERS} and {*map(type, run.emulator_states)} <= {bytes}
                    and not misfit(run.hyperparameters | {"seed": run.seed}) and math.isfinite(run.steps + run.seconds)
                    and run.episode_rewards.dtype == np.int8 and run.episode_rewards.shape == (run.episode_number,)):
                raise ValueError("its parts do not fit together")
            return run
        except Exception as problem:                       # of whatever kind, the file is to blame
            fail(f"{path} is damaged or no run of this script ({str(problem) or problem!a:.200}); it was left as it is")

def lock(path):
    """Keep others from training on path until this process ends, however it ends. The .lock file stays, harmless."""
    f = open(path + ".lock", "a")
    try:
        if os.name == "nt":
            import msvcrt
            msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        fail(f"another process is training on {path}; stop it first, or choose another file with --save")
    return f

# ---- processes: the weights change only between batches, so any number of processes may play a batch's episodes side
# by side. Their gradients are summed in the order of the episodes: the number of processes does not change one bit.

PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")   # forks start at once
stop_signals = []            # filled as they come in

def note_stop_signals():
    """From now on a stop signal is only noted; collect_rollouts and show_games check whether one came."""
    for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)}:   # no SIGHUP on Windows
        if signal.getsignal(number) is not signal.SIG_IGN:             # nohup ignores it
            signal.signal(number, lambda number, frame: stop_signals.append(number))

def as_models(memory):
    """Shared memory as dicts like the model: first the weights, then the gradient of each episode of a batch."""
    return [{"W1": flat[:D * H].reshape(D, H).T, "W2": flat[D * H:]}
            for flat in np.frombuffer(memory, np.float32).reshape(-1, D * H + H)]

def start_workers(count, gradients=0, gamma=None):
    """Start count processes that play. Returns memory shared with them, for that many gradients, and a pipe to each."""
    memory, pipes = PROCESSES.RawArray("f", (1 + gradients) * (D * H + H)), []
    for _ in range(count):
        ours, theirs = PROCESSES.Pipe()
        PROCESSES.Process(target=work, args=(theirs, ours, memory, gamma), daemon=True).start()
        theirs.close()                                     # each side closes the other end: a pipe breaks if one dies
        pipes.append(ours)
    note_stop_signals()
    return memory, pipes

def work(pipe, trainers_end, memory, gamma):
    """Worker process: plays the episodes that come through the pipe. If gamma is given, it computes their gradients."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # Ctrl-C reaches all processes, but is for the trainer
    trainers_end.close()
    gc.disable()                                           # there are no reference cycles, and the search costs 2%
    model, *gradients = as_models(memory)
    env = make_env()
    with contextlib.suppress(EOFError, ConnectionError):   # the pipe breaks: the trainer has ended
        while True:
            place, seed, state = pipe.recv()
            rng = np.random.default_rng(seed)
            try:
                begin_episode(env, rng, state)
            except Exception:                              # the state is damaged, or another version's
                complain("the emulator refuses a saved state: the run goes on, but no longer bit for bit")
                begin_episode(env, rng)
            rewards = ([reward for *_, reward in play(env, model, rng)] if gamma is None else
                       learn_from_episode(env, model, rng, gamma, gradients[place]))
            pipe.send((place, int(sum(rewards)), len(rewards), env.ale.cloneState(include_rng=True).serialize()))

def collect_rollouts(model, tasks, memory, pipes):
    """Have workers play tasks: (place in the batch, seed, emulator state). Yields (place, score, steps, emulator state)
    as they come. Raises KeyboardInterrupt within 0.2 s of a stop signal, ChildProcessError if a worker died."""
    for k, weights in as_models(memory)[0].items():
        weights[:] = model[k]
    idle, left, tasks = pipes, len(tasks), iter(tasks)     # all are idle; left: results still to come
    while left:
        if stop_signals:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):                 # Windows' terminal, or one that is gone
            if (sys.stdin.isatty() and select.select([0], [], [], 0)[0] and os.tcgetpgrp(0) == os.getpgrp()
                    and os.read(0, 100).strip() == b"r"):  # a read in the background would stop us
                toggle_window(memory)                      # for r and Enter
        try:
            for pipe, task in zip(idle, tasks):            # idle first: zip must not take a task too many
                pipe.send(task)
            idle = multiprocessing.connection.wait(pipes, 0.2)                # those that have answered, or died
            results = [pipe.recv() for pipe in idle]
        except (EOFError, OSError):
            raise KeyboardInterrupt if stop_signals else ChildProcessError("a worker died: out of memory?") from None
        yield from results
        left -= len(results)

# ---- training

def running_means(scores, before=None):
    """The running mean after each episode. It begins with the first score, or goes on from before, listed first."""
    return list(itertools.accumulate(map(float, scores), lambda mean, x: 0.99 * mean + 0.01 * x, initial=before))

def learn_from_batch(run, memory, pipes):
    """Play a batch, sum its gradients, update the weights. Returns the run after it; the run before it stays whole.
    Raises FloatingPointError if the weights are no longer finite, and what collect_rollouts raises."""
    begun, settings, gradients = time.monotonic(), run.hyperparameters, as_models(memory)[1:]
    states = run.emulator_states + [None] * len(gradients)             # None: a place without an episode so far
    tasks = [(n, [run.seed, run.episode_number + 1 + n], states[n]) for n in range(len(gradients))]
    _, scores, steps, states = zip(*sorted(collect_rollouts(run.model, tasks, memory, pipes)))         # by place
    gradient = {k: sum(g[k] for g in gradients) for k in run.model}
    model, cache = rmsprop(run.model, run.rmsprop_cache, gradient, settings["learning_rate"], settings["decay_rate"])
    if not all(np.isfinite(w).all() for w in [*model.values(), *cache.values()]):
        raise FloatingPointError("the weights are no longer finite; resume with a smaller --learning-rate")
    return replace(run, model=model, rmsprop_cache=cache, emulator_states=list(states), steps=run.steps + sum(steps),
                   episode_number=run.episode_number + len(scores), seconds=run.seconds + time.monotonic() - begun,
                   episode_rewards=np.append(run.episode_rewards, np.array(scores, np.int8)),
                   running_reward=running_means(scores, run.running_reward)[-1])

def train(run, path, ours, episodes, workers, render):
    """Train until there are that many episodes or a stop signal comes. ours: whether the file at path is this run's."""
    first, saved, began, error = run, run, time.monotonic(), ""        # the run at the start, as last saved
    size = run.hyperparameters["batch_size"]
    memory, pipes = start_workers(min(workers, size), size, run.hyperparameters["gamma"])
    if render:
        toggle_window(memory)
    try:
        while run.episode_number < episodes:
            run = learn_from_batch(run, memory, pipes)
            seconds, count = time.monotonic() - began, run.episode_number
            line = (f"episode {count}  score {run.episode_rewards[-size:].mean():+.1f}  "
                    f"running mean {run.running_reward:+.2f}  {(run.steps - first.steps) / seconds:.0f} steps/s  "
                    f"{timedelta(seconds=round(seconds))}")
            left = max(episodes - count, 0) * seconds / (count - first.episode_number)
            line += f"  {timedelta(seconds=round(left))} left" if episodes < math.inf else ""
            due = count % SAVE_EVERY < size or count >= episodes       # it has just passed a multiple, or the end
            show(line, live=not due)
            if due and save(run, path, ours):
                saved, ours = run, True
    except (KeyboardInterrupt, OSError, FloatingPointError) as problem:
        error = "" if stop_signals else f"training ended: {problem}; "
    if run is not saved and save(run, path, ours):
        saved = run
    complain(error + ("nothing new was saved" if saved is first else
                      f"{path} holds the run up to episode {saved.episode_number}; go on with --resume"))
    return 1 if error or run is not saved else 0

# ---- looking in

def show_games(path, memory=None):
    """Show one game after another until a stop signal comes, in a window or else in the terminal: each with the newest
    weights at path or, in a process beside the trainer, with those in its memory, as long as it lives."""
    trainer = multiprocessing.parent_process()             # None with --watch
    window = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not window and (trainer or not sys.stdout.isatty() or "utf" not in sys.stdout.encoding.lower()):
        fail("there is no display for a window; --watch in a terminal with UTF-8 shows games there")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")      # no sound, and no complaints where there is none
    if sys.platform == "linux":                            # else SDL falls back to a window that nobody sees
        os.environ.setdefault("SDL_VIDEODRIVER", "wayland,x11" if os.environ.get("WAYLAND_DISPLAY") else "x11")
    note_stop_signals()
    try:
        env, rng = make_env(render_mode="human" if window else None), np.random.default_rng()
    except RuntimeError as problem:
        fail(f"cannot open a window: {problem}. Without DISPLAY, --watch shows games in the terminal")
    begin_episode(env, rng)
    while True:
        score, model = 0, as_models(memory)[0] if trainer else load(path).model
        for _, _, p, _, reward in play(env, model, rng):
            if stop_signals or (trainer and not trainer.is_alive()):
                return
            score += reward
            if not window:
                picture = braille(prepro(env.ale.getScreenRGB()))
                print(f"\x1b[H\x1b[J{picture}\nscore {score:+.0f}  p(UP) {p:.2f}", flush=True)
                time.sleep(3 / 60)                         # a step is 3 frames on average, at 60/s
        env.reset()

def braille(picture):
    """(6400,) of 0 and 1 -> 20 lines of 40 characters with 2x4 dots each."""
    dots = np.array([[1, 8], [2, 16], [4, 32], [64, 128]]).reshape(4, 1, 2)        # as Unicode numbers them
    codes = 0x2800 + (picture.reshape(20, 4, 40, 2) * dots).sum(axis=(1, 3)).astype(int)
    return "\n".join("".join(map(chr, line)) for line in codes)

def toggle_window(memory):
    """Close the window with a game if there is one, else open one."""
    for process in multiprocessing.active_children():
        if process.name == "window":
            return process.kill()
    PROCESSES.Process(target=show_games, args=(None, memory), name="window", daemon=True).start()

def evaluate(path, count, workers, seed):
    """Play that many episodes with the weights at path, without learning, and report the score."""
    run, scores = load(path), []
    tasks = [(n, [seed, n, 1], None) for n in range(count)]            # the 1: other games than those trained on
    for _, score, *_ in collect_rollouts(run.model, tasks, *start_workers(min(workers, count))):
        scores.append(score)
        if sys.stdout.isatty():
            show(f"{len(scores)} of {count} episodes, mean score {np.mean(scores):+.2f}", live=True)
    mean, half = np.mean(scores), (1.96 * np.std(scores, ddof=1) / count**0.5 if count > 1 else math.inf)
    show(f"{path} at episode {run.episode_number}, {count} episodes with seed {seed}: mean score {mean:+.2f} ("
         f"95% interval {mean - half:+.2f} to {mean + half:+.2f}), {np.greater(scores, 0).mean():.1%} won", must=True)

def plot(path, picture):
    """Draw the run at path: the score of every episode, and the weights of its most influential neurons."""
    from matplotlib.figure import Figure
    run, figure = load(path), Figure(figsize=(10, 7.5), layout="constrained")
    if os.path.splitext(picture)[1][1:].lower() not in figure.canvas.get_supported_filetypes():
        fail(f"cannot draw {picture}; choose a name that ends in .png or .svg")
    W1, W2 = run.model["W1"], run.model["W2"]
    strongest = np.argsort(-np.linalg.norm(W1, axis=1) * np.abs(W2))[:20]            # by size of weights in x out
    limit, episodes = np.percentile(np.abs(W1[strongest]), 99.8), range(1, run.episode_number + 1)
    title = f"{run.episode_number} episodes, {run.steps / 1e6:.1f} million steps, {run.seconds / 3600:.1f} hours"
    curve = figure.add_subplot(6, 10, (1, 40), xlabel="episode", ylabel="score", title=title, ylim=(-21.5, 21.5))
    curve.plot(episodes, run.episode_rewards, ".", markersize=2, alpha=0.3, label="score of an episode")
    curve.plot(episodes, running_means(run.episode_rewards), color="tab:red", label="running mean")
    curve.legend(loc="upper left", markerscale=4)
    for place, neuron in enumerate(strongest, 41):
        axes = figure.add_subplot(6, 10, place, xticks=[], yticks=[])
        axes.imshow(W1[neuron].reshape(80, 80), cmap="gray", vmin=-limit, vmax=limit)
        axes.set_title(f"{'UP' if W2[neuron] > 0 else 'DOWN'} {abs(W2[neuron]):.1f}", fontsize=7, pad=2)
    figure.savefig(picture)
    show(f"{picture} shows {path} at episode {run.episode_number}, and the weights of its 20 strongest neurons")

# ---- command line

NUMBERS = {                  # flag: (type, least value, greatest value, help). A file's values must fit too
    "batch_size": (int, 1, 100, "episodes per update of the weights (default: 10)"),
    "learning_rate": (float, 0, 1, "step size of RMSProp (default: 1e-3)"),
    "gamma": (float, 0, 1, "discount of rewards per step (default: 0.99)"),
    "decay_rate": (float, 0, 1, "memory of RMSProp per update (default: 0.99)"),
    "seed": (int, 0, 2**32 - 1, "the same seed gives the same run, bit for bit (default: 0)"),
    "episodes": (int, 1, 10**9, "stop when the run has N episodes in all, in whole batches (default: on Ctrl-C)"),
    "workers": (int, 1, 1000, "processes that play, at most one per episode of a batch (default: one per core)"),
    "eval": (int, 1, 10**6, "play N episodes of the saved run without learning, and report the score"),
}

def misfit(values):
    """What is wrong with the values, a dict, by the table above; None if they are right."""
    for name, (kind, low, high, _) in NUMBERS.items():
        if name in values and not (type(values[name]) is kind and low <= values[name] <= high):
            return f"argument --{name.replace('_', '-')}: {values[name]} is not from {low} to {high}"

def show(line, live=False, must=False):
    """Print a line. On a terminal the next one takes the place of a live one. must: a full disk is an error."""
    if sys.stdout.isatty():
        line = "\r\x1b[K" + (line[:os.get_terminal_size().columns - 1] if live else line)
    try:
        print(line, end="" if live and sys.stdout.isatty() else "\n", flush=True)
    except OSError as problem:
        if must or isinstance(problem, BrokenPipeError):   # nobody reads any more. A full disk ends no training
            sys.stdout = open(os.devnull, "w")
            raise

def complain(message):
    """One line on stderr, in the place of a live line, if anybody reads it."""
    with contextlib.suppress(OSError):
        print("\r\x1b[K" * sys.stderr.isatty() + f"pg_pong.py: {message}", file=sys.stderr, flush=True)

def fail(message, status=2):
    complain(message)
    sys.exit(status)

def main():
    """Read the command line and do what it says. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help="go on from the saved run; flags change its settings")
    parser.add_argument("--render", action="store_true", help="train and show a game; r and Enter hides or shows it")
    parser.add_argument("--watch", action="store_true", help="show games of the saved run, without training")
    parser.add_argument("--plot", metavar="FILE", nargs="?", const="pong.png", help="draw the saved run (pong.png)")
    parser.add_argument("--save", metavar="PATH", default="save.p", help="where the run is saved (default: save.p)")
    for name, (kind, _, _, meaning) in NUMBERS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help=meaning, metavar="N" if kind is int else "X")
    given = vars(parser.parse_args())                      # SUPPRESS: only flags that were given, and save
    if problem := misfit(given):
        parser.error(problem)
    for command, others in {"watch": {"save"}, "plot": {"save"}, "eval": {"save", "seed", "workers"}}.items():
        if command in given and given.keys() - others - {command}:
            parser.error(f"--{command} goes with no other flags than --" + ", --".join(sorted(others)))
    path, seed = given["save"], given.get("seed", 0)
    workers = given.get("workers", len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())
    if "watch" in given:
        return show_games(path)
    if "eval" in given:
        return evaluate(path, given["eval"], workers, seed)
    if "plot" in given:
        return plot(path, given["plot"])
    path = os.path.realpath(path) if os.path.islink(path) else path    # a link stays a link
    if os.path.exists(path or ".") and not os.path.isfile(path):       # a folder, or a device such as /dev/null
        fail(f"{path or '.'} is no regular file; choose one with --save")
    with lock(path):
        run = load(path) if "resume" in given else new_run(seed)
        ours = run.episode_number > 0                      # not so with the weights of another script
        used = run.hyperparameters | {name: given[name] for name in HYPERPARAMETERS if name in given}
        run = replace(run, hyperparameters=used, seed=given.get("seed", run.seed))
        show(f"Learning Pong from episode {run.episode_number} on: seed {run.seed}, workers "
             f"{min(workers, used['batch_size'])}\n" + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in used.items())
             + f"\n{path} is saved every {SAVE_EVERY} episodes and on Ctrl-C"
             + f"; the file that is there is kept as {path}.N" * (not ours and os.path.exists(path)))
        return train(run, path, ours, given.get("episodes", math.inf), workers, "render" in given)

if __name__ == "__main__":                                 # below: a stream is None if it was closed, as by >&-
    sys.stdin, sys.stdout, sys.stderr = (s or open(os.devnull, "r+") for s in (sys.stdin, sys.stdout, sys.stderr))
    sys.stdout.reconfigure(errors="backslashreplace")      # for paths that the terminal's encoding cannot show
    try:
        sys.exit(main())
    except KeyboardInterrupt:                              # during --eval; the training ends by itself
        fail("stopped", 130)
    except OSError as problem:
        fail(problem)
    except ModuleNotFoundError as problem:
        fail(f"{problem}: pip install matplotlib")
