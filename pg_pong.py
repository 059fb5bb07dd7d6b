"""Learn Atari Pong from raw pixels by policy gradients: one file of numpy.

    python pg_pong.py             learn from scratch until Ctrl-C, saving to save.p along the way
    python pg_pong.py --resume    go on from save.p as if it had never stopped
    python pg_pong.py --watch     show games of the agent in save.p, in a window or the terminal
    python pg_pong.py --eval 100  play 100 episodes without learning, and report the score
    python pg_pong.py --plot      draw what was learned, to pong.png

The algorithm is that of Andrej Karpathy's post "Deep Reinforcement Learning: Pong from Pixels"
(2016). Play, and sample each action from a policy. Then make the actions that turned out better
than average more likely, and the others less likely. In a formula, climb

    J = sum over all steps of advantage * log P(action)

where the advantage says how much better than average things went after the action, and counts as a
fixed number when J is differentiated. Then the gradient of J points, roughly and on average, to
where the mean score grows (Williams, 1992).

What differs from the script that the post links to:
1. The learning rate is 1e-3. With the script's 1e-4, the mean score is -18.8 after 8,000 episodes.
   With 1e-3 it is near 0 by then, and the post reports such a score.
2. The game is the same, Pong-v0, rebuilt on today's emulator. But an episode may last for 108,000
   frames (some 36,000 steps), not for 10,000 steps.
3. An episode depends on nothing but the weights, the run's seed and the episode's number. So any
   process can play it, and the episodes of a batch are played on several cores.
4. The weights are float32, and save.p holds all of the run.

Read from top to bottom, or begin with the two functions that tell the story: episode_gradient and
train. A line says where the algorithm is over, and the rest of the program begins.
"""
import os
import signal
import sys
from contextlib import contextmanager, suppress

if __name__ == "__main__" and sys.platform != "win32":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C waits until main is ready

# numpy reads these when it is imported. Its products are so small here that threads only cost time.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
try:
    import ale_py
    import gymnasium
    import numpy as np
except ImportError as problem:
    print(f"pg_pong.py: {problem}; try pip install -r requirements.txt", file=sys.stderr)
    if sys.platform != "win32":
        with suppress(KeyboardInterrupt):  # from a Ctrl-C that has waited: this is the end anyway
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # a notebook goes on
    sys.exit(2)

import argparse
import atexit
import functools
import json
import mmap
import multiprocessing
import pickle
import pickletools
import re
import select
import shlex
import threading
import time
from collections import deque
from importlib.metadata import version
from multiprocessing.connection import wait
from multiprocessing.resource_tracker import ensure_running
from typing import NamedTuple


class Settings(NamedTuple):
    batch_size: int = 10          # episodes per update of the weights
    learning_rate: float = 1e-3
    gamma: float = 0.99           # discount factor of rewards, per step
    decay_rate: float = 0.99      # of RMSProp's running mean of squared gradients
    seed: int = 0                 # of all random numbers


D = 80 * 80                       # inputs of the network: pixels
H = 200                           # its hidden neurons


# ---- preprocessing: the screen becomes a small picture in black and white

# The emulator's own screen has a code for each color, and background has the codes 0, 34 and 228.
# The post looks at the red of RGB frames, where background is 0, 109 or 144. That gives the same
# picture, but takes twelve times as long to get, so training uses the codes.
OBJECT_BY_CODE = np.ones(256, np.int8)
OBJECT_BY_CODE[[0, 34, 228]] = 0
OBJECT_BY_RED = np.ones(256, np.int8)
OBJECT_BY_RED[[0, 109, 144]] = 0


def prepro(screen):
    """Crop the screen to the playing field, halve it, and make it black and white.

    screen: (210, 160) color codes or, as in the post, (210, 160, 3) RGB, uint8.
    Returns a picture, (6400,) int8: 1 where ball and paddles are, 0 for background.
    """
    field = screen[35:195:2, ::2]
    if field.ndim == 2:
        return OBJECT_BY_CODE.take(field).ravel()
    return OBJECT_BY_RED.take(field[:, :, 0]).ravel()


# ---- policy: a network of two layers gives the probability to go UP

def new_model(rng):
    """Random weights W1 (200, 6400) and W2 (200,), so small that p(UP) begins near 0.5."""
    W1 = rng.standard_normal((H, D)) / np.sqrt(D)
    W2 = rng.standard_normal(H) / np.sqrt(H)
    # Fortran order: in memory, W1 lies column by column, and policy_forward picks out columns.
    return {"W1": np.asfortranarray(W1, np.float32), "W2": W2.astype(np.float32)}


def policy_forward(model, x):
    """Difference frame x (6400,) int8 -> probability of UP, and the hidden layer h (200,)."""
    moved = (x != 0).nonzero()[0]         # some 20 pixels; the others are 0 and add nothing
    h = model["W1"][:, moved] @ x[moved]  # = W1 @ x, in float32
    h = np.maximum(h, 0)                  # relu
    logit = float(model["W2"] @ h)
    with np.errstate(over="ignore"):      # exp(1000) is infinite, and 1 / (1 + infinite) is 0
        p = 1 / (1 + np.exp(-logit))      # sigmoid
    return p, h


def policy_backward(model, xs, hs, dlogits):
    """Backpropagation: the gradient of J with respect to W1 and W2, for an episode of T steps.

    xs: T difference frames (6400,). hs: their hidden layers (T, 200).
    dlogits: the derivatives of J with respect to the T logits (T,). See episode_gradient.
    Returns a dict like the model.
    """
    dW2 = dlogits @ hs                        # sums over the steps
    dhs = np.outer(dlogits, model["W2"])      # (T, 200): W2 passes a logit's derivative back to h
    dhs[hs == 0] = 0                          # where relu was off, it passes nothing
    dW1 = sparse_product(dhs.T, xs)           # = dhs.T @ xs, but faster
    return {"W1": dW1, "W2": dW2}


