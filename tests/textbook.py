"""The algorithm as a textbook would write it: RGB frames, dense, float64, one process.

It has none of the tricks of pg_pong.py and nothing from that file, so that the tests can compare
what the two learn, and tools/bench.py how fast they do.
"""
from typing import NamedTuple

import ale_py
import gymnasium
import numpy as np

gymnasium.register_envs(ale_py)      # or gymnasium would not know the games of ale_py


class Episode(NamedTuple):
    """What was seen, thought and done in T steps."""
    X: np.ndarray        # (T, 6400): difference frames
    Hs: np.ndarray       # (T, 200): hidden layers
    ps: np.ndarray       # (T,): probabilities of UP
    ups: np.ndarray      # (T,): whether it went UP
    rewards: list        # (T,)


class Learned(NamedTuple):
    """What there is after a batch."""
    W1: np.ndarray       # (200, 6400)
    W2: np.ndarray       # (200,)
    C1: np.ndarray       # the mean squared gradients of W1
    C2: np.ndarray       # and those of W2
    batch: list          # the rewards of each episode of the batch


def picture(frame):
    """(210, 160, 3) uint8 -> (6400,) float64, pixel by pixel as the definition says."""
    red = frame[35:195, :, 0]
    red = red[::2, ::2].astype(np.float64)
    red[red == 144] = 0
    red[red == 109] = 0
    red[red != 0] = 1
    return red.reshape(-1)


def forward(W1, W2, x):
    """x (6400,) -> p(UP), hidden (200,)."""
    h = np.dot(W1, x)
    h = np.where(h > 0, h, 0.0)
    z = np.dot(W2, h)
    if z >= 0:
        p = 1 / (1 + np.exp(-z))
    else:
        p = np.exp(z) / (1 + np.exp(z))
    return p, h


def returns(rewards, gamma):
    """Standardized discounted returns by the defining double sum of each rally, O(T^2)."""
    T = len(rewards)
    G = np.zeros(T)
    begin = 0
    for end in [*np.flatnonzero(rewards) + 1, T]:
        for t in range(begin, end):
            for k in range(t, end):
                G[t] += gamma ** (k - t) * rewards[k]
        begin = end
    return (G - np.mean(G)) / np.std(G)


def backward(W1, W2, X, Hs, dlogits):
    """X (T, 6400), Hs (T, 200), dlogits (T,) -> dW1 (200, 6400), dW2 (200,)."""
    dW2 = np.dot(Hs.T, dlogits)
    dH = np.outer(dlogits, W2)
    dH[Hs <= 0] = 0
    dW1 = np.dot(dH.T, X)
    return dW1, dW2


def step(env, action, held, rng):
    """Play 2 to 4 frames, of which each keeps the action held with probability 0.25.

    Returns the last frame, the reward, whether the episode is over, and the action then held.
    """
    reward = 0
    for _ in range(rng.integers(2, 5)):
        if rng.random() >= 0.25:
            held = action
        frame, points, terminated, truncated, _ = env.step(held)
        reward += points
    return frame, reward, terminated or truncated, held


def play(env, W1, W2, rng):
    """Play an episode. The emulator's actions are 0 to do nothing, 2 to go up and 3 to go down."""
    X, Hs, ps, ups, rewards = [], [], [], [], []
    frame, _ = env.reset()
    previous = None
    held = 0
    over = False
    while not over:
        now = picture(frame)
        if previous is None:
            x = np.zeros(6400)
        else:
            x = now - previous
        previous = now
        p, h = forward(W1, W2, x)
        up = rng.random() < p
        action = 2 if up else 3
        frame, reward, over, held = step(env, action, held, rng)
        X.append(x)
        Hs.append(h)
        ps.append(p)
        ups.append(up)
        rewards.append(reward)
    return Episode(np.array(X), np.array(Hs), np.array(ps), np.array(ups), rewards)


def gradient(W1, W2, episode, gamma):
    """The sum over the steps of the derivatives of log p(action), times the standardized return."""
    labels = np.where(episode.ups, 1.0, 0.0)
    dlogits = (labels - episode.ps) * returns(episode.rewards, gamma)
    return backward(W1, W2, episode.X, episode.Hs, dlogits)


def train(W1, W2, seed, batch_size, learning_rate, gamma, decay_rate):
    """Yields what was learned after one batch, after the next, and so on."""
    env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0, obs_type="rgb")
    env = env.unwrapped
    C1 = np.zeros((200, 6400))
    C2 = np.zeros(200)
    number = 0
    while True:
        G1 = np.zeros((200, 6400))
        G2 = np.zeros(200)
        batch = []
        for _ in range(batch_size):
            number += 1
            rng = np.random.default_rng([seed, number])
            episode = play(env, W1, W2, rng)
            dW1, dW2 = gradient(W1, W2, episode, gamma)
            G1 = G1 + dW1
            G2 = G2 + dW2
            batch.append(episode.rewards)
        C1 = decay_rate * C1 + (1 - decay_rate) * G1 ** 2
        C2 = decay_rate * C2 + (1 - decay_rate) * G2 ** 2
        W1 = W1 + learning_rate * G1 / (np.sqrt(C1) + 1e-5)
        W2 = W2 + learning_rate * G2 / (np.sqrt(C2) + 1e-5)
        yield Learned(W1, W2, C1, C2, batch)
