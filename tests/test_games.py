"""Each game is the one that gymnasium has under its name."""
from types import SimpleNamespace

import gymnasium
import numpy as np
import pg_pong
import pytest
from pg_pong import DOWN, GAMES, NOOP, UP, Pong

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date")

NUMBERS = {UP: 2, DOWN: 3, NOOP: 0}  # of the actions in gymnasium


def registered(name):
    """The keywords that gymnasium makes a game with. It had PongDeterministic-v4 for years, as
    Pong-v4 with four frames, but ale_py has left this name out since.
    """
    if name == "PongDeterministic-v4":
        return gymnasium.spec("Pong-v4").kwargs | {"frameskip": 4}
    return gymnasium.spec(name).kwargs


# ---- without chance

@pytest.mark.parametrize("name", ["PongDeterministic-v4", "PongNoFrameskip-v4"])
def test_in_a_game_without_chance_the_same_actions_give_the_same_screens_and_rewards(name):
    rng = np.random.default_rng(0)
    ours = Pong(name)
    if name == "PongDeterministic-v4":
        theirs = gymnasium.make("Pong-v4", frameskip=4)
    else:
        theirs = gymnasium.make(name)
    ours.reset(rng)
    screen, _ = theirs.reset()
    assert np.array_equal(ours.ale.getScreenRGB(), screen)

    rewards = []
    over = False
    while not over:
        action = [UP, DOWN, NOOP][rng.integers(3)]
        _, reward, over = ours.step(action)
        screen, their_reward, their_over, _, _ = theirs.step(NUMBERS[action])
        rewards.append(reward)
        assert np.array_equal(ours.ale.getScreenRGB(), screen)
        assert (reward, over) == (their_reward, their_over)

    assert max(rewards.count(1), rewards.count(-1)) == 21


# ---- chance: frames per step, and sticky actions

class Watched:
    """An emulator that notes the actions and the rewards of its frames."""

    def __init__(self, ale):
        self.ale = ale
        self.actions = []
        self.rewards = []

    def act(self, action):
        reward = self.ale.act(action)
        self.actions.append(action)
        self.rewards.append(reward)
        return reward

    def __getattr__(self, name):
        return getattr(self.ale, name)


@pytest.fixture(scope="module", params=GAMES)
def watched(request):
    """2,000 steps of random play: whether it begins an episode, the action that was given, the
    reward that was returned, and the actions and rewards of the frames.
    """
    rng = np.random.default_rng(0)
    game = Pong(request.param)
    game.ale = Watched(game.ale)
    steps = []
    over = True
    for _ in range(2000):
        begins = over
        if begins:
            game.reset(rng)
        first = len(game.ale.actions)
        given = UP if rng.random() < 0.5 else DOWN
        _, reward, over = game.step(given)
        step = SimpleNamespace(begins=begins, given=given, reward=reward)
        step.actions = game.ale.actions[first:]
        step.rewards = game.ale.rewards[first:]
        steps.append(step)
    return SimpleNamespace(steps=steps, registered=registered(request.param))


def test_a_step_has_as_many_frames_as_in_gymnasium_each_number_equally_often(watched):
    lengths = [len(step.actions) for step in watched.steps]

    expected = watched.registered["frameskip"]
    expected = [expected] if type(expected) is int else list(range(*expected))
    numbers, counts = np.unique(lengths, return_counts=True)
    assert list(numbers) == expected
    assert counts == pytest.approx(2000 / len(expected), abs=90)


def test_a_frame_repeats_the_action_of_the_frame_before_as_often_as_in_gymnasium(watched):
    repeats = []
    for step in watched.steps:
        if step.begins:
            held = NOOP
        for action in step.actions:
            assert action in (held, step.given)
            if held != step.given:
                repeats.append(action == held)
            held = action

    stickiness = watched.registered["repeat_action_probability"]
    assert len(repeats) > 900
    assert np.mean(repeats) == pytest.approx(stickiness, abs=0.045 if stickiness else 0)


@pytest.mark.parametrize("watched", ["Pong-v0"], indirect=True)
def test_the_reward_of_a_step_is_that_of_its_frames(watched):
    points = 0
    for step in watched.steps:
        points += abs(step.reward)
        assert step.reward == sum(step.rewards)

    assert points > 10


def test_an_episode_begins_with_no_action_held():
    rng = np.random.default_rng(0)
    game = Pong("Pong-v0")
    firsts = set()

    for given in [UP, DOWN] * 40:
        game.ale = Watched(game.env.ale)
        game.reset(rng)
        game.step(given)
        firsts.add((given, game.ale.actions[0]))

    assert firsts == {(UP, UP), (UP, NOOP), (DOWN, DOWN), (DOWN, NOOP)}


def test_the_paddle_moves_where_the_action_says():
    for action, edge in [(UP, 0), (DOWN, 79)]:
        game = Pong("Pong-v0")
        game.reset(np.random.default_rng(0))

        for _ in range(20):
            picture, _, _ = game.step(action)

        right_paddle = picture.reshape(80, 80)[:, 70]
        assert right_paddle[edge] == 1
        assert right_paddle[79 - edge] == 0


# ---- the end of an episode

def test_an_episode_may_last_as_long_as_in_gymnasium():
    for name in GAMES:
        limit = Pong(name).ale.getInt("max_num_frames_per_episode")
        assert limit == registered(name)["max_num_frames_per_episode"] == 108_000


def test_an_episode_ends_at_the_emulators_limit():
    """Shown with a limit of 300 frames, as it takes long to get to 108,000."""
    game = Pong("Pong-v0", max_num_frames_per_episode=300)
    game.reset(np.random.default_rng(0))

    steps = 0
    over = False
    while not over and steps < 200:
        _, _, over = game.step(UP)
        steps += 1

    assert over
    assert game.ale.getEpisodeFrameNumber() == 300


# ---- greedy

def test_a_greedy_agent_takes_the_likelier_action_in_every_step():
    steps = list(play("Pong-v0", seed=0, greedy=True))

    likelier = [p > 0.5 for _, _, p, _, _ in steps]
    assert 0 < sum(likelier) < len(steps)
    assert [goes_up for *_, goes_up, _ in steps] == likelier


def test_in_a_game_without_chance_greedy_episodes_are_all_the_same():
    greedy = [told(play("PongDeterministic-v4", seed, greedy=True)) for seed in (1, 2)]
    sampled = [told(play("PongDeterministic-v4", seed, greedy=False)) for seed in (1, 2)]

    assert greedy[0] == greedy[1]
    assert sampled[0] != sampled[1]


def play(name, seed, greedy):
    """An episode of an untrained agent, the same one each time."""
    model = pg_pong.new_model(np.random.default_rng(0))
    return pg_pong.rollout(Pong(name), model, np.random.default_rng(seed), greedy)


def told(steps):
    """The actions and the rewards of an episode."""
    return [(goes_up, reward) for *_, goes_up, reward in steps]
