"""Draw a rally that the agent wins: the game, and beside it the difference frame that the network sees.

    python tests/rally.py assets/rally.gif [--save save.p] [--seed 0]

Plays with the saved run until it has won a point in 60 to 120 steps, and writes that point as an animated GIF at the
speed of the game. Needs pillow (tests/requirements.txt).
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import pg_pong

import numpy as np
try:
    from PIL import Image, ImageDraw
except ImportError:
    pg_pong.fail("drawing the rally needs pillow: pip install -r tests/requirements.txt")

STEP = 50                                                  # milliseconds: on average 3 frames, 60 of them a second


def won_rally(model, rng):
    """The steps (RGB frame, difference frame, p(UP)) of the first point that fits."""
    env = pg_pong.make_env()
    pg_pong.begin_episode(env, rng, None)
    while True:
        rally, frame = [], env.ale.getScreenRGB()
        for x, _, p, _, reward in pg_pong.play(env, model, rng):
            rally.append((frame, x, p))
            frame = env.ale.getScreenRGB()
            if reward:
                if reward > 0 and 60 <= len(rally) <= 120:
                    return rally + [(frame, x, p)]         # the ball beyond the opponent's paddle
                rally = []
        env.reset()


def picture(frame, x, p):
    """The frame (twice its size), the difference frame (four times), and what the policy makes of it."""
    pixels, values = x
    difference = np.full(pg_pong.D, 128, np.uint8)
    difference[pixels] = 128 + 127 * values
    image = Image.new("RGB", (660, 420), "white")
    image.paste(Image.fromarray(frame).resize((320, 420), Image.NEAREST), (0, 0))
    image.paste(Image.fromarray(difference.reshape(80, 80)).resize((320, 320), Image.NEAREST), (330, 70))
    draw = ImageDraw.Draw(image)
    draw.text((330, 40), "what the network sees: this frame minus the last", "black", font_size=13)
    draw.text((330, 398), f"p(UP) {p:.2f}", "black", font_size=13)
    draw.rectangle((410, 400, 650, 414), outline="black")
    draw.rectangle((410, 400, 410 + round(240 * p), 414), fill="black")
    return image.quantize(32, dither=Image.Dither.NONE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture")
    parser.add_argument("--save", default="save.p")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.seed < 0:
        pg_pong.fail("--seed must not be negative")
    run, _ = pg_pong.loaded(args.save)
    first, *others = [picture(*step) for step in won_rally(run.model, np.random.default_rng(args.seed))]
    durations = [STEP] * len(others) + [10 * STEP]         # the last picture stands for a while
    try:
        first.save(args.picture, save_all=True, append_images=others, duration=durations, loop=0, format="GIF")
    except OSError as problem:
        pg_pong.fail(f"cannot write {args.picture}: {problem.strerror}")


if __name__ == "__main__":
    main()
