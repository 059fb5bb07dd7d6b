"""Kill the trainer again and again, at random moments, and see whether anything is lost.

    python tests/tools/storm.py --kills 1000 [--seed 0]

A run that saves after every episode is killed with SIGKILL (the trainer, its worker, or the whole process group, by
turns of chance, inside the writing of save.p as well), and resumed. After each kill save.p must load and hold no less
than before. At the end it must equal, bit for bit, a run of as many episodes that nobody disturbed.
"""
import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
import pg_pong
from conftest import ROOT, same

SCRIPT = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pg_pong; pg_pong.SAVE_EVERY = 1; pg_pong.main()"

def start(folder, *flags):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, "--workers", "1", "--batch-size", "1", *flags], cwd=folder,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

def session(leader):
    """Ids of the processes in the session that a trainer began, zombies aside."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats.append([path.parent.name, *path.read_text().rpartition(")")[2].split()])
        except (FileNotFoundError, ProcessLookupError):    # it has just ended
            continue
    return [int(pid) for pid, state, _, _, number, *_ in stats if int(number) == leader and state != "Z"]

def wait_while(condition, seconds):
    end = time.monotonic() + seconds
    while condition() and time.monotonic() < end:
        time.sleep(0.002)

def storm(folder, kills, chance):
    """Returns the episodes that there are after so many kills, and counts of what happened."""
    save, temporary, episodes = folder / "save.p", folder / "save.p.tmp", 0
    counts = dict(trainer=0, worker=0, group=0, writing=0, unreadable=0, lost=0, left_behind=0)
    for number in range(1, kills + 1):
        process = start(folder, *(["--resume"] if save.exists() else []))
        if chance.random() < 0.3:                          # inside the write: after the temporary file appears
            wait_while(lambda: not temporary.exists() and process.poll() is None, 10)
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(0.2, 3.0))
        victim, workers = chance.choice(["trainer", "worker", "group"]), set(session(process.pid)) - {process.pid}
        counts[victim] += 1
        counts["writing"] += temporary.exists()
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(max(workers) if victim == "worker" and workers else process.pid, signal.SIGKILL)
        wait_while(lambda: session(process.pid), 10)       # all must end: the others by themselves
        for pid in session(process.pid):
            counts["left_behind"] += 1
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        if episodes or save.exists():
            try:
                before, episodes = episodes, len(pg_pong.load(str(save)).scores)
                counts["lost"] += episodes < before
            except (OSError, SystemExit):                  # load has said why
                counts["unreadable"] += 1
        print(number, "kills,", episodes, "episodes,", counts, flush=True)
    return episodes, counts

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as calm:
        episodes, counts = storm(Path(folder), args.kills, random.Random(args.seed))
        for where, flags in (folder, ["--resume"] if episodes else []), (calm, []):
            start(where, *flags, "--episodes", str(episodes + 1)).communicate()        # it still learns
        stormy, undisturbed = (pg_pong.load(f"{where}/save.p")._asdict() for where in (folder, calm))
        identical, others = same(stormy, undisturbed), set(os.listdir(folder)) - {"save.p", "save.p.lock"}
    print(f"{args.kills} kills, {counts['unreadable']} unreadable files, {counts['lost']} with less than before, "
          f"{counts['left_behind']} processes left behind, other files {sorted(others)}; after "
          f"{len(stormy['scores'])} episodes {'bit-identical to' if identical else 'DIFFERENT FROM'} a calm run")
    sys.exit(0 if identical and not others and not sum(counts[k] for k in ("unreadable", "lost", "left_behind")) else 1)

if __name__ == "__main__":
    main()
