"""Ctrl-C and SIGTERM while the program starts, compiles and runs: exit code, one sentence, whole files.

Each process takes a few seconds; compiled code comes from the folder that all tests of a run share.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from cli_folders import same_folders
from conftest import cluster

from alchemi_jax.cli.main import main
from alchemi_jax.cli.signals import Signals
from alchemi_jax.dynamics.sinks import ZarrData


ROOT = str(Path(__file__).parent.parent)


@pytest.fixture
def begin():
    """Starts a command; what still runs when the test ends is killed."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A job in the background of a shell ignores Ctrl-C, and so would its children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    started = []

    def begin(*arguments, folder, options=()):
        started.append(_begin(*arguments, folder=folder, options=options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _begin(*arguments, folder, options):
    command = [sys.executable, *options, "-m", "alchemi_jax.cli.main", *arguments]
    pipe = subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": ROOT}
    # The program sees to it itself that XLA says nothing about code from the cache.
    env.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def end(process, number):
    """Send a signal; the exit code and the last line of stderr."""
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    lines = [line for line in error.strip().splitlines() if not line.startswith("import time:")]
    assert "Traceback" not in "".join(lines)
    # XLA's pages on features of the machine.
    assert "feature" not in "".join(lines)
    return process.returncode, lines[-1]


@pytest.fixture
def folder(tmp_path):
    ase.io.write(tmp_path / "x.extxyz", [Atoms("Ar"), cluster(0, 13)])
    return tmp_path


def test_while_modules_are_imported(folder, begin):
    """In the middle of the modules of JAX: Python says on stderr which it has imported."""
    process = begin("relax", "x.extxyz", folder=folder, options=("-X", "importtime"))
    while "jax._src" not in process.stderr.readline():
        assert process.poll() is None
    code, said = end(process, signal.SIGINT)
    assert (code, said) == (130, "alchemi-jax relax: interrupted: nothing had been computed.")
    assert [p.name for p in folder.iterdir()] == ["x.extxyz"]


def test_while_xla_compiles(folder, begin):
    process = begin("relax", "x.extxyz", "--no-cache", "--out", "o", folder=folder)
    assert process.stdout.readline().startswith("Relax to")
    time.sleep(1.0)
    begun = time.perf_counter()
    code, said = end(process, signal.SIGTERM)
    assert time.perf_counter() - begun < 3
    assert (code, said) == (143, "alchemi-jax relax: terminated: nothing is finished.")
    assert [p.name for p in folder.iterdir()] == ["x.extxyz"]


#: Without an end. The atom alone is finished at once.
ENDLESS = ["relax", "x.extxyz", "--fmax", "1e-30", "--steps", "100000000", "--log-every", "100", "--out", "o"]
SAID = "1 of 2 structures are finished, in o; the same command goes on with the others."


def test_while_it_runs(folder, begin, monkeypatch, capsys):
    """Saved in the middle of a structure, from where the same command goes on; then its time is up."""
    process = begin(*ENDLESS, folder=folder)
    until = time.perf_counter() + 90
    while not has_rows(folder / "o" / "log.csv") and time.perf_counter() < until:
        time.sleep(0.1)
    code, said = end(process, signal.SIGINT)
    assert (code, said) == (130, f"alchemi-jax relax: interrupted: {SAID}")
    assert len(ZarrData(folder / "o" / "relaxed.zarr")) == 1
    kept = ase.io.read(folder / "o" / "relaxed.extxyz", ":")
    assert [a.info["outcome"] for a in kept] == ["converged", "running"]
    assert sorted(p.name for p in (folder / "o").iterdir()) == [
        "checkpoints",
        "finished.zarr",
        "inputs.json",
        "log.csv",
        "relaxed.extxyz",
        "relaxed.zarr",
        "settings.json",
    ]
    # As soon as it has gone on, in this process, which has imported everything.
    monkeypatch.chdir(folder)
    log, should_stop = folder / "o" / "log.csv", Signals.should_stop
    before = log.read_text().count("\n")

    def soon(self):
        if log.read_text().count("\n") > before:
            self._save_at = 0.0
        return should_stop(self)

    monkeypatch.setattr(Signals, "should_stop", soon)
    assert main([*ENDLESS, "--max-seconds", "600"], Signals()) == 4
    captured = capsys.readouterr()
    assert "going on with what was saved" in captured.out
    assert captured.err.strip().splitlines()[-1] == f"alchemi-jax relax: the time is up: {SAID}"
    later = ase.io.read(folder / "o" / "relaxed.extxyz", ":")
    assert later[1].info["steps"] > kept[1].info["steps"]


@pytest.mark.long
def test_a_process_leaves_before_its_time_is_up(folder, begin):
    """Seconds are those since it was started; twenty are some more than it takes to begin."""
    begun = time.perf_counter()
    process = begin(*ENDLESS, "--max-seconds", "20", folder=folder)
    _, error = process.communicate(timeout=60)
    assert time.perf_counter() - begun < 20
    assert error.strip().splitlines()[-1] == f"alchemi-jax relax: the time is up: {SAID}"
    assert process.returncode == 4


def has_rows(path):
    return path.exists() and path.read_text().count("\n") > 3


def test_killed_at_changes_of_files_the_same_command_goes_on(folder, monkeypatch):
    """Six whole processes, each going on where the one before was killed; all changes: `benchmarks`."""
    arguments = ["md", "x.extxyz", "--temperature", "20", "--save-every", "5", "--steps", "200"]
    arguments += ["--checkpoint-every", "0.1", "--out"]
    monkeypatch.chdir(folder)
    code = main([*arguments, "whole"], Signals())
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    dies = [sys.executable, "-c", DIES, str(folder / "o"), "60,25,90,40,5,30"]
    killed = subprocess.run([*dies, *arguments, "o"], cwd=folder, env=env, check=False, capture_output=True)
    assert killed.returncode == 0, killed.stderr.decode()[-3000:]
    assert main([*arguments, "o"], Signals()) == code
    same_folders(folder / "whole", folder / "o")


#: Processes that die at their n-th change of a file, forked from one that did not touch the devices.
DIES = """
import sys
from pathlib import Path
from killing import run_killed
from alchemi_jax.cli.main import main
import alchemi_jax.cli.run, orbax.checkpoint
folder, numbers, words = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
for number in map(int, numbers):
    assert not run_killed(folder, number, lambda: main(words)), f"ended before its change {number}"
"""


def test_the_process_does_not_leave_while_files_are_written(monkeypatch):
    left, order = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda code: (order.append(code), left.set()))
    signals = Signals()
    signals.on_leave(lambda: order.append("first"))
    signals.on_leave(lambda: order.append("second"))
    signals.number = signal.SIGTERM
    with signals.files:
        threading.Thread(target=signals.leave, daemon=True).start()
        assert not left.wait(0.2)
        order.append("written")
    assert left.wait(5)
    assert order == ["written", "second", "first", 143]


def watched(monkeypatch):
    """Signals that a thread watches, a way to send them, and the exit codes of the process."""
    codes, left = [], threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), left.set()))
    signals = Signals()
    reading, writing = os.pipe()
    threading.Thread(target=signals._watch, args=(reading,), daemon=True).start()
    return signals, lambda number: os.write(writing, bytes([number])), left, codes


def test_a_second_ctrl_c_does_not_wait_for_results(monkeypatch):
    """The first one was noticed, and the run is being saved."""
    signals, send, left, codes = watched(monkeypatch)
    signals._is_asked = True
    send(signal.SIGINT)
    # As `timeout` sends it, to the process and to its group; and again, as some queue systems do.
    send(signal.SIGINT)
    until = time.monotonic() + 5
    while not signals.should_stop() and time.monotonic() < until:
        time.sleep(0.01)
    send(signal.SIGTERM)
    assert not left.wait(0.3)
    send(signal.SIGINT)
    assert left.wait(5)
    assert codes == [130]


def test_where_nobody_asks_the_process_leaves_at_once(monkeypatch):
    signals, send, left, codes = watched(monkeypatch)
    assert not signals.should_stop()
    with signals.asked():
        pass
    send(signal.SIGTERM)
    assert left.wait(2)
    assert codes == [143]


def test_a_handler_only_notes_the_signal():
    signals = Signals()
    assert not signals.should_stop()
    signals._note(signal.SIGINT, None)
    assert signals.should_stop()
    assert (signals.exit_code, signals.word) == (130, "interrupted")
