"""Files: what fits is read right, what does not is refused, no file does harm, no night is lost."""
import ctypes
import os
import pickle
import pickletools
import re
import resource
import shlex
import shutil
import struct
import subprocess
import sys
from collections import OrderedDict
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (ENVIRONMENT, ONE_BATCH, ROOT, SHIPPED, TESTS, Trainer, file_of, finish,
                     old_file_of, parts, read_until, same, stop)

import pg_pong

W1 = np.zeros((200, 6400), np.float32)
W2 = np.zeros(200, np.float32)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {"W1": rng.standard_normal((200, 6400), np.float32),
            "W2": rng.standard_normal(200, np.float32)}


# An audit hook hears of all that Python is about to do. It cannot be taken away again.
audit = SimpleNamespace(events=None)


def listen(event, args):
    if audit.events is not None:
        audit.events.append((event, args))


sys.addaudithook(listen)


@contextmanager
def nothing_but_reading(path):
    """What is done meanwhile must be to open this file for reading, and nothing else."""
    audit.events = []
    try:
        yield
    finally:
        events = audit.events
        audit.events = None
    assert [event for event, _ in events] == ["open"]
    opened, _, flags = events[0][1]
    assert opened == str(path)
    assert flags & os.O_ACCMODE == os.O_RDONLY


def read(path):
    """The run that load makes of the file, or the line with which it refuses it."""
    with nothing_but_reading(path):
        try:
            return pg_pong.load(str(path))
        except SystemExit as end:
            line = end.code
    needed = "is neither a run nor W1 (200, 6400) and W2 (200,): "
    assert line.startswith(f"pg_pong.py: {path} {needed}")
    assert re.fullmatch("[ -~]{,500}", line), line
    return line


@pytest.fixture
def outcome(tmp_path):
    """A function: the run that load makes of a file of these bytes, or the line that refuses it."""
    def write_and_read(data):
        path = tmp_path / "save.p"
        path.write_bytes(data)
        return read(path)
    return write_and_read


