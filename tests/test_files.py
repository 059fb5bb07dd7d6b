"""No night is lost, no file does harm, files go to and fro."""
import ctypes
import functools
import importlib
import io
import operator
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DUMMY, ROOT, SHORT, Trainer, children, read_until, same

import pg_pong


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a real save.p after ten episodes."""
    trainer = Trainer(tmp_path_factory.mktemp("saved"))
    trainer("--episodes", 10)
    return trainer.save.read_bytes()


def refused(trainer, data, *words):
    """--resume refuses these bytes with one line and status 2, and leaves the file as it is."""
    trainer.save.write_bytes(data)
    result = trainer("--resume", status=2)
    assert result.out == "" and len(result.err.splitlines()) == 1, (result.out, result.err)
    assert result.err.startswith("pg_pong.py: save.p is no run of this script: "), result.err
    for word in words:
        assert word in result.err, result.err
    assert trainer.save.read_bytes() == data
    assert {p.name for p in trainer.folder.iterdir()} <= {"save.p", "save.p.lock"}


def loads(data, tmp_path):
    """pg_pong.load of these bytes: the run, or the reason of the refusal."""
    path = tmp_path / "file.p"
    path.write_bytes(data)
    try:
        return pg_pong.load(str(path))[0]
    except ValueError as reason:
        return str(reason)


# ---- durable

def test_a_storm_of_kills_loses_nothing():
    result = subprocess.run([sys.executable, str(ROOT / "tests" / "storm.py"), "--kills", "6"], capture_output=True,
                            text=True, timeout=170)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 kills, 0 unreadable files" in result.stdout and "bit-identical" in result.stdout


def test_a_dead_worker_ends_the_run_within_seconds_with_its_state_saved(trainer):
    process = trainer.start()
    read_until(process, "episode 10 ")
    begun = time.monotonic()
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 5
    assert process.returncode == 1 and err == "pg_pong.py: a worker process died (killed? out of memory?)\n"
    assert trainer.load()[1]["episode_number"] == int(out.splitlines()[-1].split("episode ")[1].split(".")[0]) >= 10


def test_a_fault_outside_the_workers_is_not_blamed_on_them():
    def stopped():
        raise BrokenPipeError
    with pytest.raises(BrokenPipeError):
        list(pg_pong.hand_out([0], [], stopped))


def test_a_stop_that_comes_while_a_process_is_started_is_not_lost(monkeypatch):
    received, before = [], signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))

    class Process:
        def __init__(self, **kwargs):
            pass

        def start(self):
            os.kill(os.getpid(), signal.SIGTERM)
            assert not received                                        # it waits
    monkeypatch.setattr(pg_pong.SPAWN, "Process", Process, raising=False)
    pg_pong.start(print)
    signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_workers_that_cannot_be_started_end_the_run_and_the_view(trainer):
    process = trainer.start("--render", "--workers", 30, "--batch-size", 30,
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)), env=DUMMY)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and err == "pg_pong.py: training ended: Too many open files\n"
    assert not trainer.save.exists()


def test_a_dead_trainer_leaves_no_worker_behind(trainer):
    process = trainer.start("--workers", 2)
    read_until(process, "episode 10 ")
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    time.sleep(2)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()
                and ") Z " not in Path(f"/proc/{pid}/stat").read_text()]


FREQUENT = "import sys; sys.path.insert(0, {root!r}); import pg_pong; pg_pong.SAVE_EVERY = 10; pg_pong.main()"


def start_frequent(trainer, *flags, **kwargs):
    """The trainer, saving after every batch, not above the permissions of its files even if root runs the tests."""
    def obey_permissions():
        for capability in 1, 2:                                        # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)           # PR_CAPBSET_DROP; fails harmlessly if not root
    return subprocess.Popen([sys.executable, "-c", FREQUENT.format(root=str(ROOT)), "--workers", "2", *flags],
                            cwd=trainer.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            stdin=subprocess.DEVNULL, preexec_fn=obey_permissions, **kwargs)


@pytest.fixture
def homes(tmp_path_factory):
    """Environment in which the home folder and the one for temporary files are the test's own."""
    home = tmp_path_factory.mktemp("home")
    return home, os.environ | {"HOME": str(home), "TMPDIR": str(home)}


