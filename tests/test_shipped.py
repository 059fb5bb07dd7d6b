"""The save.p that comes with the script: it beats the game, and nobody loses it by accident."""
import re
import shutil

import pytest
from conftest import ROOT
import pg_pong

FLOOR = 2.8        # it was measured at +7.94 over 800 episodes; the mean of 8 has a standard error of 1.7

@pytest.fixture
def shipped(trainer):
    """A trainer in whose folder the shipped file lies."""
    shutil.copy(ROOT / "save.p", trainer.save)
    return trainer

def test_the_shipped_agent_beats_the_game(shipped):
    report = shipped("--eval", 8, "--seed", 1).out
    assert float(re.search(r"mean score ([+-]\d+\.\d\d)", report)[1]) > FLOOR, report

def test_a_training_begun_beside_the_shipped_agent_keeps_it(shipped):
    before = shipped.save.read_bytes()
    assert f"pg_pong.py: the old {shipped.save} is now {shipped.save}.1\n" in shipped("--episodes", 10).err
    assert (shipped.folder / "save.p.1").read_bytes() == before and len(shipped.load()[1]["scores"]) == 10

def test_the_shipped_run_goes_on(shipped):
    before = pg_pong.load(str(shipped.save))
    shipped("--resume", "--batch-size", 2, "--episodes", len(before.scores) + 2)
    weights, rest = shipped.load()
    assert len(rest["scores"]) == len(before.scores) + 2 and rest["steps"] > before.steps
    assert rest["scores"][:-2] == before.scores and sum(rest["scores"][-2:]) > 0
    assert (weights["W1"] != before.model["W1"]).any()
