"""Faults of the machine in sinks and logs: a full disk, a folder that may not be written, at any change.

The error names the path, what was committed is there, and the same call goes on when the cause is gone.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from ase import Atoms
from conftest import cluster
from kill_cases import (
    Run,
    event_contents,
    file_contents,
    frame,
    store_contents,
    table,
)
from killing import Injector, copy_of, injected, on_disk

from alchemi_jax import AtomicData, Batch, HostBatch
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.hooks import CallbackHook, CheckpointHook, LoggingHook, SnapshotHook
from alchemi_jax.dynamics.hooks.events import TensorBoardWriter
from alchemi_jax.dynamics.hooks.writers import CSVWriter
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, ZarrData
from alchemi_jax.io.replace import repair, replacing
from alchemi_jax.models import HarmonicModel


NUMBERS = (errno.ENOSPC, errno.EROFS, errno.EACCES)
COLUMNS = ["step", "system_id", "energy"]
KINDS = {
    "zarr": (lambda folder: ZarrData(folder / "a.zarr", chunk_bytes=64), frame, store_contents, 89),
    "replaced": (lambda folder: ZarrData(folder / "a.zarr", "w"), frame, store_contents, 61),
    "extxyz": (lambda folder: ExtXYZ(folder / "a"), frame, file_contents, 1),
    "traj": (lambda folder: AseTrajectory(folder / "a"), frame, file_contents, 1),
    "csv": (lambda folder: CSVWriter(folder / "a.csv", COLUMNS, "w"), table, file_contents, 1),
    "events": (lambda folder: TensorBoardWriter(folder), table, event_contents, 1),
}


class Failing(Injector):
    """From its n-th change on, every one fails."""

    def __init__(self, folder, at, number):
        super().__init__(folder, at, lambda: None)
        self.number = number

    def change(self, path=None):
        self.count += 1
        if self.count >= self.at:
            raise OSError(self.number, os.strerror(self.number), *filter(None, [path]))


def every_fault(folder, work, prepare, step=1):
    """The error of `work` when everything fails from each of its changes on."""
    at = 1
    while True:
        prepare()
        number = NUMBERS[at % len(NUMBERS)]
        with injected(Failing(folder, at, number)):
            try:
                work()
            except OSError as e:
                error = e
            else:
                return
        assert os.strerror(number) in str(error), (at, error)
        yield at, error
        at += step


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_names_the_path_and_the_same_call_goes_on(tmp_path, kind):
    if kind == "events":
        pytest.importorskip("tensorboardX")
    make, row, read, step = KINDS[kind]
    folder = tmp_path / "x"
    folder.mkdir()
    rows, held = [row(k) for k in range(4)], [make(folder)]
    run, seen = Run(folder, lambda: held[0], rows, 2), 0
    empty = copy_of(folder, "empty")
    held[0] = make(folder)
    Run(folder, lambda: held[0], rows[:2], 2)()
    early = (folder / "checkpoint").read_text()
    run()
    wanted = read(folder)
    # A run that begins, and one that goes back from four rows to two.
    (folder / "checkpoint").write_text(early)
    for start in (empty, copy_of(folder, "late")):

        def begin(start=start):
            start()
            held[0] = make(folder)

        for at, error in every_fault(folder, run, begin, step):
            assert str(folder) in str(error), (at, error)
            if seen % 2:
                # Another object goes on, or the same.
                held[0] = make(folder)
            run()
            assert read(folder) == wanted, at
            seen += 1
    assert seen > 6


def test_a_folder_is_replaced_when_there_is_room_again(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    path = folder / "a"

    def put():
        with replacing(path) as new:
            new.mkdir()
            (new / "file").write_bytes(b"new")

    put()
    (path / "file").write_bytes(b"old")
    found = []
    for _, error in every_fault(folder, put, copy_of(folder, "old")):
        # That of the block itself passes as it is.
        assert str(path) in str(error) or "cannot be written" not in str(error)
        repair(path)
        assert [p.name for p in folder.iterdir()] == ["a"]
        found.append((path / "file").read_bytes())
        put()
        assert (path / "file").read_bytes() == b"new"
    assert found == sorted(found, reverse=True)
    assert set(found) == {b"old", b"new"}


@contextlib.contextmanager
def tmpfs(folder):
    """A folder in a file system of 400 kB, and how to make room in it."""
    if not hasattr(os, "geteuid") or os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root mounts a file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (folder / "filler").write_bytes(bytes(250_000))
        yield (folder / "filler").unlink
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def largest_file(folder):
    """No file may have more than 100 kB, and how to lift that."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large_frame(number):
    positions = np.random.default_rng(number).normal(size=(300, 3)).round(6)
    return HostBatch.from_data_list([AtomicData.from_ase(Atoms("Ar300", positions))])