def limit_files(pid, size):
    """From now on no file of that process may grow beyond size: its disk is full, in effect, and needs no mount."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_is_told_once_and_the_save_is_tried_again(trainer, saved):
    trainer.save.write_bytes(saved)
    process = start_frequent(trainer, "--resume", "--episodes", "60")
    read_until(process, "2 workers")
    limit_files(process.pid, 1 << 20)
    for number in 20, 30:
        read_until(process, f"episode {number} ")
    time.sleep(0.5)
    assert trainer.save.read_bytes() == saved
    assert {p.name for p in trainer.folder.iterdir()} <= {"save.p", "save.p.lock"}
    limit_files(process.pid, resource.RLIM_INFINITY)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and trainer.load()[1]["episode_number"] == 60
    assert err == ("pg_pong.py: cannot save to save.p (File too large); training goes on, and the next save tries again\n")


def test_a_full_disk_to_the_end_leaves_the_old_file_and_says_what_is_lost(trainer, saved, homes):
    trainer.save.write_bytes(saved)
    process = start_frequent(trainer, "--resume", "--episodes", "20", env=homes[1])
    read_until(process, "2 workers")
    limit_files(process.pid, 1 << 20)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("pg_pong-save.p (File too large)") == 2 and err.endswith("since the last save is lost\n")
    assert "Traceback" not in err and len(err.splitlines()) == 5, err
    assert trainer.save.read_bytes() == saved and not list(homes[0].iterdir())


def test_a_folder_that_becomes_read_only_costs_nothing_since_the_end_is_saved_elsewhere(trainer, saved, homes):
    trainer.save.write_bytes(saved)
    process = start_frequent(trainer, "--resume", "--episodes", "30", env=homes[1])
    read_until(process, "2 workers")
    trainer.folder.chmod(0o555)
    out, err = process.communicate(timeout=60)
    trainer.folder.chmod(0o755)
    assert process.returncode == 0
    assert len(err.splitlines()) == 2 and err.count("cannot save to save.p (Permission denied)") == 2
    assert f"--resume --save {homes[0]}/pg_pong-save.p" in out
    assert pg_pong.load(str(homes[0] / "pg_pong-save.p"))[0].episode_number == 30
    assert trainer.save.read_bytes() == saved
    assert "Resuming" in trainer("--resume", "--save", homes[0] / "pg_pong-save.p", "--episodes", 40).out


def test_a_folder_that_is_gone_likewise(trainer, homes):
    folder = trainer.folder / "gone"
    folder.mkdir()
    process = start_frequent(trainer, "--save", "gone/save.p", "--episodes", "20", env=homes[1])
    read_until(process, "2 workers")
    (folder / "save.p.lock").unlink()
    folder.rmdir()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err.count("cannot save to gone/save.p (No such file or directory)") == 2
    assert pg_pong.load(str(homes[0] / "pg_pong-save.p"))[0].episode_number == 20


def test_the_end_is_saved_elsewhere_even_if_nobody_reads_the_complaint(trainer, homes):
    folder = trainer.folder / "gone"
    folder.mkdir()
    process = start_frequent(trainer, "--save", "gone/save.p", *SHORT, env=homes[1])
    read_until(process, "2 workers")
    process.stderr.close()
    (folder / "save.p.lock").unlink()
    folder.rmdir()
    process.communicate(timeout=60)
    assert pg_pong.load(str(homes[0] / "pg_pong-save.p"))[0].episode_number == 2


def test_a_folder_that_is_read_only_from_the_start_is_refused(trainer, saved):
    trainer.save.write_bytes(saved)
    trainer.folder.chmod(0o555)
    process = start_frequent(trainer)
    out, err = process.communicate(timeout=20)
    trainer.folder.chmod(0o755)
    assert process.returncode == 2 and out == "" and trainer.save.read_bytes() == saved
    assert err == "pg_pong.py: cannot write beside save.p (Permission denied); choose another place with --save\n"


def test_a_file_that_may_not_be_read_is_refused(trainer, saved):
    trainer.save.write_bytes(saved)
    trainer.save.chmod(0)
    process = start_frequent(trainer, "--resume")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 2 and out == "" and err == "pg_pong.py: cannot read save.p: Permission denied\n"


def test_a_file_put_in_place_during_the_run_is_kept(trainer):
    process = start_frequent(trainer, "--episodes", "20")
    read_until(process, "episode 10 ")
    while not trainer.save.exists():
        time.sleep(0.01)
    (trainer.folder / "other").write_bytes(b"another run")
    os.replace(trainer.folder / "other", trainer.save)
    process.communicate(timeout=60)
    assert (trainer.folder / "save.p.1").read_bytes() == b"another run"
    assert trainer.load()[1]["episode_number"] == 20


def test_two_trainers_on_one_file_and_a_lock_that_was_left_behind(trainer):
    first = trainer.start()
    read_until(first, "episode 10 ")
    for flags in (), ("--resume",):
        result = trainer(*flags, status=2)
        assert result.out == "" and result.err == ("pg_pong.py: another process is training on save.p; stop it first, "
                                                   "or choose another file with --save\n")
    first.kill()
    first.communicate()
    assert (trainer.folder / "save.p.lock").exists()
    assert "episode 2 " in trainer(*SHORT).out


def test_weights_that_are_no_longer_finite_are_not_saved(trainer, saved):
    run = parts(saved)
    run[0]["W2"][:] = 3e38                                             # finite, but not for long
    run[0]["W1"][:] *= 1e38
    data = whole(run)
    trainer.save.write_bytes(data)
    result = trainer("--resume", status=1)
    assert len(result.err.splitlines()) == 1 and "no longer finite after episode 20" in result.err
    assert trainer.save.read_bytes() == data


def test_an_output_that_nobody_reads_any_more_ends_the_run_saved(trainer):
    process = trainer.start("--workers", 2)
    read_until(process, "2 workers")
    process.stdout.close()
    process.wait(timeout=30)
    assert process.returncode == 1 and process.stderr.read() == "pg_pong.py: training ended: Broken pipe\n"
    assert trainer.load()[1]["episode_number"] == 10


def test_a_ctrl_c_that_ends_the_reader_too_says_on_stderr_where_to_go_on(trainer):
    process = trainer.start()
    read_until(process, "episode 10 ")
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    assert process.wait(timeout=10) == 0
    assert err == ("pg_pong.py: save.p holds the run up to episode 10. Go on with: python pg_pong.py --resume\n")


# ---- safe to open

def parts(data):
    f = io.BytesIO(data)
    return pickle.load(f), pickle.load(f)


def whole(run):
    return b"".join(pickle.dumps(part, 4) for part in run)


def marker(path):
    return f"open({str(path)!r}, 'w').close()"


class Reduced:
    """Pickles as a call of function with args."""
    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def payloads(path):
    """Every kind of attack that came to mind, as (name, pickle, what the refusal must name). Each would make path."""
    code, shell = marker(path), f"touch {path}"
    text = f"touch {path}\n".encode()
    yield "os.system", pickle.dumps(Reduced(os.system, shell)), "system"
    yield "os.system in protocol 0", b"cos\nsystem\n(S'" + shell.encode() + b"'\ntR.", "os.system"
    yield "posix.system by INST", b"(S'" + shell.encode() + b"'\niposix\nsystem\n.", "instruction"
    yield "posix.system by OBJ", b"(cposix\nsystem\nS'" + shell.encode() + b"'\no.", "posix.system"
    yield "subprocess.Popen", pickle.dumps(Reduced(subprocess.Popen, ["touch", str(path)])), "subprocess.Popen"
    for function in eval, exec:
        for protocol in range(6):
            yield (f"builtins.{function.__name__} {protocol}", pickle.dumps(Reduced(function, code), protocol),
                   function.__name__)
    yield "builtins.getattr", pickle.dumps(Reduced(getattr, "x", "upper")), "getattr"
    yield "a dotted name", b"\x80\x04\x8c\x05numpy\x8c\x0dlib.os.system\x93\x8c" + bytes([len(shell)]) + shell.encode() + b"\x85R.", "numpy.lib.os.system"
    yield "a dotted name of an admitted module", b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x14_reconstruct.__call__\x93.", "refused"
    yield "functools.partial", pickle.dumps(functools.partial(os.system, shell)), "functools.partial"
    yield "operator.attrgetter", pickle.dumps(operator.attrgetter("system")), "operator.attrgetter"
    yield "importlib", pickle.dumps(Reduced(importlib.import_module, "this")), "importlib"
    for module, name in (("numpy", "load"), ("numpy.f2py", "compile"), ("numpy.testing", "rundocs"), ("numpy", "fromfile"),
                         ("numpy.testing._private.utils", "runstring"), ("numpy", "memmap"), ("numpy", "save"),
                         ("numpy.core", "_reconstruct"), ("numpy._core.multiarrayx", "_reconstruct"),
                         ("numpy.core.multiarray", "scalar"), ("numpy", "void"), ("numpy", "matrix"),
                         ("numpy.core.records", "fromfile"), ("numpy.lib.npyio", "load"), ("copyreg", "_reconstructor"),
                         ("copyreg", "add_extension"), ("builtins", "__import__"), ("builtins", "open"),
                         ("pickle", "loads"), ("_pickle", "loads"), ("code", "interact"), ("pty", "spawn"),
                         ("timeit", "timeit"), ("cProfile", "run"), ("pdb", "run"), ("ctypes", "CDLL"),
                         ("multiprocessing.reduction", "_rebuild_partial"), ("types", "FunctionType"),
                         ("types", "CodeType"), ("runpy", "run_path"), ("webbrowser", "open"), ("__main__", "main"),
                         ("pg_pong", "fail"), ("_codecs", "lookup"), ("codecs", "encode"), ("ale_py", "ALEState")):
        yield f"{module}.{name}", f"c{module}\n{name}\n(S{code!r}\ntR.".encode(), f"{module}.{name}"
    for opcode in b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00":
        yield f"extension code {opcode}", opcode + b".", "instruction"
    yield "a persistent id", b"Pnumber\n.", "instruction"
    yield "a binary persistent id", b"\x80\x02K\x01Q.", "instruction"
    yield "NEWOBJ", b"\x80\x02cnumpy\nndarray\n)\x81.", "instruction"
    yield "NEWOBJ_EX", b"\x80\x04cnumpy\nndarray\n)}\x92.", "instruction"
    yield "a set", pickle.dumps({1}), "instruction"
    yield "a buffer from outside", b"\x80\x05\x97.", "instruction"
    array = np.array([Reduced(os.system, shell)], dtype=object)
    yield "an object array around a call", pickle.dumps({"W1": array, "W2": array}, 4), "refused"
    yield "a pickle in an object array", pickle.dumps({"W1": np.array([text], dtype=object), "W2": 0}, 4), "O8"
    for dtype in (np.dtype([("a", "f4")]), np.dtype("V8"), np.dtype("S4"), np.dtype("U4"), np.dtype("c8"), np.dtype("M8[s]"),
                  np.dtype(("f4", (2,)))):
        yield f"dtype {dtype}", pickle.dumps({"W1": Reduced(np.dtype, dtype.str), "W2": dtype, "x": np.zeros(3, dtype)}, 2), "refused dtype"
    flags = (3, "<", None, None, None, 1 << 40, 1, 63)                 # a float that claims to own objects
    yield "dtype flags", pickle.dumps({"W1": Reduced(np.dtype, "f4", False, True, state=flags), "W2": 0}, 4), ""
    yield "BUILD on a function", b"cnumpy._core.multiarray\n_reconstruct\n}S'__code__'\nNsb.", "damaged"
    yield "a call of a string", b"S'print'\n(tR.", "damaged"
    yield "a memo of 64 GB", b"\x80\x02]r\xff\xff\xff\xff.", ""
    yield "bytes of 2 EB", b"\x80\x05\x8e" + struct.pack("<Q", 2**61) + b"x.", ""
    yield "a bytearray of 20 GB", b"\x80\x05\x96" + struct.pack("<Q", 20 << 30) + b"x.", ""
    yield "an array of 2 EB", b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n(tRq\x00(K\x01J\xff\xff\xff\x7fcnumpy\ndtype\n(S'f8'\ntR\x89S''\ntb.", ""
    deep = b"\x80\x02K\x00" + b"\x85" * 90_000
    yield "a tuple 90,000 deep as a key", b"\x80\x02}" + deep[2:] + b"K\x00s.", "refused"
    doubling = b"\x80\x02}K\x00" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(100)) + b"K\x00s."
    yield "a tuple that takes 2**100 steps to hash", doubling, "repeats itself"
    dtype = b"\x80\x02cnumpy\ndtype\n" + b"K\x00" + b"\x85" * 1500 + b"\x85R."
    yield "a dtype code that is nested 1,500 deep", dtype, ""
    big = b"\x80\x02X" + struct.pack("<I", 10**7) + b"x" * 10**7
    yield "10 MB that are encoded 400 times", big + b"q\x000" + b"c_codecs\nencode\nq\x01" + (
        b"h\x00X\x06\x00\x00\x00latin1\x86Rh\x01" * 400) + b".", ""
    yield "10 MB of arguments 400 times", big + b"q\x00cnumpy._core.multiarray\n_reconstruct\nq\x01" + b"h\x00Rh\x01" * 400 + b".", ""
    yield "a name of 1 MB with escapes", b"c\x1b[31m" + b"x" * 10**6 + b"\nfoo\n.", "refused"
    yield "a million instructions", b"\x80\x02]" + b"N" * 1_000_000 + b".", "refused"
    yield "a long decimal number", b"L" + b"9" * 1_000_000 + b"L\n.", ""
    yield "an endless list", b"\x80\x02]q\x00h\x00a.", ""
    yield "nothing", b"", ""
    yield "a text", b"Dear diary,\n", ""
    yield "zeros", bytes(1000), ""


PAYLOADS = [name for name, _, _ in payloads("x")]


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("place", ["first", "second"])
def test_no_payload_runs_whatever_it_is_and_wherever_it_stands(name, place, tmp_path, saved):
    path = tmp_path / "ran"
    data, word = next((data, word) for n, data, word in payloads(path) if n == name)
    if place == "second":
        data = saved[:len(pickle.dumps(parts(saved)[0], 4))] + data if data else saved[:-1]
    begun = time.monotonic()
    reason = loads(data, tmp_path)
    assert isinstance(reason, str), reason
    assert word in reason and "\n" not in reason and len(reason) < 250, reason
    assert not path.exists() and time.monotonic() - begun < 5


@pytest.mark.parametrize("name", ["os.system", "builtins.exec 4", "numpy.load", "nothing", "zeros"])
def test_a_payload_on_the_command_line_gets_one_line_and_status_2(name, trainer):
    path = trainer.folder / "ran"
    data, word = next((data, word) for n, data, word in payloads(path) if n == name)
    refused(trainer, data, word)
    assert not path.exists()


def test_the_payloads_do_run_in_a_plain_pickle_load(tmp_path):
    """So that the tests above can fail."""
    for name in "os.system", "os.system in protocol 0", "posix.system by INST", "builtins.exec 0", "builtins.eval 5":
        path = tmp_path / name.replace(" ", "-")
        pickle.loads(next(data for n, data, _ in payloads(path) if n == name))
        assert path.exists(), name


def change(saved, part, key, value):
    run = parts(saved)
    target = run[part]
    for k in key[:-1]:
        target = target[k]
    target[key[-1]] = value
    return whole(run)


@pytest.mark.parametrize("part, key, value, word", [
    (0, ["W1"], np.zeros((200, 6399)), "[(200, 6399), (200,)]"), (0, ["W2"], np.zeros((200, 1)), "(200, 1)"),
    (0, ["W2"], np.full(200, np.nan), "model is not finite"), (0, ["W2"], np.full(200, 1e300), "model is not finite"),
    (0, ["W2"], [1.0] * 200, "damaged"), (0, ["W3"], np.zeros(3), "not W1 and W2"),
    (1, ["rmsprop_cache", "W1"], np.zeros((2, 2)), "rmsprop_cache"), (1, ["rmsprop_cache", "W2"], np.full(200, -1.0), "negative"),
    (1, ["rmsprop_cache", "W2"], np.full(200, np.inf), "rmsprop_cache is not finite"), (1, ["rmsprop_cache"], None, "rmsprop_cache"),
    (1, ["format"], 2, "format"), (1, ["episode_number"], -10, "episode_number"), (1, ["episode_number"], 20, "episode_rewards"),
    (1, ["episode_number"], "10", "episode_number"), (1, ["episode_number"], True, "episode_number"),
    (1, ["running_reward"], float("nan"), "running_reward"), (1, ["running_reward"], None, "running_reward"),
    (1, ["running_reward"], 22.0, "running_reward"), (1, ["seed"], -1, "seed"), (1, ["seed"], 2**32, "seed"),
    (1, ["hyperparameters", "gamma"], 1.5, "gamma"), (1, ["hyperparameters", "batch_size"], 10**6, "batch_size"),
    (1, ["hyperparameters", "learning_rate"], float("inf"), "learning_rate"), (1, ["hyperparameters", "momentum"], 0.9, "hyperparameters"),
    (1, ["hyperparameters"], [], "damaged"), (1, ["episode_rewards"], np.zeros(10), "episode_rewards"),
    (1, ["episode_rewards"], [1] * 10, "damaged"), (1, ["emulator_states"], "abc", "emulator_states"),
    (1, ["emulator_states"], [1], "emulator_states"), (1, ["steps"], -1, "steps"), (1, ["seconds"], -1.0, "seconds"),
    (1, ["extra"], 1, "extra")])
def test_contents_that_do_not_fit_are_refused_and_named(part, key, value, word, saved, tmp_path):
    reason = loads(change(saved, part, key, value), tmp_path)
    assert isinstance(reason, str) and word in reason and "\n" not in reason, reason


def test_a_truncated_file_is_refused_and_kept(trainer, saved):
    for size in 0, 1, 100, 5_000_000, len(saved) - 1:
        refused(trainer, saved[:size])


def test_files_over_256_MB_and_things_that_are_no_files_are_refused_unread(trainer):
    with open(trainer.save, "wb") as f:
        f.truncate((256 << 20) + 1)
    begun = time.monotonic()
    for prepare, words in ((lambda: None, "no file of at most 256 MB"),
                           (lambda: (trainer.save.unlink(), trainer.save.mkdir()), "is no file"),
                           (lambda: (trainer.save.rmdir(), os.mkfifo(trainer.save)), "is no file"),
                           (lambda: (trainer.save.unlink(), trainer.save.symlink_to("/dev/zero")), "is no file")):
        prepare()
        for flags in [["--resume"], ["--eval", "1"]] + ([[]] if words == "is no file" else []):
            result = trainer(*flags, status=2)
            assert len(result.err.splitlines()) == 1 and "no file" in result.err
    assert time.monotonic() - begun < 40


def test_a_link_is_followed_and_stays_a_link(trainer):
    (trainer.folder / "disk").mkdir()
    trainer.save.symlink_to("disk/real.p")
    (trainer.folder / "disk" / "real.p").write_bytes(b"old")
    trainer(*SHORT)
    assert trainer.save.is_symlink() and pg_pong.load(str(trainer.save))[0].episode_number == 2
    assert (trainer.folder / "disk" / "real.p.1").read_bytes() == b"old"


def test_hyperparameters_in_another_order_are_the_same(saved, tmp_path):
    run = parts(saved)
    run[1]["hyperparameters"] = dict(reversed(run[1]["hyperparameters"].items()))
    assert list(loads(whole(run), tmp_path).hyperparameters.items()) == list(pg_pong.HYPERPARAMETERS.items())


def test_an_output_that_is_full_or_closed_ends_no_training(trainer):
    command = f"{sys.executable} {ROOT / 'pg_pong.py'} {' '.join(SHORT)}"
    for redirection in "> /dev/full", ">&-", "2>&-", "> /dev/full 2> /dev/full":
        result = subprocess.run(f"{command} {redirection}", shell=True, cwd=trainer.folder, capture_output=True, text=True)
        assert "Traceback" not in result.stderr and trainer.load()[1]["episode_number"] == 2, result.stderr
        trainer.save.unlink()


def test_emulator_states_that_the_emulator_refuses_are_replaced_and_the_line_says_so(trainer, saved):
    run = parts(saved)
    run[1]["emulator_states"][3:5] = [b"", b"nonsense" * 2000]
    trainer.save.write_bytes(whole(run))
    result = trainer("--resume", "--episodes", 20)
    assert result.err == ("pg_pong.py: the emulator refused 2 of its saved states and was seeded anew; "
                          "the run is no longer identical to one without a stop\n")
    assert len(set(trainer.load()[1]["emulator_states"])) == 10


def test_fuzzed_files_and_states_harm_nothing():
    result = subprocess.run([sys.executable, str(ROOT / "tests" / "fuzz.py"), "--files", "200", "--states", "40"],
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "0 crashed" in result.stdout, result.stdout + result.stderr
    assert result.stderr == ""


# ---- from and to others

def python2_pickle(arrays, numpy="numpy"):
    """Protocol 0 as cPickle of Python 2 writes a dict of arrays: byte strings by repr, opcode for opcode."""
    out, memo = [b"(dp1\n"], 1

    def put():
        nonlocal memo
        memo += 1
        return b"p%d\n" % memo
    for name, array in arrays.items():
        raw = "".join(chr(b) if 32 <= b < 127 and chr(b) not in "'\\" else {10: "\\n", 13: "\\r", 9: "\\t", 39: "\\'",
                      92: "\\\\"}.get(b, f"\\x{b:02x}") for b in array.tobytes()).encode()
        out += [b"S'%s'\n" % name.encode(), put(), b"cnumpy.core.multiarray\n_reconstruct\n", put(),
                b"(cnumpy\nndarray\n", put(), b"(I0\ntS'b'\n", put(), b"tR", put(), b"(I1\n(",
                b"".join(b"L%dL\n" % n for n in array.shape), b"t", b"cnumpy\ndtype\n", put(), b"(S'f8'\n", put(),
                b"I0\nI1\ntR", put(), b"(I3\nS'<'\n", put(), b"NNNI-1\nI-1\nI0\ntbI00\nS'", raw, b"'\n", put(), b"tbs"]
    return b"".join(out) + b"."


@functools.cache
def foreign_model():
    rng = np.random.default_rng(0)
    return {"W1": rng.standard_normal((200, 6400)) / 80, "W2": rng.standard_normal(200)}


FOREIGN = {"python2": python2_pickle} | {f"protocol{n}": lambda model, n=n: pickle.dumps(model, n) for n in range(6)} | {
    # by name and newline in these protocols, so there are no lengths to mend
    f"protocol{n}-numpy1": lambda model, n=n: pickle.dumps(model, n).replace(b"numpy._core.", b"numpy.core.")
    for n in range(4)} | {
    "bigendian": lambda model: pickle.dumps({k: v.astype(">f8") for k, v in model.items()}, 2),
    "fortran": lambda model: pickle.dumps({k: np.asfortranarray(v) for k, v in model.items()}, 5)}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_the_original_script_open_here(name, tmp_path):
    model = foreign_model()
    data = FOREIGN[name](model)
    if name == "python2":
        assert same(pickle.loads(data, encoding="latin1"), model)      # the writer above writes true pickles
    run = loads(data, tmp_path)
    for k in model:
        assert run.model[k].dtype == np.float32 and np.array_equal(run.model[k], model[k].astype(np.float32))
        assert not run.rmsprop_cache[k].any()
    assert run.episode_number == 0 and run.running_reward is None


def test_a_file_of_the_original_script_resumes_with_one_line(trainer):
    trainer.save.write_bytes(python2_pickle(foreign_model()))
    result = trainer("--resume", *SHORT, "--learning-rate", "1e-3")
    assert "Resuming save.p at episode 0 with new optimizer and counters: it holds weights only" in result.out
    assert result.err == "" and trainer.load()[1]["episode_number"] == 2
    assert not list(trainer.folder.glob("save.p.[0-9]"))


PLAYER = """
import pickle, numpy as np, gymnasium, ale_py
model = pickle.load(open('save.p', 'rb'))
env = gymnasium.make('ALE/Pong-v5', frameskip=(2, 5))
frame, _ = env.reset(seed=0)
rng, before, score, steps = np.random.default_rng(0), None, 0, 0
while score > -3:
    I = frame[35:195, :, 0][::2, ::2].astype(float)
    I[(I == 144) | (I == 109)] = 0
    I[I != 0] = 1
    x = I.ravel() - before if before is not None else np.zeros(6400)
    before = I.ravel()
    h = np.maximum(model['W1'] @ x, 0)
    p = 1 / (1 + np.exp(-(model['W2'] @ h)))
    frame, reward, end, _, _ = env.step(2 if rng.random() < p else 3)
    score, steps = score + reward, steps + 1
print(sorted(model), score, steps > 50)
"""


def test_a_script_that_knows_nothing_of_us_plays_with_our_file(trainer, saved):
    trainer.save.write_bytes(saved)
    result = subprocess.run([sys.executable, "-c", PLAYER], cwd=trainer.folder, capture_output=True, text=True, timeout=60)
    assert result.stdout == "['W1', 'W2'] -3.0 True\n", result.stderr
