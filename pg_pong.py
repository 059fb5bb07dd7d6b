"""Learn Atari Pong from raw pixels by policy gradients: one file, with numpy and an emulator.

    python pg_pong.py             learn from scratch until Ctrl-C, saving to save.p along the way
    python pg_pong.py --resume    go on from save.p as if it had never stopped
    python pg_pong.py --watch     show games of the agent in save.p, in a window or the terminal
    python pg_pong.py --eval 100  play 100 episodes without learning, and report the score
    python pg_pong.py --plot      draw what was learned, to pong.png

The algorithm is that of Andrej Karpathy's post "Deep Reinforcement Learning: Pong from Pixels"
(2016). Play, and sample each action from a policy. Then make the actions that turned out better
than average more likely, and the others less likely. As a formula, climb

    J = sum over all steps of advantage * log P(action)

where the advantage says how much better than average things went after the action. Why log P? The
mean score is the sum of P(game) * score over all games that may happen, and the derivative of P is
P times the derivative of log P. So score * (derivative of log P(game)), averaged over the games
that are played, is the slope of the mean score (Williams, 1992). And log P(game) is the sum of the
log P(action), plus what the weights do not change. An advantage instead of the score puts that
slope a little off, but makes it far less noisy.

Four things differ from the script that the post links to:
1. The learning rate is 1e-3. The post does not tell its own. With 1e-3, the mean score is near 0
   after 8,000 episodes (90 minutes), as in the post. With the script's 1e-4, it hardly rises.
2. The game is rebuilt on today's emulator. It may last 108,000 frames, where it had 10,000 steps.
   --game chooses among five Pongs. One of them is learned much sooner than the post's.
3. An episode depends on nothing but settings, weights and its number, so any process can play it.
   That is how the episodes of a batch are played on several cores, and how a run is resumed.
4. The weights are float32.

Read from top to bottom, or begin with episode_gradient and train, which tell the story.
"""
import os

# numpy's BLAS reads these when it is loaded, so import this file before numpy. More threads round
# long sums otherwise, and only cost time here, where the products are small.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import atexit
import functools
import json
import multiprocessing
import pickle
import select
import shlex
import signal
import sys
import time
from collections import deque
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import wait
from typing import NamedTuple

import ale_py
import gymnasium
import numpy as np


class Settings(NamedTuple):
    batch_size: int = 10          # episodes per update of the weights
    learning_rate: float = 1e-3
    gamma: float = 0.99           # discount factor of rewards, per step
    decay_rate: float = 0.99      # of RMSProp's running mean of squared gradients
    seed: int = 0                 # of all random numbers
    game: str = "Pong-v0"         # one of GAMES


D = 80 * 80                       # inputs of the network: pixels
H = 200                           # its hidden neurons


# ---- preprocessing: the screen becomes a small picture in black and white

# Each pixel of the emulator's screen is the code of its color. (The post looks at the red of RGB
# pixels. That gives the same picture, but an RGB screen takes twelve times as long to get.)
IS_OBJECT = np.ones(256, np.int8)  # signed, since the network gets differences of pictures
IS_OBJECT[[0, 34, 228]] = 0       # the codes of the background


def prepro(screen):
    """Screen (210, 160) uint8 -> picture (6400,) int8: 1 for ball and paddles, 0 for background."""
    field = screen[35:195:2, ::2]  # crop it to the playing field, and halve it
    return IS_OBJECT.take(field).ravel()


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
    p = 1 / (1 + np.exp(-logit))          # sigmoid
    return p, h


def policy_backward(model, xs, hs, dJ_dlogits):
    """Backpropagation: the gradient of J for an episode of T steps, a dict like the model.

    xs: T difference frames (6400,). hs: their hidden layers (T, 200).
    dJ_dlogits: the derivatives of J with respect to the T logits (T,), from episode_gradient.
    """
    dW2 = dJ_dlogits @ hs                     # sums over the steps
    dhs = np.outer(dJ_dlogits, model["W2"])   # (T, 200): as logit = W2 @ h, dlogit / dh = W2
    dhs[hs == 0] = 0                          # where relu was off, it passes nothing
    dW1 = sparse_product(dhs.T, xs)           # = dhs.T @ xs, but faster
    return {"W1": dW1, "W2": dW2}


