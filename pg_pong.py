"""Learn Atari Pong from raw pixels by policy gradients: one file of numpy.

    python pg_pong.py             learn from scratch until Ctrl-C, saving to save.p along the way
    python pg_pong.py --resume    go on from save.p as if it had never stopped
    python pg_pong.py --watch     show games of the agent in save.p, in a window or the terminal
    python pg_pong.py --eval 100  play 100 episodes without learning, and report the score
    python pg_pong.py --plot      draw what was learned, to pong.png

The algorithm is that of Andrej Karpathy's post "Deep Reinforcement Learning: Pong from Pixels"
(2016). Play, and sample each action from a policy. Then make the actions with a return above the
average more likely, and the others less likely. What differs from the script it links to:
1. The learning rate is 1e-3, not 1e-4. Three runs drew level after 4,400 to 8,000 episodes.
2. Pong-v0 runs on today's emulator, for some 36,000 steps (108,000 frames) at most, not 10,000.
3. An episode depends on weights, seed and number alone, so any process can play it.
4. save.p holds the whole run, and the weights are float32.
"""
import argparse
import itertools
import json
import multiprocessing as mp
import os
import pickle
import pickletools
import signal
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrix products are too small for threads
import ale_py
import gymnasium
import numpy as np

SETTINGS = {
    "batch_size": 10,        # episodes per update
    "learning_rate": 1e-3,
    "gamma": 0.99,           # discount factor of rewards, per step
    "decay_rate": 0.99,      # of RMSProp's running mean of squared gradients
    "seed": 0,               # of all random numbers
}
D, H = 80 * 80, 200          # the network: input pixels, hidden neurons
SAVE_EVERY = 100             # episodes
NOOP, UP, DOWN = ale_py.Action.NOOP, ale_py.Action.RIGHT, ale_py.Action.LEFT  # right moves up

# ---- preprocessing: the screen becomes a small picture in black and white
# 0 where the screen shows background: the emulator's color codes 0, 34 and 228 or, in the post's
# RGB frames, the reds 0, 109 and 144. 1 for paddles and ball. Codes are 20 times faster to get.
LIT = np.int8(~np.isin(range(256), [0, 34, 228, 109, 144]))

def prepro(screen):
    """(210, 160) codes or (210, 160, 3) RGB -> the playing field, halved: (6400,) of 0 and 1."""
    return LIT.take(screen.reshape(210, 160, -1)[35:195:2, ::2, 0]).ravel()

# ---- policy: a small network gives the probability to go UP
def new_model(rng):
    """Gaussian weights divided by the root of the number of inputs: W1 (200, 6400), W2 (200,)."""
    W1 = rng.standard_normal((H, D)) / np.sqrt(D)
    W2 = rng.standard_normal(H) / np.sqrt(H)
    return {"W1": W1.astype(np.float32), "W2": W2.astype(np.float32)}

@np.errstate(over="ignore")  # of exp: 1 / inf is the right 0
def policy_forward(model, x):
    """Difference frame x (6400,) -> probability of UP, hidden layer h (200,)."""
    moved = (x != 0).nonzero()[0]         # some 20 pixels
    h = model["W1"][:, moved] @ x[moved]  # W1 @ x, as the others are 0
    h = np.maximum(h, 0)                  # relu
    logit = np.float64(model["W2"] @ h)   # float64, or p rounds to 1 too soon
    p = 1 / (1 + np.exp(-logit))          # sigmoid
    return p, h

def policy_backward(model, xs, hs, dlogits):
    """xs (T, 6400), hs (T, 200), gradient with respect to logits (T,) -> with respect to W1, W2."""
    dhs = np.outer(dlogits, model["W2"])
    dhs[hs <= 0] = 0  # relu
    return {"W1": sparse_product(dhs.T, xs), "W2": dlogits @ hs}  # dhs.T @ xs

# ---- returns: an action is as good as the next point, discounted
def discount_rewards(rewards, gamma):
    """The return of each step, (T,) float64: G_t = r_t at a point, gamma G_{t+1} elsewhere."""
    returns = np.zeros(len(rewards))
    running = 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] if rewards[t] != 0 else gamma * running
        returns[t] = running
    return returns

