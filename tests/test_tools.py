"""The tools that draw the README's pictures and tables, in small doses."""
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers import PATIENCE, SHIPPED, TESTS, same
from PIL import Image

import pg_pong


@pytest.fixture
def tool(tmp_path):
    """Runs a tool in an empty folder, and returns what it prints."""
    def run(name, *flags):
        command = [sys.executable, TESTS / "tools" / name, *map(str, flags)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True,
                                timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        return result.stdout
    return run


# ---- ablations.py


def test_a_variant_learns_what_the_command_line_learns_with_the_same_change(tool, trainer):
    variants = ["--only", "batch of 1", "rate 1e-4", "--seeds", 5, "--folder", "variants"]

    tool("ablations.py", *variants, "--episodes", 1)
    table = tool("ablations.py", *variants, "--episodes", 2)  # which goes on where that one ended
    trainer("--seed", 5, "--episodes", 2, "--batch-size", 1, "--save", "batch.p")
    trainer("--seed", 5, "--episodes", 2, "--learning-rate", 1e-4, "--save", "rate.p")

    batch = pg_pong.load(str(trainer.folder / "batch.p"))
    rate = pg_pong.load(str(trainer.folder / "rate.p"))
    assert learned(trainer.folder / "variants" / "batch-of-1.5.p", batch)
    assert learned(trainer.folder / "variants" / "rate-1e-4.5.p", rate)
    assert table.splitlines() == [
        "| variant | 2 |",
        "|---|---|",
        f"| batch of 1 | {pg_pong.running_means(batch.scores)[1]:+.1f} |",
        f"| rate 1e-4 | {pg_pong.running_means(rate.scores)[1]:+.1f} |",
    ]


def learned(file, run):
    """Whether the file of a variant holds the same as the run."""
    fields = pickle.loads(file.read_bytes())
    return (same(fields["model"], run.model)
            and same(fields["mean_square"], run.mean_square)
            and fields["scores"] == run.scores
            and fields["steps"] == run.steps)


# ---- learning.py


def test_the_gif_shows_the_untrained_agent_and_each_save_in_the_same_game(tool, tmp_path, saved):
    (tmp_path / "two.p").write_bytes(saved)

    tool("learning.py", "learning.gif", "two.p", SHIPPED, "--seed", 1, "--seconds", 2)

    with Image.open(tmp_path / "learning.gif") as gif:
        images = [image_at(gif, n) for n in range(gif.n_frames)]
        last = gif.info["duration"]
    run = pg_pong.load(str(tmp_path / "two.p"))
    agents = [pg_pong.new_run(run.settings), run, pg_pong.load(str(SHIPPED))]
    games = [screens(agent.model, seed=1, count=100) for agent in agents]
    begin = first_with_ball(games[0])
    assert last == 2000  # milliseconds
    assert len(images) == 40
    for place, game in enumerate(games):
        for image, screen in zip(images, game[begin:]):
            panel = image[74:235, 168 * place:168 * place + 160]
            assert abs(panel - screen[34:195]).max() < 10


def image_at(gif, n):
    gif.seek(n)
    return np.array(gif.convert("RGB")).astype(int)


def screens(model, seed, count):
    """What the screen shows after each of the first steps of an episode."""
    game = pg_pong.Pong()
    steps = pg_pong.play(game, model, np.random.default_rng(seed))
    return [game.ale.getScreenRGB() for _, _ in zip(range(count), steps)]


def first_with_ball(game):
    """The first screen with something white on the playing field."""
    for n, screen in enumerate(game):
        if (screen[35:194] == 236).all(axis=2).any():
            return n


# ---- curves.py


def test_the_curves_are_told_by_a_row_for_each_run(tool, tmp_path):
    run = pg_pong.new_run(pg_pong.Settings(seed=7))
    other = run._replace(settings=run.settings._replace(seed=8))
    pg_pong.save(run._replace(scores=[-21] * 99 + [-10] * 401), str(tmp_path / "a.p"), 0)
    pg_pong.save(other._replace(scores=[-1] * 95 + [21] * 5), str(tmp_path / "b.p"), 0)

    lines = tool("curves.py", "curves.png", "a.p", "b.p").splitlines()

    assert lines[0].endswith("first at 0: not yet")
    assert lines[1].endswith("first at 0: 100")
    assert lines[2:] == [
        "| seed | 100 | 500 | first at 0 |",
        "|---|---|---|---|",
        "| 7 | -20.9 | -10.2 | not yet |",
        "| 8 | +0.1 |  | 100 |",
    ]
    assert Image.open(tmp_path / "curves.png").size == (1000, 400)