def sparse_product(A, xs):
    """A (200, T) @ xs (T, 6400), four times as fast. (At first reading, skip how.)

    The product is a sum over T steps, and is summed in blocks of 64 steps. In a block, few pixels
    change. The others are 0 and would add nothing, so they are left out.
    """
    product = np.zeros((H, D), A.dtype, order="F")
    for t in range(0, len(xs), 64):
        block = np.array(xs[t:t + 64])
        used = block.any(axis=0)
        product[:, used] += A[:, t:t + 64] @ block[:, used]
    return product


# ---- returns: an action gets credit or blame for the next point, more if it comes soon

def discount_rewards(rewards, gamma):
    """Rewards (T,) -> returns (T,): the next point, times gamma for each step until then."""
    returns = np.zeros(len(rewards))
    running = 0.0
    for t in reversed(range(len(rewards))):
        if rewards[t] != 0:
            running = 0.0  # a point ends the rally, and later points are not this action's doing
        running = rewards[t] + gamma * running
        returns[t] = running
    return returns


def standardize(returns):
    """Returns -> advantages: shifted to mean 0, and scaled to standard deviation 1.

    So even in an episode that is lost 0 to 21, some are positive: a return long before a lost point
    is near 0, which is above the mean. The post's script does this for each episode, as here. Its
    text does it for a batch.
    """
    deviation = returns.std()
    if deviation == 0:  # all returns are equal
        deviation = 1
    return (returns - returns.mean()) / deviation


# ---- game: Pong as the post played it

# On the joystick of this game, right is up. In the post, these actions have the numbers 2, 3, 0.
UP, DOWN, NOOP = ale_py.Action.RIGHT, ale_py.Action.LEFT, ale_py.Action.NOOP


class Pong:
    """The game Pong-v0 of 2016. A step is 2, 3 or 4 frames, by chance. And actions are sticky: on
    each frame, with probability 0.25, the action of the frame before goes on instead.
    """

    def __init__(self, **kwargs):
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        # The emulator can repeat frames and make actions sticky by itself, but with random numbers
        # of its own. So that is switched off here, and done in step. Nothing random is left in it.
        self.env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0,
                                  **kwargs).unwrapped
        self.ale = self.env.ale  # the emulator itself, without the library's checks of each step

    def reset(self, rng):
        """Begin an episode that draws its random numbers from rng. Returns the first picture."""
        self.env.reset()  # without a seed, since nothing in it is random
        self.rng = rng
        self.last_action = NOOP
        return prepro(self.ale.getScreen())

    def step(self, action):
        """Returns the next picture, the reward, and whether the episode is over."""
        reward = 0
        for _ in range(self.rng.integers(2, 5)):
            sticky = self.rng.random() < 0.25
            if not sticky:
                self.last_action = action
            reward += self.ale.act(self.last_action)
        return prepro(self.ale.getScreen()), reward, self.ale.game_over()


@functools.cache
def get_game():
    """A game, the same at each call, since it takes long to start an emulator."""
    return Pong()


# ---- one episode: play it, and find the gradient that makes its good actions likelier

def episode_gradient(model, seed, gamma):
    """Play an episode. Returns its gradient of J, a dict like the model, and its rewards (T,)."""
    game = get_game()
    rng = np.random.default_rng(seed)
    xs, hs, dlogits, rewards = [], [], [], []  # one of each per step
    picture = game.reset(rng)
    previous = picture
    over = False
    while not over:
        x = picture - previous  # the difference frame shows what moves, and where to
        p, h = policy_forward(model, x)
        goes_up = rng.random() < p  # the action is sampled: that is how it explores
        # Nobody says which action is right. So pretend that the sampled one was: it is the label.
        # As dp / d logit = p (1 - p), the derivative of log P(action) is then label - p:
        #     went UP:    d log(p) / d logit     = p (1 - p) / p        = 1 - p
        #     went DOWN:  d log(1 - p) / d logit = -p (1 - p) / (1 - p) = 0 - p
        label = 1 if goes_up else 0
        xs.append(x)
        hs.append(h)
        dlogits.append(label - p)
        previous = picture
        picture, reward, over = game.step(UP if goes_up else DOWN)
        rewards.append(reward)

    # Now it is known how things went after each action. Multiplied by the advantages, these are the
    # derivatives of J. Where J grows, good actions get likelier, and bad ones less likely.
    advantages = standardize(discount_rewards(rewards, gamma))
    dlogits = (np.array(dlogits) * advantages).astype(np.float32)
    return policy_backward(model, xs, np.array(hs), dlogits), rewards


# ---- update: one step uphill

def rmsprop(model, mean_square, gradient, learning_rate, decay_rate):
    """One step of RMSProp (Tieleman and Hinton, 2012). Returns the next model and mean_square.

    mean_square is the running mean of each weight's squared gradients, and its root is their
    typical size. A gradient is divided by that. So a weight moves by about the learning rate,
    whether its gradients are large or small, summed over a batch or averaged. Only where
    mean_square is near 0, as at the first update, it moves 1 / sqrt(1 - decay_rate) times as far.
    """
    next_model, next_mean_square = {}, {}
    for k, g in gradient.items():  # k is W1, then W2
        next_mean_square[k] = decay_rate * mean_square[k] + (1 - decay_rate) * g**2
        next_model[k] = model[k] + learning_rate * g / (np.sqrt(next_mean_square[k]) + 1e-5)
    return next_model, next_mean_square


