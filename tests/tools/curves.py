"""Draw the running means of several runs, and print them: python tests/tools/curves.py FILE.png SAVE..."""
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))
import pg_pong
from matplotlib.figure import Figure

figure, curves = Figure(figsize=(10, 4), layout="constrained"), []
axes = figure.add_subplot(xlabel="episode", ylabel="score, running mean")
axes.axhline(0, color="black", linewidth=0.8)              # even with the opponent
for run in map(pg_pong.load, sys.argv[2:]):
    curves.append(pg_pong.running_means(run.scores))
    first = next((n for n, mean in enumerate(curves[-1], 1) if mean >= 0), "more")
    print(f"{len(run.scores)} episodes, {run.steps} steps, 0 is reached after {first}: {run.settings}")
    axes.plot(curves[-1], label=f"seed {run.settings['seed']}")
axes.legend()
figure.savefig(sys.argv[1])
for n in 100, 500, 1000, 2000, 4000, 6000, 8000:
    means = [curve[n - 1] for curve in curves if len(curve) >= n]
    print(f"{n} episodes, {len(means)} runs:", *(f"{f(means):+.2f}" for f in (median, min, max) if means))
