"""Draw the running means of several runs, and print them as tables.

    python tests/tools/curves.py FILE.png SAVE...
    python tests/tools/curves.py FILE.png --group TITLE SAVE... [--group TITLE SAVE...]...
                                 [--speed 9000 [7000...]]

Each group of saves is drawn beside the others: a thin line for each run, and a bold one for their
mean, as far as all of them go. Where all runs of a group play the post's game and get that far, the
post's result is marked.

With --speed, a second axis tells the minutes that so many steps per second would take. (Give one
number for all groups, or one for each.) A save holds how many steps its run has made in all, but
not after which episode, and episodes get longer as the agent gets better. So the axis has ticks
only where the steps are known: where runs end (if several end there, it is the mean of their
steps), and where earlier saves of these runs were made, if you give them, too.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import pg_pong
import numpy as np
from matplotlib.figure import Figure

EPISODES = [100, 500, 1000, 2000, 4000, 6000, 8000]  # columns of the table
POST = 8000                                          # episodes: "slightly above 0 after about" that


class Group:
    """Runs that are drawn together, and what is known of their steps."""

    def __init__(self, title, paths):
        saves = [pg_pong.load(path) for path in paths]
        self.runs = [save for save in saves if not any(is_earlier(save, s) for s in saves)]
        self.curves = [pg_pong.running_means(run.scores) for run in self.runs]
        self.title = title
        self.longest = max(len(curve) for curve in self.curves)
        self.steps = {}  # {episodes: the steps of each save that has so many}
        for save in saves:
            self.steps.setdefault(len(save.scores), []).append(save.steps)


def is_earlier(save, other):
    """Whether this is an earlier save of the other's run."""
    count = len(save.scores)
    return (count < len(other.scores) and save.settings.seed == other.settings.seed
            and save.scores == other.scores[:count])


def first_reaches_0(curve):
    """The first episode after which the running mean is not below 0, as the table has it."""
    for episode, mean in enumerate(curve, 1):
        if mean >= 0:
            return f"{episode:,}"
    return "not yet"


# ---- picture

def draw(groups, speeds, file):
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle("Learning Pong: running mean of the score")
    row = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    row[0].set_ylabel("points won - points lost")
    for axes, group, speed in zip(row, groups, speeds):
        draw_group(axes, group)
        if speed:
            add_minutes(axes, group, speed)
    figure.savefig(file, dpi=100)


def draw_group(axes, group):
    axes.set_title(group.title, fontweight="bold")
    axes.set_xlabel("episodes")
    axes.axhline(0, color="black", lw=0.8)
    axes.text(0.01, 0, "equal to the opponent", va="bottom", transform=axes.get_yaxis_transform())
    for run, curve in zip(group.runs, group.curves):
        axes.plot(range(1, len(curve) + 1), curve, lw=0.9, alpha=0.7,
                  label=f"seed {run.settings.seed}")
    shortest = min(len(curve) for curve in group.curves)
    if len(group.curves) > 1:
        mean = np.mean([curve[:shortest] for curve in group.curves], axis=0)
        axes.plot(range(1, shortest + 1), mean, "black", lw=2.5, label="mean")
    if shortest >= POST and all(run.settings.game == "Pong-v0" for run in group.runs):
        axes.plot(POST, 0.6, "*", color="black", ms=13)
        axes.annotate("the post: slightly above 0\nafter about 8,000", (POST, 0.6), (-4, 28),
                      textcoords="offset points", ha="right", va="bottom",
                      arrowprops={"arrowstyle": "-"})
    axes.set_ylim(-21.5, 21.5)
    axes.set_xlim(0, 1.03 * group.longest)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left", ncols=2)


def add_minutes(axes, group, speed):
    places = sorted(group.steps)
    minutes = [np.mean(group.steps[n]) / speed / 60 for n in places]
    top = axes.secondary_xaxis("top")
    top.set_xlabel(f"minutes at {speed:,} steps/s, where known")
    top.set_xticks([0, *places], [f"{minute:.0f}" for minute in [0, *minutes]])


# ---- tables

def print_runs(group):
    for run, curve in zip(group.runs, group.curves):
        hours = run.seconds / 3600
        print(f"{run.settings}: {len(run.scores)} episodes, {run.steps:,} steps, {hours:.2f} h; "
              f"first at 0: {first_reaches_0(curve)}")


def print_table(group):
    """A row per run: its running mean after so many episodes, and when it first reaches 0."""
    columns = [n for n in EPISODES if n < group.longest] + [group.longest]
    print("| seed |", " | ".join(f"{n:,}" for n in columns), "| first at 0 |")
    print("|---" * (2 + len(columns)) + "|")
    for run, curve in zip(group.runs, group.curves):
        means = [f"{curve[n - 1]:+.1f}" if n <= len(curve) else "" for n in columns]
        print("|", run.settings.seed, "|", " | ".join(means), "|", first_reaches_0(curve), "|")


# ---- command line

def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("file", metavar="FILE.png")
    add("saves", nargs="*", metavar="SAVE")
    add("--group", nargs="+", action="append", default=[], metavar=("TITLE", "SAVE"))
    add("--speed", type=int, nargs="+", help="steps/s, for all groups or for each")
    args = parser.parse_args()
    if args.saves:
        game = pg_pong.load(args.saves[0]).settings.game
        args.group.insert(0, [game, *args.saves])
    if not args.group or not all(saves for _, *saves in args.group):
        parser.error("a group needs a save")
    args.speed = args.speed or [None]
    if len(args.speed) == 1:
        args.speed *= len(args.group)
    if len(args.speed) != len(args.group):
        parser.error("--speed needs one number, or one for each group")
    return args


def main():
    args = parse_flags()
    groups = [Group(title, saves) for title, *saves in args.group]
    for group in groups:
        print(f"{group.title}:")
        print_runs(group)
        print_table(group)
    draw(groups, args.speed, args.file)


if __name__ == "__main__":
    main()
