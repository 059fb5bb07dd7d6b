"""Kill processes of a training again and again, at random moments: is anything ever lost?

    python tests/tools/storm.py --kills 1000 [--seed 0]

The training saves after every batch of two episodes. SIGKILL hits the trainer, its whole process
group or, so that it has to be replaced, a worker. After a worker, the run goes on for a moment, and
then its trainer gets SIGTERM or SIGKILL. Some of the kills hit while save.p is written.

After each kill, the save must load, hold no less than before, and no process may be left. The
training is resumed every time. In the end, it must be that of a calm run to the last bit.
"""
import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import PATIENCE, Trainer, children, same, session

FLAGS = ["--batch-size", 2, "--workers", 2]


def start(trainer, *flags):
    """Begin the run, or resume it if there is a save."""
    resume = ["--resume"] if trainer.save.exists() else []
    return trainer.start(*FLAGS, *resume, *flags, patched="saves_often", start_new_session=True,
                         stdout=subprocess.DEVNULL)


def wait_while(condition):
    """Look every millisecond whether the condition still holds, and give up at some time."""
    end = time.monotonic() + PATIENCE
    while condition() and time.monotonic() < end:
        time.sleep(0.001)


def wait_for_moment(trainer, process, chance):
    """Wait for any moment, and sometimes for the next one at which a save is written."""
    time.sleep(chance.uniform(0.1, 1.5))
    if chance.random() < 0.4:
        file = trainer.folder / "save.p.tmp"
        wait_while(lambda: not file.exists() and process.poll() is None)
        time.sleep(chance.uniform(0, 0.02))
    check_that_it_runs(process)


def check_that_it_runs(process):
    if process.poll() is not None:
        sys.exit(f"the training has ended by itself:\n{process.stderr.read()}")


def kill(process, victim, chance):
    """Kill this victim, and end the run if that did not. Returns who was really killed."""
    workers = children(process.pid)
    if victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "worker" and workers:
        os.kill(chance.choice(workers), signal.SIGKILL)
        time.sleep(chance.uniform(0, 0.5))
        check_that_it_runs(process)
        process.send_signal(chance.choice([signal.SIGTERM, signal.SIGKILL]))
    else:
        victim = "trainer"
        process.kill()
    return victim


def end_what_is_left(process):
    """Returns how many processes do not end by themselves when the trainer has ended."""
    wait_while(lambda: session(process.pid))
    left = session(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    return len(left)


def storm(trainer, kills, chance):
    """Returns how many episodes there are after so many kills, and counts of what happened."""
    counts = Counter()
    episodes = 0
    for number in range(1, kills + 1):
        process = start(trainer)
        wait_for_moment(trainer, process, chance)
        is_writing = (trainer.folder / "save.p.tmp").exists()
        victim = kill(process, chance.choice(["trainer", "worker", "group"]), chance)
        counts[victim] += 1
        counts["in a write"] += is_writing
        counts["left behind"] += end_what_is_left(process)
        before = episodes
        episodes = episodes_in(trainer, counts)
        counts["with less than before"] += episodes < before
        print(number, "kills,", episodes, "episodes,", dict(counts), flush=True)
    return episodes, counts


def episodes_in(trainer, counts):
    """Of the save. Counts it as unreadable if it is."""
    if not trainer.save.exists():
        return 0
    try:
        _, rest = trainer.load()
    except Exception as problem:
        counts["unreadable"] += 1
        print("cannot be read:", repr(problem))
        return 0
    return len(rest["scores"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as stormy, tempfile.TemporaryDirectory() as quiet:
        trainer = Trainer(Path(stormy))
        calm = Trainer(Path(quiet))
        episodes, counts = storm(trainer, args.kills, random.Random(args.seed))
        for each in trainer, calm:
            start(each, "--episodes", episodes + 2).communicate()  # it still learns
        identical = same(trainer.load(), calm.load())
        final = episodes_in(trainer, counts)
        others = [name for name in trainer.names() if name != "save.p"]
    faults = counts["unreadable"], counts["with less than before"], counts["left behind"]
    print(f"{args.kills} kills, {faults[0]} unreadable files, {faults[1]} with less than before, "
          f"{faults[2]} processes left behind, other files {others}; after {final} episodes "
          f"{'bit-identical to' if identical else 'DIFFERENT FROM'} a calm run")
    is_well = identical and final == episodes + 2 and not others and not any(faults)
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
