"""The algorithm as a textbook would write it: RGB frames, dense, float64, one process, nothing clever.

Written without the tricks of pg_pong.py, so that the tests can compare what the two learn, and bench.py how fast.
"""
import gymnasium
import numpy as np

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

def returns(rewards, gamma):
    """Standardized discounted returns by the defining double sum of each rally, O(T^2)."""
    rewards = np.asarray(rewards, np.float64)
    ends = [t + 1 for t, r in enumerate(rewards) if r != 0]
    G, begin = np.zeros(len(rewards)), 0
    for end in ends + [len(rewards)]:
        for t in range(begin, end):
            G[t] = sum(gamma ** (k - t) * rewards[k] for k in range(t, end) if rewards[k] != 0)
        begin = end
    return (G - np.mean(G)) / np.std(G)

def backward(W1, W2, X, Hs, dlogits):
    """X (T, 6400), Hs (T, 200), dlogits (T,) -> dW1 (200, 6400), dW2 (200,)."""
    dW2 = np.dot(Hs.T, dlogits)
    dH = np.outer(dlogits, W2)
    dH[Hs <= 0] = 0
    return np.dot(dH.T, X), dW2

def step(env, action, held, rng):
    """2 to 4 frames, of which each keeps the action held with probability 0.25. -> frame, reward, over, action held."""
    reward = 0
    for _ in range(rng.integers(2, 5)):
        held = held if rng.random() < 0.25 else action
        frame, points, terminated, truncated, _ = env.step(held)
        reward += points
    return frame, reward, terminated or truncated, held

def play(env, W1, W2, rng):
    """One episode -> X, Hs, ps, ups, rewards."""
    X, Hs, ps, ups, rewards, previous, over, held = [], [], [], [], [], None, False, 0
    frame, _ = env.reset()
    while not over:
        now = picture(frame)
        x = now - previous if previous is not None else np.zeros(6400)
        previous = now
        p, h = forward(W1, W2, x)
        up = rng.random() < p
        frame, reward, over, held = step(env, 2 if up else 3, held, rng)
        X.append(x), Hs.append(h), ps.append(p), ups.append(up), rewards.append(reward)
    return np.array(X), np.array(Hs), np.array(ps), np.array(ups), rewards

def train(W1, W2, seed, batch_size, learning_rate, gamma, decay_rate):
    """Yields W1, W2, their mean squared gradients, and the rewards of each episode, after one batch and the next."""
    env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0, obs_type="rgb").unwrapped
    C1, C2, episode = np.zeros((200, 6400)), np.zeros(200), 0
    while True:
        G1, G2, batch = np.zeros((200, 6400)), np.zeros(200), []
        for _ in range(batch_size):
            episode += 1
            X, Hs, ps, ups, rewards = play(env, W1, W2, np.random.default_rng([seed, episode]))
            labels = np.where(ups, 1.0, 0.0)
            dW1, dW2 = backward(W1, W2, X, Hs, (labels - ps) * returns(rewards, gamma))
            G1, G2 = G1 + dW1, G2 + dW2
            batch.append(rewards)
        C1 = decay_rate * C1 + (1 - decay_rate) * G1 ** 2
        C2 = decay_rate * C2 + (1 - decay_rate) * G2 ** 2
        W1 = W1 + learning_rate * G1 / (np.sqrt(C1) + 1e-5)
        W2 = W2 + learning_rate * G2 / (np.sqrt(C2) + 1e-5)
        yield W1, W2, C1, C2, batch
