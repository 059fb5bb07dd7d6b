"""Kill processes of a training again and again, at random moments: is anything ever lost?

    python tests/tools/storm.py --kills 200 [--seed 0]

The training saves after every batch of two episodes. SIGKILL hits the trainer, its whole process
group or, so that it has to be replaced, a worker. After a worker, the run goes on for a moment, and
then its trainer gets SIGTERM or SIGKILL. The moment of a kill is while the trainer starts, while it
trains, or surely while a save is written.

After each kill, the save must load, hold no less than before, and no process may be left. The
training is resumed every time. In the end, it must be that of a calm run to the last bit. And the
storm must have been one: a write and a worker were hit, and episodes were saved. From two kills
on, this does not depend on chance.
"""
import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import (PATIENCE, Trainer, children, finish, is_stopped, killed_when_late, read_until,
                     same, session, wait_until)

FLAGS = ["--batch-size", 2, "--workers", 2]
PLAN = [  # whom to kill and when, again and again
    ("trainer", "in a write"),
    ("worker", "in training"),
    ("group", "at the start"),
    ("group", "in a write"),
    ("worker", "in training"),
    ("trainer", "at the start"),
    ("group", "in training"),
    ("trainer", "in training"),
]
HITS = ["trainer", "worker", "in a write"]  # at least one of each, or it was no storm
FAULTS = ["unreadable", "with less than before", "left behind", "stopped badly"]


def start(trainer, *flags, **kwargs):
    """Begin the run, or resume it if there is a save."""
    resume = ["--resume"] if trainer.save.exists() else []
    return trainer.start(*FLAGS, *resume, *flags, patched="saves_often", start_new_session=True,
                         **kwargs)


def wait_for_moment(trainer, process, moment, chance):
    """Wait for some random moment of this kind."""
    if moment == "at the start":
        time.sleep(chance.uniform(0.05, 1))
        return
    read_until(process, "episode ")
    if moment == "in training":
        time.sleep(chance.uniform(0, 0.8))
    else:
        wait_until(trainer.save.exists)
        stop_in_a_write(trainer, process, chance)


def stop_in_a_write(trainer, process, chance):
    """Have the trainer stand still when it has begun to write a save, and not put it in place."""
    while True:
        wait_for_file(trainer.folder / "save.p.tmp", process)
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(process.pid))
        if is_written(trainer):
            return
        process.send_signal(signal.SIGCONT)


def wait_for_file(file, process):
    """Look every millisecond, as it is there for a few only."""
    end = time.monotonic() + PATIENCE
    while not file.exists():
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"the training wrote no save:\n{process.stderr.read()}")
        time.sleep(0.001)


def is_written(trainer):
    return (trainer.folder / "save.p.tmp").exists()


def kill(process, victim, chance):
    """Kill this victim, and end the run if that did not."""
    if process.poll() is not None:
        sys.exit(f"the training has ended by itself:\n{process.stderr.read()}")
    if victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "trainer":
        process.kill()
    else:
        os.kill(chance.choice(children(process.pid)), signal.SIGKILL)
        wait_for_replacement(process)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(chance.choice([signal.SIGTERM, signal.SIGKILL]))


def wait_for_replacement(process):
    """Wait until the trainer says that it has found a worker killed."""
    with killed_when_late(process):
        for line in process.stderr:
            if "a worker was killed" in line:
                return
    sys.exit("no worker was replaced")


def end_what_is_left(process):
    """Returns how many processes do not end by themselves when the trainer has ended."""
    process.wait()
    with suppress(AssertionError):
        wait_until(lambda: not session(process.pid))
    left = session(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    finish(process)
    return len(left)


def storm(trainer, kills, chance):
    """Returns how many episodes are saved after so many kills, and counts of what happened."""
    counts = Counter()
    episodes = 0
    plan = itertools.islice(itertools.cycle(PLAN), kills)
    for number, (victim, moment) in enumerate(plan, 1):
        process = start(trainer)
        try:
            wait_for_moment(trainer, process, moment, chance)
            kill(process, victim, chance)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # it may be stopped, and stay for ever
            raise
        counts["left behind"] += end_what_is_left(process)
        counts[victim] += 1
        counts["stopped badly"] += process.returncode not in (0, -signal.SIGKILL)
        if moment != "at the start":  # there, the unfinished file may be of the kill before
            counts["in a write"] += is_written(trainer)
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
    parser.add_argument("--kills", type=int, default=20, help="2 or more (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as stormy, tempfile.TemporaryDirectory() as quiet:
        trainer = Trainer(Path(stormy))
        calm = Trainer(Path(quiet))
        episodes, counts = storm(trainer, args.kills, random.Random(args.seed))
        for each in trainer, calm:
            process = start(each, "--episodes", episodes + 2)  # it still learns
            process.communicate()
        identical = same(trainer.load(), calm.load())
        final = episodes_in(trainer, counts)
        others = [name for name in trainer.names() if name != "save.p"]
    for what in [*HITS, *FAULTS]:
        print(what + ":", counts[what])
    print("other files:", others)
    print(f"after {args.kills} kills and {final} episodes",
          "bit-identical to" if identical else "DIFFERENT FROM", "a calm run")
    was_storm = episodes > 0 and all(counts[what] for what in HITS)
    is_faulty = others or any(counts[what] for what in FAULTS)
    is_well = identical and final == episodes + 2 and not is_faulty
    if not was_storm:
        print("but it was no storm")
    sys.exit(0 if is_well and was_storm else 1)


if __name__ == "__main__":
    main()
