"""A run follows from its settings alone, and nothing of it is lost."""
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (Trainer, children, file_of, finish, parts, read_until, same, stop,
                     wait_until)

import pg_pong

GIVEN = {"seed": 1, "gamma": 0.98, "game": "ALE/Pong-v5", "batch_size": 3}  # no default among them
RUN = ["--seed", 1, "--gamma", 0.98, "--game", "ALE/Pong-v5", "--batch-size", 3, "--episodes", 6]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trainer that has played a run of two batches without a stop, by two workers."""
    trainer = Trainer(tmp_path_factory.mktemp("whole"))
    trainer.lines = trainer(*RUN, "--workers", 2).lines
    return trainer


@pytest.fixture(scope="module")
def in_one_process():
    """The same run after each of its batches, played without the command line and workers."""
    settings = pg_pong.Settings(**GIVEN)
    return list(pg_pong.train(pg_pong.new_run(settings), 6))


def holds(trainer, run):
    """Whether the trainer's save is this run, to the last bit."""
    model, rest = trainer.load()
    expected = run._asdict() | {"settings": run.settings._asdict()}
    return same(model, expected.pop("model")) and same(rest, expected)


# ---- exact to the last bit


def test_the_command_line_learns_what_the_algorithm_alone_learns(whole, in_one_process):
    assert holds(whole, in_one_process[-1])


def is_spawned(pid):
    return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()


def test_three_spawned_workers_of_which_one_is_killed_do_not_change_the_run(trainer, whole):
    process = trainer.start(*RUN, "--workers", 3, patched="spawns")
    read_until(process, "episode 3 ")
    workers = children(process.pid)
    spawned = [is_spawned(pid) for pid in workers]
    os.kill(workers[0], signal.SIGKILL)
    _, err = finish(process)

    killed, closing = err.splitlines()
    assert spawned == [True, True, True]
    assert "a worker was killed" in killed
    assert "holds 6 episodes;" in closing
    assert process.returncode == 0
    assert same(trainer.load(), whole.load())


def test_one_forked_worker_killed_in_the_middle_of_its_message_does_not_either(trainer, whole):
    result = trainer(*RUN, "--workers", 1, patched="dies_in_mid_message")

    assert result.err.count("a worker was killed") == 1
    assert same(trainer.load(), whole.load())


def test_a_run_stopped_in_mid_batch_and_resumed_twice_is_the_run_without_a_stop(trainer, whole):
    first = trainer.start(*RUN, patched="slow_episodes")  # so that the signal comes in time
    read_until(first, "episode 3 ")
    stop(first, signal.SIGINT)
    kept = len(trainer.load()[1]["scores"])
    second = trainer.start("--resume", "--episodes", 6, "--workers", 1)
    read_until(second, "Learning Pong from episode 3 on: ")
    wait_until(lambda: children(second.pid))
    stop(second, signal.SIGTERM)
    trainer("--resume", "--episodes", 6)

    assert kept == 3
    assert same(trainer.load(), whole.load())


# ---- resumed


def test_a_resumed_run_takes_new_settings_and_keeps_the_others(trainer, whole, in_one_process):
    shutil.copy(whole.save, trainer.save)
    old = in_one_process[-1]
    settings = old.settings._replace(game="PongDeterministic-v4", batch_size=2, learning_rate=0.01)

    trainer("--resume", "--episodes", 8, "--game", "PongDeterministic-v4", "--batch-size", 2,
            "--learning-rate", 0.01)

    [expected] = pg_pong.train(old._replace(settings=settings), 8)
    assert holds(trainer, expected)


def test_a_run_that_has_its_episodes_already_is_not_touched(trainer, whole):
    shutil.copy(whole.save, trainer.save)
    before = trainer.save.stat()

    result = trainer("--resume", "--episodes", 6)

    after = trainer.save.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert trainer.names() == ["save.p"]
    assert "holds 6 episodes;" in result.err


# ---- saved


def test_the_first_pickle_is_the_bare_model(whole):
    model, _ = whole.load()

    assert list(model) == ["W1", "W2"]
    assert model["W1"].shape == (200, 6400)
    assert model["W2"].shape == (200,)
    assert {weights.dtype for weights in model.values()} == {np.dtype(np.float32)}


def test_the_second_pickle_is_a_plain_dict_of_the_other_fields(whole):
    model, rest = whole.load()

    assert list(rest) == ["settings", "mean_square", "scores", "steps", "seconds"]
    assert rest["settings"] == GIVEN | {"learning_rate": 1e-3, "decay_rate": 0.99}
    assert {k: squares.shape for k, squares in rest["mean_square"].items()} == {
        "W1": (200, 6400), "W2": (200,)}
    assert len(rest["scores"]) == 6
    assert all(type(score) is int and -21 <= score <= 21 for score in rest["scores"])
    assert 6 * 500 < rest["steps"] < 6 * 4000  # 21 points take a new agent 1,000 steps or so


def test_a_killed_trainer_has_lost_at_most_100_episodes(trainer):
    """With batches of 30, it must be saved at 90, since after 120 it would be too late."""
    process = trainer.start("--batch-size", 30, patched="instant_episodes")
    read_until(process, "episode 120 ")
    process.kill()
    out, _ = finish(process)

    played = max([120, *map(int, re.findall("episode (\\d+) ", out))])
    assert 0 <= played - len(trainer.load()[1]["scores"]) <= 100


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
                              "gamma 0.98, decay_rate 0.99, seed 1, game ALE/Pong-v5")


def test_a_line_for_each_batch_tells_its_score_and_the_running_mean(whole):
    scores = whole.load()[1]["scores"]

    batches = [told(line) for line in whole.lines[1:]]

    assert [batch.episode for batch in batches] == [3, 6]
    for end, batch in zip([3, 6], batches):
        assert batch.score == pytest.approx(np.mean(scores[end - 3:end]), abs=0.051)
        assert batch.mean == pytest.approx(running_mean(scores[:end]), abs=0.0051)


def test_the_speeds_are_those_of_the_batches(whole, in_one_process):
    speeds = [told(line).speed for line in whole.lines[1:]]

    first, second = [run.steps for run in in_one_process]
    seconds = first / speeds[0] + (second - first) / speeds[1]

    assert seconds == pytest.approx(whole.load()[1]["seconds"], rel=0.01)


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


def test_the_hours_are_those_of_all_stretches(slow):
    seconds = slow.load()[1]["seconds"]

    assert 2 * 0.25 < seconds - 36_000 < slow.passed
    assert slow.last.hours == pytest.approx(seconds / 3600, abs=0.0051)


def test_the_speed_of_a_resumed_run_owes_nothing_to_what_came_before(slow):
    assert slow.steps / slow.passed - 1 < slow.last.speed < slow.steps / (2 * 0.25) + 1
