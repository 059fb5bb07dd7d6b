"""No night is lost, no file does harm, files go to and fro."""
import contextlib
import ctypes
import functools
import io
import operator
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DUMMY, ROOT, SHORT, Trainer, children, read_until, same

import pg_pong

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a real save.p."""
    trainer = Trainer(tmp_path_factory.mktemp("saved"))
    trainer(*SHORT)
    return trainer.save.read_bytes()

def parts(data):
    f = io.BytesIO(data)
    return pickle.load(f), pickle.load(f)

def whole(weights, rest):
    return pickle.dumps(weights, 4) + pickle.dumps(rest, 4)

def tool(name, *flags):
    return subprocess.run([sys.executable, ROOT / "tests" / "tools" / name, *flags], capture_output=True, text=True)

# ---- durable

def test_a_storm_of_kills_loses_nothing():
    result = tool("storm.py", "--kills", "6")
    assert result.returncode == 0 and "bit-identical" in result.stdout, result.stdout + result.stderr

def test_a_dead_worker_ends_the_run_within_seconds_and_it_is_saved(trainer):
    process = trainer.start("--workers", 2)
    read_until(process, "episode 10 ")
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 1 and re.fullmatch(
        r"pg_pong.py: training ended: a worker process died \(killed\? out of memory\?\); "
        rf"save.p holds the run up to episode {trainer.load()[1]['episode_number']}; go on with --resume\n", err), err

def test_a_dead_trainer_leaves_nothing_running(trainer):
    process = trainer.start("--workers", 3, "--render", env=DUMMY)
    read_until(process, "episode 10 ")
    started, end = [Path(f"/proc/{pid}/stat") for pid in children(process.pid)], time.monotonic() + 10
    assert len(started) == 4                               # the workers and the window
    process.kill()
    process.wait()
    while any(stat.exists() and ") Z " not in stat.read_text() for stat in started):
        assert time.monotonic() < end
        time.sleep(0.05)

def start_frequent(trainer, *flags):
    """A trainer that saves after every batch, and obeys the permissions of files even if root runs the tests."""
    def obey():
        for capability in 1, 2:                            # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)           # PR_CAPBSET_DROP; fails harmlessly if not root
    source = (ROOT / "pg_pong.py").read_text()
    assert "\nSAVE_EVERY = 100 " in source
    script = trainer.folder.parent / f"{trainer.folder.name}.py"
    script.write_text(source.replace("\nSAVE_EVERY = 100 ", "\nSAVE_EVERY = 2 "))
    return subprocess.Popen([sys.executable, script, "--batch-size", "2", *flags], cwd=trainer.folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=obey)

def names(trainer):
    return sorted(path.name for path in trainer.folder.iterdir())

@pytest.mark.parametrize("again", [True, False])
def test_a_full_disk_leaves_the_old_file_and_the_save_is_tried_again(trainer, again):
    process = start_frequent(trainer, "--episodes", "16")
    read_until(process, "episode 4 ")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, -1))            # no file may grow beyond 1 MB
    read_until(process, "episode 8 ")
    assert (last := trainer.load()[1]["episode_number"]) in (2, 4)
    if again:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (-1, -1))
        last = 16
    *failures, closing = process.communicate(timeout=60)[1].splitlines()
    assert {re.sub(r"\d+", "N", line) for line in failures} == {
        "pg_pong.py: cannot save episode N to save.p: File too large"}
    assert trainer.load()[1]["episode_number"] == last and names(trainer) == ["save.p", "save.p.lock"]
    assert f"holds the run up to episode {last}; go on" in closing and process.returncode == (0 if again else 1)

def test_places_that_may_not_be_read_or_written_are_refused(trainer, saved):
    trainer.save.write_bytes(saved)
    for place, mode, flags in (trainer.save, 0, ["--resume"]), (trainer.folder, 0o555, []):
        place.chmod(mode)
        process = start_frequent(trainer, *flags)
        out, err = process.communicate(timeout=30)
        place.chmod(0o755)
        assert process.returncode == 2 and out == "" and trainer.save.read_bytes() == saved
        assert re.fullmatch(r"pg_pong.py: \[Errno 13\] Permission denied: 'save.p(.lock)?'\n", err), err
        (trainer.folder / "save.p.lock").unlink(missing_ok=True)
    trainer.save.unlink()
    trainer.save.mkdir()
    result = trainer(status=2)
    assert result.out == "" and result.err == "pg_pong.py: save.p is a folder; choose a file with --save\n"

def test_two_trainers_on_one_file_and_a_lock_that_was_left_behind(trainer):
    first = trainer.start()
    read_until(first, "save.p is saved")
    for flags in [], ["--resume"], ["--save", trainer.save]:
        result = trainer(*flags, status=2)
        assert result.out == "" and re.fullmatch("pg_pong.py: another process is training on .*save.p; stop it first, "
                                                 "or choose another file with --save\n", result.err), result.err
    first.kill()
    first.communicate()
    assert names(trainer) == ["save.p.lock"] and "episode 2 " in trainer(*SHORT).out

def test_another_runs_file_is_kept_without_an_instant_in_which_there_is_none(tmp_path, monkeypatch):
    path, run, there = tmp_path / "save.p", replace(pg_pong.new_run(0), running_reward=0.0), []
    path.write_bytes(b"last night")
    for name in "link", "rename", "replace", "remove", "unlink":
        def watched(*args, call=getattr(os, name)):
            call(*args)
            there.append(path.exists())
        monkeypatch.setattr(os, name, watched)
    for number in 1, 2:
        assert pg_pong.save(run, str(path), ours=False) and pg_pong.save(run, str(path), ours=True)
    assert (tmp_path / "save.p.1").read_bytes() == b"last night" and len(there) >= 4 and all(there)
    assert len(os.listdir(tmp_path)) == 3 and same(vars(pg_pong.load(str(tmp_path / "save.p.2"))), vars(run))

    def refuse(*args):                                     # a disk without second names, such as a memory card
        raise OSError("Operation not permitted")
    monkeypatch.setattr(os, "link", refuse)
    path.write_bytes(b"another night")
    assert pg_pong.save(run, str(path), ours=False) and (tmp_path / "save.p.3").read_bytes() == b"another night"
    assert same(vars(pg_pong.load(str(path))), vars(run)) and len(os.listdir(tmp_path)) == 4

def test_a_link_is_followed_and_stays_a_link(trainer):
    (trainer.folder / "disk").mkdir()
    trainer.save.symlink_to("disk/real.p")
    (trainer.folder / "disk" / "real.p").write_bytes(b"old")
    trainer(*SHORT)
    assert trainer.save.is_symlink() and trainer.load("disk/real.p")[1]["episode_number"] == 2
    assert (trainer.folder / "disk" / "real.p.1").read_bytes() == b"old"

def test_weights_that_are_no_longer_finite_are_not_saved(trainer, saved):
    weights, rest = parts(saved)
    weights["W1"] *= 1e38                                  # finite, but not for long
    weights["W2"][:] = 3e38
    trainer.save.write_bytes(data := whole(weights, rest))
    assert trainer("--resume", status=1).err == ("pg_pong.py: training ended: the weights are no longer finite; resume "
                                                 "with a smaller --learning-rate; nothing new was saved\n")
    assert trainer.save.read_bytes() == data

def test_an_output_that_is_full_or_closed_ends_no_training(trainer):
    command = f"{sys.executable} {ROOT / 'pg_pong.py'} {' '.join(SHORT)}"
    for redirection in "> /dev/full", ">&-", "2>&-", "<&-", "> /dev/full 2> /dev/full":
        result = subprocess.run(f"{command} {redirection}", shell=True, cwd=trainer.folder, capture_output=True)
        assert b"Traceback" not in result.stderr and trainer.load()[1]["episode_number"] == 2, result.stderr
        trainer.save.unlink()

@pytest.mark.parametrize("number, status", [(None, 1), (signal.SIGINT, 0)])
def test_a_run_whose_reader_has_gone_ends_saved(trainer, number, status):
    process = trainer.start("--batch-size", 2)
    read_until(process, "episode 4 ")
    if number:                                             # that also ends the reader, as in a pipe
        process.send_signal(number)
    process.stdout.close()
    assert process.wait(timeout=30) == status and trainer.load()[1]["episode_number"] >= 4
    assert re.fullmatch(r"pg_pong.py: (training ended: \[Errno 32\] Broken pipe; )?save.p holds the run up to episode "
                        r"\d+; go on with --resume\n", err := process.stderr.read()) and ("ended" in err) == status

def test_workers_that_cannot_be_started_end_the_script_with_one_line(trainer):
    result = trainer("--workers", 30, "--batch-size", 30, status=2,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    assert result.err == "pg_pong.py: [Errno 24] Too many open files\n" and not trainer.save.exists()

def test_a_refused_emulator_state_is_reported_and_the_run_goes_on(trainer, saved):
    weights, rest = parts(saved)
    rest["emulator_states"] = [b"", b"nonsense" * 2000]
    trainer.save.write_bytes(whole(weights, rest))
    first, second, closing = trainer("--resume", "--episodes", 4).err.splitlines()
    assert first == second and "the emulator refuses a saved state" in first and "up to episode 4;" in closing
    assert len(set(trainer.load()[1]["emulator_states"])) == 2

# ---- safe to open

class Calls:
    """Pickles as a call of function with args, whose result is then given the state."""
    def __init__(self, function, *args, state=None):
        self.call = function, args, state

    def __reduce__(self):
        return self.call

def payloads(path):
    """Pickles by name, first those that make path if Python's own pickle.load reads them."""
    shell, code = f"touch {path}", f"open({str(path)!r}, 'w').close()"
    for n in range(6):
        for f, text in (eval, code), (exec, code), (os.system, shell):
            yield f"{f.__name__} in protocol {n}", pickle.dumps(Calls(f, text), n)
    yield "Popen", pickle.dumps({"W1": Calls(subprocess.Popen, ["touch", str(path)])})
    yield "INST", f"(S{shell!r}\niposix\nsystem\n.".encode()
    yield "OBJ", f"(cposix\nsystem\nS{shell!r}\no.".encode()
    yield "a dotted name", pickle.dumps("pathlib")[:-1] + pickle.dumps("os.system")[2:-1] + b"\x93" + (
        pickle.dumps(shell)[2:-1] + b"\x85R.")
    yield "an array of objects", pickle.dumps({"W1": np.array([Calls(os.system, shell)], object)}, 4)
    yield "argument of a dtype", pickle.dumps({"W1": Calls(np.dtype, Calls(os.system, shell))})
    yield "from here on they make nothing", b""
    for name in """numpy.load numpy.memmap numpy.testing._private.utils.runstring numpy.core._reconstruct numpy.matrix
            numpy.core.multiarray.scalar numpy._core.multiarrayx._reconstruct numpy._core.numpy._core.os.system
            copyreg._reconstructor builtins.__import__ builtins.open builtins.getattr pickle.loads pty.spawn ctypes.CDLL
            types.FunctionType importlib.import_module runpy.run_path operator.attrgetter functools.partial
            codecs.encode __main__.main pg_pong.fail pg_pong.Call ale_py.ALEState numpy.ndarray.tofile""".split():
        yield name, "c{}\n{}\n(S{!r}\ntR.".format(*name.rsplit(".", 1), code).encode()
    for kind in "V8", "S4", "U4", "c8", "M8[s]", "O", [("a", "f4")]:
        yield f"dtype {kind}", pickle.dumps({k: np.zeros(3, kind) for k in ("W1", "W2")}, 2)
    yield "an array of 2 EB", pickle.dumps({"W1": Calls(np.ndarray, (2**58,), "f8")}, 2)
    yield "bytes of 2 EB", b"\x80\x05\x8e" + struct.pack("<Q", 2**61) + b"x."
    yield "a tuple 10,000 deep as a key", b"\x80\x02}K\x00" + b"\x85" * 10_000 + b"K\x00s."
    yield "a name with escapes", b"c\x1b[31m" + b"x" * 10**6 + b"\nfoo\n."
    for data in (b"\x82\x01.", b"Pnumber\n.", b"\x80\x02K\x01Q.", b"\x80\x02cnumpy\nndarray\n)\x81.", b"\x80\x05\x97.",
                 b"\x80\x04cnumpy\nndarray\n)}\x92.", b"cnumpy\nndarray\n}S'__code__'\nNsb.", b"S'print'\n(tR.",
                 b"\x80\x02]q\x00h\x00a.", bytes(1000), b"Dear diary,\n"):
        yield repr(data[:30]), data