def sparse_product(A, xs):
    """A (200, T) @ xs (T, 6400), four times as fast: it takes 64 steps at once, and leaves out the
    pixels that are 0 in all of them. These are most, and would add nothing.
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
            running = 0.0  # this is Pong's: a point ends the rally, so later ones do not count
        running = rewards[t] + gamma * running
        returns[t] = running
    return returns


def standardize(returns):
    """Returns -> advantages: shifted to mean 0, and scaled to standard deviation 1.

    So even in an episode that is lost 0 to 21, some are positive: the return of an action long
    before the lost point is near 0, which is above the mean. The post's script does this for each
    episode, as here. Its text does it for a batch.
    """
    deviation = returns.std()
    if deviation == 0:  # as when all points are lost, and gamma is 1
        deviation = 1
    return (returns - returns.mean()) / deviation


# ---- game: Pong as the post played it, or an easier one

UP = ale_py.Action.RIGHT  # in this game, right moves the paddle up
DOWN = ale_py.Action.LEFT
NOOP = ale_py.Action.NOOP

GAMES = {  # the name in gym and gymnasium: (fewest frames of a step, most, stickiness)
    "Pong-v0": (2, 4, 0.25),              # the post's
    "Pong-v4": (2, 4, 0.0),
    "ALE/Pong-v5": (4, 4, 0.25),
    "PongDeterministic-v4": (4, 4, 0.0),  # by far the easiest to learn
    "PongNoFrameskip-v4": (1, 1, 0.0),    # hardly learned in 500 episodes
}


class Pong:
    """A game. A step holds its action for some frames, how many may be random. But actions can be
    sticky: on each frame, with that probability, the action of the frame before goes on instead.
    """

    def __init__(self, name, **kwargs):
        self.least, self.most, self.stickiness = GAMES[name]
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        # The emulator can repeat frames and make actions sticky by itself, but with random numbers
        # of its own. So that is switched off here, and done in step. Nothing in it is random then.
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
        for _ in range(self.rng.integers(self.least, self.most + 1)):
            sticks = self.rng.random() < self.stickiness
            if not sticks:
                self.last_action = action
            reward += self.ale.act(self.last_action)
        return prepro(self.ale.getScreen()), reward, self.ale.game_over()


@functools.cache
def get_game(name):
    """A game, the same at each call, as it takes long to start one. Play one episode at a time."""
    return Pong(name)


# ---- rollout: play an episode with the policy

def rollout(game, model, rng, greedy=False):
    """Yields for each step: its input x, the hidden layer h, p(UP), whether it goes UP, the reward.
    A greedy agent always takes the likelier action. Training always samples.
    """
    picture = game.reset(rng)
    previous = picture
    over = False
    while not over:
        x = picture - previous  # the difference frame shows what moves, and where to
        p, h = policy_forward(model, x)
        if greedy:
            goes_up = p > 0.5
        else:
            goes_up = rng.random() < p  # the action is sampled: that is how it explores
        previous = picture
        picture, reward, over = game.step(UP if goes_up else DOWN)
        yield x, h, p, goes_up, reward


# ---- gradient of an episode: make its good actions likelier

def episode_gradient(model, seed, settings):
    """Play an episode. Returns its gradient of J, a dict like the model, and its rewards (T,)."""
    game = get_game(settings.game)
    rng = np.random.default_rng(seed)  # seed: a list of the run's seed and the episode's number
    xs, hs, dlogP_dlogits, rewards = [], [], [], []  # one of each per step
    for x, h, p, goes_up, reward in rollout(game, model, rng):
        # Nobody says which action is right. So pretend that the sampled one was: it is the label.
        # As dp / dlogit = p (1 - p), the derivative of log P(action) is then label - p:
        #     went UP:    dlog(p) / dlogit     = p (1 - p) / p        = 1 - p
        #     went DOWN:  dlog(1 - p) / dlogit = -p (1 - p) / (1 - p) = 0 - p
        label = 1 if goes_up else 0
        xs.append(x)
        hs.append(h)
        dlogP_dlogits.append(label - p)
        rewards.append(reward)

    # The episode is over, so it is known how things went after each action. Weighted with that,
    # the derivatives of log P become those of J: good actions get likelier, and bad ones less so.
    advantages = standardize(discount_rewards(rewards, settings.gamma))
    dJ_dlogits = (np.array(dlogP_dlogits) * advantages).astype(np.float32)
    return policy_backward(model, xs, np.array(hs), dJ_dlogits), rewards


# ---- update: one step uphill

def rmsprop(model, mean_square, gradient, learning_rate, decay_rate):
    """One step of RMSProp (Tieleman and Hinton, 2012). Returns the next model and mean_square.

    mean_square is the running mean of each weight's squared gradients, and its root is their
    typical size. A gradient is divided by that, so a weight moves by about the learning rate,
    whether its gradients are large or small. (The 1e-5 is for those that are always 0.) As
    mean_square begins at 0, the first step is 1 / sqrt(1 - decay_rate) times as long.
    """
    next_model, next_mean_square = {}, {}
    for k, g in gradient.items():  # k is W1, then W2
        next_mean_square[k] = decay_rate * mean_square[k] + (1 - decay_rate) * g**2
        next_model[k] = model[k] + learning_rate * g / (np.sqrt(next_mean_square[k]) + 1e-5)
    return next_model, next_mean_square


# ---- training loop: play a batch of episodes, sum their gradients, update

class Run(NamedTuple):
    """The whole state of a run. It is what save.p holds."""
    settings: Settings
    model: dict                   # W1 and W2
    mean_square: dict             # of the gradients with respect to W1 and W2
    scores: list                  # of each episode so far, -21 to 21
    steps: int                    # in all episodes so far
    seconds: float                # that these took


def new_run(settings, model=None):
    """A run before its first episode, with random weights unless a model is given."""
    if model is None:
        model = new_model(np.random.default_rng([settings.seed, 0]))
    mean_square = {k: np.zeros_like(weights) for k, weights in model.items()}
    return Run(settings, model, mean_square, scores=[], steps=0, seconds=0.0)


def batch_gradients(model, seeds, settings):
    """Play an episode for each seed, one after the other. Yields what episode_gradient returns."""
    for seed in seeds:
        yield episode_gradient(model, seed, settings)


def train(run, episodes, play_batch=batch_gradients):
    """Learn until the run has at least this number of episodes. Yields the run after each batch.

    play_batch: a function like batch_gradients. The command line passes one for all cores.
    """
    settings = run.settings
    while len(run.scores) < episodes:
        began = time.monotonic()
        # Episode n has the seed [seed, n]: default_rng takes a list. n = 0 was for the weights.
        first = len(run.scores) + 1
        seeds = [[settings.seed, n] for n in range(first, first + settings.batch_size)]
        total = {k: np.zeros_like(weights) for k, weights in run.model.items()}
        scores = []
        steps = 0
        for gradient, rewards in play_batch(run.model, seeds, settings):
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


# Here the algorithm ends. It runs by itself, if slowly, in one process:
#
#     for run in train(new_run(Settings()), 100):
#         print(len(run.scores), run.scores[-10:])
#
# The rest is what a night of training needs: a file, all cores, a view of the game. It relies on
# three facts. A run is never changed: each batch makes a new one. So if something goes wrong, the
# run before can be saved. An episode is the same whoever plays it. So what is lost with a killed
# process is played again. And os.replace exchanges a file at once or not at all.


# ---- checkpoint: save.p is two pickles, first the model alone, for other scripts, then the rest

def save(run, path, is_same_run):
    """Save the run. Returns whether that succeeded. The file of another run is kept, renamed."""
    try:
        write(run, path + ".tmp")
        if not is_same_run and os.path.exists(path):
            move_away(path)
        os.replace(path + ".tmp", path)
        return True
    except OSError as error:  # the disk may be full, and have room again next time
        say(f"cannot save: {error}")
        return False


def write(run, file):
    """Write the run to the file. If that fails, the file is removed."""
    rest = run._asdict() | {"settings": run.settings._asdict()}
    model = rest.pop("model")
    try:
        with open(file, "wb") as f:
            pickle.dump(model, f)
            pickle.dump(rest, f)
            f.flush()
            os.fsync(f.fileno())  # it must be on the disk before it takes the old file's place
    except OSError as error:
        with suppress(OSError):
            os.remove(file)
        raise OSError(error.errno, error.strerror, file)  # now with the file's name


def move_away(path):
    """Rename the file to path.1 or, if that is taken, to path.2, and so on."""
    n = 1
    while os.path.lexists(f"{path}.{n}"):
        n += 1
    os.rename(path, f"{path}.{n}")
    say(f"the old {path} is now {path}.{n}")


def between(low, high, kind):
    """A function that makes a number of this kind from a text. Raises if it is out of range."""
    def number(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}")
        return value
    return number


def game_name(text):
    if text not in GAMES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(GAMES)}")
    return text


SETTING_FLAGS = {  # name: how to read it from a flag or a file, and what --help says of it
    "batch_size": (between(1, 100, int), "episodes per update"),
    "learning_rate": (between(0, 1, float), "step size of RMSProp"),
    "gamma": (between(0, 1, float), "discount factor of rewards, per step"),
    "decay_rate": (between(0, 0.9999, float), "how much of RMSProp's mean an update keeps"),
    "seed": (between(0, 2**32 - 1, int), "of all random numbers; --watch draws one"),
    "game": (game_name, ", ".join(GAMES) + "; a saved run has its own"),
}


class StandIn:
    """A pickle says: call this function with these args, and give this state to what it returns. If
    all functions are StandIn, nothing of a stranger's is called, and args and state are kept.
    """

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


class InertUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return dict if name == "OrderedDict" else StandIn  # as some of Python 2 have


def load(path):
    """Read a run, or begin one with weights alone, such as those of the linked script."""
    if not os.path.exists(path):
        fail(f"there is no {path}; train first, or say with --save where the run is")
    with open(path, "rb") as f:
        try:
            model = read_model(InertUnpickler(f, encoding="latin1").load())  # latin1: for Python 2
            if not f.peek(1):  # nothing follows
                return new_run(Settings(), model)
            return read_run(model, InertUnpickler(f).load())
        except Exception as error:  # whatever it is, this file cannot be read
            fail(f"{path} is neither a run nor W1 (200, 6400) and W2 (200,): {ascii(error):.200}")


def read_model(arrays):
    if arrays.keys() != {"W1", "W2"}:
        raise ValueError(f"there are {list(arrays)}")
    W1 = read_array(arrays["W1"], (H, D))
    W2 = read_array(arrays["W2"], (H,))
    return {"W1": W1, "W2": W2}


def read_array(array, shape):
    """The numbers of a pickled numpy array, as float32. Raises if they are not what is needed."""
    if hasattr(array, "state"):  # as in protocol 4
        _, found_shape, dtype, is_fortran, numbers = array.state
        order = "F" if is_fortran else "C"
    else:                        # as in protocol 5
        numbers, dtype, found_shape, order = array.args
    if isinstance(numbers, StandIn):  # in protocol 2, bytes are a call with a text
        numbers = numbers.args[0]
    if isinstance(numbers, str):      # and in Python 2, they are a text
        numbers = numbers.encode("latin1")
    kind = dtype.state[1] + dtype.args[0]  # such as "<" and "f4": the byte order, and float32
    if found_shape != shape or kind not in ("<f4", "<f8", ">f4", ">f8"):
        raise ValueError(f"there is an array {found_shape} of {kind}")
    array = np.frombuffer(numbers, kind).reshape(shape, order=order)
    if not np.abs(array).max() < 1e38:
        raise ValueError("there are numbers that are infinite or NaN, or nearly")
    return np.asfortranarray(array, np.float32)


def read_run(model, rest):
    """The run of this model and the second pickle. Raises if that is no rest of a run."""
    if isinstance(rest, list):  # older versions of this script wrote JSON and two byte strings
        text, W1, W2 = rest
        rest = json.loads(text)
        mean_square = {"W1": np.frombuffer(W1, np.float32).reshape(H, D).copy("F"),
                       "W2": np.frombuffer(W2, np.float32).reshape(H)}
    else:
        mean_square = read_model(rest["mean_square"])
    if not all((squares >= 0).all() for squares in mean_square.values()):
        raise ValueError("there are mean squares that are negative or NaN")
    settings = Settings(**rest["settings"])
    for name, (convert, _) in SETTING_FLAGS.items():
        settings = settings._replace(**{name: convert(getattr(settings, name))})
    scores = [between(-21, 21, int)(score) for score in rest["scores"]]
    return Run(settings, model, mean_square, scores, int(rest["steps"]), float(rest["seconds"]))


def lock(path):
    """Keep a second trainer off path for as long as the returned file is open."""
    f = open(path + ".lock", "a")
    try:
        import fcntl
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # depending on the system
        fail(f"another process is training on {path}; use another --save")
    except (ImportError, OSError):
        pass  # Windows or a network's file system, where there are no such locks
    return f


# ---- training with saves, and stop signals

SAVE_EVERY = 100  # episodes: a kill loses at most so many


def train_and_save(run, path, episodes, play_batch):
    """Train until the run has so many episodes, or is stopped. Returns the exit status."""
    saved = len(run.scores)  # how many of its episodes the file holds; if none, it is another run's
    try:
        for newest in train(run, episodes, play_batch):
            if not all(np.isfinite(squares).all() for squares in newest.mean_square.values()):
                fail("the weights became infinite or NaN; try a lower --learning-rate")
            previous, run = run, newest  # so this batch will be saved, whatever comes
            report(previous, run)
            if len(run.scores) + run.settings.batch_size > saved + SAVE_EVERY:
                if save(run, path, is_same_run=saved > 0):
                    saved = len(run.scores)
    except KeyboardInterrupt:
        pass
    finally:
        if len(run.scores) > saved and save(run, path, is_same_run=saved > 0):
            saved = len(run.scores)
        if saved > 0:
            say(f"{path} holds {saved} episodes; go on with --resume --save {shlex.quote(path)}")
        else:
            say("nothing was saved")
    return 0 if saved == len(run.scores) else 1


def say(message):
    with suppress(OSError):  # the terminal was closed, and nobody can read it
        print(f"pg_pong.py: {message}", file=sys.stderr, flush=True)


def fail(message):
    sys.exit(f"pg_pong.py: {message}")  # prints it, and ends with status 1


def report(previous, run):
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


STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                if hasattr(signal, name)]  # Windows has no SIGHUP


@contextmanager
def stop_signals_noted():
    """Note Ctrl-C, `kill` and a closing terminal in the list that this yields, so that they do not
    interrupt a save. If there are any, Workers.play raises KeyboardInterrupt.
    """
    stop_signals = []
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:  # nohup has SIGHUP ignored, so leave it
            signal.signal(number, lambda *args: stop_signals.append(args))
    try:
        yield stop_signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ignore_stop_signals():
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


# ---- workers: the episodes of a batch are played on all cores

# A forked process is there at once, while a spawned one has to import everything. But on macOS,
# forked processes may crash in the system's libraries, and Windows cannot fork.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Workers:
    """Processes that call function(model, seed, settings), such as episode_gradient.

    Each has a pipe of its own. If it is killed, the pipe ends, and a new process gets the seed. (In
    multiprocessing.Pool, all write to one pipe. If one is killed meanwhile, they wait for ever.)
    """

    def __init__(self, count, function, stop_signals):
        self.memory = CONTEXT.RawArray("f", H * D + H)  # for the weights, which all processes see
        self.count = count
        self.function = function
        self.stop_signals = stop_signals
        self.processes = {}      # {our end of a worker's pipe: the worker}
        self.window = None       # a process that shows games
        self.window_game = None  # which game, if r and Enter are to open and close the window

    def play(self, model, seeds, settings):
        """Yields function(model, seed, settings) for each seed, in their order. So train sums the
        gradients in one order, and rounds them alike, however many workers there are.
        """
        for k, weights in weights_in(self.memory).items():
            weights[:] = model[k]
        waiting = list(enumerate(seeds))  # (number, seed) of the episodes that nobody plays yet
        playing = {}                      # {pipe: (number, seed)} of those that workers play
        results = {}                      # {number: result} of those that are over
        for next_number in range(len(seeds)):
            while next_number not in results:
                while len(self.processes) < self.count:
                    self.start_worker()
                for pipe in self.processes.keys() - playing.keys():
                    if waiting:
                        number, seed = waiting.pop(0)
                        playing[pipe] = number, seed
                        with suppress(OSError):  # it was killed: recv will find that, too
                            pipe.send((seed, *settings))  # under cProfile, pickle finds no Settings
                # Wait for results. Five times a second, look at stop signals and the keyboard.
                ready = wait(list(playing), timeout=0.2)
                if self.stop_signals:
                    raise KeyboardInterrupt
                if self.window_game and r_was_typed():
                    self.toggle_window()
                for pipe in ready:
                    number, seed = playing.pop(pipe)
                    try:
                        results[number] = pipe.recv()
                    except (EOFError, OSError):  # it was killed, perhaps while it wrote
                        waiting.insert(0, (number, seed))
                        self.remove(pipe)
            yield results.pop(next_number)

    def start_worker(self):
        pipe, far_end = CONTEXT.Pipe()
        self.processes[pipe] = start(work, pipe, far_end, self.function, self.memory)
        far_end.close()  # the next worker would inherit it, and the pipe would not end

    def remove(self, pipe):
        worker = self.processes.pop(pipe)
        worker.join()
        if worker.exitcode == 1:  # that is how Python ends after an error
            fail("a worker has ended by the error above")
        say("a worker was killed; a new one plays its episode again")

    def toggle_window(self):
        if self.window and self.window.is_alive():
            self.window.kill()
        else:
            self.window = start(show_beside, self.window_game, self.memory)

    def close(self):
        for process in filter(None, [*self.processes.values(), self.window]):
            process.kill()
            process.join()


def start(function, *args):
    process = CONTEXT.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def work(trainers_end, pipe, function, memory):
    """What a worker does, until the trainer is gone and with it the other end of the pipe. Workers
    that were forked later have a copy of that end. So the last one ends first, and so on.
    """
    trainers_end.close()   # it has a copy itself, too
    ignore_stop_signals()  # the trainer says when to stop
    model = weights_in(memory)
    with suppress(EOFError, ConnectionError):
        while True:
            seed, *settings = pipe.recv()
            pipe.send(function(model, seed, Settings(*settings)))


def weights_in(memory):
    """A model whose weights lie in this memory."""
    numbers = np.frombuffer(memory, np.float32)
    return {"W1": numbers[:H * D].reshape(H, D, order="F"), "W2": numbers[H * D:]}


# ---- looking in: games, the score, and a picture of what was learned

# The drivers with which SDL shows a window. It has others, which only keep it in memory.
VISIBLE = "wayland,x11,cocoa,windows"
BITS = [[1, 8], [2, 16], [4, 32], [64, 128]]  # of the 4x2 dots of a character in Unicode's braille


def open_window(game):
    """A Pong that the emulator shows in a window. Raises RuntimeError without a display."""
    os.environ["SDL_VIDEODRIVER"] = VISIBLE
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # no sound
    return Pong(game, render_mode="human")


def show_games(path, game, rng, greedy):
    """Show game after game of the newest save, in a window or, without a display, as text."""
    try:
        pong = open_window(game)
    except RuntimeError as error:
        if not sys.stdout.isatty():
            fail(f"no window: {error}; try a terminal, or --watch FILE.gif")
        pong = Pong(game)
    while True:
        score = 0
        picture = pong.reset(rng)  # as rollout does again
        for _, _, p, _, reward in rollout(pong, load(path).model, rng, greedy):
            if pong.env.render_mode is None:
                print(f"\x1b[H\x1b[J{braille(picture)}\nscore {score:+}  p(UP) {p:.2f}", flush=True)
                time.sleep((pong.least + pong.most) / 2 / 60)  # a second has 60 frames
                picture = prepro(pong.ale.getScreen())  # what the agent sees next
            score += reward


def braille(picture):
    """A picture (6400,) -> 20 lines of 40 characters, each of 4x2 dots, between two walls."""
    codes = 0x2800 + np.einsum("irjc,rc->ij", picture.reshape(20, 4, 40, 2), BITS)
    lines = ["".join(map(chr, line)) for line in codes]
    return "\n".join(["=" * 40, *lines, "=" * 40])


def show_beside(game, memory):
    ignore_stop_signals()
    try:
        pong = open_window(game)
    except RuntimeError as error:
        fail(f"no window: {error}; use --watch in another terminal")
    while True:
        for _ in rollout(pong, weights_in(memory), np.random.default_rng()):
            if not multiprocessing.parent_process().is_alive():
                return


def r_was_typed():
    """Whether somebody has typed r and Enter. Does not wait for it."""
    try:
        is_in_foreground = os.tcgetpgrp(0) == os.getpgrp()  # not after Ctrl-Z and bg
        if is_in_foreground and select.select([0], [], [], 0)[0]:
            return os.read(0, 100).strip() == b"r"
    except (AttributeError, OSError):
        pass  # this is Windows, or there is no terminal
    return False


def write_gif(pong, model, rng, greedy, file):
    """Draw the 20 seconds up to the agent's first point (or the end), and what the network sees."""
    from PIL import Image
    pace = (pong.least + pong.most) / 2 / 60  # seconds per step
    images = deque(maxlen=round(20 / pace))
    pong.reset(rng)
    screen = pong.ale.getScreenRGB()
    for x, _, _, _, reward in rollout(pong, model, rng, greedy):
        gray = 127 * (x.reshape(80, 80) + 1).astype(np.uint8)  # white came, black went
        seen = gray.repeat(2, axis=0).repeat(2, axis=1)  # as large as the playing field
        both = np.hstack([screen[35:195], np.dstack([seen, seen, seen])])
        images.append(Image.fromarray(both).quantize(32, dither=Image.Dither.NONE))
        if reward > 0:
            break
        screen = pong.ale.getScreenRGB()
    first, *others = [image.resize((640, 320), Image.Resampling.NEAREST) for image in images]
    first.save(file, save_all=True, append_images=others, loop=0, duration=10 * round(100 * pace))