# ---- weights of others: each layout that fits is read right


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes as Python 2 did, to which they were the same."""
    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, string):
        data = string if isinstance(string, bytes) else string.encode("latin1")
        if self.proto == 0:
            self.write(b"S" + repr(data)[1:].encode() + b"\n")
        else:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(string)

    dispatch[str] = save_string
    dispatch[bytes] = save_string


def pickle_of_python_2(weights, protocol, path):
    """As the linked script writes its weights."""
    doubles = {name: array.astype(np.float64) for name, array in weights.items()}
    with open(path, "wb") as f:
        Python2Pickler(f, protocol).dump(doubles)
    return named_as_by_numpy_1(path.read_bytes())


def named_as_by_numpy_1(data):
    """Numpy 2 names another module. Up to protocol 3, a pickle stores no length of the name."""
    renamed = re.sub(rb"numpy\._?core\b", b"numpy.core", data)
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in renamed
    return renamed


def changed(weights, change):
    return {name: change(array) for name, array in weights.items()}


def read_only(array):
    """Protocol 5 writes it as bytes, where others are a bytearray."""
    array = array.copy()
    array.flags.writeable = False
    return array


def big_endian(array):
    return array.astype(">f4")


def big_endian_double(array):
    return array.astype(">f8")


def double_in_fortran_order(array):
    return array.astype(np.float64, order="F")


def with_gaps(array):
    """Protocol 5 writes it as the older ones do."""
    return array.repeat(2, axis=0)[::2]


LAYOUTS = {  # each a function of the weights and of a path for its file
    "protocol 0": lambda weights, _: pickle.dumps(weights, 0),
    "protocol 1": lambda weights, _: pickle.dumps(changed(weights, double_in_fortran_order), 1),
    "protocol 2": lambda weights, _: pickle.dumps(changed(weights, np.asfortranarray), 2),
    "protocol 3, of numpy 1": lambda weights, _: named_as_by_numpy_1(
        pickle.dumps(changed(weights, big_endian), 3)),
    "protocol 4": lambda weights, _: pickle.dumps(changed(weights, big_endian_double), 4),
    "protocol 5": lambda weights, _: pickle.dumps(changed(weights, np.asfortranarray), 5),
    "protocol 5, read-only": lambda weights, _: pickle.dumps(changed(weights, read_only), 5),
    "protocol 5, with gaps": lambda weights, _: pickle.dumps(changed(weights, with_gaps), 5),
    "W2 before W1": lambda weights, _: pickle.dumps(OrderedDict(reversed(weights.items()))),
    "Python 2, protocol 0": lambda weights, path: pickle_of_python_2(weights, 0, path),
    "Python 2, protocol 2": lambda weights, path: pickle_of_python_2(weights, 2, path),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_read_right_however_they_lie_in_the_file(tmp_path, weights, outcome, layout):
    run = outcome(LAYOUTS[layout](weights, tmp_path / "others.p"))

    assert same(run, pg_pong.new_run(pg_pong.Settings(), weights))


def test_a_resumed_training_keeps_the_file_of_weights_that_it_began_with(trainer, weights):
    data = pickle.dumps(weights)
    trainer.save.write_bytes(data)

    result = trainer("--resume", "--batch-size", 1, "--episodes", 1)

    assert "weights alone" in result.err
    assert len(trainer.load()[1]["scores"]) == 1
    assert (trainer.folder / "save.p.1").read_bytes() == data


# ---- and what does not fit is refused, with a line that says what is there and what is needed

MISFITS = {  # each with what the line must say of it
    "transposed": ({"W1": W1.T, "W2": W2}, "(6400, 200)"),
    "three actions": ({"W1": W1, "W2": np.zeros((3, 200))}, "(3, 200)"),
    "float16": ({"W1": W1.astype(np.float16), "W2": W2}, "<f2"),
    "biases, too": ({"W1": W1, "W2": W2, "b1": W2}, "'b1'"),
    "a list": ({"W1": W1, "W2": W2.tolist()}, "'list'"),
    "no dict": ([W1, W2], "list"),
    "NaN": ({"W1": np.full((200, 6400), np.nan), "W2": W2}, "infinite or NaN"),
    "too large for float32": ({"W1": W1, "W2": np.full(200, 1e300)}, "infinite or NaN"),
}


@pytest.mark.parametrize("thing, words", MISFITS.values(), ids=MISFITS)
def test_weights_that_do_not_fit_are_refused_with_what_is_there(outcome, thing, words):
    line = outcome(pickle.dumps(thing))

    assert words in line.split("W2 (200,): ")[1]


def test_a_text_and_an_empty_file_are_refused(outcome):
    text = outcome((ROOT / "README.md").read_bytes())
    empty = outcome(b"")

    assert "UnpicklingError" in text
    assert "EOFError" in empty


def test_a_file_that_is_refused_stays_as_it_is_and_nothing_begins(trainer):
    data = pickle.dumps({"W1": W1.T, "W2": W2})
    trainer.save.write_bytes(data)

    for flags in [["--resume"], ["--eval", 2]]:
        result = trainer(*flags, status=1)

        assert result.out == ""
        assert re.fullmatch(r"pg_pong\.py: .*save\.p .*\(6400, 200\).*\n", result.err)
        assert trainer.save.read_bytes() == data
        assert trainer.names() == ["save.p"]


# ---- so is a run that is damaged

def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, saved):
    """But between its pickles. What is left then is a whole file of weights."""
    path = tmp_path / "save.p"
    path.write_bytes(saved)
    with open(path, "rb") as f:
        first = [place for _, _, place in pickletools.genops(f)]
        between = f.tell()
        second = [place for _, _, place in pickletools.genops(f)]
    inside = [10**6, between - 400, between + 10**6, len(saved) - 1]
    places = sorted(first + second[1:] + inside)

    for place in reversed(places):
        os.truncate(path, place)
        line = read(path)
        assert isinstance(line, str), f"it is read when it is cut off at {place} of {len(saved)}"


def damages(rest):
    """What can be wrong with all that a save holds besides the weights. Yields texts and dicts."""
    for name, value in [
            ("batch_size", 0), ("learning_rate", float("nan")), ("gamma", -0.1),
            ("decay_rate", 1.0), ("seed", 2**32), ("game", "Breakout-v0"), ("momentum", 0.9)]:
        settings = rest["settings"] | {name: value}
        yield f"{name} {value}", rest | {"settings": settings}
    for name, value in [
            ("settings", None), ("scores", ["x"]), ("scores", [22]), ("steps", None),
            ("seconds", [])]:
        yield f"{name} {value}", rest | {name: value}
    for name in ["settings", "scores", "steps", "seconds"]:
        yield f"no {name}", {key: value for key, value in rest.items() if key != name}
    for words, array in [("short", W2[:20]), ("negative", W2 - 1), ("NaN", W2 * np.nan)]:
        yield f"{words} mean_square", rest | {"mean_square": rest["mean_square"] | {"W2": array}}


@pytest.mark.parametrize("make_file", [file_of, old_file_of])
def test_a_run_that_cannot_have_been_is_refused(saved, outcome, make_file):
    model, rest = parts(saved)
    read = []

    for words, damaged in damages(rest):
        if not isinstance(outcome(make_file(model, damaged)), str):
            read.append(words)

    assert read == []


@pytest.mark.parametrize("make_file", [file_of, old_file_of])
def test_saves_of_older_versions_are_read_and_without_a_game_they_are_of_pong_v0(
        saved, outcome, make_file):
    model, rest = parts(saved)
    run = outcome(saved)
    del rest["settings"]["game"]

    old = outcome(make_file(model, rest))

    assert run.settings == pg_pong.Settings(batch_size=2, game="Pong-v0")
    assert same(old, run)


def test_the_limits_of_settings_are_accepted_in_a_file_and_as_flags(saved, outcome, monkeypatch):
    model, rest = parts(saved)
    lowest = pg_pong.Settings(1, 0.0, 0.0, 0.0, 0, "PongNoFrameskip-v4")
    highest = pg_pong.Settings(100, 1.0, 1.0, 0.9999, 2**32 - 1, "ALE/Pong-v5")

    for settings in [lowest, highest]:
        wanted = settings._asdict()
        words = [f"--{name.replace('_', '-')}={value}" for name, value in wanted.items()]
        monkeypatch.setattr(sys, "argv", ["pg_pong.py", *words])

        run = outcome(file_of(model, rest | {"settings": wanted}))
        flags = pg_pong.parse_flags()

        assert run.settings == settings
        assert wanted.items() <= vars(flags).items()


# ---- a pickle is a program, and no program of a stranger is ever run

# The steps by which a pickle can run something. TEXT stands for a command of the shell.
PAYLOADS = {
    "REDUCE": b"cposix\nsystem\nTEXT\x85R",
    "INST": b"(TEXTiposix\nsystem\n",
    "OBJ": b"(cposix\nsystem\nTEXTo",
    "NEWOBJ": b"cbuiltins\ntuple\ncbuiltins\nmap\ncposix\nsystem\nTEXT\x85\x86\x81\x85\x81",
    "NEWOBJ_EX": b"cbuiltins\ntuple\ncbuiltins\nmap\n\x8c\x05posix\x8c\x06system\x93TEXT\x85\x86"
                 b"}\x92\x85}\x92",
    "BUILD": b"cargparse\nNamespace\n)R}X\x0c\x00\x00\x00__setstate__cposix\nsystem\nsbTEXTb",
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_file_is_ever_run(tmp_path, outcome, saved, payload):
    """Be it in the first pickle or in the second."""
    made = tmp_path / "made"
    command = f"touch {made}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    program = PAYLOADS[payload].replace(b"TEXT", text)
    model, rest = parts(saved)
    first = with_entry(model, program) + pickle.dumps(rest)
    second = pickle.dumps(model) + with_entry(rest, program)

    for data in [first, second]:
        parts(data)  # as by a script that trusts its files
        assert made.exists()  # or it would do no harm anyway
        made.unlink()

        outcome(data)  # which listens to what is done meanwhile

        assert not made.exists()


def with_entry(things, program):
    """The pickle of a dict with one more entry, whose value this part of a pickle makes."""
    return pickle.dumps(things, 3)[:-1] + b"X\x01\0\0\0x" + program + b"s."


class Call:
    """Pickles as a call of a function, whose result may then be given a state."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def forged_array(kind):
    """Pickles as an array of 200 numbers, each 16, that are said to be of this kind."""
    function, args, _ = np.zeros(1).__reduce__()
    dtype = Call(np.dtype, (kind, False, True), (3, "|", None, None, None, -1, -1, 0))
    return Call(function, args, (1, (200,), dtype, False, struct.pack("<Q", 16) * 200))


