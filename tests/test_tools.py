"""The tools that draw the README's pictures and tables, in small doses."""
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pg_pong
import pytest
from helpers import PATIENCE, ROOT, SHIPPED, TESTS, file_of, old_file_of, parts, same
from PIL import Image

TOOLS = TESTS / "tools"


@pytest.fixture
def tool(tmp_path):
    """Runs a tool in an empty folder, and returns what it prints."""
    def run(name, *flags):
        command = [sys.executable, TOOLS / name, *map(str, flags)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True,
                                timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        return result.stdout
    return run


def module(name):
    """A tool as a module."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


# ---- ablations.py


def test_a_variant_learns_what_the_command_line_learns_with_the_same_change(tool, trainer):
    """The tool builds all variants first, so a change that no longer fits would end it."""
    variants = ["--only", "batch of 1", "--seeds", 5, "--folder", "variants"]

    tool("ablations.py", *variants, "--episodes", 1)
    table = tool("ablations.py", *variants, "--episodes", 2, "--plot", "dots.png")  # goes on
    trainer("--seed", 5, "--episodes", 2, "--batch-size", 1)

    run = pg_pong.load(str(trainer.save))
    fields = module("ablations").read(trainer.folder / "variants" / "batch-of-1.5.p")
    assert same(fields["model"], run.model)
    assert same(fields["mean_square"], run.mean_square)
    assert fields["scores"] == run.scores
    assert table.splitlines() == [
        "| variant | 2 |",
        "|---|---|",
        f"| batch of 1 | {pg_pong.running_means(run.scores)[1]:+.1f} |",
    ]
    assert Image.open(trainer.folder / "dots.png").width == 900


def test_a_variant_of_something_that_the_algorithm_does_not_have_is_an_error(monkeypatch):
    tool = module("ablations")
    monkeypatch.setitem(tool.VARIANTS, "unchanged", {"no_such_name": 1})

    with pytest.raises(AttributeError, match="no_such_name"):
        tool.build("unchanged", seed=0)


def test_the_readme_tells_the_means_of_the_record_that_the_tool_draws(tool, tmp_path):
    _, readme = (ROOT / "README.md").read_text().split("| idea |")

    table = tool("ablations.py", "--record", TOOLS / "records" / "ablations.json",
                 "--plot", "ideas.png").splitlines()

    rows = [line.split("|") for line in table[2:]]
    assert len(rows) == 15
    for _, name, _, means, _ in rows:  # the README has more of the name, and a verdict
        assert re.search(f"^\\| \\**{name.strip()}.*\\|{means}\\|", readme, re.MULTILINE)
    assert Image.open(tmp_path / "ideas.png").width == 900


# ---- learning.py


def test_the_gif_shows_the_untrained_agent_and_each_save_in_the_same_game(tool, tmp_path, saved):
    """The second save has the shipped weights, so that it plays otherwise than the first."""
    weights, rest = parts(saved)
    rest["settings"]["game"] = "PongDeterministic-v4"
    trained, _ = parts(SHIPPED.read_bytes())
    (tmp_path / "one.p").write_bytes(file_of(weights, rest))
    (tmp_path / "two.p").write_bytes(file_of(trained, rest))

    tool("learning.py", "learning.gif", "one.p", "two.p", "--seed", 1, "--seconds", 2)

    with Image.open(tmp_path / "learning.gif") as gif:
        images = [image_at(gif, n) for n in range(gif.n_frames)]
        last = gif.info["duration"]
    models = [pg_pong.new_run(pg_pong.Settings()).model, weights, trained]
    games = [screens(model, seed=1, count=100) for model in models]
    begin = first_with_ball(games[0])
    assert last == 2000  # milliseconds
    assert len(images) == 30
    for place, game in enumerate(games):
        for image, screen in zip(images, game[begin:]):
            panel = image[74:234, 168 * place:168 * place + 160]
            assert abs(panel - screen[34:194]).max() < 10


def image_at(gif, n):
    gif.seek(n)
    return np.array(gif.convert("RGB")).astype(int)


def screens(model, seed, count):
    """What the screen shows after each of the first steps of an episode."""
    game = pg_pong.Pong("PongDeterministic-v4")
    steps = pg_pong.rollout(game, model, np.random.default_rng(seed))
    return [game.ale.getScreenRGB() for _, _ in zip(range(count), steps)]


def first_with_ball(game):
    """The first screen with something white on the playing field."""
    for n, screen in enumerate(game):
        if (screen[35:194] == 236).all(axis=2).any():
            return n


# ---- curves.py


def test_the_curves_are_told_by_a_row_for_each_run_and_an_earlier_save_is_none(tool, tmp_path):
    write_run(tmp_path / "a.p", seed=7, scores=[-21] * 99 + [-10] * 401)
    write_run(tmp_path / "early.p", seed=7, scores=[-21] * 99)
    write_run(tmp_path / "b.p", seed=8, scores=[-1] * 95 + [21] * 5)
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"game": "Pong-v0", "episodes_per_mean": 500,
                                  "steps": {"1000": 3e6}, "means": {"7": [-20.5, -18]}}))

    lines = tool("curves.py", "curves.png", "--group", "two", "a.p", "early.p", "b.p",
                 "--group", "one", "b.p", "--group", "record", record,
                 "--speed", 9000).splitlines()
    group = module("curves").Group(None, [str(record)])

    assert lines[0] == "two:"
    assert lines[1].endswith("first at 0: not yet")
    assert lines[2].endswith("first at 0: 100")
    assert lines[3:8] == [
        "| seed | 100 | 500 | first at 0 |",
        "|---|---|---|---|",
        "| 7 | -20.9 | -10.2 | not yet |",
        "| 8 | +0.1 |  | 100 |",
        "one:",
    ]
    assert "record:" not in lines  # it is drawn, but its means are not those after an episode
    assert Image.open(tmp_path / "curves.png").width == 1000
    assert group.title == "Pong-v0"
    assert group.steps == {1000: 3e6}
    assert [curve.episodes.tolist() for curve in group.curves] == [[250, 750]]
    assert [curve.means.tolist() for curve in group.curves] == [[-20.5, -18]]


def write_run(path, seed, scores):
    run = pg_pong.new_run(pg_pong.Settings(seed=seed))
    pg_pong.write(run._replace(scores=scores), str(path))


# ---- bench.py


def test_bench_ends_with_status_1_and_shows_why_if_a_trainer_fails(tmp_path):
    older = tmp_path / "older.py"
    older.write_text("raise SystemExit('no such luck')")

    with pytest.raises(SystemExit, match="older.py ended with status 1: no such luck"):
        module("bench").run_script(str(older), workers=1, episodes=10, save=None)


def test_bench_reads_the_saves_of_this_and_of_older_versions(tmp_path, saved):
    bench = module("bench")
    (tmp_path / "new.p").write_bytes(saved)
    (tmp_path / "old.p").write_bytes(old_file_of(*parts(saved)))

    new = bench.counters(tmp_path / "new.p")
    old = bench.counters(tmp_path / "old.p")

    assert len(new["scores"]) == 2
    assert old["scores"] == new["scores"]
    assert old["steps"] == new["steps"] > 0
