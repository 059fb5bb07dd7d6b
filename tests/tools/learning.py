"""Draw how the agent learns: the same ten seconds, played after more and more episodes, as a GIF.

    python tests/tools/learning.py FILE.gif [--seed 0] [--seconds 10] SAVE...

The saves are of one run, the earliest first; two or three fit well. Side by side are the untrained
network that this run began with, and then each save, all playing the run's game with the same
random numbers. Above each trained one stands how many episodes it has learned from, and the running
mean of its score by then.

The README's picture is of the saves of one command: the README's for the easiest game, with
--episodes 150, and then with --resume and --episodes 300 and 600, copied each time.
"""
import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
import pg_pong
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAUSE = 2            # seconds that the last step is shown
WIDTH, GAP = 160, 8  # pixels: of the emulator's screen, and between two of them
GAME = 210           # pixels: height of the screen
TOP = 40             # pixels: height of the text above the games
COLORS = 48
NAMES = {"opponent": ("la", 4, (140, 65, 15)), "agent": ("ra", WIDTH - 4, (20, 105, 20))}


class Agent(NamedTuple):
    model: dict
    title: str
    score: str


def untrained(run):
    """The agent that the run began with."""
    return Agent(pg_pong.new_run(run.settings).model, "untrained", "")


def trained(run):
    score = pg_pong.running_means(run.scores)[-1]
    return Agent(run.model, f"{len(run.scores):,} episodes", f"running mean {score:+.1f}")


# ---- a game

def screens(pong, model, seed, count):
    """What an episode looks like, from its first serve on: (210, 160, 3) uint8 for each step."""
    served = False
    images = []
    for _ in pg_pong.rollout(pong, model, np.random.default_rng(seed)):
        served = served or has_ball(pg_pong.prepro(pong.ale.getScreen()))
        if served:
            images.append(pong.ale.getScreenRGB())
        if len(images) == count:
            break
    return images


def has_ball(picture):
    """Whether anything is between the paddles, which stand in the columns 8, 9 and 70, 71."""
    return picture.reshape(80, 80)[:, 12:68].any()


# ---- the picture

def frame(agent):
    """What stays: the text, and a gap on the right. There is room for the game."""
    image = Image.new("RGB", (WIDTH + GAP, TOP + GAME), "white")
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(15)
    for line, text in enumerate([agent.title, agent.score]):
        canvas.text((WIDTH / 2, 19 * line), text, "black", font, anchor="ma")
    return np.array(image)


def draw(agents, game, seed, count):
    """An image for each step."""
    pong = pg_pong.Pong(game)
    frames = [frame(agent) for agent in agents]
    games = [screens(pong, agent.model, seed, count) for agent in agents]
    for step in zip(*games):
        for column, screen in zip(frames, step):
            column[TOP:, :WIDTH] = screen
        yield labelled(Image.fromarray(np.hstack(frames)[:, :-GAP]), len(frames))


def labelled(image, count):
    """With the names of the paddles on the wall below each game."""
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for panel in range(count):
        left = panel * (WIDTH + GAP)
        for name, (anchor, x, color) in NAMES.items():
            canvas.text((left + x, TOP + 194), name, color, font, anchor)
    return image


def write(file, images, seconds_per_step):
    """All images with the colors of the last, in which everything has appeared."""
    palette = images[-1].quantize(COLORS)
    first, *others = [image.quantize(palette=palette, dither=Image.Dither.NONE)
                      for image in images]
    step = 10 * round(100 * seconds_per_step)  # milliseconds: a GIF counts in tens of them
    durations = [step] * len(others) + [1000 * PAUSE]
    first.save(file, save_all=True, append_images=others, loop=0, duration=durations)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("saves", nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="of the games")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    runs = [pg_pong.load(save) for save in args.saves]
    settings = runs[0].settings
    if any(run.settings[-2:] != settings[-2:] for run in runs):  # seed and game
        parser.error("these are saves of different runs")
    agents = [untrained(runs[0])] + [trained(run) for run in runs]
    least, most, _ = pg_pong.GAMES[settings.game]
    pace = (least + most) / 2 / 60  # seconds per step: a second has 60 frames
    images = list(draw(agents, settings.game, args.seed, round(args.seconds / pace)))
    write(args.file, images, pace)


if __name__ == "__main__":
    main()