# ---- training loop: play a batch of episodes, sum their gradients, update

class Run(NamedTuple):
    """All that there is to know of a run. save.p holds it."""
    settings: Settings
    model: dict                   # W1 and W2
    mean_square: dict             # of the gradients with respect to W1 and W2
    scores: list                  # of each episode so far, -21 to 21
    steps: int                    # in all episodes so far
    seconds: float                # that they took


def new_run(settings, model=None):
    """A run before its first episode, with random weights unless a model is given."""
    if model is None:
        model = new_model(np.random.default_rng([settings.seed, 0]))
    mean_square = {k: np.zeros_like(weights) for k, weights in model.items()}
    return Run(settings, model, mean_square, scores=[], steps=0, seconds=0.0)


def batch_gradients(model, seeds, gamma):
    """Play an episode for each seed, one after the other. Yields what episode_gradient returns."""
    for seed in seeds:
        yield episode_gradient(model, seed, gamma)


def train(run, episodes, play_batch=batch_gradients):
    """Learn until the run has at least this number of episodes. Yields the run after each batch.

    play_batch: a function like batch_gradients. The command line passes one for all cores.
    """
    settings = run.settings
    while len(run.scores) < episodes:
        began = time.monotonic()
        # Episode n has the seed [seed, n], as numpy takes lists. new_run used n = 0, for weights.
        first = len(run.scores) + 1
        seeds = [[settings.seed, n] for n in range(first, first + settings.batch_size)]
        total = {k: np.zeros_like(weights) for k, weights in run.model.items()}
        scores = []
        steps = 0
        for gradient, rewards in play_batch(run.model, seeds, settings.gamma):
            for k in total:
                total[k] += gradient[k]
            scores.append(sum(rewards))
            steps += len(rewards)
        model, mean_square = rmsprop(run.model, run.mean_square, total,
                                     settings.learning_rate, settings.decay_rate)
        seconds = time.monotonic() - began
        run = Run(settings, model, mean_square, run.scores + scores,
                  run.steps + steps, run.seconds + seconds)
        yield run


# What you have read runs by itself, if slowly, in one process:
#
#     from pg_pong import Settings, new_run, train
#     for run in train(new_run(Settings()), 100):
#         print(len(run.scores), run.scores[-10:])

# Here the algorithm ends. What follows trains on all cores, saves, shows and measures. Each block
# begins with a line that says what it is for.


# ---- messages, and numbers that are out of range

class Stopped(Exception):
    """A stop signal came."""


class Failed(Exception):
    """The run cannot go on. The text says why."""


def say(message):
    with suppress(OSError):  # nobody reads it any more
        print(f"pg_pong.py: {message}", file=sys.stderr, flush=True)


def fail(message):
    say(message)
    sys.exit(2)


RANGES = {  # from, to: of flags, and of what a file holds
    "batch_size": (1, 100),
    "learning_rate": (0, 1),
    "gamma": (0, 1),
    "decay_rate": (0, 0.9999),
    "seed": (0, 2**32 - 1),
    "episodes": (1, 10**9),
    "workers": (1, 10**9),
    "eval": (2, 10**6),
    "score": (-21, 21),
    "steps": (0, 10**15),
    "seconds": (0, 10**12),
}


def check_range(name, value):
    """Returns the value. Raises ValueError if it is out of range."""
    low, high = RANGES[name]
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")
    return value


# ---- train, and save along the way

SAVE_EVERY = 100  # episodes


def train_and_save(run, path, episodes, workers):
    """Train until the run has so many episodes or a stop signal comes, and save along the way.

    Returns the exit status: 1 if the end could not be saved.
    """
    saved = len(run.scores)  # how many of the run's episodes the file holds
    try:
        for newest in train(run, episodes, workers.play_batch):
            if not is_finite(newest):
                raise Failed("the weights became infinite or NaN; try a lower --learning-rate")
            previous, run = run, newest
            report(previous, run)
            if len(run.scores) // SAVE_EVERY > len(previous.scores) // SAVE_EVERY:
                saved = save(run, path, saved)
    except Stopped:
        pass
    finally:  # also if something failed
        saved = save(run, path, saved)
        say(how_to_go_on(saved, path))
    return 0 if saved == len(run.scores) else 1


def report(previous, run):
    """Print a line about the batch that was played between these two."""
    score = np.mean(run.scores[len(previous.scores):])
    speed = (run.steps - previous.steps) / (run.seconds - previous.seconds)
    print(f"episode {len(run.scores)}  score {score:+.1f}  "
          f"running mean {running_means(run.scores)[-1]:+.2f}  "
          f"{speed:.0f} steps/s  {run.seconds / 3600:.2f} h", flush=True)


def running_means(scores):
    """The exponential moving average of the scores, after each episode: a list."""
    means = scores[:1]
    for score in scores[1:]:
        means.append(0.99 * means[-1] + 0.01 * score)
    return means


def how_to_go_on(saved, path):
    if saved == 0:
        return "nothing was saved"
    flags = "--resume"
    if path != os.path.realpath("save.p"):
        flags += f" --save {shlex.quote(path)}"
    return f"{path} holds {saved} episodes; go on with {flags}"


# ---- stop signals are noted, and looked at five times a second, where it is safe to stop

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]  # from Ctrl-C, and from kill
if hasattr(signal, "SIGHUP"):                   # when the terminal is closed; not on Windows
    STOP_SIGNALS.append(signal.SIGHUP)


