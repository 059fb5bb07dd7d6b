"""No night is lost, no file does harm, files go to and fro."""
import ctypes
import os
import pickle
import re
import resource
import signal
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
    """The bytes of a real save.p after two episodes."""
    trainer = Trainer(tmp_path_factory.mktemp("saved"))
    trainer(*SHORT)
    return trainer.save.read_bytes()

def pickles(*parts):
    return b"".join(pickle.dumps(part, 4) for part in parts)

@pytest.mark.parametrize("command, proof", [("storm.py --kills 4", "bit-identical to a calm run"),
                                            ("fuzz.py --files 100 --states 20", "0 crashed, 0 misled or hung")])
def test_a_storm_of_kills_loses_nothing_and_fuzzed_files_and_states_harm_nothing(command, proof):
    result = subprocess.run(f"{sys.executable} {ROOT}/tests/tools/{command}".split(), capture_output=True, text=True)
    assert result.returncode == 0 and proof in result.stdout, result.stdout + result.stderr

# ---- durable

@pytest.mark.parametrize("victim", ["a worker", "the trainer"])
def test_if_one_process_dies_all_end_within_seconds_and_what_can_be_saved_is(trainer, victim):
    process = trainer.start("--workers", 3, "--batch-size", 4, "--render", env=DUMMY)
    read_until(process, "episode 4 ")
    started, end = children(process.pid), time.monotonic() + 10
    assert len(started) == 4                               # the workers and the window
    os.kill(started[0] if victim == "a worker" else process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    while any((stat := Path(f"/proc/{pid}/stat")).exists() and ") Z " not in stat.read_text() for pid in started):
        assert time.monotonic() < end
        time.sleep(0.05)
    if victim == "a worker":
        assert process.returncode == 1 and process.stderr.read() == (
            "pg_pong.py: training ended: a worker died: out of memory?; save.p holds the run up to "
            f"episode {trainer.load()[1]['episode_number']}; go on with --resume\n")

OFTEN = "import pg_pong, sys; pg_pong.SAVE_EVERY = 2; sys.exit(pg_pong.main())"

@pytest.mark.parametrize("again", [True, False])
def test_a_full_disk_leaves_the_old_file_and_the_save_is_tried_again(trainer, saved, again):
    trainer.save.write_bytes(saved)
    process = subprocess.Popen([sys.executable, "-c", OFTEN, "--resume", "--episodes", "10"], cwd=trainer.folder,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
    read_until(process, "save.p is saved")
    while not children(process.pid):                       # there is the memory, whose size counts as a file's, too
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, -1))
    read_until(process, "episode 6 ")                      # the save of episode 4 has failed
    assert trainer.save.read_bytes() == saved
    if again:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (-1, -1))
    first, *_, closing = process.communicate(timeout=60)[1].splitlines()
    assert first == "pg_pong.py: cannot save episode 4 to save.p: File too large"
    assert sorted(os.listdir(trainer.folder)) == ["save.p", "save.p.lock"]
    assert (trainer.load()[1]["episode_number"], process.returncode) == ((10, 0) if again else (2, 1))
    assert ("save.p holds the run up to episode 10;" if again else "nothing new was saved") in closing

def test_places_that_may_not_be_read_or_written_are_refused(trainer, saved):
    def obey():                                            # permissions, even if root runs the tests
        for capability in 1, 2:                            # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)           # PR_CAPBSET_DROP; fails harmlessly if not root
    trainer.save.write_bytes(saved)
    for place, mode, flags in (trainer.folder, 0o555, []), (trainer.save, 0, ["--resume"]):
        place.chmod(mode)
        result = trainer(*flags, status=2, preexec_fn=obey)
        place.chmod(0o755)
        assert result.out == "" and trainer.save.read_bytes() == saved
        assert re.fullmatch(r"pg_pong.py: \[Errno 13\] Permission denied: 'save.p(.lock)?'\n", result.err), result.err
    trainer.save.unlink()
    for make in os.mkdir, os.mkfifo:                       # what a device such as /dev/null is to root
        make(trainer.folder / make.__name__)
        assert trainer("--save", make.__name__, *SHORT, status=2).err == (
            f"pg_pong.py: {make.__name__} is no regular file; choose one with --save\n")
    assert sorted(os.listdir(trainer.folder)) == ["mkdir", "mkfifo", "save.p.lock"]
    assert (trainer.folder / "mkfifo").is_fifo()