def test_an_array_with_a_forged_type_crashes_nothing(trainer):
    """Its numbers are taken for addresses of objects, as soon as somebody looks at them."""
    trainer.save.write_bytes(pickle.dumps({"W1": W1, "W2": forged_array("O8")}, 3))
    careless = subprocess.run([sys.executable, "-m", "pickle", trainer.save], capture_output=True)
    assert careless.returncode < 0  # it crashed

    result = trainer("--resume", status=1)

    assert "|O8" in result.err


def test_a_file_cannot_write_escape_codes_to_the_terminal(outcome):
    """The line shows the type that the file names. The fixture sees that it is all of ASCII."""
    line = outcome(pickle.dumps({"W1": W1, "W2": forged_array("\x1b[31m\x07\n")}))

    assert "[31m" in line


def test_mutants_of_a_good_file_do_no_harm():
    command = [sys.executable, TESTS / "tools" / "fuzz.py", "--files", "50"]

    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)

    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search("^50 files: (.+) admitted, (.+) refused, 0 crashed, 0 mis", result.stdout)
    assert int(found[1]) > 0
    assert int(found[2]) > 0


# ---- what is saved

@pytest.fixture(scope="module")
def trained():
    """A run after an episode of pg_pong.train."""
    settings = pg_pong.Settings(1, 2e-3, 0.98, 0.9, 3, "PongDeterministic-v4")
    return next(pg_pong.train(pg_pong.new_run(settings), 1))


