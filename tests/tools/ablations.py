"""What is each idea of the post worth? Train variants of the algorithm, and print a table.

    python tests/tools/ablations.py [--only NAME...] [--episodes 1000] [--seeds 0 1 2]
                                    [--folder runs/ablations] [--processes 2] [--plot FILE.png]
    python tests/tools/ablations.py --record tests/tools/records/ablations.json --plot FILE.png

A variant is pg_pong.py, cut where the algorithm ends, with other settings or with a function
replaced. VARIANTS says which. Each run has a process of its own, and is saved to the folder every
100 episodes. Ctrl-C ends it, and the same command goes on from there. When all runs are done, the
same command only prints the table again, and --plot draws its last column.

The second command trains nothing. It takes the running means from a file: those of the README's
ideas, which took some 7 hours of one core. (All variants take 8.) With them, it draws
assets/ideas.png.

The tool does not notice when pg_pong.py changes: begin with an empty folder then.

What was measured beside the means:

- one picture: after 11.3 million steps, seed 0 is at -8.4, and the unchanged one at -7.7. Two
  pictures, by steps: seed 0 is behind the unchanged run, seed 2 ahead, and seed 1 far ahead.
- no reset at points: in a game lost 0 to 21, the standardized returns with and without the reset
  have a correlation of 0.7 to 0.8 (six games).
- plain ascent: at 1e-3, the first layer moves a 17th as far as with RMSProp, and the second twice
  as far. At 1e-2 and 1e-4, the mean of the episodes 501 to 1,000 is -19.5 to -20.9 (six runs).
- gamma 0.9: from a stroke to the point that it wins, the median is 44 steps (84 points of a
  trained agent).
- won points alone: a beginner loses 60% of the games 0 to 21 (of 30), and they teach nothing
  then. Nothing is standardized here, either. Why it
  gets worse than it was, as with gamma 1, we do not know.
- likelier action: with nothing sampled, only the game's own chance brings variety.
"""
import argparse
import functools
import json
import multiprocessing
import os
import pickle
import signal
import sys
import types
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import pg_pong
import numpy as np
from pg_pong import Settings

END = "# Here the algorithm ends."
COLUMNS = [500, 1000]    # episodes: of the table
UNTRAINED = -20.4        # mean score of 600 games with first weights


# ---- what the variants put in the place of functions of the algorithm

def undivided(returns):
    return returns


def divided_alone(returns):
    return returns / (returns.std() or 1)


def won_alone(returns):
    return np.maximum(returns, 0)


def discount_without_reset(rewards, gamma):
    """Each return counts all later points of the episode."""
    returns = np.zeros(len(rewards))
    running = 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] + gamma * running
        returns[t] = running
    return returns


def train_by_batch(run, episodes):
    return pg_pong.train(run, episodes, gradients_by_batch)


def gradients_by_batch(model, seeds, settings):
    """The returns are standardized over the batch, so all of it is played before the gradients."""
    batch = [play(model, seed, settings) for seed in seeds]
    returns = [pg_pong.discount_rewards(rewards, settings.gamma) for *_, rewards in batch]
    mean = np.concatenate(returns).mean()
    deviation = np.concatenate(returns).std()
    for (xs, hs, dlogP_dlogits, rewards), own_returns in zip(batch, returns):
        advantages = (own_returns - mean) / deviation
        dJ_dlogits = (dlogP_dlogits * advantages).astype(np.float32)
        yield pg_pong.policy_backward(model, xs, hs, dJ_dlogits), rewards


def play(model, seed, settings):
    """An episode: inputs, hidden layers, derivatives of log P(action), and rewards."""
    game = pg_pong.get_game(settings.game)
    steps = pg_pong.rollout(game, model, np.random.default_rng(seed))
    xs, hs, ps, ups, rewards = zip(*steps)
    return xs, np.array(hs), np.array(ups) - np.array(ps), rewards