def refusal(path, capsys, events=[], watching=[]):
    """The line with which load refuses the file at path, which it only reads."""
    if not watching:                                       # an audit hook cannot be taken away again
        sys.addaudithook(lambda event, args: watching[-1] and events.append((event, *args)))
    watching.append(True)
    with pytest.raises(SystemExit, match="2"):
        pg_pong.load(str(path))
    watching.append(False)
    line = capsys.readouterr().err
    event, name, _, flags = events.pop(0)
    assert (event, name, flags & os.O_ACCMODE) == ("open", str(path), os.O_RDONLY) and events == [], events
    assert line.startswith(f"pg_pong.py: {path} is damaged or no run of this script (") and "('')" not in line, line
    assert line.endswith("); it was left as it is\n") and line[:-1].isprintable() and len(line) < 500, line
    return line

def test_no_payload_runs_whatever_it_is_and_wherever_it_stands(tmp_path, capsys, saved):
    path, made, weights = tmp_path / "save.p", tmp_path / "made", pickle.dumps(parts(saved)[0], 4)
    for name, payload in payloads(made):
        for data in payload, weights + (payload or b"\x80"):
            path.write_bytes(data)
            print(name, refusal(path, capsys))
            assert not made.exists() and path.read_bytes() == data

def test_the_payloads_do_run_in_a_plain_load(tmp_path):
    for name, payload in payloads(tmp_path / "made"):
        if not payload:
            break
        with contextlib.suppress(TypeError):               # what a call returned is no dtype
            pickle.loads(payload)
        time.sleep(0.2 * (name == "Popen"))
        (tmp_path / "made").unlink()

