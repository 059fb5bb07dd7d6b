"""The save.p that comes with the script: it beats the game, and nobody loses it by accident."""
import re
import shutil

import pytest
from helpers import SHIPPED, same

import pg_pong


@pytest.fixture
def shipped(trainer):
    """A trainer in whose folder the shipped file lies."""
    shutil.copy(SHIPPED, trainer.save)
    return trainer


def test_the_shipped_agent_beats_the_game(shipped):
    """It was measured at +7.94 over 800 episodes, so the mean of 3 has a standard error of 2.8."""
    result = shipped("--eval", 3, "--seed", 1)

    mean = re.search(r"mean score ([+-]\d+\.\d\d)", result.out)[1]
    assert float(mean) > 0


def test_a_training_begun_beside_the_shipped_agent_keeps_it(shipped):
    before = shipped.save.read_bytes()

    result = shipped("--batch-size", 2, "--episodes", 2)

    assert f"the old {shipped.save} is now {shipped.save}.1\n" in result.err
    assert (shipped.folder / "save.p.1").read_bytes() == before
    assert len(shipped.load()[1]["scores"]) == 2


def test_the_shipped_run_goes_on(shipped):
    before = pg_pong.load(str(shipped.save))

    shipped("--resume", "--batch-size", 2, "--episodes", len(before.scores) + 2)

    after = pg_pong.load(str(shipped.save))
    assert after.scores[:-2] == before.scores
    assert sum(after.scores[-2:]) > 0
    assert after.steps > before.steps
    assert not same(after.model, before.model)
