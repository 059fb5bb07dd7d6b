"""The algorithm as a textbook would write it: dense, float64, one process, nothing clever.

Written independently of pg_pong.py and on purpose without its tricks, so that the tests can compare the two and
bench.py can time them against each other.
"""
import numpy as np

GAMMA = 0.99


def picture(frame):
    """(210, 160, 3) uint8 -> (6400,) float64, pixel by pixel as the definition says."""
    red = frame[35:195, :, 0][::2, ::2].astype(np.float64)
    red[red == 144] = 0
    red[red == 109] = 0
    red[red != 0] = 1
    return red.reshape(-1)


def forward(W1, W2, x):
    """x (6400,) -> p(UP), hidden (200,)."""
    h = np.dot(W1, x)
    h = np.where(h > 0, h, 0.0)
    z = np.dot(W2, h)
    return (1 / (1 + np.exp(-z)) if z >= 0 else np.exp(z) / (1 + np.exp(z))), h


def returns(rewards):
    """Standardized discounted returns by the defining double sum of each rally, O(T^2)."""
    rewards = np.asarray(rewards, np.float64)
    ends = [t + 1 for t, r in enumerate(rewards) if r != 0]
    G, begin = np.zeros(len(rewards)), 0
    for end in ends + [len(rewards)]:
        for t in range(begin, end):
            G[t] = sum(GAMMA ** (k - t) * rewards[k] for k in range(t, end) if rewards[k] != 0)
        begin = end
    return (G - np.mean(G)) / np.std(G)


def backward(W1, W2, X, Hs, dlogits):
    """X (T, 6400), Hs (T, 200), dlogits (T,) -> dW1 (200, 6400), dW2 (200,)."""
    dW2 = np.dot(Hs.T, dlogits)
    dH = np.outer(dlogits, W2)
    dH[Hs <= 0] = 0
    return np.dot(dH.T, X), dW2


def play(env, W1, W2, rng):
    """One episode on an env that yields RGB frames -> X, Hs, ps, ups, rewards."""
    frame, _ = env.reset()
    X, Hs, ps, ups, rewards, previous, over = [], [], [], [], [], None, False
    while not over:
        now = picture(frame)
        x = now - previous if previous is not None else np.zeros(6400)
        previous = now
        p, h = forward(W1, W2, x)
        up = rng.uniform() < p
        frame, reward, terminated, truncated, _ = env.step(2 if up else 3)
        over = terminated or truncated
        X.append(x), Hs.append(h), ps.append(p), ups.append(up), rewards.append(reward)
    return np.array(X), np.array(Hs), np.array(ps), np.array(ups), rewards