def test_bad_files_are_refused_on_the_command_line_too(trainer, saved):
    for data in dict(payloads("x"))["eval in protocol 0"], *(saved[:n] for n in (0, 1, 99, 5_200_000, len(saved) - 1)):
        trainer.save.write_bytes(data)
        for flags in ["--resume"], ["--eval", 1], ["--plot"]:
            result = trainer(*flags, status=2)
            assert result.out == "" and result.err.startswith("pg_pong.py: save.p is damaged"), result.err
        assert trainer.save.read_bytes() == data and set(names(trainer)) <= {"save.p", "save.p.lock"}

USUAL = """
import pickle, sys, numpy
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        assert name in ("_reconstruct", "ndarray", "dtype") and module.startswith("numpy")
        return super().find_class(module, name)
print(numpy.asarray(Unpickler(open(sys.argv[1], "rb")).load()["W2"], numpy.float32))
"""

def test_numpys_own_functions_follow_a_pointer_from_the_file_but_load_does_not(tmp_path, capsys):
    """This is why the calls in a file are only written down."""
    reconstruct, path = np.zeros(1).__reduce__()[0], tmp_path / "save.p"
    for flags, crashes in (0, True), (63, False):          # objects that are said not to be any; told, numpy refuses
        forged = Calls(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, flags))
        pointers = struct.pack("<Q", 16) * 200
        array = Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, (200,), forged, False, pointers))
        path.write_bytes(pickle.dumps({"W1": array, "W2": array}, 3))
        assert (subprocess.run([sys.executable, "-c", USUAL, path], capture_output=True).returncode < 0) == crashes
        assert "an array of 'O8'" in refusal(path, capsys)

