"""What is each idea of the post worth? Train variants of the algorithm, and print a table.

    python tests/tools/ablations.py [--only NAME...] [--episodes 1000] [--seeds 0 1 2]
                                    [--folder runs/ablations] [--processes 2]

A variant is pg_pong.py, cut where the algorithm ends, with a few lines changed. Each run has a
process of its own, and is saved to the folder every 100 episodes. Ctrl-C ends it, and the same
command goes on from there. To see the lines that a variant changes, read VARIANTS.

A change of pg_pong.py is not noticed: then begin with an empty folder.
"""
import argparse
import multiprocessing
import pickle
import signal
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import pg_pong

END = "# Here the algorithm ends."
COLUMNS = [500, 1000]    # episodes: of the table

OVER_THE_BATCH = """
    episodes = [episode_gradient(model, seed, gamma) for seed in seeds]
    returns = [discount_rewards(rewards, gamma) for _, rewards in episodes]
    mean = np.concatenate(returns).mean()
    deviation = np.concatenate(returns).std()
    for (played, rewards), own_returns in zip(episodes, returns):
        xs, hs, dlogits = played
        advantages = (own_returns - mean) / deviation
        dlogits = (dlogits * advantages).astype(np.float32)
        yield policy_backward(model, xs, hs, dlogits), rewards
"""

ADVANTAGES = "(returns - returns.mean()) / deviation"
DIFFERENCE = "x = picture - previous "
RMSPROP = "learning_rate * g / (np.sqrt(next_mean_square[k]) + 1e-5)"

VARIANTS = {  # name: pairs of what stands once in the algorithm, and what replaces it
    "as it is": [],
    "rate 1e-4": [
        ("learning_rate: float = 1e-3", "learning_rate: float = 1e-4")],
    "returns as they are": [
        (ADVANTAGES, "returns")],
    "mean not subtracted": [
        (ADVANTAGES, "returns / deviation")],
    "standardized over the batch": [
        ("advantages = standardize(discount_rewards(rewards, gamma))", "advantages = 1"),
        ("dlogits = (np.array(dlogits) * advantages).astype(np.float32)", "pass"),
        ("return policy_backward(model, xs, np.array(hs), dlogits), rewards",
         "return (xs, np.array(hs), np.array(dlogits)), rewards"),
        ("    for seed in seeds:\n        yield episode_gradient(model, seed, gamma)\n",
         OVER_THE_BATCH)],
    "won points alone": [
        (ADVANTAGES, "np.maximum(returns, 0)")],
    "no reset at points": [
        ("running = 0.0  # a point ends", "pass  # a point ends")],
    "gamma 0.9": [
        ("gamma: float = 0.99 ", "gamma: float = 0.9 ")],
    "gamma 1": [
        ("gamma: float = 0.99 ", "gamma: float = 1.0 ")],
    "one picture": [
        (DIFFERENCE, "x = picture ")],
    "two pictures": [
        ("D = 80 * 80 ", "D = 2 * 80 * 80 "),
        (DIFFERENCE, "x = np.concatenate([picture, previous]) ")],
    "plain ascent, rate 1e-2": [
        (RMSPROP, "1e-2 * g")],
    "plain ascent, rate 1e-3": [
        (RMSPROP, "1e-3 * g")],
    "plain ascent, rate 1e-4": [
        (RMSPROP, "1e-4 * g")],
    "batch of 1": [
        ("batch_size: int = 10 ", "batch_size: int = 1 ")],
    "batch of 50": [
        ("batch_size: int = 10 ", "batch_size: int = 50 ")],
    "likelier action, not sampled": [
        ("goes_up = rng.random() < p ", "goes_up = p > 0.5 ")],
    "four frames, none sticky": [
        ("range(self.rng.integers(2, 5))", "range(4)"),
        ("sticky = self.rng.random() < 0.25", "sticky = False")],
}


def source(name):
    """The text of pg_pong.py down to where the algorithm ends, with the edits of a variant."""
    text = (ROOT / "pg_pong.py").read_text().partition(END)[0]
    for old, new in VARIANTS[name]:
        if text.count(old) != 1:
            sys.exit(f"ablations.py: of {name}: not once in the algorithm: {old}")
        text = text.replace(old, new)
    return text


def build(name):
    """A variant as a module."""
    module = types.ModuleType("variant")
    exec(compile(source(name), name, "exec"), vars(module))
    return module


def file_of(folder, name, seed):
    words = name.replace(",", "").split()
    return folder / f"{'-'.join(words)}.{seed}.p"


def read(file):
    """What a run has so far: a dict of the fields of Run, but for its settings."""
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
    module = build(name)
    settings = module.Settings(seed=seed)
    if file.exists():
        run = module.Run(settings, **read(file))
    else:
        run = module.new_run(settings)
    saved = len(run.scores)
    for run in module.train(run, episodes):
        done = len(run.scores)
        if done // pg_pong.SAVE_EVERY > saved // pg_pong.SAVE_EVERY or done >= episodes:
            write(file, run)
            saved = done
            mean = pg_pong.running_means(run.scores)[-1]
            print(f"{name}, seed {seed}: {done} episodes, {mean:+.2f}", file=sys.stderr, flush=True)


def running_means(folder, name, seed):
    """Of what a run has so far: a list, which is empty if it has not begun."""
    file = file_of(folder, name, seed)
    return pg_pong.running_means(read(file)["scores"]) if file.exists() else []


def cell(curves, episodes):
    """The running means of the runs that are so far, as text."""
    return ", ".join(f"{curve[episodes - 1]:+.1f}" for curve in curves if len(curve) >= episodes)


def print_table(args):
    columns = [n for n in COLUMNS if n < args.episodes] + [args.episodes]
    print("| variant |", " | ".join(f"{n:,}" for n in columns), "|")
    print("|---" * (1 + len(columns)) + "|")
    for name in args.only:
        curves = [running_means(args.folder, name, seed) for seed in args.seeds]
        print("|", name, "|", " | ".join(cell(curves, n) for n in columns), "|")


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = list(VARIANTS)
    add("--only", nargs="+", choices=names, default=names, metavar="NAME",
        help="of: " + ", ".join(f'"{name}"' for name in names))
    add("--episodes", type=int, default=1000)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--folder", type=Path, default=ROOT / "runs" / "ablations")
    add("--processes", type=int, default=pg_pong.core_count(), help="runs at a time")
    return parser.parse_args()


def main():
    args = parse_flags()
    for name in VARIANTS:
        build(name)  # so that an edit that no longer fits is found before the first hour
    args.folder.mkdir(parents=True, exist_ok=True)
    jobs = [(args.folder, name, seed, args.episodes) for seed in args.seeds for name in args.only]
    ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.Pool(args.processes, signal.signal, ignore_ctrl_c) as pool:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends it as Ctrl-C does
        for _ in pool.imap_unordered(learn, jobs):
            pass
    print_table(args)


if __name__ == "__main__":
    main()