@contextmanager
def stop_signals_noted():
    """Yields a list, to which the stop signals are added that come meanwhile."""
    came = []

    def note(number, frame):
        came.append(number)

    handlers = {}
    for number in STOP_SIGNALS:
        handler = signal.getsignal(number)
        # What is ignored stays ignored: under nohup, that is SIGHUP. A handler that is None was
        # not set by Python, and could not be put back.
        if handler not in (signal.SIG_IGN, None):
            handlers[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ignore_stop_signals():
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# ---- workers: an episode depends on weights and seed alone, so any process can play it

# A forked process is there at once, while a spawned one has to import everything. But on macOS,
# forked processes may crash in the system's libraries, and Windows cannot fork.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Workers:
    """Processes that play episodes and, if it is open, one that shows games in a window.

    Each worker has a pipe of its own. When a worker is killed, its pipe ends, and another worker
    plays its episode again. Nothing is lost, since the episode is the same whoever plays it.
    """

    def __init__(self, stop_signals):
        self.stop_signals = stop_signals
        self.memory = shared_memory()
        self.processes = {}  # {our end of a worker's pipe: the worker's process}
        self.losses = 0      # of workers, since the last result came
        self.window = None
        self.watches_keys = False

    def add(self):
        """Start a worker."""
        pipe, far_end = CONTEXT.Pipe()
        self.processes[pipe] = start_process(work, far_end, self.memory)
        # A pipe ends when all copies of its far end are closed. So close this one, before the next
        # worker inherits it. Then the worker's copy is the last, and the pipe ends when it dies.
        far_end.close()

    def play_batch(self, model, seeds, gamma):
        """Yields what batch_gradients yields, but plays on all cores."""
        return self.map(episode_gradient, model, seeds, gamma)

    def map(self, function, model, seeds, *args):
        """Yields function(model, seed, *args) for each seed, in their order.

        Raises Stopped if a stop signal came, and Failed if workers are killed again and again.
        After that, the workers are not to be used any more.
        """
        for k, weights in weights_in(self.memory).items():
            weights[:] = model[k]
        calls = [(function.__name__, seed, args) for seed in seeds]
        # A call's index goes from waiting to given, to results; or back, if its worker is killed.
        waiting = list(range(len(calls)))  # no worker has it
        given = {}                         # {pipe of a worker: index of the call that it has}
        results = {}                       # {index: result}
        for index in range(len(calls)):
            while index not in results:
                self.hand_out(calls, waiting, given)
                self.collect(waiting, given, results)
            yield results.pop(index)

    def hand_out(self, calls, waiting, given):
        """Give each idle worker a call."""
        for pipe in self.processes.keys() - given.keys():
            if waiting:
                given[pipe] = waiting.pop(0)
                with suppress(BrokenPipeError):  # the worker was killed; collect will notice
                    pipe.send(calls[given[pipe]])

    def collect(self, waiting, given, results):
        """Wait for results, at most 0.2 seconds, and look at stop signals and the keyboard."""
        ready = wait(list(self.processes), timeout=0.2)
        if self.stop_signals:
            raise Stopped
        if self.watches_keys and r_was_typed():
            self.toggle_window()
        for pipe in ready:
            try:
                result = pipe.recv()
                results[given.pop(pipe)] = result
                self.losses = 0
            except (EOFError, OSError):  # the worker was killed, perhaps in mid-message
                if pipe in given:
                    waiting.insert(0, given.pop(pipe))
                self.replace(pipe)

    def replace(self, pipe):
        """Start a worker in place of one that has ended."""
        process = self.processes.pop(pipe)
        process.join()
        if process.exitcode == 1:  # Python's own status after an error
            raise Failed("a worker ended by an error, which it has printed")
        self.losses += 1
        if self.losses > 3 * len(self.processes) + 3:
            raise Failed("workers are killed again and again; is there too little memory?")
        say("a worker was killed; another one takes its place, and plays its episode again")
        self.add()

    def toggle_window(self):
        """Open the window or, if it is open, close it."""
        if self.window and self.window.is_alive():
            kill(self.window)
        else:
            self.window = start_process(show_beside, self.memory)

    def end(self):
        for process in self.processes.values():
            kill(process)
        if self.window:
            kill(self.window)


@contextmanager
def start_workers(count, stop_signals):
    """Yields so many workers, and ends them, whatever happens."""
    if CONTEXT.get_start_method() == "spawn" and sys.platform != "win32":
        # With the first spawned process, Python starts a "resource tracker", and that unblocks
        # SIGINT and SIGTERM. Start it now, before start_process blocks them.
        ensure_running()
    workers = Workers(stop_signals)
    try:
        for _ in range(count):
            workers.add()
        yield workers
    finally:
        workers.end()


def start_process(function, *args):
    """Start a child process. It gets no stop signals, since to stop is the trainer's business."""
    process = CONTEXT.Process(target=function, args=args, daemon=True)
    if sys.platform == "win32":  # signals cannot be blocked there
        process.start()
        return process
    # The child inherits that the signals are blocked, so it is safe from its beginning. If it had
    # to ignore them itself, one could come before its first line. A signal to the trainer is not
    # lost: it comes when they are unblocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def kill(process):
    process.kill()
    process.join()


def end_with_trainer():
    """In a child process: end at once when the trainer ends, even if it is killed."""
    ignore_stop_signals()  # for Windows, where they are not blocked

    def watch():
        # This waits for the end of a pipe. Workers that were forked later have copies of it, so the
        # last one ends first, then the one before it, and so on.
        multiprocessing.parent_process().join()
        os._exit(1)  # ends the process, where sys.exit would only end this thread
    threading.Thread(target=watch, daemon=True).start()


def work(pipe, memory):
    """In a worker: make the calls that come through the pipe, and send back their results."""
    end_with_trainer()
    model = weights_in(memory)
    while True:
        try:
            name, seed, args = pipe.recv()
        except EOFError:  # the trainer is gone
            return
        function = globals()[name]
        pipe.send(function(model, seed, *args))


def shared_memory():
    """Memory for the weights. The trainer writes them, and its child processes see them."""
    size = 4 * (H * D + H)
    if CONTEXT.get_start_method() == "spawn":
        return CONTEXT.RawArray("b", size)
    # A RawArray is a file in /dev/shm, where containers may have no room. This needs no file, but
    # only forked processes can share it.
    return mmap.mmap(-1, size)


def weights_in(memory):
    """A model whose weights lie in the shared memory."""
    numbers = np.frombuffer(memory, np.float32)
    return {"W1": numbers[:H * D].reshape(H, D, order="F"), "W2": numbers[H * D:]}


def r_was_typed():
    """Whether somebody has typed r and Enter. Does not wait for it."""
    if sys.platform == "win32" or not os.isatty(0):
        return False
    with suppress(OSError):  # the terminal is gone
        # After Ctrl-Z and bg, what is typed is for the shell or for another program.
        is_in_foreground = os.tcgetpgrp(0) == os.getpgrp()
        if is_in_foreground and select.select([0], [], [], 0)[0]:
            return os.read(0, 100).strip() == b"r"
    return False


# ---- checkpoint: save.p is two pickles, first the model alone, for other scripts, then the rest

def save(run, path, saved):
    """Save the run to path, wholly or not at all. Returns how many episodes the file then holds.

    saved: how many it holds now. If none, a file at path is another run's, and is kept.
    """
    if saved == len(run.scores):
        return saved
    try:
        write(run, path + ".tmp")
        if saved == 0 and os.path.exists(path):
            keep_old(path)
        os.replace(path + ".tmp", path)
        return len(run.scores)
    except OSError as problem:
        say(f"cannot save to {path}: {problem.strerror}")
        remove(path + ".tmp")
        return saved


def write(run, file):
    model = {k: np.ascontiguousarray(weights) for k, weights in run.model.items()}
    text = json.dumps({"settings": run.settings._asdict(), "scores": run.scores,
                       "steps": run.steps, "seconds": run.seconds})
    rest = [text, run.mean_square["W1"].tobytes(), run.mean_square["W2"].tobytes()]
    with open(file, "wb") as f:
        pickle.dump(model, f, protocol=4)
        pickle.dump(rest, f, protocol=4)
        f.flush()
        os.fsync(f.fileno())  # it must be on the disk before it takes the old file's place


def remove(file):
    with suppress(OSError):  # there is no such file, or the disk is broken
        os.remove(file)


def keep_old(path):
    """Give the file at path another name: the first of path.1, path.2, ... that is free."""
    n = 1
    while os.path.lexists(f"{path}.{n}"):
        n += 1
    try:
        os.link(path, f"{path}.{n}")  # a second name, so that the first one is never missing
    except OSError:  # this file system has no links
        os.rename(path, f"{path}.{n}")
    say(f"the old {path} is now {path}.{n}")


def check_room(run, path):
    """Write a save and take it away again: a full disk is better found now than at night."""
    try:
        write(run, path + ".tmp")
    except OSError as problem:
        fail(f"cannot save to {path}: {problem.strerror}")
    finally:
        remove(path + ".tmp")


def lock(path):
    """Keep a second trainer off path for as long as the returned file is open."""
    f = open(path + ".lock", "a")
    if sys.platform == "win32":
        return f
    import fcntl  # Windows does not have it
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # somebody holds it: systems say it in two ways
        fail(f"another process is training on {path}; use another --save")
    except OSError as problem:  # a network's file system may have no locks
        say(f"cannot lock {path} ({problem.strerror}), so let nobody else train on it")
    return f


def is_finite(run):
    arrays = [*run.model.values(), *run.mean_square.values()]
    return all(np.isfinite(array).all() for array in arrays)


# ---- reading: a pickle is a program that may call any function, so it is read, but never run

def load(path):
    """Read a run, or begin one with the weights of the linked script. Exits if the file is bad."""
    if not os.path.isfile(path):
        fail(f"there is no file {path}; a run without --resume makes it")
    with open(path, "rb") as f:
        try:
            check_first_byte(f.peek(1)[:1])
            model = read_model(f)
            if not f.peek(1):  # no second pickle, so the file is the linked script's
                return new_run(Settings(), model)
            return read_rest(f, model)
        except Exception as problem:  # whatever it is, the file is to blame
            words = str(problem)
            if type(problem) is not ValueError:
                words = f"{type(problem).__name__}: {words}"
            words = ascii(words)[1:-1]  # a bad file shall send no control codes to the terminal
            fail(f"{path} cannot be read: {words:.200}. Needed is a run, or a pickled dict of "
                 "W1 (200, 6400) and W2 (200,) in float32 or float64")


def check_first_byte(byte):
    if byte == b"":
        raise ValueError("it is empty")
    if byte in (b"(", b"}"):
        raise ValueError("it is a pickle of protocol 0 or 1, as Python 2 wrote them. If you trust "
                         "it, load it with pickle and encoding=latin1, and dump it again")
    if byte != b"\x80":
        raise ValueError("it is no pickle")


def read_pickle(f):
    """The next pickle of f as a tree. Raises all kinds of exceptions if it is damaged.

    A pickle is a list of steps. A step puts a constant on a stack, or takes things from it and puts
    back what it makes of them. Here, that is a list of the step's name and of what it took. Some
    steps add to what an earlier one made. The steps of the dict {"a": (1, None)} are:

        step         the stack after it
        EMPTY_DICT   ["EMPTY_DICT"]
        "a"          ["EMPTY_DICT"]  "a"
        1            ["EMPTY_DICT"]  "a"  1
        NONE         ["EMPTY_DICT"]  "a"  1  ["NONE"]
        TUPLE2       ["EMPTY_DICT"]  "a"  ["TUPLE2", 1, ["NONE"]]
        SETITEM      ["EMPTY_DICT", "a", ["TUPLE2", 1, ["NONE"]]]
    """
    stack = []
    memo = {}  # what later steps use again
    for step, constant, _ in pickletools.genops(f):
        if step.name == "STOP":
            return stack.pop()
        if step.name in ("PROTO", "FRAME"):
            continue
        if step.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif step.name in ("BINPUT", "LONG_BINPUT"):
            memo[constant] = stack[-1]
        elif step.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[constant])
        elif constant is not None:
            stack.append(constant)
        elif step.name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD"):
            changed, *added = take(stack, step.stack_before)
            changed.extend(added)  # also in the memo, if it is there
            stack.append(changed)
        else:
            stack.append([step.name, *take(stack, step.stack_before)])


