"""Files: what fits is read right, what does not is refused, no file does harm, no night is lost."""
import ctypes
import errno
import io
import os
import pickle
import pickletools
import re
import resource
import shlex
import struct
import subprocess
import sys
from collections import OrderedDict
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (ENVIRONMENT, ONE_BATCH, ROOT, SHIPPED, TESTS, file_of, finish, parts,
                     read_until, same, stop)

import pg_pong

W1 = np.zeros((200, 6400), np.float32)
W2 = np.zeros(200, np.float32)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {"W1": rng.standard_normal((200, 6400), np.float32),
            "W2": rng.standard_normal(200, np.float32)}


@pytest.fixture(scope="module")
def trained():
    """A run after an episode of pg_pong.train."""
    settings = pg_pong.Settings(batch_size=1)
    return next(pg_pong.train(pg_pong.new_run(settings), 1))


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


@pytest.fixture
def loaded(tmp_path):
    """A function: what load makes of a file of these bytes."""
    def load(data):
        path = tmp_path / "save.p"
        path.write_bytes(data)
        with nothing_but_reading(path):
            run = pg_pong.load(str(path))
        return run
    return load


@pytest.fixture
def refusal(tmp_path, capsys):
    """A function: what load says is wrong with a file of these bytes.

    load must say so in one line, and what is needed, too.
    """
    def refuse(data):
        path = tmp_path / "save.p"
        path.write_bytes(data)
        with nothing_but_reading(path), pytest.raises(SystemExit) as end:
            pg_pong.load(str(path))
        line = capsys.readouterr().err
        wrong, needed = line.split(" cannot be read: ")[1].split(". Needed is ")
        assert end.value.code == 2
        assert re.fullmatch("[ -~]{,500}\n", line), line
        assert "W1 (200, 6400) and W2 (200,)" in needed
        return wrong
    return refuse


# ---- weights of others: each layout that fits is read right

