"""Draw how the agent learns: the same ten seconds, played after more and more episodes, as a GIF.

    python tests/tools/learning.py FILE.gif [--seed 0] [--seconds 10] SAVE...

The saves are of one run, the earliest first; two or three fit well. Side by side are the untrained
network that this run began with, and then each save, all playing the run's game with the same
random numbers. Above each game stands how many episodes the agent has learned from, and the running
mean of its score by then. Below is its strongest neuron, laid over the screen: what appears where
it is white pushes the paddle up, and where it is black, down, all in one scale. It is blurred, so
that single weights do not hide what they make together.
"""
import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
import pg_pong
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAUSE = 2                # seconds that the last step is shown
WIDTH, GAP = 160, 8      # pixels: of the emulator's screen, and between two of them
TOP, BOTTOM = 40, 26     # pixels: height of the text above the games, and below the neurons
GAME = 210               # pixels: height of the screen
NEURON = TOP + GAME + GAP                # where the neuron begins, and where it ends
END = NEURON + WIDTH
COLORS = 48
BLUR = 1.5               # pixels of the network's picture: standard deviation of a gaussian
NAMES = {"opponent": ("la", 4, (140, 65, 15)), "agent": ("ra", WIDTH - 4, (20, 105, 20))}


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


# ---- a game, and a neuron

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


def strongest_neuron(model):
    """Where it pushes up and down, from 1 to -1: (80, 80), blurred."""
    pushes = model["W1"] * model["W2"][:, np.newaxis]  # (200, 6400): positive for UP
    strongest = np.linalg.norm(pushes, axis=1).argmax()
    return blurred(pushes[strongest].reshape(80, 80))


def strong_push(model):
    """How strongly a pixel pushes of which there are only a few in its strongest neuron."""
    return np.percentile(np.abs(strongest_neuron(model)), 99.5)


def blurred(image):
    """Each pixel becomes a mean of those around it, with the weights of a gaussian."""
    distances = np.arange(80) - np.arange(80)[:, np.newaxis]
    weights = np.exp(-distances**2 / (2 * BLUR**2))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ image @ weights.T


def gray_of(neuron, limit):
    """As large as the game: (160, 160) uint8."""
    push = np.clip(neuron / limit, -1, 1)
    gray = np.uint8(np.round((push + 1) / 2 * 15) * 17)  # 16 grays take less room in the file
    return gray.repeat(2, axis=0).repeat(2, axis=1)


# ---- the picture

def frame(agent, limit):
    """What stays: the text, the neuron, and a gap on the right. There is room for the game."""
    image = Image.new("RGB", (WIDTH + GAP, END + BOTTOM), "white")
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(16)
    for line, text in enumerate([agent.title, agent.score]):
        canvas.text((WIDTH / 2, 19 * line), text, "black", font, anchor="ma")
    gray = gray_of(strongest_neuron(agent.model), limit)
    image.paste(Image.fromarray(gray), (0, NEURON))
    return np.array(image)


def draw(agents, game, seed, count):
    """An image for each step."""
    pong = pg_pong.Pong(game)
    limit = max(strong_push(agent.model) for agent in agents)
    frames = [frame(agent, limit) for agent in agents]
    games = [screens(pong, agent.model, seed, count) for agent in agents]
    for step in zip(*games):
        for column, screen in zip(frames, step):
            column[TOP:TOP + GAME, :WIDTH] = screen
        yield labelled(Image.fromarray(np.hstack(frames)[:, :-GAP]), len(frames))


def labelled(image, count):
    """With the names of the paddles on the wall below each game, and a legend for the neurons."""
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for panel in range(count):
        left = panel * (WIDTH + GAP)
        for name, (anchor, x, color) in NAMES.items():
            canvas.text((left + x, TOP + 194), name, color, font, anchor)
    legend = "white pushes up, black pushes down"
    canvas.text((image.width / 2, END + 5), legend, "black", ImageFont.load_default(15), "ma")
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
