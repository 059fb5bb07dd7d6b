"""Draw a rally that the agent wins: the game, and beside it the difference frame that the network sees.

    python tests/tools/rally.py assets/rally.gif [--save save.p] [--seed 0]

The saved run plays until it has won a point in 60 to 120 steps. That point becomes an animated GIF at the game's speed.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import pg_pong

import numpy as np
from PIL import Image, ImageDraw

def won_rally(model, rng, episodes=200):
    """The steps (RGB frame, difference frame, p(UP)) of the first point that fits, None if there is none."""
    env = pg_pong.make_env()
    pg_pong.begin_episode(env, rng)
    for _ in range(episodes):
        rally, frame, screen = [], env.ale.getScreenRGB(), env.ale.getScreen()
        for x, _, p, _, reward in pg_pong.play(env, model, rng):
            rally.append((frame, x, p))
            before, frame, screen = screen, env.ale.getScreenRGB(), env.ale.getScreen()
            if reward > 0 and 60 <= len(rally) <= 120:     # end with the ball beyond the opponent's paddle
                x = pg_pong.difference(pg_pong.crop(screen), pg_pong.crop(before))
                return rally + [(frame, x, pg_pong.policy_forward(model, x)[0])]
            rally = [] if reward else rally
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
    rally = won_rally(pg_pong.load(args.save).model, np.random.default_rng(args.seed))
    if not rally:
        pg_pong.fail(f"{args.save} wins no point in 60 to 120 steps")
    first, *others = [picture(*step) for step in rally]
    durations = [50] * len(others) + [500]                 # ms: 3 frames of 60/s on average. The last one stands longer
    first.save(args.picture, save_all=True, append_images=others, duration=durations, loop=0, format="GIF")

if __name__ == "__main__":
    main()