def test_contents_that_do_not_fit_are_refused(tmp_path, capsys, saved):
    for part, keys, value in [
            (0, "W1", np.zeros((200, 6399))), (0, "W2", np.full(200, np.nan)), (0, "W2", [1.0] * 200),
            (1, "rmsprop_cache W1", np.zeros((2, 2))), (1, "rmsprop_cache", None),
            (1, "rmsprop_cache W2", np.full(200, np.inf)), (1, "format", 2), (1, "episode_number", -2), (1, "extra", 1),
            (1, "episode_number", 20), (1, "episode_number", "2"), (1, "seed", -1), (1, "running_reward", None),
            (1, "hyperparameters gamma", 1.5), (1, "hyperparameters momentum", 0.9), (1, "hyperparameters", []),
            (1, "episode_rewards", np.zeros(2)), (1, "emulator_states", "abc"), (1, "steps", 10**400)]:
        run = parts(saved)
        *above, last = keys.split()
        functools.reduce(operator.getitem, above, run[part])[last] = value
        (tmp_path / "save.p").write_bytes(whole(*run))
        print(part, keys, value, refusal(tmp_path / "save.p", capsys))

def test_fuzzed_files_and_states_harm_nothing():
    result = tool("fuzz.py", "--files", "150", "--states", "30")
    assert result.returncode == 0 and result.stdout.count("0 crashed") == 2, result.stdout + result.stderr

# ---- from and to others

def python2_pickle(arrays):
    """Protocol 0 as cPickle of Python 2 writes a dict of arrays."""
    out = [b"(d"]
    for name, array in arrays.items():
        raw = repr(array.tobytes())[1:].encode()           # byte strings were written as their repr
        shape = b"".join(b"L%dL\n" % n for n in array.shape)
        out += [b"S'%s'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(" % name.encode(),
                shape, b"tcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS", raw, b"\ntbs"]
    return b"".join(out) + b"."

def test_files_of_the_linked_script_open_here(tmp_path, trainer):
    rng = np.random.default_rng(0)
    model = {"W1": rng.standard_normal((200, 6400)) / 80, "W2": rng.standard_normal(200)}
    assert same(pickle.loads(python2_pickle(model), encoding="latin1"), model)
    files = [python2_pickle(model), *(pickle.dumps(model, n) for n in range(6))]
    files += [data.replace(b"numpy._core.", b"numpy.core.") for data in files[1:5]]        # as numpy 1 writes them
    files += [pickle.dumps({k: w.astype(">f8") for k, w in model.items()}, 2)]
    files += [pickle.dumps({k: np.asfortranarray(w) for k, w in model.items()}, n) for n in (2, 5)]
    for data in files:
        trainer.save.write_bytes(data)
        run = pg_pong.load(str(trainer.save))
        assert same(run.model, {k: w.astype(np.float32) for k, w in model.items()}), data[:100]
        assert run.episode_number == 0 and run.running_reward is None and not run.rmsprop_cache["W1"].any()
    trainer("--resume", *SHORT)
    assert trainer.load()[1]["episode_number"] == 2 and (trainer.folder / "save.p.1").read_bytes() == files[-1]
