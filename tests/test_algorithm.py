"""The algorithm, to the last constant."""
import warnings

import gymnasium
import numpy as np
import pytest
import textbook

import pg_pong


def differences(episode):
    codes = [pg_pong.crop(s) for s in episode.screens]
    return [pg_pong.difference(b, a) for a, b in zip([codes[0]] + codes, codes)]


def dense(x):
    out = np.zeros(6400)
    out[x[0]] = x[1]
    return out


# ---- preprocessing

def test_prepro_agrees_with_the_definition_on_real_frames(episode):
    for frame in episode.frames:
        before = frame.copy()
        picture = pg_pong.prepro(frame)
        assert picture.shape == (6400,) and picture.dtype == np.float32
        assert np.array_equal(picture, textbook.picture(frame))
        assert np.array_equal(frame, before)


def test_prepro_of_every_red_value():
    frame = np.zeros((210, 160, 3), np.uint8)
    frame[35:195:2, ::2, 0] = (np.arange(6400) % 256).reshape(80, 80)
    assert np.array_equal(pg_pong.prepro(frame), textbook.picture(frame))


def test_color_codes_give_the_same_picture_as_RGB_on_10000_frames_in_all_colors():
    env = gymnasium.make("ALE/Pong-v5", frameskip=(2, 5))
    ale, rng, colors, frames = env.unwrapped.ale, np.random.default_rng(1), set(), 0
    env.reset(seed=1)
    codes = [int(c) for c in np.flatnonzero(pg_pong.LIT_CODE == 0)]
    while frames < 10_000:
        env.reset()
        while not ale.game_over():
            screen, frame = ale.getScreen(), ale.getScreenRGB()
            assert np.array_equal(pg_pong.LIT_CODE[pg_pong.crop(screen)], pg_pong.prepro(frame))
            colors |= set(np.unique(screen[35:195:2, ::2]).tolist())
            frames += 1
            ale.act(env.unwrapped._action_set[rng.integers(2, 4)])
    # both backgrounds, the ball and both paddles were seen
    assert {34, 228, 14, 200, 56} <= colors, colors
    assert codes == [0, 34, 228]


def test_the_difference_frame_is_this_picture_minus_the_previous_one_and_zero_at_first(episode):
    pictures = [textbook.picture(f) for f in episode.frames]
    xs = [dense(x) for x in differences(episode)]
    assert not xs[0].any()
    for t in range(1, len(xs)):
        assert np.array_equal(xs[t], pictures[t] - pictures[t - 1])


# ---- policy

@pytest.fixture(scope="module")
def model():
    return pg_pong.new_model(np.random.default_rng(5))


def test_the_model_is_gaussian_divided_by_the_root_of_the_fan_in(model):
    W1, W2 = model["W1"], model["W2"]
    assert W1.shape == (200, 6400) and W2.shape == (200,) and W1.dtype == W2.dtype == np.float32
    assert abs(W1.std() * np.sqrt(6400) - 1) < 0.01 and abs(W1.mean()) < 1e-4
    assert abs(W2.std() * np.sqrt(200) - 1) < 0.2
    z = W1 * np.sqrt(6400)
    assert abs((np.abs(z) < 1).mean() - 0.6827) < 0.002 and abs((np.abs(z) < 2).mean() - 0.9545) < 0.002


def test_forward_and_backward_agree_with_the_dense_textbook_on_a_real_episode(model, episode):
    W1, W2 = model["W1"].astype(np.float64), model["W2"].astype(np.float64)
    xs = differences(episode)
    X = np.array([dense(x) for x in xs])
    ours, theirs = [pg_pong.policy_forward(model, x) for x in xs], [textbook.forward(W1, W2, x) for x in X]
    assert np.allclose([p for p, _ in ours], [p for p, _ in theirs], atol=1e-6)
    assert np.allclose([h for _, h in ours], [h for _, h in theirs], atol=1e-5)
    advantages = pg_pong.standardize(pg_pong.discount_rewards(episode.rewards))
    assert np.allclose(advantages, textbook.returns(episode.rewards), atol=1e-9)
    dlogits = ((episode.ups - np.array([p for p, _ in ours])) * advantages).astype(np.float32)
    gradient = {k: np.full_like(v, 7) for k, v in model.items()}       # what stood there before must not matter
    pg_pong.policy_backward(model, xs, np.array([h for _, h in ours]), dlogits, gradient)
    dW1, dW2 = textbook.backward(W1, W2, X, np.array([h for _, h in theirs]), dlogits.astype(np.float64))
    assert np.abs(gradient["W1"] - dW1).max() < 1e-4 * np.abs(dW1).max()
    assert np.abs(gradient["W2"] - dW2).max() < 1e-4 * np.abs(dW2).max()
    assert np.count_nonzero(dW1) > 10_000