def test_two_trainers_on_one_file_a_lock_left_behind_and_a_link_that_stays_one(trainer):
    real = trainer.folder / "real.p"
    real.write_bytes(b"old")
    trainer.save.symlink_to(real)
    first = trainer.start()
    read_until(first, "Learning")
    for flags in [], ["--resume"], ["--save", "real.p"]:
        assert re.fullmatch("pg_pong.py: another process is training on .*real.p; stop it first, or choose another "
                            "file with --save\n", trainer(*flags, *SHORT, status=2).err)
    first.kill()
    first.communicate()
    assert Path(f"{real}.lock").exists() and "episode 2 " in trainer(*SHORT).out
    assert trainer.save.is_symlink() and trainer.load("real.p")[1]["episode_number"] == 2
    assert Path(f"{real}.1").read_bytes() == b"old" and len(os.listdir(trainer.folder)) == 4

def test_another_runs_file_is_kept_without_an_instant_in_which_there_is_none(tmp_path, monkeypatch):
    path, run, calls = tmp_path / "save.p", pg_pong.new_run(0), []
    run.running_reward = 0.0
    for name in "fsync", "link", "rename", "replace", "remove", "unlink":
        def watched(*args, name=name, call=getattr(os, name)):
            call(*args)
            calls.append((name, path.exists()))
        monkeypatch.setattr(os, name, watched)
    path.write_bytes(b"last night")
    for ours in False, True, False:
        assert pg_pong.save(run, str(path), ours)
    assert all(there for _, there in calls), calls
    assert [name for name, _ in calls if name != "link"] == ["fsync", "replace"] * 3
    monkeypatch.setattr(os, "link", lambda *args: open("/nowhere/a/disk/without/second/names"))
    assert pg_pong.save(run, str(path), ours=False) and (tmp_path / "save.p.1").read_bytes() == b"last night"
    assert sorted(os.listdir(tmp_path)) == ["save.p", "save.p.1", "save.p.2", "save.p.3"]
    assert all(same(vars(pg_pong.load(f"{path}{end}")), vars(run)) for end in ("", ".2", ".3"))

def test_bad_emulator_states_end_no_run_and_bad_weights_are_not_saved(trainer, saved):
    trainer.save.write_bytes(saved)
    weights, rest = trainer.load()
    trainer.save.write_bytes(pickles(weights, rest | {"emulator_states": [b"", b"nonsense" * 2000]}))
    first, second, closing = trainer("--resume", "--episodes", 4).err.splitlines()
    assert first == second and "the emulator refuses a saved state" in first and "up to episode 4;" in closing
    assert len(set(trainer.load()[1]["emulator_states"])) == 2
    weights["W1"] *= 1e38                                  # finite, but not for long
    weights["W2"][:] = 3e38
    trainer.save.write_bytes(data := pickles(weights, rest))
    assert trainer("--resume", "--episodes", 4, status=1).err == (
        "pg_pong.py: training ended: the weights are no longer finite; resume with a smaller --learning-rate; "
        "nothing new was saved\n")
    assert trainer.save.read_bytes() == data

def test_an_output_that_is_full_or_closed_ends_no_training(trainer):
    for end in "> /dev/full", "> /dev/full 2> /dev/full", "<&- >&- 2>&-":
        subprocess.run(f"{sys.executable} {ROOT}/pg_pong.py {' '.join(SHORT)} {end}", shell=True, cwd=trainer.folder,
                       check=True, stdout=subprocess.DEVNULL)
        assert trainer.load()[1]["episode_number"] == 2, end
        trainer.save.unlink()

@pytest.mark.parametrize("number, status", [(0, 1), (signal.SIGINT, 0)])
def test_a_run_whose_reader_has_gone_ends_saved(trainer, number, status):
    process = trainer.start("--batch-size", 2)
    read_until(process, "episode 4 ")
    process.send_signal(number)                            # Ctrl-C also ends the reader, 0 is none
    process.stdout.close()
    assert process.wait(timeout=30) == status and trainer.load()[1]["episode_number"] >= 4
    assert re.fullmatch(r"pg_pong.py: (training ended: \[Errno 32\] Broken pipe; )?save.p holds the run up to episode "
                        r"\d+; go on with --resume\n", err := process.stderr.read()) and ("ended" in err) == status

