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
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found

def wait_while(condition, seconds):
    end = time.monotonic() + seconds
    while condition() and time.monotonic() < end:
        time.sleep(0.002)

def storm(folder, kills, chance):
    """Returns the episodes that there are after so many kills, and counts of what happened."""
    save, temporary, episodes, longest = folder / "save.p", folder / "save.p.tmp", 0, 0.0
    counts = dict(trainer=0, worker=0, group=0, writing=0, unreadable=0, lost=0, left_behind=0, hung=0)
    for number in range(1, kills + 1):
        process = start(folder, *(["--resume"] if save.exists() else []))
        if chance.random() < 0.3:                          # inside the write: after the temporary file appears
            wait_while(lambda: not temporary.exists() and process.poll() is None, 10)
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(0.2, 3.0))
        counts["writing"] += temporary.exists()
        begun, victim = time.monotonic(), chance.choice(["trainer", "worker", "group"])
        counts[victim] += 1
        workers = [pid for pid in session(process.pid) if pid != process.pid]
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "worker" and workers:
            os.kill(max(workers), signal.SIGKILL)
        else:
            process.kill()
        wait_while(lambda: session(process.pid), 15)
        counts["hung"] += process.poll() is None
        left = session(process.pid)
        counts["left_behind"] += len(left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        longest = max(longest, time.monotonic() - begun)
        if episodes or save.exists():
            try:
                before, episodes = episodes, pg_pong.load(str(save)).episode_number
                counts["lost"] += episodes < before
            except (OSError, SystemExit):                  # load has said why
                counts["unreadable"] += 1
        if number % 50 == 0 or number == kills:
            print(f"{number} kills, {episodes} episodes, {counts}, longest end {longest:.1f} s", flush=True)
    return episodes, counts

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as calm:
        episodes, counts = storm(Path(folder), args.kills, random.Random(args.seed))
        for where, flags in (folder, ["--resume"] if episodes else []), (calm, []):
            _, errors = start(where, *flags, "--episodes", str(episodes + 1)).communicate()    # it still learns
            assert errors.startswith(f"pg_pong.py: save.p holds the run up to episode {episodes + 1};"), errors
        stormy, undisturbed = (vars(pg_pong.load(f"{where}/save.p")) for where in (folder, calm))
        identical, others = same(stormy, undisturbed), set(os.listdir(folder)) - {"save.p", "save.p.lock"}
    print(f"{args.kills} kills, {counts['unreadable']} unreadable files, {counts['lost']} with less than before, "
          f"{counts['left_behind']} processes left behind, {counts['hung']} hung, other files {sorted(others)}; after "
          f"{episodes + 1} episodes {'bit-identical to' if identical else 'DIFFERENT FROM'} an undisturbed run")
    bad = others or sum(counts[what] for what in ("unreadable", "lost", "left_behind", "hung"))
    sys.exit(1 if bad or not identical else 0)

if __name__ == "__main__":
    main()