def take(stack, kinds):
    """Take from the stack what a step takes, and return it in the stack's order.

    kinds: pickletools' list of what the step takes. If there is a mark in it, the step takes all
    that is above the newest mark on the stack, and what comes before the mark in this list.
    """
    taken = []
    if pickletools.markobject in kinds:
        while stack[-1] != ["MARK"]:
            taken.append(stack.pop())
        stack.pop()
        kinds = kinds[:kinds.index(pickletools.markobject)]
    for _ in kinds:
        taken.append(stack.pop())
    return taken[::-1]


class StoredArray(NamedTuple):
    """An array of numpy as a pickle holds it."""
    kind: str      # of its numbers: <f4, for example
    shape: tuple
    order: str     # C or F
    data: object   # bytes or, in protocol 2, a text

    def to_float32(self):
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        numbers = np.frombuffer(data, self.kind).reshape(self.shape, order=self.order)
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            numbers = np.asfortranarray(numbers, np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError("it holds numbers that are infinite or NaN")
        return numbers


def stored_array(tree):
    """The array that this tree is. Raises ValueError if it is something else.

    An array is a call of a function, REDUCE, to which its state is added:
        ["REDUCE", function, arguments, ["TUPLE", 1, shape, dtype, is_fortran, data]]
    In protocol 5, it is a call alone:
        ["REDUCE", function, ["TUPLE", data, dtype, shape, order]]
    Its dtype is a call and a state, too. For "<f4", that is
        ["REDUCE", function, ["TUPLE3", "f4", ["NEWFALSE"], ["NEWTRUE"]], ["TUPLE", 3, "<", ...]]
    """
    match tree:
        case ["REDUCE", _, _, ["TUPLE", 1, shape, dtype, is_fortran, data]]:
            order = "F" if is_fortran == ["NEWTRUE"] else "C"
        case ["REDUCE", _, ["TUPLE", data, dtype, shape, order]]:
            pass
        case _:
            raise ValueError("it holds something that is no array")
    match dtype:
        case ["REDUCE", _, ["TUPLE3", str(name), _, _], ["TUPLE", _, str(byte_order), *_]]:
            kind = byte_order + name
        case _:
            kind = ""
    if not 1 < len(kind) < 9:
        raise ValueError("it holds an array of something that is no number")
    match shape:
        case ["TUPLE1" | "TUPLE2" | "TUPLE3", *sizes]:
            shape = tuple(int(size) for size in sizes)
        case _:
            raise ValueError("it holds an array of more than 3 dimensions")
    match data:
        case ["REDUCE", _, ["TUPLE2", text, "latin1"]]:  # protocol 2 encodes a text to get bytes
            data = text
    return StoredArray(kind, shape, order, data)


SHAPES = {"W1": (H, D), "W2": (H,)}


def read_model(f):
    """The model in the next pickle of f. Raises ValueError if it holds anything else."""
    tree = read_pickle(f)
    if not isinstance(tree, list) or tree[0] != "EMPTY_DICT":
        raise ValueError("it holds no dict of arrays")
    names, values = tree[1:21:2], tree[2:22:2]  # ten are enough to see that it is no model
    arrays = {name: stored_array(value) for name, value in zip(names, values)}
    shapes = {name: array.shape for name, array in arrays.items()}
    kinds = {array.kind for array in arrays.values()}
    if shapes != SHAPES or not kinds <= {"<f4", "<f8", ">f4", ">f8"}:
        raise ValueError(f"it holds {str(shapes):.150} in {sorted(kinds)!s:.50}")
    return {name: arrays[name].to_float32() for name in SHAPES}


def read_rest(f, model):
    """The run in the second pickle of f: a list of a text in JSON, and the bytes of mean_square."""
    _, text, W1, W2 = read_pickle(f)
    rest = json.loads(text)
    settings = {}
    for name, kind in Settings.__annotations__.items():
        settings[name] = check_range(name, kind(rest["settings"][name]))
    mean_square = {"W1": StoredArray("<f4", SHAPES["W1"], "C", W1).to_float32(),
                   "W2": StoredArray("<f4", SHAPES["W2"], "C", W2).to_float32()}
    scores = [check_range("score", int(score)) for score in rest["scores"]]
    steps = check_range("steps", int(rest["steps"]))
    seconds = check_range("seconds", float(rest["seconds"]))
    return Run(Settings(**settings), model, mean_square, scores, steps, seconds)


# ---- watch

def play(game, model, rng):
    """Play an episode without learning. After each step, yields p(UP), the reward, the picture
    before the step, and the picture after it."""
    picture = game.reset(rng)
    previous = picture
    over = False
    while not over:
        p, _ = policy_forward(model, picture - previous)
        goes_up = rng.random() < p
        previous = picture
        picture, reward, over = game.step(UP if goes_up else DOWN)
        yield p, reward, previous, picture


CLEAR = "\x1b[H\x1b[J"  # go to the upper left corner, and erase what follows
# The drivers of SDL that show a window. Left alone, it may take one that "shows" it to nobody.
VISIBLE = "wayland,x11,cocoa,windows"


def show_games(newest_model, rng):
    """Show game after game, in a window or, if there is no display, in the terminal.

    newest_model: a function that returns a model. It is called before each game.
    """
    os.environ["SDL_VIDEODRIVER"] = VISIBLE
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # no sound
    in_window = True
    try:
        game = Pong(render_mode="human")  # in a window, which the emulator draws by itself
    except RuntimeError as problem:
        is_child = multiprocessing.parent_process() is not None
        is_notebook = "JPY_PARENT_PID" in os.environ  # which calls itself a terminal, but is none
        if is_child or is_notebook or not os.isatty(1):
            fail(f"no window: {problem}; try a terminal, or --watch FILE.gif")
        in_window = False
        game = Pong()
    while True:
        score = 0
        for p, reward, _, picture in play(game, newest_model(), rng):
            score += reward
            if not in_window:
                print(f"{CLEAR}{braille(picture)}\nscore {score:+}  p(UP) {p:.2f}", flush=True)
                time.sleep(3 / 60)  # a step has some 3 frames, and a second 60


DOTS = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]  # (row, column)