def rollout_of(see, game, model, rng):
    """As rollout, but the network's input is see(picture, previous)."""
    picture = game.reset(rng)
    previous = picture
    over = False
    while not over:
        x = see(picture, previous)
        p, h = pg_pong.policy_forward(model, x)
        goes_up = rng.random() < p
        previous = picture
        picture, reward, over = game.step(pg_pong.UP if goes_up else pg_pong.DOWN)
        yield x, h, p, goes_up, reward


def see_one(picture, previous):
    return picture


def see_two(picture, previous):
    return np.concatenate([picture, previous])


def ascend(rate, model, mean_square, gradient, *_):
    """In the place of rmsprop: plain gradient ascent, which needs no mean_square."""
    next_model = {k: model[k] + rate * g for k, g in gradient.items()}
    return next_model, mean_square


rollout_of_one = functools.partial(rollout_of, see_one)
rollout_of_two = functools.partial(rollout_of, see_two)
greedy_rollout = functools.partial(pg_pong.rollout, greedy=True)

VARIANTS = {  # name: other settings, or what is put in the place of a name of the algorithm
    "unchanged": {},
    "rate 1e-4": {"learning_rate": 1e-4},
    "returns as they are": {"standardize": undivided},
    "mean not subtracted": {"standardize": divided_alone},
    "standardized over the batch": {"train": train_by_batch},
    "won points alone": {"standardize": won_alone},
    "no reset at points": {"discount_rewards": discount_without_reset},
    "gamma 0.9": {"gamma": 0.9},
    "gamma 1": {"gamma": 1.0},
    "one picture": {"rollout": rollout_of_one},
    "two pictures": {"rollout": rollout_of_two, "D": 2 * pg_pong.D},
    "plain ascent, rate 1e-2": {"rmsprop": functools.partial(ascend, 1e-2)},
    "plain ascent, rate 1e-3": {"rmsprop": functools.partial(ascend, 1e-3)},
    "plain ascent, rate 1e-4": {"rmsprop": functools.partial(ascend, 1e-4)},
    "batch of 1": {"batch_size": 1},
    "batch of 50": {"batch_size": 50},
    "likelier action, not sampled": {"rollout": greedy_rollout},
    "none sticky, 2 to 4 frames": {"game": "Pong-v4"},
    "four frames, sticky": {"game": "ALE/Pong-v5"},
    "four frames, none sticky": {"game": "PongDeterministic-v4"},
}


# ---- training

def build(name, seed):
    """A variant: the algorithm as a module, and its settings."""
    text, line, _ = (ROOT / "pg_pong.py").read_text().partition(END)
    if not line:
        sys.exit(f"ablations.py: there is no line {END}")
    algorithm = types.ModuleType("variant")
    exec(compile(text, name, "exec"), vars(algorithm))
    settings = algorithm.Settings(seed=seed)
    for key, value in VARIANTS[name].items():
        if key in Settings._fields:
            settings = settings._replace(**{key: value})
        else:
            change(algorithm, key, value)
    return algorithm, settings


def change(algorithm, name, value):
    getattr(algorithm, name)  # raises if the algorithm has nothing of this name
    setattr(algorithm, name, value)


def file_of(folder, name, seed):
    words = name.replace(",", "").split()
    return folder / f"{'-'.join(words)}.{seed}.p"


def read(file):
    """What a run has so far: a dict of the fields of Run, without its settings."""
    return pickle.loads(file.read_bytes())


def write(file, run):
    fields = run._asdict()
    del fields["settings"]
    half = file.with_suffix(".tmp")
    half.write_bytes(pickle.dumps(fields))
    half.replace(file)


def learn(job):
    """Train a variant, or go on with it, and save it along the way."""
    folder, name, seed, episodes = job
    file = file_of(folder, name, seed)
    algorithm, settings = build(name, seed)
    if file.exists():
        run = algorithm.Run(settings, **read(file))
    else:
        run = algorithm.new_run(settings)
    saved = len(run.scores)
    for run in algorithm.train(run, episodes):
        done = len(run.scores)
        if done >= saved + pg_pong.SAVE_EVERY or done >= episodes:
            write(file, run)
            saved = done
            mean = pg_pong.running_means(run.scores)[-1]
            print(f"{name}, seed {seed}: {done} episodes, {mean:+.2f}", file=sys.stderr, flush=True)


