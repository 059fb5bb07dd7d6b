"""No night is lost, no file does harm, files go to and fro."""
import codecs
import ctypes
import json
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
from conftest import DUMMY, ROOT, SHORT, Trainer, alive, children, parts, read_until, same
import pg_pong

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a real save.p after two episodes."""
    trainer = Trainer(tmp_path_factory.mktemp("saved"))
    trainer(*SHORT)
    return trainer.save.read_bytes()

def pickles(*parts):
    return b"".join(pickle.dumps(part, 4) for part in parts)

def file_of(weights, rest):
    """The opposite of parts."""
    text = json.dumps({k: v for k, v in rest.items() if k != "rmsprop_cache"})
    return pickles(weights, [text, *(rest["rmsprop_cache"] or {}).values()])

@pytest.mark.parametrize("command, proof", [("storm.py --kills 4", "bit-identical to a calm run"),
                                            ("fuzz.py --files 100", "0 crashed, 0 misled or hung")])
def test_a_storm_of_kills_loses_nothing_and_fuzzed_files_harm_nothing(command, proof):
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
    while any(map(alive, started)):
        assert time.monotonic() < end
        time.sleep(0.05)
    if victim == "a worker":
        first, second = process.stderr.read().splitlines()
        assert first.endswith(f"save.p holds {len(trainer.load()[1]['scores'])} episodes; go on with --resume")
        assert second.startswith("pg_pong.py: A ") and "terminated abruptly" in second and process.returncode == 2

def test_a_worker_killed_in_the_middle_of_its_message_ends_the_run(trainer):
    code = ("import os, runpy, sys, multiprocessing.connection as c; send = c.Connection._send; "
            "c.Connection._send = lambda self, data: send(self, data) if len(data) < 10**5 else (send(self, data[:9]), "
            f"os.kill(os.getpid(), 9)); runpy.run_path({str(ROOT / 'pg_pong.py')!r}, run_name='__main__')")
    assert trainer(*SHORT, code=code, status=2).err.endswith("saved\npg_pong.py: A worker terminated abruptly\n")

OFTEN = "import pg_pong, sys; pg_pong.SAVE_EVERY = 2; sys.exit(pg_pong.main())"

@pytest.mark.parametrize("again", [True, False])
def test_a_full_disk_leaves_the_old_file_and_the_save_is_tried_again(trainer, saved, again):
    trainer.save.write_bytes(saved)
    process = trainer.start("--resume", "--episodes", 10, code=OFTEN)
    read_until(process, "Learning")
    while not children(process.pid):                       # there is the memory, whose size counts as a file's, too
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, -1))
    read_until(process, "episode 6 ")                      # the save of episode 4 has failed
    assert trainer.save.read_bytes() == saved
    if again:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (-1, -1))
    first, *more, closing = process.communicate(timeout=60)[1].splitlines()
    assert {first, *more} == {f"pg_pong.py: cannot save to {trainer.save}: File too large"}
    assert sorted(os.listdir(trainer.folder)) == ["save.p", "save.p.lock"]
    episodes = len(trainer.load()[1]["scores"])
    assert (episodes, process.returncode) == ((10, 0) if again else (2, 1))
    assert closing == f"pg_pong.py: {trainer.save} holds {episodes} episodes; go on with --resume"

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
        assert re.fullmatch(rf"pg_pong.py: \[Errno 13\] Permission denied: '{trainer.save}(.lock)?'\n", result.err)
    trainer.save.unlink()
    for make in os.mkdir, os.mkfifo:                       # what a device such as /dev/null is to root
        make(trainer.folder / make.__name__)
        assert trainer("--save", make.__name__, *SHORT, status=2).err == (
            f"pg_pong.py: {trainer.folder / make.__name__} is no regular file; use another --save\n")
    assert sorted(os.listdir(trainer.folder)) == ["mkdir", "mkfifo", "save.p.lock"]
    assert (trainer.folder / "mkfifo").is_fifo()

def test_two_trainers_on_one_file_a_lock_left_behind_and_a_link_that_stays_one(trainer):
    real = trainer.folder / "real.p"
    real.write_bytes(b"old")
    trainer.save.symlink_to(real)
    first = trainer.start()
    read_until(first, "Learning")
    for flags in [], ["--resume"], ["--save", "real.p"]:
        assert re.fullmatch("pg_pong.py: another process is training on .*real.p; use another "
                            "--save\n", trainer(*flags, *SHORT, status=2).err)
    first.kill()
    first.communicate()
    assert Path(f"{real}.lock").exists() and "episode 2 " in trainer(*SHORT).out
    assert trainer.save.is_symlink() and len(trainer.load("real.p")[1]["scores"]) == 2
    assert Path(f"{real}.1").read_bytes() == b"old" and len(os.listdir(trainer.folder)) == 4

def test_another_runs_file_is_kept_and_never_overwritten_and_our_own_is_replaced(trainer, saved):
    for name in "save.p", "save.p.1", "save.p.3":
        (trainer.folder / name).write_bytes(name.encode())
    (trainer.folder / "save.p.2").symlink_to("nowhere")
    assert trainer("--batch-size", 2, "--episodes", 6, code=OFTEN).err == (
        f"pg_pong.py: the old {trainer.save} is now {trainer.save}.4\n"   # in the first of three saves
        f"pg_pong.py: {trainer.save} holds 6 episodes; go on with --resume\n")
    assert sorted(os.listdir(trainer.folder)) == ["save.p", *(f"save.p.{end}" for end in (1, 2, 3, 4, "lock"))]
    assert (trainer.folder / "save.p.4").read_bytes() == b"save.p" and len(trainer.load()[1]["scores"]) == 6
    assert all((trainer.folder / f"save.p.{n}").read_bytes() == f"save.p.{n}".encode() for n in (1, 3))
    assert not (trainer.folder / "save.p.2").exists()                      # nor is a link followed

def test_what_was_saved_is_what_is_loaded(tmp_path, saved):
    (path := tmp_path / "save.p").write_bytes(saved)
    run = pg_pong.load(str(path))
    assert pg_pong.save(run, str(path), keep_old=False) and path.read_bytes() == saved
    assert not pg_pong.save(run, str(tmp_path / "nowhere" / "save.p"), keep_old=False)

@pytest.mark.parametrize("number, status", [(0, 2), (signal.SIGINT, 0)])
def test_a_run_whose_reader_has_gone_ends_saved(trainer, number, status):
    process = trainer.start("--batch-size", 2)
    read_until(process, "episode 4 ")
    process.send_signal(number)                            # Ctrl-C also ends the reader, 0 is none
    process.stdout.close()
    err = process.communicate(timeout=30)[1]
    assert process.returncode == status and len(trainer.load()[1]["scores"]) >= 4
    broken = r"pg_pong.py: \[Errno 32\] Broken pipe\n" if status else ""
    assert re.fullmatch(rf"pg_pong.py: .*save.p holds \d+ episodes; go on with --resume\n{broken}", err), err

def test_a_full_standard_output_ends_the_training_saved(trainer):
    """Full at once, or after two batches."""
    code = ("import os, pg_pong; learn, full = pg_pong.learn_from_batch, os.open('/dev/full', os.O_WRONLY); "
            "pg_pong.learn_from_batch = lambda run, w: (len(run.scores) == 4 and os.dup2(full, 1), learn(run, w))[1]; "
            "pg_pong.main()")
    process = trainer.start("--batch-size", 2, code=code)
    assert "[Errno 28]" in process.communicate(timeout=60)[1] and process.returncode == 1
    assert len(trainer.load()[1]["scores"]) == 6
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, ROOT / "pg_pong.py"], cwd=trainer.folder, stdout=full, timeout=60,
                                 stderr=subprocess.PIPE, text=True)
    assert "No space left on device" in process.stderr and process.returncode == 2

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
    yield "a dotted name", b"\x80\x04\x8c\x06shutil\x8c\x09os.system\x93" + pickle.dumps(shell, 3)[2:-1] + b"\x85R."
    yield "an array of objects", pickle.dumps({"W1": np.array([Calls(os.system, (shell,))], object)}, 4)
    yield "from here on they make nothing", b""
    for name in """numpy.load numpy.memmap numpy.testing._private.utils.runstring numpy.core._reconstruct numpy.matrix
            numpy.core.multiarray.scalar numpy._core.multiarrayx._reconstruct numpy._core.numpy._core.os.system
            copyreg._reconstructor builtins.getattr pickle.loads subprocess.Popen ctypes.CDLL types.FunctionType
            codecs.encode __main__.main pg_pong.fail pg_pong.Call ale_py.ALEState numpy.ndarray.tofile""".split():
        yield name, "c{}\n{}\n(S{!r}\ntR.".format(*name.rsplit(".", 1), code).encode()
    yield "a tuple so deep that to hash it crashes", b"\x80\x02}K\x00" + b"\x85" * 10**6 + b"K\x00s."
    for data in (b"\x82\x01.", b"Pnumber\n.", b"\x80\x02K\x01Q.", b"\x80\x02cnumpy\nndarray\n)\x81.", b"\x80\x05\x97.",
                 b"cnumpy\nndarray\n}S'__code__'\nNsb.", b"S'print'\n(tR.", b"\x80\x02]q\x00h\x00a.", b"\x80\x02h\x09.",
                 b"\x80\x05\x8e" + b"\xff" * 7 + b"\x1fx.", b"c\x1b[31m" + b"x" * 10**6 + b"\nf\n.", bytes(9), b"Hi"):
        yield repr(data[:30]), data

codecs.lookup("raw_unicode_escape")                        # or pickletools imports it, for protocol 0
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
    line = capsys.readouterr().err
    assert re.fullmatch(rf"pg_pong.py: {path} is damaged or no run: [ -~]{{5,210}}\n", line), (name, line)
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

def test_a_call_beside_the_arrays_of_the_first_pickle_is_not_made(tmp_path, saved):
    """Only its arrays are picked out: such a file opens, and does nothing else."""
    made, path = tmp_path / "made", tmp_path / "save.p"
    path.write_bytes(pickles(pickle.loads(saved) | {"extra": Calls(os.system, (f"touch {made}",))}))
    assert pg_pong.load(str(path)).scores == [] and not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()

def test_a_forged_dtype_crashes_nothing(trainer):
    """numpy's own functions would follow a pointer from the file."""
    forged = Calls(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))   # without the flag of objects
    def array(count):
        state = 1, (count,), forged, False, (16).to_bytes(8, "little") * count
        return Calls(np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state)
    trainer.save.write_bytes(pickle.dumps({"W1": array(10), "W2": array(200)}, 3))
    trainer("--resume", status=2)
    code = f"import pickle; print(pickle.load(open({str(trainer.save)!r}, 'rb')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode < 0        # or it is not forged
    trainer.save.write_bytes(pickle.dumps({"W1": array(200 * 6400), "W2": array(200)}, 3))         # as if of float64
    assert pg_pong.load(str(trainer.save)).model["W2"].shape == (200,)

