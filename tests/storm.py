"""Kill the trainer again and again, at random moments, and see whether anything is lost.

    python tests/storm.py --kills 1000 [--seed 0]

A run that saves after every episode is killed with SIGKILL (the trainer, a worker, or the whole process group, by
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

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
import pg_pong
from conftest import same

START = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import pg_pong
pg_pong.SAVE_EVERY = 1
if __name__ == "__main__":
    pg_pong.main()
"""


def start(folder, *flags):
    script = folder / "run.py"
    script.write_text(START)
    return subprocess.Popen([sys.executable, str(script), "--workers", "1", "--batch-size", "1", *flags], cwd=folder,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def group(leader):
    """Process ids of the session that a trainer began, zombies aside."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, _, session = rest.split()[:4]
        if int(session) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until_gone(leader, seconds=10):
    end = time.monotonic() + seconds
    while left := group(leader):
        if time.monotonic() > end:
            return left
        time.sleep(0.05)
    return []


def storm(folder, kills, chance):
    save = folder / "save.p"
    counts = dict(trainer=0, worker=0, group=0, writing=0, unreadable=0, lost=0, left_behind=0, hung=0)
    episodes, longest = 0, 0.0
    for number in range(kills):
        process = start(folder, *(["--resume"] if save.exists() else []))
        if chance.random() < 0.3:                          # inside the write: as soon as the temporary file appears
            end = time.monotonic() + 5
            while not Path(f"{save}.tmp").exists() and time.monotonic() < end and process.poll() is None:
                time.sleep(0.0005)
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(0.2, 3.0))
        counts["writing"] += Path(f"{save}.tmp").exists()
        victim = chance.choice(["trainer", "worker", "group"])
        workers = [pid for pid in group(process.pid) if pid != process.pid]
        counts[victim] += 1
        begun = time.monotonic()
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            try:
                os.kill(process.pid if victim == "trainer" or not workers else max(workers), signal.SIGKILL)
            except ProcessLookupError:                     # it was one of those that libraries start for a moment
                process.kill()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            counts["hung"] += 1
            process.kill()
        left = wait_until_gone(process.pid)
        longest = max(longest, time.monotonic() - begun)
        counts["left_behind"] += len(left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if save.exists():
            try:
                now = pg_pong.load(str(save))[0].episode_number
            except (OSError, ValueError) as reason:
                counts["unreadable"] += 1
                print("unreadable:", reason)
                continue
            counts["lost"] += now < episodes
            episodes = now
        if (number + 1) % 50 == 0 or number + 1 == kills:
            print(f"{number + 1} kills, {episodes} episodes, {counts}, longest end {longest:.1f} s", flush=True)
    return episodes, counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as calm:
        folder, calm = Path(folder), Path(calm)
        episodes, counts = storm(folder, args.kills, random.Random(args.seed))
        episodes += 1                                      # one more, to see that it still learns
        for where, flags in (folder, ["--resume"] if episodes > 1 else []), (calm, []):
            errors = start(where, *flags, "--episodes", str(episodes)).communicate()[1]
            assert not errors, errors
        stormy, undisturbed = (pg_pong.load(str(f / "save.p"))[0] for f in (folder, calm))
        identical = same(vars(stormy), vars(undisturbed))
        others = sorted(f.name for f in folder.iterdir() if f.name not in ("save.p", "save.p.lock", "run.py"))
    print(f"{args.kills} kills, {counts['unreadable']} unreadable files, {counts['lost']} with less than before, "
          f"{counts['left_behind']} processes left behind, {counts['hung']} hung, other files {others}; after "
          f"{episodes} episodes {'bit-identical to' if identical else 'DIFFERENT FROM'} an undisturbed run")
    bad = counts["unreadable"] + counts["lost"] + counts["left_behind"] + counts["hung"]
    sys.exit(0 if identical and not bad and not others else 1)


if __name__ == "__main__":
    main()
