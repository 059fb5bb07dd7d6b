"""Draw how the agent learns: the same ten seconds, played by several saves of a run, as a GIF.

    python tests/tools/learning.py FILE.gif [--seed 0] [--seconds 10] SAVE...

Side by side are the untrained network that the first save's run began with, and then each save, all
with the same random numbers. Above each game stands how many episodes the agent has learned from,
and the running mean of its score by then. Below is its strongest neuron, in the same scale: a pixel
that lights up where it is white speaks for UP, and where it is black, for DOWN.
"""
import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
import numpy as np
import pg_pong
from PIL import Image, ImageDraw, ImageFont

STEP = 0.05              # seconds that a step is shown, which is what 3 frames take
PAUSE = 2                # seconds that the last step is shown
WIDTH, GAP = 160, 8      # pixels: of the emulator's screen, and between two of them
TOP, GAME = 40, 195      # pixels: height of the text, and of the screen as far as it is shown
COLORS = 48


class Agent(NamedTuple):
    model: dict
    title: str
    score: str


def untrained(run):
    """The agent that the run began with. It played the run's first batch."""
    model = pg_pong.new_run(run.settings).model
    score = np.mean(run.scores[:run.settings.batch_size])
    return Agent(model, "untrained", f"mean score {score:+.1f}")


def trained(run):
    score = pg_pong.running_means(run.scores)[-1]
    return Agent(run.model, f"{len(run.scores):,} episodes", f"mean score {score:+.1f}")


def screens(model, seed, count):
    """What an episode looks like, from its first serve on: (195, 160, 3) uint8 for each step."""
    game = pg_pong.Pong()
    rng = np.random.default_rng(seed)
    served = False
    images = []
    for _, _, _, picture in pg_pong.play(game, model, rng):
        served = served or has_ball(picture)
        if served:
            images.append(game.ale.getScreenRGB()[:GAME])
        if len(images) == count:
            break
    return images


def has_ball(picture):
    """Whether anything is between the paddles, which stand in the columns 8, 9 and 70, 71."""
    return picture.reshape(80, 80)[:, 12:68].any()


def strongest_neuron(model):
    """What each pixel says through it, as large as the game: (160, 160) uint8."""
    vote = pg_pong.strongest_neurons(model, 1)[0]
    limit = np.percentile(np.abs(vote), 99.5)
    vote = np.clip(vote / limit, -1, 1)
    gray = np.uint8(np.round((vote + 1) / 2 * 15) * 17)  # 16 grays take less room in the file
    return gray.repeat(2, axis=0).repeat(2, axis=1)


def frame(agent):
    """What stays: the text, the neuron, and a gap on the right. There is room for the game."""
    image = Image.new("RGB", (WIDTH + GAP, TOP + GAME + GAP + WIDTH), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)
    for line, text in enumerate([agent.title, agent.score]):
        draw.text((WIDTH / 2, 19 * line), text, "black", font, anchor="ma")
    image.paste(Image.fromarray(strongest_neuron(agent.model)), (0, TOP + GAME + GAP))
    return np.array(image)


def draw(agents, seed, count):
    """An image for each step."""
    frames = [frame(agent) for agent in agents]
    games = [screens(agent.model, seed, count) for agent in agents]
    for step in zip(*games):
        for column, screen in zip(frames, step):
            column[TOP:TOP + GAME, :WIDTH] = screen
        yield Image.fromarray(np.hstack(frames)[:, :-GAP])


def write(file, images):
    """All images with the colors of the last, in which everything has appeared."""
    palette = images[-1].quantize(COLORS)
    first, *others = [image.quantize(palette=palette, dither=Image.Dither.NONE)
                      for image in images]
    durations = [1000 * STEP] * len(others) + [1000 * PAUSE]  # milliseconds
    first.save(file, save_all=True, append_images=others, loop=0, duration=durations)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("saves", nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="of the games")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    runs = [pg_pong.load(save) for save in args.saves]
    agents = [untrained(runs[0])] + [trained(run) for run in runs]
    write(args.file, list(draw(agents, args.seed, round(args.seconds / STEP))))


if __name__ == "__main__":
    main()