LAYOUTS = {
    "C order": np.ascontiguousarray,
    "Fortran order": np.asfortranarray,
    "float64": lambda array: array.astype(np.float64),
    "float64 in Fortran order": lambda array: array.astype(np.float64, order="F"),
    "big-endian": lambda array: array.astype(">f4"),
    "big-endian float64": lambda array: array.astype(">f8"),
    "transposed twice": lambda array: array.T.copy().T,
    "reversed twice": lambda array: array[::-1].copy()[::-1],
    "every second row": lambda array: array.repeat(2, axis=0)[::2],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_read_right_however_they_lie_in_the_file(weights, loaded, layout, protocol):
    change = LAYOUTS[layout]
    model = {name: change(array) for name, array in weights.items()}

    run = loaded(pickle.dumps(model, protocol))

    assert same(run.model, weights)


def test_w2_may_come_before_w1(weights, loaded):
    model = {"W2": weights["W2"], "W1": weights["W1"]}

    run = loaded(pickle.dumps(model))

    assert same(run.model, weights)


def test_weights_that_may_not_be_written_to_are_read_right(weights, loaded):
    """In protocol 5, they are bytes in the file, where others are a bytearray."""
    model = {name: array.copy() for name, array in weights.items()}
    for array in model.values():
        array.flags.writeable = False

    run = loaded(pickle.dumps(model, 5))

    assert same(run.model, weights)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_files_of_numpy_1_and_2_are_read_alike(weights, loaded, module, protocol):
    """They name another module for the same function. These protocols store no text's length."""
    data = pickle.dumps(weights, protocol)

    run = loaded(re.sub(rb"numpy\._?core", module, data))

    assert same(run.model, weights)


def test_a_model_that_train_returned_may_be_pickled_by_hand(trained, loaded):
    """As somebody does in a notebook."""
    data = pickle.dumps(trained.model)

    run = loaded(data)

    assert same(run.model, trained.model)


def array_of_python_2(array):
    """As numpy's arrays are pickled in protocol 2 there: bytes are texts, bools numbers."""
    numbers = array.astype("<f8").tobytes()
    shape = b"".join(b"M" + struct.pack("<H", size) for size in array.shape)
    tuple_step = {1: b"\x85", 2: b"\x86"}[array.ndim]
    return b"".join([
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
        b"(K\x01", shape, tuple_step,
        b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R",
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        b"\x89T", struct.pack("<i", len(numbers)), numbers, b"tb"])


def test_a_file_of_python_2_is_read_right(weights, loaded):
    """If it is of protocol 2. The linked script itself wrote protocol 0."""
    data = b"".join([
        b"\x80\x02}(",
        b"U\x02W2", array_of_python_2(weights["W2"]),
        b"U\x02W1", array_of_python_2(weights["W1"]),
        b"u."])

    run = loaded(data)

    assert same(run.model, weights)


def test_a_run_that_begins_with_weights_of_others_has_learned_nothing_yet(weights, loaded):
    run = loaded(pickle.dumps(weights))

    assert run.settings == pg_pong.Settings()
    assert run.scores == []
    assert not run.mean_square["W1"].any()
    assert not run.mean_square["W2"].any()


def test_a_resumed_training_keeps_the_file_of_weights_that_it_began_with(trainer, weights):
    data = pickle.dumps(weights)
    trainer.save.write_bytes(data)

    trainer("--resume", *ONE_BATCH)

    assert len(trainer.load()[1]["scores"]) == 2
    assert (trainer.folder / "save.p.1").read_bytes() == data


# ---- and what does not fit is refused, with a line that says what is there and what is needed

MISFITS = {  # each with what the line must say of it
    "W1 transposed": ({"W1": W1.T, "W2": W2}, "(6400, 200)"),
    "biases, too": ({"W1": W1, "W2": W2, "b1": W2}, "b1"),
    "three actions": ({"W1": W1, "W2": np.zeros((3, 200))}, "(3, 200)"),
    "300 neurons": ({"W1": np.zeros((300, 6400)), "W2": np.zeros(300)}, "(300, 6400)"),
    "W2 as a column": ({"W1": W1, "W2": np.zeros((200, 1))}, "(200, 1)"),
    "float16": ({"W1": W1.astype(np.float16), "W2": W2}, "<f2"),
    "whole numbers": ({"W1": W1, "W2": W2.astype(int)}, "<i8"),
    "texts": ({"W1": W1, "W2": W2.astype(str)}, "U32"),
    "a list": ({"W1": W1, "W2": W2.tolist()}, "no array"),
    "a masked array": ({"W1": W1, "W2": np.ma.array(W2)}, "no array"),
    "W1 alone": ({"W1": W1}, "{'W1': (200, 6400)}"),
    "a number as a name": ({"W1": W1, 2: W2}, "2: (200,)"),
    "no dict but a list": ([W1, W2], "no dict of arrays"),
    "a tuple": ((W1, W2), "no dict of arrays"),
    "an array": (W1, "no dict of arrays"),
    "an ordered dict": (OrderedDict(W1=W1, W2=W2), "no dict of arrays"),
    "a run": (pg_pong.new_run(pg_pong.Settings(), {"W1": W1, "W2": W2}), "no dict of arrays"),
    "an empty dict": ({}, "{}"),
}


@pytest.mark.parametrize("thing, words", MISFITS.values(), ids=MISFITS)
def test_weights_that_do_not_fit_are_refused_with_what_is_there(refusal, thing, words):
    wrong = refusal(pickle.dumps(thing))

    assert words in wrong


@pytest.mark.parametrize("name", ["W1", "W2"])
@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_weights_that_are_nan_or_infinite_as_float32_are_refused(refusal, name, number):
    model = {"W1": W1.astype(np.float64), "W2": W2.astype(np.float64)}
    model[name][7] = number

    wrong = refusal(pickle.dumps(model))

    assert "infinite or NaN" in wrong


def test_an_empty_file_is_refused(refusal):
    assert "empty" in refusal(b"")


def test_a_text_is_refused(refusal):
    data = (ROOT / "README.md").read_bytes()

    wrong = refusal(data)

    assert "no pickle" in wrong


@pytest.mark.parametrize("protocol", [0, 1])
def test_a_file_of_protocol_0_or_1_is_refused_and_the_line_says_how_to_convert_it(
        weights, refusal, loaded, protocol):
    old = pickle.dumps(weights, protocol)

    wrong = refusal(old)
    converted = pickle.dumps(pickle.loads(old, encoding="latin1"))

    assert "encoding=latin1, and dump it again" in wrong
    assert same(loaded(converted).model, weights)


@pytest.mark.parametrize("flags", [["--resume"], ["--eval", 2]], ids=str)
def test_a_file_that_is_refused_stays_as_it_is_and_nothing_begins(trainer, flags):
    data = pickle.dumps({"W1": W1.T, "W2": W2})
    trainer.save.write_bytes(data)

    result = trainer(*flags, status=2)

    assert result.out == ""
    assert re.fullmatch("pg_pong.py: .*save.p cannot be read: .*6400, 200.*\n", result.err)
    assert trainer.save.read_bytes() == data
    assert trainer.names() == ["save.p"]


# ---- so is a run that is damaged

def steps(data):
    """Where each step of the two pickles begins, and the place between the pickles."""
    f = io.BytesIO(data)
    first = [place for _, _, place in pickletools.genops(f)]
    between = f.tell()
    second = [place for _, _, place in pickletools.genops(f)]
    return first + second[1:], between


def test_a_file_that_is_cut_off_anywhere_is_refused(saved, refusal):
    """But between its pickles. What is left then is a whole file of weights."""
    places, between = steps(saved)
    inside = [10**6, between - 400, between + 10**6, len(saved) - 1]

    for place in places + inside:
        refusal(saved[:place])


@pytest.mark.parametrize("second", [
    None, [], {}, "a text", {"W1": W1, "W2": W2}], ids=lambda second: type(second).__name__)
def test_another_pickle_in_the_place_of_the_second_is_refused(weights, refusal, second):
    refusal(pickle.dumps(weights) + pickle.dumps(second))


def test_settings_are_read_by_their_names_in_any_order(saved, loaded):
    model, rest = parts(saved)
    backwards = reversed(rest["settings"].items())
    rest["settings"] = dict(backwards)

    run = loaded(file_of(model, rest))

    assert run.settings == pg_pong.Settings(batch_size=2)


@pytest.mark.parametrize("name, value", [
    ("batch_size", 0), ("batch_size", 10**6), ("batch_size", None), ("learning_rate", float("inf")),
    ("learning_rate", float("nan")), ("learning_rate", -1), ("gamma", 1.5), ("decay_rate", 1.0),
    ("seed", -1), ("seed", 2**32), ("seed", "x")], ids=str)
def test_settings_that_no_flag_could_give_are_refused(saved, refusal, name, value):
    model, rest = parts(saved)
    rest["settings"][name] = value

    refusal(file_of(model, rest))


@pytest.mark.parametrize("name, value", [
    ("settings", None), ("settings", {}), ("scores", None), ("scores", [22]), ("scores", ["x"]),
    ("scores", [[]]), ("steps", None), ("steps", -1), ("seconds", []), ("seconds", float("nan"))],
    ids=str)
def test_a_run_that_cannot_have_been_is_refused(saved, refusal, name, value):
    model, rest = parts(saved)
    rest[name] = value

    refusal(file_of(model, rest))


@pytest.mark.parametrize("name", ["settings", "scores", "steps", "seconds"])
def test_a_run_that_lacks_something_is_refused(saved, refusal, name):
    model, rest = parts(saved)
    del rest[name]

    refusal(file_of(model, rest))


@pytest.mark.parametrize("value", [
    None, bytes(80), np.full(200, np.nan, np.float32).tobytes()], ids=["None", "short", "NaN"])
def test_a_mean_square_that_does_not_fit_is_refused(saved, refusal, value):
    model, rest = parts(saved)
    rest["mean_square"]["W2"] = value

    refusal(file_of(model, rest))


# ---- a pickle is a program, and no program of a stranger is ever run

class Call:
    """Pickles as a call of a function, whose result may then be given a state."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


# The five steps by which a pickle can run something. TEXT stands for a command of the shell.
PAYLOADS = {
    "REDUCE": b"cposix\nsystem\nTEXT\x85R",
    "INST": b"(TEXTiposix\nsystem\n",
    "OBJ": b"(cposix\nsystem\nTEXTo",
    "NEWOBJ": b"cbuiltins\ntuple\ncbuiltins\nmap\ncposix\nsystem\nTEXT\x85\x86\x81\x85\x81",
    "BUILD": b"cargparse\nNamespace\n)R}X\x0c\x00\x00\x00__setstate__cposix\nsystem\nsbTEXTb",
}
PLACES = {
    "alone": lambda weights, payload: b"\x80\x03" + payload + b".",
    "after the weights": lambda weights, payload: weights + b"\x80\x03" + payload + b".",
    "beside W1 and W2": lambda weights, payload: weights[:-1] + b"X\x01\0\0\0x" + payload + b"s.",
}


def load_carelessly(data):
    """As scripts do that trust their files."""
    f = io.BytesIO(data)
    while f.tell() < len(data):
        pickle.load(f)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_file_is_ever_run(tmp_path, refusal, weights, payload, place):
    made = tmp_path / "made"
    command = f"touch {made}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    program = PAYLOADS[payload].replace(b"TEXT", text)
    data = PLACES[place](pickle.dumps(weights, 3), program)
    load_carelessly(data)
    assert made.exists()  # or it would do no harm anyway
    made.unlink()

    refusal(data)

    assert not made.exists()


def test_an_array_with_a_forged_type_crashes_nothing(trainer):
    """Its numbers are taken for addresses of objects, as soon as somebody looks at them."""
    function, args, _ = np.zeros(1).__reduce__()
    objects = Call(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
    state = (1, (200,), objects, False, struct.pack("<Q", 16) * 200)
    forged = Call(function, args, state)
    trainer.save.write_bytes(pickle.dumps({"W1": W1, "W2": forged}, 3))
    careless = subprocess.run([sys.executable, "-m", "pickle", trainer.save], capture_output=True)
    assert careless.returncode < 0  # it crashed

    result = trainer("--resume", status=2)

    assert "cannot be read" in result.err


def limit_memory():
    """In a child process, before the script begins."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


def one_array_under_many_names(kind, size):
    """A file that is small, since it holds kind and size once, however large they are in print."""
    dtype = Call(np.dtype, (kind, False, True), (3, "<", None, None, None, -1, -1, 0))
    array = Call(len, (b"", dtype, (size, size, size), "C"))
    return pickle.dumps({f"{n:06}": array for n in range(300_000)})


def a_tuple_that_holds_another_twice():
    """And so on: 60 of them, and so 2**60 in print."""
    pair = ()
    for _ in range(60):
        pair = (pair, pair)
    return pickle.dumps({"W1": pair, "W2": pair})


BOMBS = {
    "a huge kind": lambda: one_array_under_many_names("x" * 10**6, 1),
    "a huge size": lambda: one_array_under_many_names("f4", 10**4000),
    "a huge tree": a_tuple_that_holds_another_twice,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_cannot_fill_the_memory(trainer, bomb):
    data = BOMBS[bomb]()
    trainer.save.write_bytes(data)
    assert len(data) < len(SHIPPED.read_bytes())

    result = trainer("--resume", status=2, preexec_fn=limit_memory)

    assert "cannot be read" in result.err
    assert "MemoryError" not in result.err


def test_a_tuple_a_million_deep_crashes_nothing(trainer):
    """As a name in a dict, it has to be hashed, for which the stack is not deep enough."""
    deep = b")" + b"\x85" * 10**6
    trainer.save.write_bytes(b"\x80\x02}" + deep + b"K\x00s.")

    result = trainer("--resume", status=2)

    assert "cannot be read" in result.err


def test_a_file_cannot_write_escape_codes_to_the_terminal(refusal):
    """The line shows names from the file. The fixture sees that it is all of plain letters."""
    wrong = refusal(pickle.dumps({"\x1b[31m\x07": W1}))

    assert "[31m" in wrong


def test_mutants_of_a_good_file_do_no_harm():
    command = [sys.executable, TESTS / "tools" / "fuzz.py", "--files", "100"]

    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 crashed, 0 misled or hung" in result.stdout


# ---- what is saved

def test_what_is_saved_is_what_is_loaded(tmp_path, trained):
    path = str(tmp_path / "save.p")

    episodes = pg_pong.save(trained, path, 0)

    assert episodes == 1
    assert same(pg_pong.load(path), trained)


def test_a_script_that_knows_nothing_of_us_plays_well_with_our_file(tmp_path):
    """The shipped agent wins some of ten points. With scrambled weights, it would lose them all."""
    run = pg_pong.load(str(SHIPPED))
    pg_pong.save(run, str(tmp_path / "save.p"), 0)

    stranger = subprocess.run([sys.executable, TESTS / "stranger.py"], cwd=tmp_path,
                              env=ENVIRONMENT, capture_output=True, text=True)

    assert stranger.returncode == 0, stranger.stderr
    assert int(stranger.stdout) > -5


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

    pg_pong.save(trained, str(path), 0)

    size = path.stat().st_size
    assert seen == [f"{size} bytes to the disk beside b'old'", "b'old' replaced"]


def test_an_old_file_is_kept_also_where_the_file_system_has_no_links(
        tmp_path, trained, monkeypatch):
    path = tmp_path / "save.p"
    path.write_bytes(b"old")

    def link(*names):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)

    pg_pong.save(trained, str(path), 0)

    assert (tmp_path / "save.p.1").read_bytes() == b"old"
    assert same(pg_pong.load(str(path)), trained)


# ---- and where

def test_another_runs_file_is_kept_and_our_own_is_replaced(trainer):
    """Under the first name that is free, and a link that leads nowhere takes a name, too."""
    for name in ["save.p", "save.p.1", "save.p.3"]:
        (trainer.folder / name).write_text(f"once {name}")
    (trainer.folder / "save.p.2").symlink_to("nowhere")

    result = trainer("--batch-size", 2, "--episodes", 6, patched="saves_often")

    assert result.err.count(f"the old {trainer.save} is now {trainer.save}.4\n") == 1
    assert trainer.names() == ["save.p", "save.p.1", "save.p.2", "save.p.3", "save.p.4"]
    assert len(trainer.load()[1]["scores"]) == 6
    assert (trainer.folder / "save.p.4").read_text() == "once save.p"
    assert (trainer.folder / "save.p.1").read_text() == "once save.p.1"
    assert (trainer.folder / "save.p.3").read_text() == "once save.p.3"
    assert os.readlink(trainer.folder / "save.p.2") == "nowhere"


def test_a_start_by_mistake_leaves_the_file_that_is_there(trainer):
    trainer.save.write_bytes(b"a long night")
    process = trainer.start("--batch-size", 100)
    read_until(process, "Learning")

    err = stop(process)

    assert process.returncode == 0
    assert err == "pg_pong.py: nothing was saved\n"
    assert trainer.save.read_bytes() == b"a long night"
    assert trainer.names() == ["save.p"]


def test_a_link_stays_a_link_and_what_it_points_to_is_replaced(trainer, saved):
    real = trainer.folder / "real.p"
    real.write_bytes(saved)
    trainer.save.symlink_to(real)

    trainer("--resume", "--episodes", 4)

    assert trainer.save.is_symlink()
    assert len(trainer.load("real.p")[1]["scores"]) == 4
    assert trainer.names() == ["real.p", "real.p.lock", "save.p"]


def test_the_last_line_names_the_command_that_goes_on(trainer):
    first = trainer(*ONE_BATCH, "--save", "other name.p")
    _, flags = first.err.split("go on with ")

    trainer(*shlex.split(flags), "--episodes", 4)

    assert len(trainer.load("other name.p")[1]["scores"]) == 4
    assert trainer.names() == ["other name.p", "other name.p.lock"]


def test_a_second_trainer_on_a_file_is_refused_also_through_a_link(trainer):
    (trainer.folder / "link.p").symlink_to("save.p")
    first = trainer.start()
    read_until(first, "Learning")

    second = trainer(*ONE_BATCH, status=2)
    third = trainer("--save", "link.p", *ONE_BATCH, status=2)
    stop(first)

    words = f"pg_pong.py: another process is training on {trainer.save}; use another --save\n"
    assert second.err == words
    assert third.err == words


def test_what_a_killed_trainer_leaves_is_in_nobodys_way(trainer):
    """A lock, and half a save."""
    first = trainer.start()
    read_until(first, "Learning")
    first.kill()
    finish(first)
    assert (trainer.folder / "save.p.lock").exists()
    (trainer.folder / "save.p.tmp").write_bytes(b"half")

    trainer(*ONE_BATCH)

    assert trainer.names() == ["save.p"]
    assert len(trainer.load()[1]["scores"]) == 2


def test_where_the_file_system_has_no_locks_it_trains_and_says_so_once(trainer):
    result = trainer("--batch-size", 2, "--episodes", 4, patched="no_locks")

    assert result.err.count("cannot lock") == 1
    assert "another process" not in result.err
    assert len(trainer.load()[1]["scores"]) == 4


def obey_permissions():
    """In a child process, before the script begins: even root may not write what is read-only."""
    drop_capability = 24
    for capability in [1, 2]:  # to write anything, and to read it
        ctypes.CDLL(None).prctl(drop_capability, capability, 0, 0, 0)  # only root has them to drop


def test_a_folder_that_may_not_be_written_is_refused_before_the_first_episode(trainer):
    trainer.folder.chmod(0o555)

    result = trainer(*ONE_BATCH, status=2, preexec_fn=obey_permissions)
    trainer.folder.chmod(0o755)

    assert result.out == ""
    assert re.fullmatch(f"pg_pong.py: .*{trainer.save}.*\n", result.err)
    assert os.listdir(trainer.folder) == []


def test_a_file_that_may_not_be_read_is_refused_and_stays(trainer, saved):
    trainer.save.write_bytes(saved)
    trainer.save.chmod(0)

    result = trainer("--resume", "--episodes", 4, status=2, preexec_fn=obey_permissions)
    trainer.save.chmod(0o644)

    assert result.out == ""
    assert re.fullmatch(f"pg_pong.py: .*{trainer.save}.*\n", result.err)
    assert trainer.save.read_bytes() == saved
    assert trainer.names() == ["save.p"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_not_replaced_by_one(trainer, make):
    """As /dev/null could be, if root trains."""
    make(trainer.save)
    before = trainer.save.stat().st_mode

    result = trainer(*ONE_BATCH, status=2)

    assert result.out == ""
    assert result.err == f"pg_pong.py: {trainer.save} is no regular file; use another --save\n"
    assert trainer.save.stat().st_mode == before
    assert trainer.names() == ["save.p"]


# ---- when a save fails

def fill_disk():
    """In a child process, before the script begins: no file may grow beyond 1 MB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_a_full_disk_is_found_before_the_first_episode(trainer, saved):
    trainer.save.write_bytes(saved)

    result = trainer("--resume", "--episodes", 4, status=2, preexec_fn=fill_disk)

    assert result.out == ""
    assert re.fullmatch(f"pg_pong.py: cannot save to {trainer.save}: .+\n", result.err)
    assert trainer.save.read_bytes() == saved
    assert trainer.names() == ["save.p"]


def test_a_save_that_failed_is_tried_again(trainer, saved):
    trainer.save.write_bytes(saved)
    environment = ENVIRONMENT | {"FULL_UNTIL": "8"}

    result = trainer("--resume", "--episodes", 10, patched="full_disk", env=environment)

    assert result.err.count("cannot save to") == 2  # after episodes 4 and 6
    assert result.err.endswith("holds 10 episodes; go on with --resume\n")
    assert len(trainer.load()[1]["scores"]) == 10
    assert trainer.names() == ["save.p"]


@pytest.mark.parametrize("flags, words", [
    (["--resume"], "holds 2 episodes; go on with --resume\n"),
    (["--batch-size", 2], "nothing was saved\n")], ids=["our own file", "another run's file"])
def test_a_disk_that_stays_full_leaves_the_old_file_and_the_run_says_so(
        trainer, saved, flags, words):
    trainer.save.write_bytes(saved)
    environment = ENVIRONMENT | {"FULL_UNTIL": "1000"}

    result = trainer(*flags, "--episodes", 6, patched="full_disk", env=environment, status=1)

    assert "cannot save to" in result.err
    assert result.err.endswith(words)
    assert trainer.save.read_bytes() == saved
    assert trainer.names() == ["save.p"]


@pytest.mark.parametrize("place, number", [
    ("model", "nan"), ("mean_square", "inf")])
def test_a_run_that_diverges_ends_and_what_is_saved_is_from_before(trainer, place, number):
    environment = ENVIRONMENT | {"UPDATE": "2", "PLACE": place, "NUMBER": number}

    result = trainer("--batch-size", 2, "--episodes", 6, patched="diverges", env=environment,
                     status=2)

    assert result.err.count("the weights became infinite or NaN") == 1
    assert len(pg_pong.load(str(trainer.save)).scores) == 2
    assert trainer.names() == ["save.p"]


def test_a_run_that_diverges_at_once_leaves_the_file_that_is_there(trainer):
    trainer.save.write_bytes(b"a long night")
    environment = ENVIRONMENT | {"UPDATE": "1", "PLACE": "model", "NUMBER": "nan"}

    result = trainer("--batch-size", 2, "--episodes", 6, patched="diverges", env=environment,
                     status=2)

    assert "nothing was saved" in result.err
    assert trainer.save.read_bytes() == b"a long night"
    assert trainer.names() == ["save.p"]