# ---- one episode: play it, and find the gradient that makes its good actions likelier
def make_env(**kw):
    """Pong without chance: step() adds that of Pong-v0. Ends at 21 points or 108,000 frames."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0, **kw).unwrapped

def step(env, action, held, rng):
    """As in Pong-v0, an action lasts 2 to 4 frames. Sticky actions: with probability 0.25 a frame
    repeats `held`, the action of the frame before. Returns the reward and the new `held`."""
    reward = 0
    for _ in range(rng.integers(2, 5)):
        if rng.random() >= 0.25:
            held = action
        reward += env.ale.act(held)
    return reward, held

def play(env, model, rng):
    """Play an episode. Yields x, h, p(UP), whether it went UP, and the reward of each step."""
    env.reset()
    picture = prepro(env.ale.getScreen())
    held = NOOP
    while not env.ale.game_over():
        previous, picture = picture, prepro(env.ale.getScreen())
        x = picture - previous  # difference frame: what moves, and where. 0 at first
        p, h = policy_forward(model, x)
        up = rng.random() < p  # the action is sampled: that is how it explores
        reward, held = step(env, UP if up else DOWN, held, rng)
        yield x, h, p, up, reward

def learn_from_episode(env, model, rng, gamma):
    """Play an episode. Returns its policy gradient, a dict like the model, and its rewards."""
    xs, hs, ps, ups, rewards = zip(*play(env, model, rng))  # of T steps each
    returns = discount_rewards(rewards, gamma)
    advantages = (returns - returns.mean()) / (returns.std() or 1)  # the mean is the baseline
    # Pretend that the action taken was right, and take it as the label. Then label - p is the
    # gradient of log p(action) with respect to the logit: along it, the action gets likelier.
    # Times its advantage: one that did better than average gets likelier, the others less likely.
    labels = np.array(ups, float)  # 1 for UP, 0 for DOWN
    dlogits = (labels - np.array(ps)) * advantages
    gradient = policy_backward(model, xs, np.array(hs), dlogits.astype(np.float32))
    return gradient, rewards

# ---- update: one step uphill
def rmsprop(model, cache, gradient, learning_rate, decay_rate):
    """RMSProp (Tieleman and Hinton, 2012). The cache is the running mean of squared gradients."""
    cache = {k: decay_rate * cache[k] + (1 - decay_rate) * g**2 for k, g in gradient.items()}
    model = {k: model[k] + learning_rate * g / (cache[k]**0.5 + 1e-5) for k, g in gradient.items()}
    return model, cache

# ---- training loop: play a batch, sum the gradients, update, print
Run = namedtuple("Run", "settings model rmsprop_cache scores steps seconds")  # save.p holds it

def new_run(settings, model=None):
    """A run with the given model, or with a random one from default_rng([seed, 0])."""
    model = model or new_model(np.random.default_rng([settings["seed"], 0]))
    return Run(settings, model, {k: np.zeros_like(w) for k, w in model.items()}, [], 0, 0.0)

def learn_from_batch(run, workers=None):
    """Returns the run after one more batch. A run's n-th episode uses default_rng([seed, n])."""
    began = time.monotonic()
    batch_size, learning_rate, gamma, decay_rate, seed = run.settings.values()  # in this order
    seeds = [[seed, len(run.scores) + i] for i in range(1, batch_size + 1)]
    if not workers:  # one episode after the other
        env = make_env()
        batch = [learn_from_episode(env, run.model, np.random.default_rng(s), gamma) for s in seeds]
    else:  # the same in parallel: what main() does
        batch = list(rollouts(workers, run.model, seeds, gamma))
    gradient = {k: sum(g[k] for g, _ in batch) for k in run.model}
    model, cache = rmsprop(run.model, run.rmsprop_cache, gradient, learning_rate, decay_rate)
    scores = [sum(rewards) for _, rewards in batch]
    steps = sum(len(rewards) for _, rewards in batch)
    return Run(run.settings, model, cache, run.scores + scores, run.steps + steps,
               run.seconds + time.monotonic() - began)

