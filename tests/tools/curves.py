r"""Draw the running means of several runs, and print them as tables.

    python tests/tools/curves.py FILE.png SAVE...
    python tests/tools/curves.py FILE.png --group TITLE SAVE... [--group TITLE SAVE...]...
                                 [--speed 9000 [7000...]]

Each group of saves is drawn beside the others: a thin line for each run, and a bold one for their
mean, as far as all of them go. Where a run of the post's game gets that far, the post's result
is marked.

With --speed, a second axis tells the minutes that so many steps per second would take. (Give one
number for all groups, or one for each.) A save holds how many steps its run has made in all, but
not after which episode, and episodes get longer as the agent gets better. So the axis has ticks
only where the steps are known: where runs end, and where earlier saves of some of these runs were
made, if you give them, too. If there are several, it is the mean of their steps.

In the place of a group's saves may stand one record, FILE.json. It holds the mean of every so many
episodes of each run, and the steps after some episodes. So a run can be drawn whose save is gone.
The README's picture is

    python tests/tools/curves.py assets/curves.png --speed 9000 6000 \
        --group "Pong-v0, the post's" tests/tools/records/default.json \
        --group "PongDeterministic-v4, the easiest" SAVE...

with the saves of its command for that game, seeds 0 to 4, and earlier saves of these runs.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
import pg_pong
import numpy as np
from matplotlib.figure import Figure

EPISODES = [100, 500, 1000, 2000, 4000, 6000, 8000]  # columns of the table
POST = 8000                                          # episodes: "slightly above 0 after about" that


class Curve(NamedTuple):
    episodes: np.ndarray  # after which of them a mean is known
    means: np.ndarray


class Group:
    """Curves that are drawn together, and what is known of their steps."""

    def __init__(self, title, paths):
        self.steps = {}  # {episodes: mean of the steps that were made until then}
        if len(paths) == 1 and paths[0].endswith(".json"):
            self.read_record(json.loads(Path(paths[0]).read_text()))
        else:
            self.read_saves([pg_pong.load(path) for path in paths])
        self.title = title or self.game

    def read_saves(self, saves):
        self.runs = [save for save in saves if not any(is_earlier(save, s) for s in saves)]
        self.curves = [curve_of(run) for run in self.runs]
        self.game = " and ".join(sorted({run.settings.game for run in self.runs}))
        self.axis = "episodes (running mean of the score)"
        for count in {len(save.scores) for save in saves}:
            steps = [save.steps for save in saves if len(save.scores) == count]
            self.steps[count] = np.mean(steps)

    def read_record(self, record):
        """Each mean is drawn in the middle of its episodes."""
        width = record["episodes_per_mean"]
        self.runs = []
        self.curves = []
        for means in record["means"].values():
            middles = width * np.arange(len(means)) + width // 2
            self.curves.append(Curve(middles, np.array(means)))
        self.game = record["game"]
        self.axis = f"episodes (each point: the mean score of {width})"
        for count, steps in record["steps"].items():
            self.steps[int(count)] = steps


def curve_of(run):
    means = pg_pong.running_means(run.scores)
    return Curve(np.arange(1, len(means) + 1), np.array(means))


def is_earlier(save, other):
    """Whether this is an earlier save of the other's run."""
    count = len(save.scores)
    return (count < len(other.scores) and save.settings.seed == other.settings.seed
            and save.scores == other.scores[:count])


def first_reaches_0(means):
    """The first episode after which the running mean is not below 0, as the table has it."""
    for episode, mean in enumerate(means, 1):
        if mean >= 0:
            return f"{episode:,}"
    return "not yet"


# ---- picture

def draw(groups, speeds, file):
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle("Learning Pong: the mean score")
    row = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    row[0].set_ylabel("points won - points lost")
    for axes, group, speed in zip(row, groups, speeds):
        draw_group(axes, group)
        if speed:
            add_minutes(axes, group, speed)
    figure.savefig(file, dpi=100)


def draw_group(axes, group):
    axes.set_title(group.title, fontweight="bold")
    axes.set_xlabel(group.axis)
    axes.axhline(0, color="black", lw=0.8)
    axes.text(0.45, 0, "equal to the opponent", va="bottom", ha="center",
              transform=axes.get_yaxis_transform())
    for curve in group.curves:
        axes.plot(curve.episodes, curve.means, "tab:blue", lw=0.9, alpha=0.6)
    axes.plot([], [], "tab:blue", lw=0.9, alpha=0.6, label="one run")
    shortest = min(group.curves, key=lambda curve: len(curve.means))
    if len(group.curves) > 1:
        count = len(shortest.means)
        mean = np.mean([curve.means[:count] for curve in group.curves], axis=0)
        axes.plot(shortest.episodes, mean, "black", lw=2.5, label=f"mean of {len(group.curves)}")
    if group.game == "Pong-v0" and max(group.steps) >= POST:
        axes.plot(POST, 0.6, "*", color="black", ms=13)
        axes.annotate("the post: slightly above 0\nafter about 8,000", (POST, 0.6), (-4, 28),
                      textcoords="offset points", ha="right", va="bottom",
                      arrowprops={"arrowstyle": "-"})
    axes.set_ylim(-21.5, 21.5)
    axes.set_xlim(0, 1.03 * max(group.steps))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right")


def add_minutes(axes, group, speed):
    places = sorted(group.steps)
    minutes = [group.steps[n] / speed / 60 for n in places]
    top = axes.secondary_xaxis("top")
    top.set_xlabel(f"minutes, at {speed:,} steps/s")
    top.set_xticks([0, *places], ["0"] + [f"{m:.1f}" if m < 10 else f"{m:.0f}" for m in minutes])


# ---- tables

def print_runs(group):
    for run, curve in zip(group.runs, group.curves):
        hours = run.seconds / 3600
        print(f"{run.settings}: {len(run.scores)} episodes, {run.steps:,} steps, {hours:.2f} h; "
              f"first at 0: {first_reaches_0(curve.means)}")


def print_table(group):
    """A row per run: its running mean after so many episodes, and when it first reaches 0."""
    longest = max(len(run.scores) for run in group.runs)
    columns = [n for n in EPISODES if n < longest] + [longest]
    print("| seed |", " | ".join(f"{n:,}" for n in columns), "| first at 0 |")
    print("|---" * (2 + len(columns)) + "|")
    for run, curve in zip(group.runs, group.curves):
        means = [f"{curve.means[n - 1]:+.1f}" if n <= len(curve.means) else "" for n in columns]
        first = first_reaches_0(curve.means)
        print("|", run.settings.seed, "|", " | ".join(means), "|", first, "|")


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
        args.group.insert(0, [None, *args.saves])
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
        if group.runs:  # there are none where the curves are of a record
            print(f"{group.title}:")
            print_runs(group)
            print_table(group)
    draw(groups, args.speed, args.file)


if __name__ == "__main__":
    main()