def test_what_is_saved_is_what_is_loaded(tmp_path, trained):
    path = str(tmp_path / "save.p")

    pg_pong.save(trained, path, is_same_run=True)

    run = pg_pong.load(path)
    assert same(run, trained)
    assert run.model["W1"].flags.f_contiguous  # or policy_forward would be slow
    assert trained.model["W1"].flags.f_contiguous


def test_a_save_is_on_the_disk_before_the_old_file_goes(tmp_path, trained, monkeypatch):
    """Or a power failure could leave an empty file, or none, in the place of a good one."""
    path = tmp_path / "save.p"
    path.write_bytes(b"old")
    seen = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(file):
        seen.append(f"{os.fstat(file).st_size} bytes to the disk beside {path.read_bytes()}")
        fsync(file)

    def note_replace(*names):
        seen.append(f"{path.read_bytes()} replaced")
        replace(*names)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)

    pg_pong.save(trained, str(path), is_same_run=True)

    size = path.stat().st_size
    assert seen == [f"{size} bytes to the disk beside b'old'", "b'old' replaced"]


def test_a_script_that_knows_nothing_of_us_plays_well_with_our_file(tmp_path):
    """The shipped agent wins some of ten points. With scrambled weights, it would lose them all."""
    run = pg_pong.load(str(SHIPPED))
    pg_pong.save(run, str(tmp_path / "save.p"), is_same_run=True)

    stranger = subprocess.run([sys.executable, TESTS / "stranger.py"], cwd=tmp_path,
                              env=ENVIRONMENT, capture_output=True, text=True)

    assert stranger.returncode == 0, stranger.stderr
    assert int(stranger.stdout) > -5


# ---- and where

