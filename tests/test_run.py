"""A run follows from its settings alone, and nothing of it is lost."""
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import Trainer, children, file_of, finish, parts, read_until, same, stop
import pg_pong

RUN = ["--seed", 1, "--batch-size", 3, "--episodes", 9]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trainer that has played a run of three batches without a stop, by two workers."""
    trainer = Trainer(tmp_path_factory.mktemp("whole"))
    trainer.lines = trainer(*RUN, "--workers", 2).lines
    return trainer


@pytest.fixture(scope="module")
def in_one_process():
    """The same run after each of its batches, played without the command line and workers."""
    settings = pg_pong.Settings(batch_size=3, seed=1)
    return list(pg_pong.train(pg_pong.new_run(settings), 9))


# ---- exact to the last bit


def is_spawned(pid):
    return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.parametrize("workers, patched", [(1, None), (3, "spawns")], ids=["forked", "spawned"])
def test_the_number_of_workers_and_how_they_start_do_not_matter(trainer, whole, workers, patched):
    process = trainer.start(*RUN, "--workers", workers, patched=patched)
    read_until(process, "episode 3 ")
    spawned = [is_spawned(pid) for pid in children(process.pid)]
    finish(process)

    assert spawned == [patched == "spawns"] * workers
    assert same(trainer.load(), whole.load())


def test_a_run_stopped_in_mid_batch_and_resumed_twice_is_the_run_without_a_stop(trainer, whole):
    first = trainer.start(*RUN)
    read_until(first, "episode 3 ")
    stop(first, signal.SIGINT)
    second = trainer.start("--resume", "--episodes", 9, "--workers", 1)
    read_until(second, "episode 6 ")
    stop(second, signal.SIGTERM)
    third = trainer("--resume", "--episodes", 9)

    assert third.lines[0].startswith("Learning Pong from episode 6 on: ")
    assert same(trainer.load(), whole.load())


# ---- resumed


def test_a_resumed_run_takes_new_settings_and_keeps_the_others(trainer, whole):
    shutil.copy(whole.save, trainer.save)
    old_weights, old = whole.load()

    trainer("--resume", "--episodes", 11, "--batch-size", 2, "--learning-rate", 0)

    weights, rest = trainer.load()
    assert rest["settings"] == old["settings"] | {"batch_size": 2, "learning_rate": 0.0}
    assert rest["scores"][:9] == old["scores"]
    assert len(rest["scores"]) == 11
    assert same(weights, old_weights)  # it was not only written down: nothing was learned


def test_a_run_that_has_its_episodes_already_is_not_touched(trainer, whole):
    shutil.copy(whole.save, trainer.save)
    before = trainer.save.stat()

    result = trainer("--resume", "--episodes", 9)

    after = trainer.save.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert trainer.names() == ["save.p"]
    assert "holds 9 episodes;" in result.err


# ---- saved


def test_the_first_pickle_is_the_bare_model(whole):
    weights, _ = whole.load()

    assert list(weights) == ["W1", "W2"]
    assert weights["W1"].shape == (200, 6400)
    assert weights["W2"].shape == (200,)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert weights["W1"].flags.c_contiguous


def test_the_second_pickle_holds_the_rest(whole):
    _, rest = whole.load()

    assert rest["settings"] == {"batch_size": 3, "learning_rate": 1e-3, "gamma": 0.99,
                                "decay_rate": 0.99, "seed": 1}
    assert len(rest["scores"]) == 9
    assert all(type(score) is int and -21 <= score <= 21 for score in rest["scores"])
    assert len(set(rest["scores"])) > 1
    assert 9 * 700 < rest["steps"] < 9 * 4000  # 21 points take a new agent 1,000 steps or so
    assert len(rest["mean_square"]["W1"]) == 4 * 200 * 6400
    assert len(rest["mean_square"]["W2"]) == 4 * 200


def test_a_save_is_made_every_100_episodes(trainer, saved):
    """Here, a batch of two gets from 99 to 101. The batches after it are in no save."""
    weights, rest = parts(saved)
    trainer.save.write_bytes(file_of(weights, rest | {"scores": [-21] * 99}))

    process = trainer.start("--resume")
    read_until(process, "episode 105 ")
    stop(process, signal.SIGKILL)

    assert len(trainer.load()[1]["scores"]) == 101


# ---- told


LINE = re.compile(r"episode (?P<episode>\d+)  score (?P<score>\S+)  running mean (?P<mean>\S+)  "
                  r"(?P<speed>\d+) steps/s  (?P<hours>\S+) h")


def told(line):
    """The numbers in the line of a batch, by their names."""
    numbers = LINE.fullmatch(line).groupdict()
    return SimpleNamespace(**{name: float(text) for name, text in numbers.items()})


def running_mean(scores):
    """The newest score weighs 1%, each one before 99% of its successor, and the first the rest."""
    shares = 0.01 * 0.99 ** np.arange(len(scores))[::-1]
    shares[0] = 1 - shares[1:].sum()
    return shares @ scores


def test_the_first_line_tells_the_settings(whole):
    assert whole.lines[0] == ("Learning Pong from episode 0 on: batch_size 3, learning_rate 0.001, "
                              "gamma 0.99, decay_rate 0.99, seed 1")


def test_a_line_for_each_batch_tells_its_score_and_the_running_mean(whole):
    scores = whole.load()[1]["scores"]

    batches = [told(line) for line in whole.lines[1:]]

    assert [batch.episode for batch in batches] == [3, 6, 9]
    for end, batch in zip([3, 6, 9], batches):
        assert batch.score == pytest.approx(np.mean(scores[end - 3:end]), abs=0.051)
        assert batch.mean == pytest.approx(running_mean(scores[:end]), abs=0.0051)


def test_the_speeds_are_those_of_the_batches(whole, in_one_process):
    speeds = [told(line).speed for line in whole.lines[1:]]

    seconds = 0
    steps = 0
    for run, speed in zip(in_one_process, speeds):
        seconds += (run.steps - steps) / speed
        steps = run.steps

    assert seconds == pytest.approx(whole.load()[1]["seconds"], rel=0.01)
    assert len(set(speeds)) > 1


@pytest.fixture(scope="module")
def slow(tmp_path_factory, saved):
    """A run of ten hours that was resumed for two episodes of at least 0.25 seconds each."""
    trainer = Trainer(tmp_path_factory.mktemp("slow"))
    weights, rest = parts(saved)
    trainer.save.write_bytes(file_of(weights, rest | {"seconds": 36_000.0}))
    began = time.monotonic()
    result = trainer("--resume", "--episodes", 4, "--workers", 1, patched="slow_episodes")
    trainer.passed = time.monotonic() - began
    trainer.steps = trainer.load()[1]["steps"] - rest["steps"]
    trainer.last = told(result.lines[-1])
    return trainer


def test_the_hours_are_those_of_all_batches(slow):
    seconds = slow.load()[1]["seconds"]

    assert 2 * 0.25 < seconds - 36_000 < slow.passed
    assert slow.last.hours == pytest.approx(seconds / 3600, abs=0.0051)


def test_the_speed_of_a_resumed_run_owes_nothing_to_what_came_before(slow):
    assert slow.steps / slow.passed - 1 < slow.last.speed < slow.steps / (2 * 0.25) + 1