# ---- table and picture

def means_after(args, name, episodes):
    """The running means after so many episodes, of the runs that have got so far."""
    if args.record:
        return args.record.get(name, {}).get(str(episodes), [])
    means = []
    for seed in args.seeds:
        file = file_of(args.folder, name, seed)
        scores = read(file)["scores"] if file.exists() else []
        if len(scores) >= episodes:
            means.append(pg_pong.running_means(scores)[episodes - 1])
    return means


def print_table(args):
    columns = [n for n in COLUMNS if n < args.episodes] + [args.episodes]
    print("| variant |", " | ".join(f"{n:,}" for n in columns), "|")
    print("|---" * (1 + len(columns)) + "|")
    for name in args.only:
        cells = []
        for n in columns:
            cells.append(", ".join(f"{mean:+.1f}" for mean in means_after(args, name, n)))
        if any(cells):
            print("|", name, "|", " | ".join(cells), "|")


def draw(args):
    """A row for each variant, the best on top: a dot for each seed, and a bar for the median."""
    from matplotlib.figure import Figure
    means = {name: means_after(args, name, args.episodes) for name in args.only}
    names = [name for name in means if means[name]]
    names.sort(key=lambda name: median(means[name]))
    figure = Figure(figsize=(9, 1.5 + 0.29 * len(names)), layout="constrained")
    axes = figure.add_subplot(xlabel=f"running mean of the score after {args.episodes:,} episodes")
    for row, name in enumerate(names):
        color = "tab:red" if name == "unchanged" else "tab:blue"
        axes.plot(means[name], [row] * len(means[name]), "o", color=color, alpha=0.7, ms=6)
        axes.plot(median(means[name]), row, "|", color=color, ms=17, mew=3)
    unchanged = means.get("unchanged")
    if unchanged:
        axes.axvspan(min(unchanged), max(unchanged), color="tab:red", alpha=0.13, lw=0,
                     label="range of the unchanged runs")
    axes.axvline(UNTRAINED, color="black", lw=1, ls="--", label=f"untrained: {UNTRAINED}")
    axes.plot([], [], "o", color="tab:blue", alpha=0.7, label="a run")
    axes.plot([], [], "|", color="tab:blue", ms=12, mew=3, label="the median")
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == "unchanged" else "normal")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(args.plot, dpi=100)


# ---- command line

def read_record(file):
    """{variant: {episodes: running means after them, one for each seed}}"""
    try:
        return json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(error)


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = list(VARIANTS)
    add("--only", nargs="+", choices=names, default=names, metavar="NAME",
        help="of: " + ", ".join(f'"{name}"' for name in names))
    add("--episodes", type=int, default=1000)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--folder", type=Path, default=ROOT / "runs" / "ablations")
    add("--processes", type=int, default=os.cpu_count(), help="runs at a time")
    add("--plot", metavar="FILE.png", help="draw the last column, too")
    add("--record", type=read_record, metavar="FILE.json", help="train nothing: take these means")
    args = parser.parse_args()
    if args.record and not means_after(args, "unchanged", args.episodes):
        parser.error(f"the record has no means after {args.episodes} episodes")
    return args


def main():
    args = parse_flags()
    if not args.record:
        train_all(args)
    print_table(args)
    if args.plot:
        draw(args)


def train_all(args):
    for name in VARIANTS:
        build(name, seed=0)  # so that a change that no longer fits is found before the first hour
    args.folder.mkdir(parents=True, exist_ok=True)
    jobs = [(args.folder, name, seed, args.episodes) for seed in args.seeds for name in args.only]
    ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.Pool(args.processes, signal.signal, ignore_ctrl_c) as pool:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends it as Ctrl-C does
        for _ in pool.imap_unordered(learn, jobs):
            pass


if __name__ == "__main__":
    main()