def test_workers_that_cannot_be_started_end_the_script_with_one_line(trainer):
    trainer.save.write_bytes(b"old")
    result = trainer("--workers", 30, "--batch-size", 30, status=2,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    assert result.err == "pg_pong.py: [Errno 24] Too many open files\n" and trainer.save.read_bytes() == b"old"

# ---- safe to open

class Calls:
    """Pickles as a call of a function with a tuple, whose result may then be given a state."""
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call

def payloads(path):
    """Pickles by name, first those that make path if Python's own pickle.load reads them."""
    shell, code = f"touch {path}", f"open({str(path)!r}, 'w').close()"
    for n in range(6):
        for f, text in (eval, code), (os.system, shell):
            yield f"{f.__name__} in protocol {n}", pickle.dumps({"W1": Calls(f, (text,))}, n)
    yield "INST", f"(S{shell!r}\niposix\nsystem\n.".encode()
    yield "OBJ", f"(cposix\nsystem\nS{shell!r}\no.".encode()
    yield "NEWOBJ", f"cbuiltins\ntuple\ncbuiltins\nmap\ncos\nsystem\n(S{shell!r}\nl".encode() + b"\x86\x81\x85\x81."
    yield "BUILD", f"cargparse\nNamespace\n(tR(dS'__setstate__'\ncos\nsystem\nsbS{shell!r}\nb.".encode()
    yield "a dotted name", b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93" + pickle.dumps(shell, 3)[2:-1] + b"\x85R."
    yield "an array of objects", pickle.dumps({"W1": np.array([Calls(os.system, (shell,))], object)}, 4)
    yield "from here on they make nothing", b""
    for name in """numpy.load numpy.memmap numpy.testing._private.utils.runstring numpy.core._reconstruct numpy.matrix
            numpy.core.multiarray.scalar numpy._core.multiarrayx._reconstruct numpy._core.numpy._core.os.system
            copyreg._reconstructor builtins.getattr pickle.loads subprocess.Popen ctypes.CDLL types.FunctionType
            codecs.encode __main__.main pg_pong.fail pg_pong.Call ale_py.ALEState numpy.ndarray.tofile""".split():
        yield name, "c{}\n{}\n(S{!r}\ntR.".format(*name.rsplit(".", 1), code).encode()
    yield "a tuple 10,000 deep as a key", b"\x80\x02}K\x00" + b"\x85" * 10_000 + b"K\x00s."
    for data in (b"\x82\x01.", b"Pnumber\n.", b"\x80\x02K\x01Q.", b"\x80\x02cnumpy\nndarray\n)\x81.", b"\x80\x05\x97.",
                 b"cnumpy\nndarray\n}S'__code__'\nNsb.", b"S'print'\n(tR.", b"\x80\x02]q\x00h\x00a.", b"\x80\x02h\x09.",
                 b"\x80\x05\x8e" + b"\xff" * 7 + b"\x1fx.", b"c\x1b[31m" + b"x" * 10**6 + b"\nf\n.", bytes(9), b"Hi"):
        yield repr(data[:30]), data

watching, events = [], []                                  # an audit hook cannot be taken away again
sys.addaudithook(lambda *event: watching and events.append(event))

def refused(path, name, data, capsys):
    """load refuses a file of this data with one line, and only reads it."""
    path.write_bytes(data)
    events[:], watching[:] = [], [True]
    with pytest.raises(SystemExit, match="2"):
        pg_pong.load(str(path))
    watching.clear()
    (event, (opened, _, flags)), *more = events
    assert (event, opened, flags & os.O_ACCMODE, more) == ("open", str(path), os.O_RDONLY, []), (name, event, more)
    assert re.fullmatch(rf"pg_pong.py: {path} is damaged or no run of this script \((?!''|\w+: \))[ -~]{{5,300}}\); "
                        "it was left as it is\n", line := capsys.readouterr().err), (name, line)
    assert path.read_bytes() == data, name

def test_no_payload_runs_whatever_it_is_and_wherever_it_stands(tmp_path, capsys, saved):
    made, runs, weights = tmp_path / "made", True, pickles(pickle.loads(saved))
    for name, payload in payloads(made):
        runs = runs and payload != b""
        if runs:                                           # in a plain load, or this test could not fail
            pickle.loads(payload)
            made.unlink()
        for data in payload, weights + (payload or b"\x80"):
            refused(tmp_path / "save.p", name, data, capsys)
            assert not made.exists(), name

USUAL = """
import pickle, sys, numpy
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        assert name in ("_reconstruct", "ndarray", "dtype") and module.startswith("numpy")
        return super().find_class(module, name)
print(numpy.asarray(Unpickler(open(sys.argv[1], "rb")).load()["W2"], numpy.float32))
"""

def test_numpys_own_functions_follow_a_pointer_from_the_file_but_load_does_not(trainer):
    """This is why the calls in a file are only written down."""
    forged = Calls(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))   # without the flag of objects
    state = 1, (200,), forged, False, (16).to_bytes(8, "little") * 200
    array = Calls(np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state)
    trainer.save.write_bytes(pickle.dumps({"W1": array, "W2": array}, 3))
    assert "an array of 'O8'" in trainer("--resume", status=2).err
    usual = subprocess.run([sys.executable, "-c", USUAL, trainer.save], capture_output=True)
    assert usual.returncode < 0 and b"Error" not in usual.stderr       # a crash