def test_another_runs_file_is_kept_and_the_last_line_names_the_command_that_goes_on(trainer):
    """It is kept under the first name that is free, and a link that leads nowhere takes one, too.
    Our own file is replaced, both by the run that made it and by the one that goes on."""
    for name in ["my run", "my run.1", "my run.3"]:
        (trainer.folder / name).write_text(f"once {name}")
    (trainer.folder / "my run.2").symlink_to("nowhere")
    path = trainer.folder / "my run"

    first = trainer("--batch-size", 1, "--episodes", 3, "--save", path, patched="saves_often")
    _, command = first.err.split("holds 3 episodes; go on with ")
    second = trainer(*shlex.split(command), "--episodes", 4)

    assert first.err.count(f"the old {path} is now {path}.4\n") == 1
    assert "the old" not in second.err
    names = ["my run", "my run.1", "my run.2", "my run.3", "my run.4", "my run.lock"]
    assert trainer.names() == names
    assert len(trainer.load("my run")[1]["scores"]) == 4
    assert (trainer.folder / "my run.4").read_text() == "once my run"
    assert (trainer.folder / "my run.1").read_text() == "once my run.1"
    assert (trainer.folder / "my run.3").read_text() == "once my run.3"
    assert os.readlink(trainer.folder / "my run.2") == "nowhere"


def test_a_start_by_mistake_leaves_the_file_that_is_there(trainer):
    trainer.save.write_bytes(b"a long night")
    process = trainer.start("--batch-size", 100)
    read_until(process, "Learning")

    err = stop(process)

    assert process.returncode == 0
    assert err == "pg_pong.py: nothing was saved\n"
    assert trainer.save.read_bytes() == b"a long night"
    assert trainer.names() == ["save.p"]


def test_a_second_trainer_on_a_file_is_refused_even_if_it_comes_by_a_link(trainer):
    (trainer.folder / "link.p").symlink_to("save.p")
    first = trainer.start("--batch-size", 100, "--workers", 1)
    read_until(first, "Learning")

    second = trainer("--save", "link.p", *ONE_BATCH, status=1)
    stop(first)

    words = f"another process is training on {trainer.save}; use another --save"
    assert second.out == ""
    assert second.err == f"pg_pong.py: {words}\n"


def test_what_a_killed_trainer_leaves_is_in_nobodys_way_and_a_link_stays_a_link(trainer, saved):
    """A lock, and half a save."""
    trainer.save.write_bytes(saved)
    (trainer.folder / "link.p").symlink_to("save.p")
    first = trainer.start("--resume", "--workers", 1)
    read_until(first, "Learning")
    first.kill()
    finish(first)
    assert (trainer.folder / "save.p.lock").exists()
    (trainer.folder / "save.p.tmp").write_bytes(b"half")

    trainer("--resume", "--save", "link.p", "--batch-size", 1, "--episodes", 3)

    assert (trainer.folder / "link.p").is_symlink()
    assert not trainer.save.is_symlink()
    assert len(trainer.load()[1]["scores"]) == 3
    assert trainer.names() == ["link.p", "save.p"]


def obey_permissions():
    """In a child process, before the script begins: even root may not write what is read-only."""
    drop_capability = 24
    for capability in [1, 2]:  # to write anything, and to read it
        ctypes.CDLL(None).prctl(drop_capability, capability, 0, 0, 0)  # only root has them to drop


def test_a_folder_that_may_not_be_written_to_is_refused_before_the_first_episode(trainer):
    trainer.folder.chmod(0o555)

    result = trainer(*ONE_BATCH, status=1, preexec_fn=obey_permissions)
    trainer.folder.chmod(0o755)

    assert result.out == ""
    assert re.fullmatch(f"pg_pong.py: .*{trainer.save}.*\n", result.err)
    assert os.listdir(trainer.folder) == []


def test_a_missing_folder_is_named_with_its_absolute_path(trainer):
    nowhere = trainer(*ONE_BATCH, "--save", "nowhere/save.p", status=1)

    assert nowhere.out == ""
    path = trainer.folder / "nowhere" / "save.p"
    assert re.fullmatch(f"pg_pong.py: .*No such file or directory: '{path}.*\n", nowhere.err)


def test_what_is_no_regular_file_is_not_replaced_by_one(trainer):
    """As /dev/null could be, if root trains."""
    for make in [os.mkdir, os.mkfifo]:
        path = trainer.folder / make.__name__
        make(path)
        before = path.stat().st_mode

        result = trainer(*ONE_BATCH, "--save", path, status=1)

        assert result.out == ""
        assert result.err == f"pg_pong.py: {path} is no regular file; use another --save\n"
        assert path.stat().st_mode == before
    assert trainer.names() == ["mkdir", "mkfifo"]