def running_means(scores):
    """The running mean of the scores, after each episode."""
    return list(itertools.accumulate(scores, lambda mean, score: 0.99 * mean + 0.01 * score))

def train(run, episodes, workers=None):
    """Yields the run after each batch, until it has that many episodes."""
    while len(run.scores) < episodes:
        run = learn_from_batch(run, workers)
        yield run  # to be saved, even if printing fails
        score = np.mean(run.scores[-run.settings["batch_size"]:])
        print(f"episode {len(run.scores)}  score {score:+.1f}  "
              f"running mean {running_means(run.scores)[-1]:+.2f}  "
              f"{run.steps / run.seconds:.0f} steps/s  {run.seconds / 3600:.2f} h", flush=True)

# Here the algorithm ends. What follows is plumbing.
def sparse_product(A, xs):
    """A (200, T) @ xs (T, 6400), by 64 steps at a time, without the pixels that are 0 in all."""
    product = np.zeros((H, D), A.dtype, order="F")
    for t in range(0, len(xs), 64):
        x = np.array(xs[t:t + 64])
        moved = x.any(axis=0)
        product[:, moved] += A[:, t:t + 64] @ x[:, moved]
    return product

# ---- checkpoint: save.p is two pickles, first the model alone, for other scripts, then the rest
def train_and_save(run, path, episodes, workers):
    """Train until a stop signal comes or all is done, and save. Returns the exit status."""
    saved = run  # while it has no scores, a file at path is another run's
    try:
        with suppress(KeyboardInterrupt):
            for run in train(run, episodes, workers):
                due = len(run.scores) % SAVE_EVERY < run.settings["batch_size"]
                if due and save(run, path, keep_old=not saved.scores):
                    saved = run
    finally:
        if run is not saved and save(run, path, keep_old=not saved.scores):
            saved = run
        complain(f"{path} holds {len(saved.scores)} episodes; go on with --resume"
                 if saved.scores else "nothing was saved")
    return 0 if run is saved else 1

def save(run, path, keep_old):
    """Write the run to path, wholly or not at all. Returns whether it worked."""
    doc = {k: v for k, v in run._asdict().items() if k not in ("model", "rmsprop_cache")}
    try:
        with open(path + ".tmp", "wb") as f:
            pickle.dump({k: w.copy("C") for k, w in run.model.items()}, f, 4)
            pickle.dump([json.dumps(doc), *(w.tobytes() for w in run.rmsprop_cache.values())], f, 4)
            f.flush()
            os.fsync(f.fileno())  # on the disk before the old file goes
        if keep_old and os.path.exists(path):
            names = (f"{path}.{n}" for n in itertools.count(1))
            kept = next(name for name in names if not os.path.lexists(name))
            os.rename(path, kept)
            complain(f"the old {path} is now {kept}")
        os.replace(path + ".tmp", path)
        return True
    except OSError as problem:
        complain(f"cannot save to {path}: {problem.strerror}")
        with suppress(OSError):
            os.remove(path + ".tmp")
        return False

LIMITS = {"batch_size": (int, 1, 100), "learning_rate": (float, 0, 1), "gamma": (float, 0, 1),
          "decay_rate": (float, 0, 0.9999), "seed": (int, 0, 2**32 - 1)}
def limited(kind, low, high):
    """A type for numbers on the command line and in save.p."""
    def number(value):
        if not low <= kind(value) <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return kind(value)
    return number

def read_constants(f):
    """The strings and bytes in the next pickle of f. A pickle is a program that may call any
    function, and a save.p may come from anybody. So it is read, but never run."""
    return [c for _, c, _ in pickletools.genops(f) if isinstance(c, (str, bytes, bytearray))]

