"""The command line: it refuses what makes no sense, and says what it does."""
import os
import re
import sys

import pytest
from helpers import ENVIRONMENT, ROOT, Trainer
import pg_pong


@pytest.fixture
def parse(monkeypatch):
    """Reads flags as the script does."""

    def parse_flags(flags):
        monkeypatch.setattr(sys, "argv", ["pg_pong.py", *flags.split()])
        return pg_pong.parse_flags()

    return parse_flags


@pytest.fixture
def refusal_of(parse, capsys):
    """Returns what is said to flags that are refused, after the usage."""

    def refuse(flags):
        with pytest.raises(SystemExit) as end:
            parse(flags)
        assert end.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        usage, _, refusal = err.partition("pg_pong.py: error: ")
        assert usage.startswith("usage: pg_pong.py ")
        return refusal

    return refuse


# ---- what is refused


@pytest.mark.parametrize("flags, refusal", [
    ("--workers two", "argument --workers: .*'two'"),
    ("--batch-size 2.5", "argument --batch-size: .*'2.5'"),  # it must be whole
    ("--decay-rate 1", "argument --decay-rate: must be from 0 to 0.9999"),
    ("--gamma nan", "argument --gamma: must be from 0 to 1"),
    ("--unknown", ".* --unknown"),
    ("--watch game.avi", r"game.avi .*\.gif.*"),
    ("--plot pong.svg", r"pong.svg .*\.png.*"),
])
def test_a_bad_flag_is_refused_in_one_line_that_says_why(refusal_of, flags, refusal):
    assert re.fullmatch(refusal + "\n", refusal_of(flags))


def test_an_unknown_game_is_refused_in_one_line_that_names_all_games(refusal_of):
    names = refusal_of("--game Pong").removeprefix("argument --game: must be one of ")

    assert names == ", ".join(pg_pong.GAMES) + "\n"


def test_a_number_is_accepted_up_to_its_limits_and_not_beyond(parse, refusal_of):
    for name, low, high in [("eval", 2, 10**6),
                            ("episodes", 1, 10**9),
                            ("workers", 1, 60),
                            ("batch_size", 1, 100),
                            ("learning_rate", 0, 1),
                            ("seed", 0, 2**32 - 1)]:
        flag = "--" + name.replace("_", "-")
        for limit, beyond in [(low, low - 1), (high, high + 1)]:
            assert getattr(parse(f"{flag} {limit}"), name) == limit
            assert f"{flag}: must be from {low} to {high}\n" in refusal_of(f"{flag} {beyond}")


def test_flags_that_exclude_each_other_end_it_with_status_2_before_it_writes_anything(trainer):
    result = trainer("--resume", "--eval", 2, status=2)

    assert re.search("--eval: not allowed with argument --resume\n$", result.err)
    assert result.out == ""
    assert os.listdir(trainer.folder) == []


def test_what_needs_a_saved_run_says_in_one_line_where_there_is_none(trainer):
    for flags in [["--resume"], ["--watch"], ["--eval", 2]]:
        result = trainer(*flags, status=1, patched="invisible_window")

        assert result.err == (f"pg_pong.py: there is no {trainer.save}; train first, or say with "
                              "--save where the run is\n")
        assert result.out == ""
        assert trainer.names() == []


# ---- what is done


def test_a_run_ends_with_the_batch_in_which_it_gets_to_the_episodes(trainer):
    trainer("--batch-size", 2, "--episodes", 3)

    _, rest = trainer.load()

    assert len(rest["scores"]) == 4


# ---- what is told


@pytest.fixture(scope="module")
def help_text(tmp_path_factory):
    trainer = Trainer(tmp_path_factory.mktemp("help"))
    return trainer("--help", env=ENVIRONMENT | {"COLUMNS": "200"}).out


@pytest.fixture(scope="module")
def sentences(help_text):
    """What --help says about each flag, by its name."""
    found = re.findall(r"^  (--[a-z-]+)(?: \S+)?\s\s+(\S.*)$", help_text, re.MULTILINE)
    return dict(found)


def test_help_has_a_sentence_for_every_flag(help_text, sentences):
    usage, _ = help_text.split("\n\n", 1)

    assert sentences.keys() == set(re.findall(r"--[a-z-]+", usage))
    assert min(len(sentence.split()) for sentence in sentences.values()) > 2


def test_help_tells_the_default_of_every_setting_and_the_games(sentences):
    for name, value in pg_pong.Settings()._asdict().items():
        told = re.search(r"\(default: ([^,)]+)", sentences["--" + name.replace("_", "-")])[1]

        assert type(value)(told) == value

    assert ", ".join(pg_pong.GAMES) in sentences["--game"]


def test_the_readme_names_the_flags_of_help_and_no_others(sentences):
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in readme.splitlines()
             if "tests/tools/" not in line and "uv run" not in line]  # whose flags are others

    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(lines)))

    assert named - {"--help"} == sentences.keys()


def test_the_commands_of_the_readme_are_those_that_ci_runs():
    """It adds flags to them, such as --quiet."""
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    beginning = r"^ *((?:python3 -m venv|pip install -r|pytest\b)[^\n]*|python pg_pong\.py)"

    commands = set(re.findall(beginning, readme, re.MULTILINE))
    run = set(re.findall(beginning, ci.replace(" --quiet", ""), re.MULTILINE))

    assert len(commands) == 5
    assert run == commands


def test_requirements_name_the_three_packages_and_nothing_else():
    lines = (ROOT / "requirements.txt").read_text().splitlines()

    names = [re.match("[a-z-]+", line)[0] for line in lines]

    assert sorted(names) == ["ale-py", "gymnasium", "numpy"]