def test_backward_agrees_with_finite_differences(episode):
    """Of the sum of log p(action) * advantage, in float64, on the steps around a point."""
    model = {k: v.astype(np.float64) for k, v in pg_pong.new_model(np.random.default_rng(6)).items()}
    xs, ups = differences(episode)[40:140], episode.ups[40:140]
    advantages = np.random.default_rng(0).standard_normal(100)

    def objective():
        ps = np.array([pg_pong.policy_forward(model, x)[0] for x in xs])
        return np.sum(np.log(np.where(ups, ps, 1 - ps)) * advantages)

    forward = [pg_pong.policy_forward(model, x) for x in xs]
    gradient = {k: np.zeros_like(v) for k, v in model.items()}
    pg_pong.policy_backward(model, xs, np.array([h for _, h in forward]),
                            (ups - np.array([p for p, _ in forward])) * advantages, gradient)
    strongest = np.argsort(-np.abs(gradient["W1"]).ravel())[:2000:100]
    places = [("W1", np.unravel_index(i, (200, 6400))) for i in strongest] + [("W2", (i,)) for i in range(0, 200, 20)]
    for k, place in places:
        old = model[k][place]
        model[k][place] = old + 1e-5
        above = objective()
        model[k][place] = old - 1e-5
        below = objective()
        model[k][place] = old
        assert (above - below) / 2e-5 == pytest.approx(gradient[k][place], rel=1e-3, abs=1e-6), (k, place)


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_the_sigmoid_is_silent_and_right_on_large_logits(scale):
    one_pixel = np.array([0]), np.ones(1, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sign, expected in (1, 1.0), (-1, 0.0), (0, 0.5):
            model = {"W1": np.ones((200, 6400), np.float32), "W2": np.full(200, sign * scale, np.float32)}
            assert pg_pong.policy_forward(model, one_pixel)[0] == expected


# ---- returns

def test_returns_by_hand():
    assert pg_pong.discount_rewards([0, 0, 1]) == pytest.approx([0.9801, 0.99, 1])
    assert pg_pong.discount_rewards([0, 1, 0, 0, -1]) == pytest.approx([0.99, 1, -0.9801, -0.99, -1])   # starts anew
    assert pg_pong.discount_rewards([-1, 0, 0]) == pytest.approx([-1, 0, 0])
    assert pg_pong.discount_rewards([0, 0, 1], gamma=0.5) == pytest.approx([0.25, 0.5, 1])
    assert pg_pong.discount_rewards([0, 1]).dtype == np.float64


def test_standardization_by_hand():
    assert pg_pong.standardize(np.array([1.0, 2, 3, 4])) == pytest.approx(np.array([-3, -1, 1, 3]) / 5**0.5)


@pytest.mark.parametrize("returns", [[-1.0] * 7, [0.0] * 3, [0.1] * 3, [1.0]])
def test_returns_that_are_all_equal_yield_no_NaN(returns):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pg_pong.standardize(np.array(returns)) == pytest.approx(np.zeros(len(returns)), abs=1e-12)


# ---- update

def test_one_rmsprop_step_by_hand():
    model, cache = {"W2": np.array([1.0, 2.0])}, {"W2": np.array([4.0, 0.0])}
    pg_pong.rmsprop(model, cache, {"W2": np.array([3.0, -0.5])}, 1e-4, 0.99)
    assert cache["W2"] == pytest.approx([0.99 * 4 + 0.01 * 9, 0.01 * 0.25], rel=1e-12)
    assert model["W2"] == pytest.approx([1 + 1e-4 * 3 / (4.05**0.5 + 1e-5), 2 - 1e-4 * 0.5 / (0.05 + 1e-5)], rel=1e-12)


def test_the_published_hyperparameters():
    assert pg_pong.HYPERPARAMETERS == {"batch_size": 10, "learning_rate": 1e-4, "gamma": 0.99, "decay_rate": 0.99}
    assert (pg_pong.H, pg_pong.D, pg_pong.UP, pg_pong.DOWN, pg_pong.SAVE_EVERY) == (200, 6400, 2, 3, 100)


# ---- the game

def test_the_game_is_that_of_pong_v0():
    ours, v0 = pg_pong.make_env().spec.kwargs, gymnasium.spec("Pong-v0").kwargs
    kept = {k: v for k, v in ours.items() if k != "obs_type"}          # what step() returns is not looked at
    assert kept == v0
    assert pg_pong.make_env().unwrapped.get_action_meanings()[2:4] == ["RIGHT", "LEFT"]   # up and down, in Pong


class ScriptedGame:
    """An emulator's stand-in for one thing that the real one does only after half an hour: truncation."""
    def __init__(self, screen):
        self.unwrapped, self.ale, self.actions, self.screen = self, self, [], screen

    def getScreen(self):
        return self.screen

    def step(self, action):
        self.actions.append(action)
        return None, 0.0, False, len(self.actions) == 3, {}


def test_a_truncated_episode_ends_like_a_terminated_one(model, episode):
    game = ScriptedGame(episode.screens[0])
    steps = list(pg_pong.play(game, model, np.random.default_rng(0)))
    assert len(steps) == len(game.actions) == 3
    assert set(game.actions) <= {2, 3}


def test_actions_are_sampled_not_chosen_by_argmax(model):
    env = pg_pong.make_env()
    pg_pong.begin_episode(env, np.random.default_rng(0), None)
    steps = list(pg_pong.play(env, model, np.random.default_rng(0)))
    ps, ups = np.array([s[2] for s in steps]), np.array([s[3] for s in steps])
    assert (ups != (ps > 0.5)).mean() > 0.2
    assert abs(ups.mean() - ps.mean()) < 0.06