def braille(picture):
    """A picture (6400,) -> 20 lines of 40 characters, each of 4x2 dots. DOTS[n] is bit n."""
    codes = np.full((20, 40), 0x2800)  # Unicode's character without a dot
    for n, (row, column) in enumerate(DOTS):
        is_set = picture.reshape(80, 80)[row::4, column::2] == 1
        codes[is_set] += 2**n
    return "\n".join("".join(chr(code) for code in line) for line in codes)


def show_beside(memory):
    """In a child process: show games with the trainer's newest weights."""
    end_with_trainer()
    show_games(lambda: weights_in(memory), np.random.default_rng())


def write_gif(path, gif, rng):
    """Draw the 20 seconds before the first point that the agent wins, or before the end.

    Beside the game is what the network sees: white where something came, black where it was.
    """
    from PIL import Image
    model = load(path).model
    game = Pong()
    images = deque(maxlen=400)  # of 0.05 seconds each
    for _, reward, previous, picture in play(game, model, rng):
        screen = game.ale.getScreenRGB()[35:195]
        difference = (picture - previous).reshape(80, 80)
        gray = np.uint8([0, 128, 255])[difference + 1]
        seen = gray.repeat(2, axis=0).repeat(2, axis=1)  # as large as the screen
        both = np.hstack([screen, np.dstack([seen, seen, seen])])
        images.append(Image.fromarray(both).quantize(32, dither=Image.Dither.NONE))
        if reward > 0:
            break
    first, *others = [image.resize((640, 320), Image.Resampling.NEAREST) for image in images]
    first.save(gif, save_all=True, append_images=others, loop=0, duration=50)  # milliseconds