def test_a_save_that_is_given_to_watch_or_plot_is_not_drawn_over(trainer, saved):
    trainer.save.write_bytes(saved)

    for flag in ["--watch", "--plot"]:
        result = trainer(flag, "save.p", status=2)

        assert "error: save.p" in result.err
        assert "--save" in result.err.split("error: ")[1]
        assert trainer.save.read_bytes() == saved


def test_eval_prints_its_score_in_a_folder_whose_name_the_terminal_cannot_show(tmp_path, saved):
    folder = tmp_path / "Понг"
    folder.mkdir()
    trainer = Trainer(folder)
    trainer.save.write_bytes(saved)

    result = trainer("--eval", 2, env=ENVIRONMENT | {"PYTHONIOENCODING": "cp1252"})

    assert "mean score" in result.out


# ---- when a save fails

def fill_disk():
    """In a child process, before the script begins: no file may grow beyond 1 MB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_a_full_disk_is_found_before_the_first_episode(trainer, saved):
    trainer.save.write_bytes(saved)

    result = trainer("--resume", "--episodes", 4, status=1, preexec_fn=fill_disk)

    assert result.out == ""
    assert re.fullmatch("pg_pong.py: .*File too large.*\n", result.err)
    assert trainer.save.read_bytes() == saved
    assert trainer.names() == ["save.p"]


def test_a_save_that_failed_is_tried_again(trainer, saved):
    trainer.save.write_bytes(saved)
    environment = ENVIRONMENT | {"FULL_UNTIL": "6"}

    result = trainer("--resume", "--batch-size", 1, "--episodes", 6,
                     patched="saves_often full_disk", env=environment)

    assert result.err.count("cannot save") == 2  # after episode 4 and, at once, after episode 5
    assert "holds 6 episodes; go on with" in result.err
    assert len(trainer.load()[1]["scores"]) == 6
    assert trainer.names() == ["save.p"]


def test_a_disk_that_stays_full_leaves_the_old_file_and_the_run_says_so(trainer, saved):
    trainer.save.write_bytes(saved)
    environment = ENVIRONMENT | {"FULL_UNTIL": "1000"}

    result = trainer("--resume", "--batch-size", 1, "--episodes", 3,
                     patched="full_disk", env=environment, status=1)

    assert "cannot save" in result.err
    assert "holds 2 episodes; go on with" in result.err
    assert trainer.save.read_bytes() == saved
    assert trainer.names() == ["save.p"]


def test_a_run_that_diverges_ends_and_what_is_saved_is_from_before(trainer):
    result = trainer("--batch-size", 1, "--episodes", 3, patched="diverges", status=1)

    assert result.err.count("the weights became infinite or NaN") == 1
    assert "holds 1 episodes; go on with" in result.err
    assert len(pg_pong.load(str(trainer.save)).scores) == 1
    assert trainer.names() == ["save.p"]


# ---- the save.p that comes with the script

@pytest.fixture
def shipped(trainer):
    """A trainer in whose folder the shipped file lies."""
    shutil.copy(SHIPPED, trainer.save)
    return trainer


def test_the_shipped_agent_beats_the_game(shipped):
    """It was measured at +7.94 over 800 episodes, so the mean of 2 has a standard error of 3.4."""
    result = shipped("--eval", 2)

    mean = re.search(r"mean score ([+-]\d+\.\d\d)", result.out)[1]
    assert float(mean) > 0


def test_the_shipped_run_goes_on_and_is_saved_in_the_format_of_now(shipped):
    before = pg_pong.load(str(shipped.save))

    shipped("--resume", "--batch-size", 1, "--episodes", len(before.scores) + 1)

    after = pg_pong.load(str(shipped.save))
    model, rest = shipped.load()
    assert after.scores[:-1] == before.scores
    assert len(after.scores) == len(before.scores) + 1
    assert after.scores[-1] > -10  # it plays like the agent that was shipped
    assert after.steps > before.steps
    assert not same(after.model, before.model)
    assert shipped.save.read_bytes() == file_of(model, rest)
    assert shipped.names() == ["save.p"]
