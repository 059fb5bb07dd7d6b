"""The command line: it refuses what makes no sense, and says what it does."""
import os
import re
import sys

import pytest
from helpers import ENVIRONMENT, ONE_BATCH, ROOT, Trainer
import pg_pong


@pytest.fixture
def refusal_of(monkeypatch, capsys):
    """Returns what is said to flags that are refused, after the usage."""

    def refuse(flags):
        monkeypatch.setattr(sys, "argv", ["pg_pong.py", *flags.split()])
        with pytest.raises(SystemExit) as end:
            pg_pong.parse_flags()
        assert end.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        usage, _, refusal = err.partition("pg_pong.py: error: ")
        assert usage.startswith("usage: pg_pong.py ")
        return refusal

    return refuse


# ---- what is refused


@pytest.mark.parametrize("flags", [
    "extra",
    "--unknown",
    "--episodes 0",
    "--episodes",
    "--workers 0",
    "--workers two",
    "--batch-size 0",
    "--batch-size 2.5",
    "--batch-size 101",
    "--learning-rate -1",
    "--learning-rate nan",
    "--gamma 1.01",
    "--decay-rate 1",
    "--decay-rate inf",
    "--seed -1",
    "--seed 4294967296",
    "--eval 1",
    "--plot pong.svg",
    "--watch game.avi",
])
def test_a_bad_flag_is_refused_in_one_line_that_names_it(refusal_of, flags):
    name = flags.split()[0].removeprefix("--").replace("-", "[-_]")

    assert re.fullmatch(f".*{name}.*\n", refusal_of(flags))


@pytest.mark.parametrize("flags", [
    "--watch --eval 2",
    "--watch --plot",
    "--eval 2 --plot",
    "--resume --watch",
    "--resume --eval 2",
    "--resume --plot",
    "--render --watch",
    "--episodes 5 --eval 2",
    "--workers 2 --watch",
    "--workers 2 --plot",
    "--seed 1 --plot",
    "--batch-size 2 --watch game.gif",
    "--learning-rate 1 --plot",
    "--gamma 0.5 --eval 2",
    "--decay-rate 0.5 --eval 2",
])
def test_flags_that_do_not_go_together_are_refused_in_one_line_that_names_them(refusal_of, flags):
    one, other = re.findall("--[a-z-]+", flags)

    refusal = refusal_of(flags)

    assert refusal in (f"{one} does not go with {other}\n", f"{other} does not go with {one}\n")


@pytest.mark.parametrize("flags", [
    ["--gamma", 2],
    ["--resume", "--eval", 2],
], ids=str)
def test_refused_flags_end_the_script_with_status_2_before_it_writes_anything(trainer, flags):
    result = trainer(*flags, status=2)

    assert result.err.startswith("usage: ")
    assert result.out == ""
    assert os.listdir(trainer.folder) == []


@pytest.mark.parametrize("flags", [
    ["--resume"],
    ["--watch"],
    ["--watch", "game.gif"],
    ["--eval", 2],
    ["--plot"],
], ids=str)
def test_what_needs_a_saved_run_says_in_one_line_that_there_is_none(trainer, flags):
    result = trainer(*flags, status=2, patched="invisible_window")

    assert re.fullmatch("pg_pong.py: there is no file .*save.p; a run without --resume makes it\n",
                        result.err)
    assert result.out == ""
    assert trainer.names() == []


# ---- what is done


def test_a_run_ends_with_the_batch_in_which_it_gets_to_the_episodes(trainer):
    trainer("--batch-size", 2, "--episodes", 3)

    _, rest = trainer.load()

    assert len(rest["scores"]) == 4


def test_on_windows_there_are_never_more_workers_than_the_system_can_wait_for(trainer, saved):
    trainer.save.write_bytes(saved)

    result = trainer("--eval", 100, "--workers", 100, patched="like_windows")

    assert "100 episodes of save.p" in result.out


# ---- what is told


@pytest.fixture(scope="module")
def help_text(tmp_path_factory):
    trainer = Trainer(tmp_path_factory.mktemp("help"))
    return trainer("--help", env=ENVIRONMENT | {"COLUMNS": "200"}).out


