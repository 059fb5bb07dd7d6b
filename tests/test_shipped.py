"""The save.p that comes with the script: it beats the game, and nobody loses it by accident."""
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image

import pg_pong

FLOOR = 3          # it was measured at +8.26 over 800 episodes; the mean of 8 has a standard error of 1.7

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
    assert "; the file that is there is kept as save.p.N\n" in shipped("--episodes", 10).out
    assert (shipped.folder / "save.p.1").read_bytes() == before and shipped.load()[1]["episode_number"] == 10

def test_the_shipped_run_goes_on(shipped):
    before = pg_pong.load(str(shipped.save))
    shipped("--resume", "--batch-size", 2, "--episodes", before.episode_number + 2)
    weights, rest = shipped.load()
    assert rest["episode_number"] == before.episode_number + 2 and rest["steps"] > before.steps
    assert (rest["episode_rewards"][:-2] == before.episode_rewards).all()
    assert (weights["W1"] != before.model["W1"]).any()

def test_a_rally_that_it_wins_can_be_drawn(shipped):
    subprocess.run([sys.executable, ROOT / "tests/tools/rally.py", "rally.gif"], cwd=shipped.folder, check=True)
    with Image.open(shipped.folder / "rally.gif") as picture:
        assert 60 < picture.n_frames <= 121 and picture.size == (660, 420)
    assert (shipped.folder / "rally.gif").stat().st_size < 2_000_000