def test_a_small_file_cannot_fill_the_memory(trainer):
    trainer.save.write_bytes(b"\x80\x04cnumpy\nndarray\n)Rq\x00" + b"h\x00b" * 40 + b".")   # "append it to itself"
    limit = 4 << 30, 4 << 30
    result = trainer("--resume", status=2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    assert "save.p is damaged" in result.err and "Memory" not in result.err

def test_contents_that_do_not_fit_are_refused(trainer, capsys, saved):
    for part, key, value in [
            (0, "W1", np.zeros((200, 6399))), (0, "W2", np.full(200, np.nan)), (0, "W2", [1.0] * 200), (1, "extra", 1),
            (1, "rmsprop_cache", {"W1": np.zeros((2, 2)), "W2": np.zeros(200)}), (1, "rmsprop_cache", None),
            (1, "rmsprop_cache", {"W1": np.zeros((200, 6400)), "W2": np.full(200, np.inf)}), (1, "format", 2),
            (1, "episode_number", -2), (1, "episode_number", 20), (1, "episode_number", "2"), (1, "seed", -1),
            (1, "seed", 2**32), (1, "running_reward", None), (1, "steps", 10**400), (1, "seconds", 1),
            (1, "emulator_states", "abc"), (1, "emulator_states", [np.dtype]),
            (1, "episode_rewards", np.zeros(2)), (1, "hyperparameters", []),
            *((0, "W2", np.zeros(200, kind)) for kind in ("V8", "S4", "U4", "c8", "i8", "M8[s]", "O", [("a", "f4")])),
            *((1, "hyperparameters", pg_pong.HYPERPARAMETERS | change) for change in (
                {"gamma": 1.5}, {"momentum": 0.9}, {"batch_size": 10**6}, {"learning_rate": np.inf}))]:
        trainer.save.write_bytes(saved)
        (run := trainer.load())[part][key] = value
        refused(trainer.save, (key, value), pickles(*run), capsys)

# ---- from and to others

def python2_pickle(arrays):
    """Protocol 0 as cPickle of Python 2 writes a dict of arrays."""
    text = "(d"
    for name, w in arrays.items():
        text += f"S'{name}'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("
        text += "".join(f"L{n}L\n" for n in w.shape) + "tcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\n"
        text += f"tbI00\nS{repr(w.tobytes())[1:]}\ntbs"
    return text.encode() + b"."

def test_files_of_the_linked_script_open_here(trainer):
    rng = np.random.default_rng(0)
    model = {"W1": rng.standard_normal((200, 6400)) / 80, "W2": rng.standard_normal(200)}
    assert same(pickle.loads(python2_pickle(model), encoding="latin1"), model)
    files = [pickle.dumps(model, n) for n in range(6)] + [python2_pickle(model)]
    files += [data.replace(b"numpy._core.", b"numpy.core.") for data in files[:4]]         # as numpy 1 writes them
    files += [pickle.dumps({k: np.asfortranarray(w.astype(">f8")) for k, w in model.items()}, n) for n in (2, 5)]
    for data in files:
        trainer.save.write_bytes(data)
        run = pg_pong.load(str(trainer.save))
        assert same(run.model, {k: w.astype(np.float32) for k, w in model.items()}), data[:100]
        assert run.episode_number == 0 and run.running_reward is None and not run.rmsprop_cache["W1"].any()
    trainer("--resume", *SHORT)
    assert trainer.load()[1]["episode_number"] == 2 and (trainer.folder / "save.p.1").read_bytes() == files[-1]

PLAYER = """
import pickle, numpy, gymnasium, ale_py
f, env, before, ps = open("save.p", "rb"), gymnasium.make("ALE/Pong-v5", frameskip=(2, 5)), 0, []
(model, rest), (frame, _) = (pickle.load(f), pickle.load(f)), env.reset(seed=0)
while len(ps) < 100:
    picture = (~numpy.isin(frame[35:195:2, ::2, 0], [0, 144, 109])).astype(float).ravel()
    ps.append(1 / (1 + numpy.exp(-model["W2"] @ numpy.maximum(model["W1"] @ (picture - before), 0))))
    frame, before = env.step(2 if numpy.random.random() < ps[-1] else 3)[0], picture
print(sorted(model), rest["episode_number"], len(set(ps)) > 50)
"""

def test_a_script_that_knows_nothing_of_us_plays_with_our_file(trainer, saved):
    trainer.save.write_bytes(saved)
    result = subprocess.run([sys.executable, "-c", PLAYER], cwd=trainer.folder, capture_output=True, text=True)
    assert result.stdout == "['W1', 'W2'] 2 True\n", result.stderr