# ---- measure

def evaluate(path, count, worker_count, seed, stop_signals):
    """Play episodes without learning, and report the score. Returns the exit status."""
    model = load(path).model
    seeds = [[seed, n, 1] for n in range(count)]  # the 1 sets them apart from those of training
    scores = []
    worker_count = min(worker_count, count)
    with suppress(Stopped), start_workers(worker_count, stop_signals) as workers:
        for score in workers.map(play_for_score, model, seeds):
            scores.append(score)
            print(f"{len(scores)} of {count}", end="\r", file=sys.stderr, flush=True)
    if len(scores) > 1:
        error = np.std(scores, ddof=1) / np.sqrt(len(scores))
        won = np.mean(np.array(scores) > 0)
        print(f"{len(scores)} episodes of {path}, seed {seed}: mean score {np.mean(scores):+.2f}, "
              f"standard error {error:.2f}, {won:.1%} won")
    return 0 if len(scores) == count else 130


def play_for_score(model, seed):
    """In a worker: the score of an episode."""
    score = 0
    for _, reward, _, _ in play(get_game(), model, np.random.default_rng(seed)):
        score += reward
    return score


def plot(path, file):
    """Draw the scores, and what each pixel says through each of the 40 strongest neurons."""
    from matplotlib.figure import Figure
    run = load(path)
    neurons = strongest_neurons(run.model, 40)
    limit = np.percentile(np.abs(neurons), 99.8)

    figure = Figure(figsize=(10, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    curve = upper.add_subplot(xlabel="episode", ylabel="score, running mean")
    curve.plot(run.scores, ",")
    curve.plot(running_means(run.scores))
    curve.axhline(0, color="black", linewidth=0.8)  # where both players are equally strong
    lower.suptitle("white says UP, black says DOWN")
    for neuron, axes in zip(neurons, lower.subplots(4, 10).flat):
        axes.imshow(neuron, cmap="gray", vmin=-limit, vmax=limit)
        axes.axis("off")
    figure.savefig(file)


def strongest_neurons(model, count):
    """What each pixel says through each of them, positive for UP: (count, 80, 80) float32."""
    votes = model["W1"] * model["W2"][:, np.newaxis]
    strengths = np.linalg.norm(votes, axis=1)
    strongest = np.argsort(-strengths)[:count]
    return votes[strongest].reshape(count, 80, 80)


# ---- command line

MODES = {  # besides training, with the flags that apply to each
    "watch": {"save", "seed"},
    "eval": {"save", "seed", "workers"},
    "plot": {"save"},
}


def parse_flags():
    """Returns a dict of the flags that were given. Exits if they do not go together."""
    parser = argparse.ArgumentParser(
        description="Learn Atari Pong from raw pixels by policy gradients.",
        argument_default=argparse.SUPPRESS)  # no flag that was not given
    add = parser.add_argument
    add("--resume", action="store_true", help="go on from the saved run, with its settings")
    add("--watch", nargs="?", metavar="FILE.gif", help="show games of the saved run, or draw a GIF")
    add("--eval", type=int, metavar="N", help="report the score of N episodes of the saved run")
    add("--plot", nargs="?", const="pong.png", metavar="FILE.png",
        help="draw the saved run's scores and neurons (default: pong.png)")
    add("--render", action="store_true", help="show games while training; r and Enter toggle it")
    add("--save", metavar="FILE", help="where the run is saved (default: save.p)")
    add("--episodes", type=int, metavar="N",
        help="end with the batch in which the run gets to N episodes (default: never)")
    add("--workers", type=int, metavar="N", help="processes that play (default: one per core)")
    add("--batch-size", type=int, metavar="N", help="episodes per update (default: 10)")
    add("--learning-rate", type=float, metavar="X", help="step size of RMSProp (default: 1e-3)")
    add("--gamma", type=float, metavar="X", help="discount of rewards, per step (default: 0.99)")
    add("--decay-rate", type=float, metavar="X",
        help="share of RMSProp's running mean that an update keeps (default: 0.99)")
    add("--seed", type=int, metavar="N",
        help="of all random numbers (default: 0, but a new one each time for --watch)")
    flags = vars(parser.parse_args())
    for name in flags.keys() & RANGES.keys():
        try:
            check_range(name, flags[name])
        except ValueError as problem:
            parser.error(str(problem))
    for mode, others in MODES.items():
        if mode in flags:
            for name in flags.keys() - others - {mode}:
                parser.error(f"--{name.replace('_', '-')} does not go with --{mode}")
    if flags.get("watch") and not flags["watch"].endswith(".gif"):
        parser.error("--watch draws a .gif")
    if "plot" in flags and not flags["plot"].endswith(".png"):
        parser.error("--plot draws a .png")
    return flags


def check_packages():
    """Exit if a package is too old. ale-py 0.10, for example, ignores the actions given here."""
    for package, needed in [("numpy", "1.26"), ("gymnasium", "1.1"), ("ale-py", "0.11.2")]:
        found = version(package)
        if version_numbers(found) < version_numbers(needed):
            fail(f"{package} {found} is too old; try pip install -r requirements.txt")


def version_numbers(text):
    return [int(digits) for digits in re.findall(r"\d+", text)]


def run_training(flags, path, worker_count, stop_signals):
    """Train as the flags say, and save to path. Returns the exit status."""
    path = os.path.realpath(path)  # a link stays, and what it points to is replaced
    if os.path.exists(path) and not os.path.isfile(path):
        fail(f"{path} is no regular file; use another --save")
    with lock(path):
        given = {name: flags[name] for name in Settings._fields if name in flags}
        if "resume" in flags:
            run = load(path)
            run = run._replace(settings=run.settings._replace(**given))
        else:
            run = new_run(Settings(**given))
        check_room(run, path)
        words = ", ".join(f"{name} {value}" for name, value in run.settings._asdict().items())
        print(f"Learning Pong from episode {len(run.scores)} on: {words}", flush=True)
        with start_workers(min(worker_count, run.settings.batch_size), stop_signals) as workers:
            workers.watches_keys = True
            if "render" in flags:
                workers.toggle_window()
            return train_and_save(run, path, flags.get("episodes", np.inf), workers)


def core_count():
    """How many cores this process may use. On a shared machine, these may be few of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def run_mode(flags):
    """Do what the flags say. Returns the exit status, or None if all is well."""
    path = flags.get("save", "save.p")
    seed = flags.get("seed")
    if "plot" in flags:
        return plot(path, flags["plot"])
    if "watch" in flags:
        rng = np.random.default_rng(seed)
        if flags["watch"]:
            return write_gif(path, flags["watch"], rng)
        return show_games(lambda: load(path).model, rng)
    worker_count = flags.get("workers", core_count())
    if sys.platform == "win32":
        worker_count = min(worker_count, 60)  # Windows cannot wait for more
    with stop_signals_noted() as stop_signals:
        if "eval" in flags:
            return evaluate(path, flags["eval"], worker_count, seed or 0, stop_signals)
        return run_training(flags, path, worker_count, stop_signals)


def main():
    """Do what the command line says. Returns the exit status."""
    # Ignore stop signals while Python ends. A second Ctrl-C then would change the exit status.
    atexit.register(ignore_stop_signals)
    try:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        flags = parse_flags()
        check_packages()
        return run_mode(flags)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as problem:
        fail(f"{problem}; try pip install -r requirements.txt matplotlib pillow")
    except UnicodeEncodeError:
        fail("this terminal cannot show the game; set PYTHONIOENCODING=utf-8, or --watch FILE.gif")
    except (OSError, Failed) as problem:
        fail(problem)


if __name__ == "__main__":
    status = main()
    if status:
        sys.exit(status)