def evaluate(model, settings, count, worker_count, greedy):
    """Play episodes without learning, and report the score. Returns the exit status."""
    seeds = [[settings.seed, n, 1] for n in range(count)]  # the 1: other seeds than in training
    play = functools.partial(play_for_score, greedy)
    scores = []
    with stop_signals_noted() as stop_signals, suppress(KeyboardInterrupt):
        with closing(Workers(min(worker_count, count), play, stop_signals)) as workers:
            for score in workers.play(model, seeds, settings):
                scores.append(score)
                print(f"{len(scores)} of {count}", end="\r", file=sys.stderr, flush=True)
    if len(scores) > 1:
        error = np.std(scores, ddof=1) / np.sqrt(len(scores))
        won = np.mean(np.array(scores) > 0)
        how = "greedy" if greedy else "sampled"
        print(f"{len(scores)} {how} episodes of {settings.game}, seed {settings.seed}: "
              f"mean score {np.mean(scores):+.2f}, standard error {error:.2f}, {won:.1%} won")
    return 0 if len(scores) == count else 130


def play_for_score(greedy, model, seed, settings):
    steps = rollout(get_game(settings.game), model, np.random.default_rng(seed), greedy)
    return sum(reward for *_, reward in steps)


def plot(run, file):
    """Draw the scores, and where each of the 40 strongest neurons pushes the paddle."""
    if "IPython" not in sys.modules:
        os.environ.pop("MPLBACKEND", None)  # from a notebook, and of no use out of it
    from matplotlib.figure import Figure
    pushes = run.model["W1"] * run.model["W2"][:, np.newaxis]  # (200, 6400): positive for UP
    strongest = np.argsort(-np.linalg.norm(pushes, axis=1))[:40]
    neurons = pushes[strongest].reshape(40, 80, 80)
    limit = np.percentile(np.abs(neurons), 99.8)
    figure = Figure(figsize=(10, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    curve = upper.add_subplot(xlabel="episode", ylabel="score, running mean")
    curve.plot(run.scores, ",")
    curve.plot(running_means(run.scores))
    curve.axhline(0, color="black", linewidth=0.8)  # where both players are equally strong
    lower.suptitle("what appears at a white pixel pushes UP, at a black one DOWN")
    for neuron, axes in zip(neurons, lower.subplots(4, 10).flat):
        axes.imshow(neuron, cmap="gray", vmin=-limit, vmax=limit)
        axes.axis("off")
    figure.savefig(file)


# ---- command line

def parse_flags():
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    parser = argparse.ArgumentParser(
        description="Learn Atari Pong from raw pixels by policy gradients.")
    add_one_of = parser.add_mutually_exclusive_group().add_argument
    add_one_of("--resume", action="store_true", help="go on from the saved run and its settings")
    add_one_of("--watch", nargs="?", const="", metavar="FILE.gif",
               help="show games of the saved run, or draw a GIF")
    add_one_of("--eval", type=between(2, 10**6, int), metavar="N",
               help="report the score of N episodes of the saved run")
    add_one_of("--plot", nargs="?", const="pong.png", metavar="FILE.png",
               help="draw the saved run's scores and neurons (default: pong.png)")
    add = parser.add_argument
    add("--greedy", action="store_true", help="--watch and --eval take the likelier action")
    add("--render", action="store_true", help="show games while training; r and Enter toggle it")
    add("--save", default="save.p", metavar="FILE", help="where the run is saved (default: save.p)")
    add("--episodes", type=between(1, 10**9, int), default=np.inf, metavar="N",
        help="end with the batch in which the run gets to N episodes (default: never)")
    add("--workers", type=between(1, 60, int), default=min(60, cores), metavar="N",
        help="processes that play (default: one per core)")
    for name, (convert, meaning) in SETTING_FLAGS.items():
        default = Settings._field_defaults[name]
        add("--" + name.replace("_", "-"), type=convert, metavar="X",
            help=f"{meaning} (default: {default})")
    flags = parser.parse_args()
    for file, ending in [(flags.watch, ".gif"), (flags.plot, ".png")]:
        if file and not file.endswith(ending):  # such as --watch save.p
            parser.error(f"{file} does not end in {ending}; use --save to say which run to show")
    return flags


def run_training(flags, path, given):
    """Train as the flags say. Returns the exit status."""
    if os.path.exists(path) and not os.path.isfile(path):
        fail(f"{path} is no regular file; use another --save")
    with lock(path), stop_signals_noted() as stop_signals:
        if flags.resume:
            run = load(path)
            run = run._replace(settings=run.settings._replace(**given))
        else:
            run = new_run(Settings(**given))
        write(run, path + ".tmp")  # if this fails, it is better found now than in the night
        os.remove(path + ".tmp")
        if flags.resume and not run.scores:
            say("weights alone: as the first steps are long, begin with a lower --learning-rate")
        words = ", ".join(f"{name} {value}" for name, value in run.settings._asdict().items())
        print(f"Learning Pong from episode {len(run.scores)} on: {words}", flush=True)
        count = min(flags.workers, run.settings.batch_size)
        with closing(Workers(count, episode_gradient, stop_signals)) as workers:
            workers.window_game = run.settings.game
            if flags.render:
                workers.toggle_window()
            return train_and_save(run, path, flags.episodes, workers.play)


def run_flags(flags):
    """Do what the flags say. Returns the exit status, or None if all is well."""
    path = os.path.realpath(flags.save)  # a link stays, and what it points to is replaced
    given = {name: value for name, value in vars(flags).items()
             if name in Settings._fields and value is not None}
    if flags.watch is None and flags.eval is None and flags.plot is None:
        return run_training(flags, path, given)
    run = load(path)
    if flags.plot:
        return plot(run, flags.plot)
    settings = run.settings._replace(seed=flags.seed or 0, game=flags.game or run.settings.game)
    if flags.eval:
        return evaluate(run.model, settings, flags.eval, flags.workers, flags.greedy)
    rng = np.random.default_rng(flags.seed)
    if flags.watch:
        return write_gif(Pong(settings.game), run.model, rng, flags.greedy, flags.watch)
    return show_games(path, settings.game, rng, flags.greedy)


def main():
    atexit.register(ignore_stop_signals)  # a second Ctrl-C must not disturb the end
    flags = parse_flags()
    try:
        return run_flags(flags)
    except KeyboardInterrupt:
        return 130
    except ImportError as error:
        fail(f"{error}; try pip install matplotlib pillow")
    except (OSError, UnicodeError) as error:
        fail(error)


if __name__ == "__main__":
    if status := main():
        sys.exit(status)
