"""Draw the running means of several runs, and print them: curves.py FILE.png SAVE..."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import pg_pong
from matplotlib.figure import Figure

EPISODES = [100, 500, 1000, 2000, 4000, 6000, 8000]  # columns of the table


def first_reaches_0(curve):
    """The first episode after which the running mean is not below 0, as the table has it."""
    for episode, mean in enumerate(curve, 1):
        if mean >= 0:
            return f"{episode:,}"
    return "not yet"


def draw(runs, curves, file):
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="episode", ylabel="score, running mean")
    axes.axhline(0, color="black", linewidth=0.8)  # where both players are equally strong
    for run, curve in zip(runs, curves):
        axes.plot(curve, label=f"seed {run.settings.seed}")
    axes.legend()
    figure.savefig(file)


def print_runs(runs, curves):
    for run, curve in zip(runs, curves):
        hours = run.seconds / 3600
        print(f"{run.settings}: {len(run.scores)} episodes, {run.steps:,} steps, {hours:.2f} h; "
              f"first at 0: {first_reaches_0(curve)}")


def print_table(runs, curves):
    """A row per run: its running mean after so many episodes, and when it first reaches 0."""
    longest = max(len(curve) for curve in curves)
    columns = [n for n in EPISODES if n <= longest]
    print("| seed |", " | ".join(f"{n:,}" for n in columns), "| first at 0 |")
    print("|---" * (2 + len(columns)) + "|")
    for run, curve in zip(runs, curves):
        means = [f"{curve[n - 1]:+.1f}" if n <= len(curve) else "" for n in columns]
        print("|", run.settings.seed, "|", " | ".join(means), "|", first_reaches_0(curve), "|")


def main():
    file, *paths = sys.argv[1:]
    runs = [pg_pong.load(path) for path in paths]
    curves = [pg_pong.running_means(run.scores) for run in runs]
    print_runs(runs, curves)
    draw(runs, curves, file)
    print_table(runs, curves)


if __name__ == "__main__":
    main()