def large_table(step):
    return {name: np.tile(x, 200) for name, x in table(step).items()}


@pytest.mark.parametrize("limit", [tmpfs, largest_file])
@pytest.mark.parametrize("kind", ["zarr", "extxyz", "traj", "csv"])
def test_a_disk_that_is_really_full(tmp_path, kind, limit):
    """What was written before is there, and the same object goes on when there is room."""
    row = large_table if kind == "csv" else large_frame
    make, folder = KINDS[kind][0], tmp_path / "disk"
    if kind == "zarr":
        make = lambda folder: ZarrData(folder / "a.zarr", chunk_bytes=1 << 20)  # noqa: E731
    folder.mkdir()
    with limit(folder) as make_room:
        sink, written = make(folder), 0
        error = None
        while error is None:
            try:
                sink.write(row(written))
                written += 1
            except OSError as e:
                error = str(e)
        assert error.startswith(str(folder))
        assert re.search(r"cannot be written: .*(No space left on|File too large|is the disk full)", error)
        assert 0 < written < 100
        make_room()
        for number in range(written, written + 3):
            sink.write(row(number))
        if kind == "csv":
            steps = (folder / "a.csv").read_text().splitlines()[1:]
            assert [int(line.split(",")[0]) for line in steps[::400]] == list(range(written + 3))
            assert len(steps) == 400 * (written + 3)
            return
        host = make(folder).read()
        assert len(host) == written + 3
        for number, system in enumerate(host):
            np.testing.assert_allclose(system.positions, row(number).positions, atol=1e-9)


class Broken(Exception):
    """What a sink or hook of somebody raises."""


def breaks(patch, owner, name, calls):
    """From a call on, a method raises."""
    method, left = getattr(owner, name), [calls]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            if name == "close":
                method(*args, **kwargs)
            raise Broken("it is broken")
        return method(*args, **kwargs)

    patch.setattr(owner, name, call)


#: What fails in a run, and what its error names besides: hook and step.
RUN_FAULTS = {
    "disk full in a frame": (5, r"a\.extxyz cannot .* SnapshotHook at AFTER_STEP of step 2"),
    "disk full in a row": (9, r"a\.csv cannot .* LoggingHook writing rows up to step 8"),
    "a sink that raises in write": ((ExtXYZ, "write", 3), r"broken .* SnapshotHook at AFTER_STEP of step 6"),
    "a sink that raises in close": ((ExtXYZ, "close", 0), r"broken .* SnapshotHook when it was closed"),
    "a hook that raises": (
        (CallbackHook, "__call__", 7),
        r"broken .* CallbackHook.* at AFTER_STEP of step 7",
    ),
}


@pytest.mark.cheap_xla
def test_the_run_stops_with_hook_path_and_step_and_the_same_call_goes_on(tmp_path, monkeypatch):
    batch = Batch.from_ase([cluster(0, 3), cluster(1, 2)])
    out, saved = tmp_path / "out", tmp_path / "saved"
    out.mkdir()

    def run():
        hooks = [
            SnapshotHook(ExtXYZ(out / "a.extxyz"), frequency=2),
            LoggingHook(log_path=out / "a.csv", frequency=2),
            CallbackHook(lambda ctx: None),
            CheckpointHook(saved, frequency=4, every_seconds=None),
        ]
        return NVE(model=HarmonicModel(), dt=1.0, n_steps=12, hooks=hooks).run(batch, resume=saved)

    wanted = run(), on_disk(out)
    for what, (fault, named) in RUN_FAULTS.items():
        shutil.rmtree(saved)
        shutil.rmtree(out)
        out.mkdir()
        with contextlib.ExitStack() as stack:
            if isinstance(fault, int):
                stack.enter_context(injected(Failing(out, fault, errno.ENOSPC)))
            else:
                breaks(stack.enter_context(monkeypatch.context()), *fault)
            with pytest.raises((OSError, Broken)) as caught:
                run()
        said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        assert re.search(named, said), (what, said)
        again = run()
        assert on_disk(out) == wanted[1], what
        np.testing.assert_array_equal(again.positions, wanted[0].positions, err_msg=what)