def find_model(constants):
    """W1 and W2, float32 or float64, are the two long constants. Raises an exception if not."""
    constants = [c.encode("latin1") if isinstance(c, str) else c for c in constants]  # protocol 2
    W2, W1 = sorted([c for c in constants if len(c) >= 4 * H], key=len)
    kinds = {4: np.float32, 8: np.float64}  # bytes per number
    model = {"W1": np.frombuffer(W1, kinds[len(W1) // (H * D)]).reshape(H, D),
             "W2": np.frombuffer(W2, kinds[len(W2) // H]).reshape(H)}
    if not all(np.isfinite(w).all() for w in model.values()):
        raise ValueError("not finite")
    return {k: w.astype(np.float32) for k, w in model.items()}

def load(path):
    """Read a run, or begin one with the weights of the linked script. Exits if the file is bad."""
    if not os.path.exists(path):
        fail(f"there is no {path}; a run without --resume makes it")
    with open(path, "rb") as f:
        try:
            model = find_model(read_constants(f))
            if not f.peek(1):  # no second pickle
                return new_run(SETTINGS, model)
            text, *cache = read_constants(f)
            rest = json.loads(text)
            settings = {k: limited(*LIMITS[k])(rest["settings"][k]) for k in SETTINGS}
            scores = list(map(limited(int, -21, 21), rest["scores"]))
            return Run(settings, model, find_model(cache), scores,
                       int(rest["steps"]), float(rest["seconds"]))
        except Exception as problem:  # the file is to blame
            fail(f"{path} is damaged or no run: {problem!r:.200}")

def lock(path):
    """Keep a second trainer off path as long as the file returned is open."""
    f = open(path + ".lock", "a")
    with suppress(ModuleNotFoundError):  # Windows
        import fcntl
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fail(f"another process is training on {path}; use another --save")
    return f

# ---- processes: any of them can play any episode
PROCESSES = mp.get_context("fork" if sys.platform == "linux" else "spawn")
stop_signals = []  # those that came

def on_stop_signals(handler):
    for number in {1, 2, 15} & signal.valid_signals():  # SIGHUP, SIGINT, SIGTERM
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup
            signal.signal(number, handler)

def shared_model(memory):
    """Weights that the processes share. order="F" puts a pixel's 200 side by side: 8% faster."""
    flat = np.frombuffer(memory, np.float32)
    return {"W1": flat[:H * D].reshape(H, D, order="F"), "W2": flat[H * D:]}

@contextmanager
def start_workers(count):
    """A pool of processes that play, and the memory with their weights."""
    on_stop_signals(lambda number, frame: stop_signals.append(number))
    memory = PROCESSES.RawArray("f", H * D + H)
    pool = ProcessPoolExecutor(count, PROCESSES, begin_child, [memory])
    try:
        pool.submit(int)  # forks them all, before there are threads
        yield pool, memory
    finally:
        for process in mp.active_children():
            process.kill()
        end = threading.Thread(target=pool.shutdown, daemon=True)
        end.start()
        end.join(0.5)  # it hangs if a worker was killed in mid-message

def begin_child(memory):
    """Get ready to play, leave stop signals to the trainer, and end when it ends."""
    global env, model
    on_stop_signals(signal.SIG_IGN)
    threading.Thread(target=lambda: mp.parent_process().join() or os._exit(1), daemon=True).start()
    env = make_env() if mp.current_process().name != "window" else None
    model = shared_model(memory)

def rollout(seed, gamma):
    """In a worker: learn from an episode. Most of dW1 is 0, and is not sent."""
    gradient, rewards = learn_from_episode(env, model, np.random.default_rng(seed), gamma)
    moved = gradient["W1"].any(axis=0)
    return moved, gradient["W1"][:, moved], gradient["W2"], rewards

def rollouts(workers, model, seeds, gamma):
    """Yields gradient and rewards by seed. Raises BrokenExecutor, or KeyboardInterrupt to stop."""
    pool, memory = workers
    for k, weights in shared_model(memory).items():
        weights[:] = model[k]
    futures = [pool.submit(rollout, seed, gamma) for seed in seeds]
    processes = [p for p in mp.active_children() if p.name != "window"]
    while futures:
        if stop_signals:
            raise KeyboardInterrupt
        if not all(p.is_alive() for p in processes):  # the pool misses it in mid-message
            raise BrokenExecutor("A worker terminated abruptly")
        if wait(futures[:1], timeout=0.2).done:
            moved, columns, dW2, rewards = futures.pop(0).result()
            dW1 = np.zeros_like(model["W1"])
            dW1[:, moved] = columns
            yield {"W1": dW1, "W2": dW2}, rewards

# ---- looking in
def show_games(newest_model, rng):
    """Show game after game, in a window or, if there is no display, in the terminal."""
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # no sound
    os.environ.setdefault("SDL_VIDEODRIVER", "wayland,x11,cocoa,windows")  # visible
    try:
        env = make_env(render_mode="human")
    except RuntimeError as problem:
        if mp.parent_process() or not os.isatty(1):
            fail(f"no window: {problem}; try a terminal, or --watch FILE.gif")
        env = make_env()
    while True:
        score = 0
        for _, _, p, _, reward in play(env, newest_model(), rng):
            score += reward
            if not env.render_mode:
                picture = braille(prepro(env.ale.getScreen()))
                print(f"\x1b[H\x1b[J{picture}\nscore {score:+}  p(UP) {p:.2f}", flush=True)
                time.sleep(3 / 60)  # 3 frames at 60 per second

def braille(picture):
    """(6400,) of 0 and 1 -> 20 lines of 40 characters with 2x4 dots each."""
    dots = np.array([[1, 8], [2, 16], [4, 32], [64, 128]]).reshape(4, 1, 2)  # Unicode's numbers
    codes = 0x2800 + (picture.reshape(20, 4, 40, 2) * dots).sum(axis=(1, 3))
    return "\n".join("".join(map(chr, line)) for line in codes)

def show_beside(memory):
    begin_child(memory)
    show_games(lambda: model, np.random.default_rng())

def toggle_window(memory):
    for process in mp.active_children():
        if process.name == "window":
            return process.kill() or process.join()
    spawn = mp.get_context("spawn")  # beside threads, fork is not safe
    spawn.Process(target=show_beside, args=[memory], name="window", daemon=True).start()

def read_keys(memory):
    """A thread that toggles the window when r and Enter are typed."""
    with suppress(OSError):  # the terminal has gone, or has another job
        while os.isatty(0) and (typed := os.read(0, 100)):
            if typed.strip() == b"r":
                toggle_window(memory)

def write_gif(file, model, rng):
    """Draw an episode up to the first point it wins, and beside it what the network sees."""
    from PIL import Image
    env = make_env()
    images = []
    picture = 0
    for *_, reward in play(env, model, rng):
        previous, picture = picture, prepro(env.ale.getScreen())
        x = np.uint8([0, 128, 255])[1 + picture - previous].reshape(80, 80, 1)
        both = np.hstack([env.ale.getScreenRGB()[35:195], np.kron(x, np.ones((2, 2, 3), np.uint8))])
        images.append(Image.fromarray(both).resize((640, 320), 0).quantize(32, dither=0))
        if reward > 0:
            break
    images[1].save(file, save_all=True, append_images=images[2:], loop=0, duration=50)  # ms

def evaluate(path, count, worker_count, seed):
    """Play episodes. The 1 in their seeds sets them apart from those of training."""
    run = load(path)
    scores = []
    with start_workers(worker_count) as workers:
        for _, rewards in rollouts(workers, run.model, [[seed, n, 1] for n in range(count)], 1):
            scores.append(sum(rewards))
            print(f"{len(scores)} of {count}", end="\r", file=sys.stderr, flush=True)
    mean = np.mean(scores)
    half = 1.96 * np.std(scores, ddof=1) / count**0.5
    print(f"{count} episodes of {path}, seed {seed}: mean score {mean:+.2f} (95% interval "
          f"{mean - half:+.2f} to {mean + half:+.2f}), {np.mean(np.sign(scores) > 0):.1%} won")

def plot(path, file):
    """Draw the scores, and W1 times W2 of 40 neurons: large ones that are unlike each other."""
    from matplotlib.figure import Figure
    run = load(path)
    votes = run.model["W1"] * run.model["W2"][:, np.newaxis]
    sizes = np.linalg.norm(votes, axis=1)
    similar = np.abs(votes @ votes.T) / np.outer(sizes, sizes)
    chosen = []
    for _ in range(40):
        novelty = 1 - similar[chosen].max(axis=0, initial=0)
        chosen.append(np.argmax(sizes * novelty**4))
    tiles = np.pad(votes[chosen].reshape(4, 10, 80, 80), [(0, 0), (0, 0), (3, 3), (3, 3)])
    limit = np.percentile(np.abs(tiles), 99.8)
    figure = Figure(figsize=(10, 9), layout="constrained")
    curve = figure.add_subplot(211, xlabel="episode", ylabel="score, running mean")
    curve.plot(run.scores, ",", running_means(run.scores), "-")
    curve.axhline(0, color="black", linewidth=0.8)  # even
    neurons = figure.add_subplot(212, xticks=[], yticks=[], title="white says UP, black says DOWN")
    neurons.imshow(np.hstack(np.hstack(tiles)), cmap="gray", vmin=-limit, vmax=limit)
    figure.savefig(file)

# ---- command line
def complain(message):
    with suppress(OSError):  # nobody reads it
        print(f"pg_pong.py: {message}", file=sys.stderr, flush=True)

def fail(message):
    complain(message)
    sys.exit(2)

def main():
    """Read the command line and do what it says. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    count = limited(int, 1, 10**9)
    flag("--resume", action="store_true", help="go on from the saved run, with its settings")
    flag("--watch", metavar="GIF", nargs="?", const="", help="show games of the saved run, or draw")
    flag("--eval", metavar="N", type=limited(int, 2, 10**6), help="report the score of N episodes")
    flag("--plot", metavar="FILE", nargs="?", const="pong.png", help="draw the run (pong.png)")
    flag("--render", action="store_true", help="train and show a game; r and Enter toggle it")
    flag("--save", dest="path", default="save.p", help="where the run is saved (save.p)")
    flag("--episodes", type=count, default=np.inf, help="stop at so many (never)")
    flag("--workers", type=count, default=os.cpu_count(), help="processes that play (one per core)")
    for name, default in SETTINGS.items():
        flag("--" + name.replace("_", "-"), type=limited(*LIMITS[name]), help=f"({default})")
    flags = parser.parse_args()
    if not ((flags.watch or ".gif").endswith(".gif")
            and (flags.plot or ".png").endswith((".png", ".svg"))):
        parser.error("--watch draws a .gif, --plot a .png or .svg")
    if flags.watch:
        return write_gif(flags.watch, load(flags.path).model, np.random.default_rng(flags.seed))
    if flags.watch == "":
        return show_games(lambda: load(flags.path).model, np.random.default_rng(flags.seed))
    if flags.eval:
        return evaluate(flags.path, flags.eval, flags.workers, flags.seed or 0)
    if flags.plot:
        return plot(flags.path, flags.plot)
    path = os.path.realpath(flags.path)  # a link stays a link
    if os.path.exists(path) and not os.path.isfile(path):
        fail(f"{path} is no regular file; use another --save")
    changed = {k: getattr(flags, k) for k in SETTINGS if getattr(flags, k) is not None}
    with lock(path):
        run = load(path) if flags.resume else new_run(SETTINGS | changed)
        run = run._replace(settings=run.settings | changed)
        print(f"Learning Pong from episode {len(run.scores)} on: {run.settings}", flush=True)
        with start_workers(min(flags.workers, run.settings["batch_size"])) as workers:
            if flags.render:
                toggle_window(workers[1])
            if hasattr(signal, "SIGTTIN"):
                signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # reading stops no background job
            threading.Thread(target=read_keys, args=[workers[1]], daemon=True).start()
            return train_and_save(run, path, flags.episodes, workers)

if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    except (OSError, BrokenExecutor) as problem:
        status = complain(problem) or 2
    except ModuleNotFoundError as problem:
        status = complain(f"{problem}; try pip install matplotlib pillow") or 2
    # or Python waits for a pool that hangs
    threading.Thread(target=lambda: time.sleep(1) or os._exit(status or 0), daemon=True).start()
    sys.exit(status)