def test_a_small_file_cannot_fill_the_memory(trainer):
    trainer.save.write_bytes(b"\x80\x04cnumpy\nndarray\n)Rq\x00" + b"h\x00b" * 40 + b".")   # "append it to itself"
    limit = 4 << 30, 4 << 30
    result = trainer("--resume", status=2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    assert "save.p is damaged" in result.err and "Memory" not in result.err

def test_contents_that_do_not_fit_are_refused(trainer, capsys, saved):
    ours, caches = pg_pong.SETTINGS, parts(saved)[1]["rmsprop_cache"]
    for part, key, value in [
            (0, "W1", np.zeros((200, 6399))), (0, "W1", np.zeros((201, 6400), np.float32)), (0, "W2", [1.0] * 200),
            (0, "W2", np.full(200, np.nan)), (0, "W1", np.full((200, 6400), np.inf)), (0, "extra", np.zeros(300)),
            *((0, "W2", np.zeros(200, kind)) for kind in ("V16", "S5", "U4", "c16", "i2", "O")),
            (1, "rmsprop_cache", None), (1, "rmsprop_cache", {}), (1, "rmsprop_cache", caches | {"W1": bytes(80)}),
            (1, "rmsprop_cache", caches | {"W2": np.full(200, np.inf, np.float32).tobytes()}), (1, "scores", None),
            (1, "scores", [22]), (1, "scores", ["x"]), (1, "scores", [[]]), (1, "steps", None), (1, "steps", "many"),
            (1, "seconds", []), (1, "settings", None), (1, "settings", {}),
            *((1, "settings", ours | change) for change in (
                {"gamma": 1.5}, {"batch_size": 10**6}, {"batch_size": 0}, {"learning_rate": np.inf},
                {"learning_rate": float("nan")}, {"decay_rate": 1.0}, {"seed": -1}, {"seed": 2**32}, {"seed": "x"}))]:
        (run := parts(saved))[part][key] = value
        refused(trainer.save, (key, value), file_of(*run), capsys)
    for rest in None, [], {}, "text":
        refused(trainer.save, rest, pickles(pickle.loads(saved), rest), capsys)

def test_a_file_cut_off_anywhere_or_with_another_in_its_place_is_refused(tmp_path, capsys, saved):
    first = len(pickles(pickle.loads(saved)))
    places = {*range(0, 200, 13), *range(first - 50, first + 120, 13), *range(len(saved) - 100, len(saved), 9)}
    for place in places | set(map(int, np.linspace(1, len(saved) - 1, 40))) - {first}:
        refused(tmp_path / "save.p", place, saved[:place], capsys)
    for data in (ROOT / "README.md").read_bytes(), saved[:first] * 2:
        refused(tmp_path / "save.p", data[:20], data, capsys)

# ---- from and to others

def test_files_of_the_linked_script_open_here_and_are_kept(trainer):
    rng = np.random.default_rng(0)
    model = {"W1": rng.standard_normal((200, 6400)) / 80, "W2": rng.standard_normal(200)}
    files = [pickle.dumps(model, n) for n in range(2, 6)]
    files += [data.replace(b"numpy._core.", b"numpy.core.") for data in files[:2]]         # as numpy 1 writes them
    for data in files:
        trainer.save.write_bytes(data)
        run = pg_pong.load(str(trainer.save))
        assert same(run.model, {k: w.astype(np.float32) for k, w in model.items()}), data[:100]
        assert run.settings == pg_pong.SETTINGS and run.scores == [] and not run.rmsprop_cache["W1"].any()
    trainer("--resume", *SHORT)
    assert len(trainer.load()[1]["scores"]) == 2 and (trainer.folder / "save.p.1").read_bytes() == files[-1]

PLAYER = """
import pickle, numpy, gymnasium, ale_py
f, env, before, ps = open("save.p", "rb"), gymnasium.make("ALE/Pong-v5", frameskip=(2, 5)), 0, []
model, (frame, _) = pickle.load(f), env.reset(seed=0)
while len(ps) < 100:
    picture = (~numpy.isin(frame[35:195:2, ::2, 0], [0, 144, 109])).astype(float).ravel()
    ps.append(1 / (1 + numpy.exp(-model["W2"] @ numpy.maximum(model["W1"] @ (picture - before), 0))))
    frame, before = env.step(2 if numpy.random.random() < ps[-1] else 3)[0], picture
print(sorted(model), len(set(ps)) > 50)
"""

def test_a_script_that_knows_nothing_of_us_plays_with_our_file(trainer, saved):
    trainer.save.write_bytes(saved)
    assert trainer(code=PLAYER).out == "['W1', 'W2'] True\n"