@pytest.fixture(scope="module")
def sentences(help_text):
    """What --help says about each flag, by its name."""
    return dict(re.findall("^  (--[a-z-]+)(?: \\S+)?  +(.*)$", help_text, re.MULTILINE))


def test_help_has_a_sentence_for_every_flag(help_text, sentences):
    usage, _ = help_text.split("\n\n", 1)

    assert sentences.keys() == set(re.findall(r"--[a-z-]+", usage))
    assert all(len(sentence.split()) > 2 for sentence in sentences.values())


@pytest.mark.parametrize("name, value", pg_pong.Settings()._asdict().items())
def test_help_tells_the_default_of_every_setting(sentences, name, value):
    sentence = sentences[f"--{name.replace('_', '-')}"]

    told = re.search(r"\(default: ([0-9.e-]+)", sentence)[1]

    assert float(told) == value


@pytest.mark.parametrize("flag, default", [
    ("--save", "save.p"),
    ("--plot", "pong.png"),
    ("--episodes", "never"),
    ("--workers", "one per core"),
])
def test_help_tells_what_happens_without_the_other_flags(sentences, flag, default):
    assert f"(default: {default})" in sentences[flag]


def test_help_works_where_python_drops_the_docstrings(trainer):
    """python -OO does. The variable is the same to it."""
    result = trainer("--help", env=ENVIRONMENT | {"PYTHONOPTIMIZE": "2"})

    assert result.out.startswith("usage: ")
    assert result.err == ""


def test_the_readme_names_the_flags_of_help_and_no_others(sentences):
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in readme.splitlines() if "tests/tools/" not in line]

    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(lines)))

    assert named - {"--help"} == sentences.keys()


@pytest.mark.parametrize("command", [
    "python3 -m venv .venv && source .venv/bin/activate",
    "pip install -r requirements.txt",
    "python pg_pong.py",
    "pip install -r tests/requirements.txt",
    "pytest",
])
def test_the_commands_of_the_readme_are_those_that_ci_runs(command):
    readme = (ROOT / "README.md").read_text().splitlines()
    ci = (ROOT / ".ci" / "run").read_text().splitlines()

    assert f"    {command}" in readme
    assert any(line.startswith(command) for line in ci)  # which adds flags that make it short


# ---- what must be installed


def required():
    """The packages of requirements.txt, each with the oldest version that will do."""
    lines = (ROOT / "requirements.txt").read_text().split()
    return [tuple(line.split(">=")) for line in lines]


def one_older(version):
    *numbers, last = version.split(".")
    return ".".join([*numbers, str(int(last) - 1)])


@pytest.mark.parametrize("versions", [
    {},
    {"numpy": "10.0"},
    {"ale-py": "0.100.0"},
], ids=str)
def test_the_oldest_packages_that_requirements_allow_will_do_and_newer_ones(monkeypatch, versions):
    installed = dict(required()) | versions
    monkeypatch.setattr(pg_pong, "version", installed.get)

    pg_pong.check_packages()


@pytest.mark.parametrize("package, version", [
    *[(package, one_older(needed)) for package, needed in required()],
    ("ale-py", "0.9.1"),
])
def test_packages_that_are_older_than_required_are_refused(monkeypatch, capsys, package, version):
    installed = dict(required()) | {package: version}
    monkeypatch.setattr(pg_pong, "version", installed.get)

    with pytest.raises(SystemExit) as end:
        pg_pong.check_packages()
    _, err = capsys.readouterr()

    assert end.value.code == 2
    assert f"{package} {version} is too old" in err


@pytest.mark.parametrize("patched, package", [
    ("lacks_package", "numpy"),
    ("lacks_package", "gymnasium"),
    ("lacks_package", "ale_py"),
    ("old_package", "ale-py 0.10.1"),
])
def test_a_package_that_is_missing_or_old_is_named_before_anything_begins(
        trainer, patched, package):
    environment = ENVIRONMENT | {"PACKAGE": package}

    result = trainer(*ONE_BATCH, status=2, patched=patched, env=environment)

    assert re.fullmatch(f"pg_pong.py: .*{package}.*; try pip install -r requirements.txt\n",
                        result.err)
    assert result.out == ""
    assert os.listdir(trainer.folder) == []
