"""Sinks: what goes in comes out, and a store is whole after every write."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLength
from conftest import cluster, crystal, zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from alchemi_jax import Batch, HostBatch, Outcome
from alchemi_jax.dynamics import NVE, DynamicsStage
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, HostMemory, ZarrData
from alchemi_jax.io.sinks.columns import Column
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.models import HarmonicModel


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla


def rich():
    """Structures with everything that a Batch keeps."""
    out = []
    for i, atoms in enumerate(zoo().values()):
        n = len(atoms)
        rng = np.random.default_rng(i)
        atoms.set_velocities(rng.normal(0, 0.01, (n, 3)))
        atoms.set_masses(rng.uniform(1, 50, n))
        atoms.set_array("site", rng.integers(0, 5, n))
        atoms.set_array("field", rng.normal(size=(n, 3)))
        atoms.set_array("label", np.array([f"atom {k}" for k in range(n)]))
        atoms.info |= {"title": f"structure {i}", "weights": np.arange(3.0), "nested": {"a": [1, None]}}
        atoms.set_constraint([FixAtoms(indices=[0])] + ([FixBondLength(0, 1)] if n > 1 else []))
        out.append(atoms)
    return out


def check(a: Atoms, b: Atoms):
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.numbers, b.numbers)
    np.testing.assert_array_equal(a.cell.array, b.cell.array)
    np.testing.assert_array_equal(a.pbc, b.pbc)
    np.testing.assert_array_equal(a.get_masses(), b.get_masses())
    np.testing.assert_allclose(a.get_velocities(), b.get_velocities(), rtol=1e-12, atol=1e-300)
    for key in ("site", "field", "label"):
        np.testing.assert_array_equal(a.arrays[key], b.arrays[key])
    assert a.info["title"] == b.info["title"]
    assert a.info["nested"] == b.info["nested"]
    np.testing.assert_array_equal(a.info["weights"], b.info["weights"])
    assert [type(c) for c in a.constraints] == [type(c) for c in b.constraints]
    np.testing.assert_array_equal(a.constraints[0].index, b.constraints[0].index)


@pytest.mark.parametrize("make", [lambda p: ZarrData(p / "x.zarr"), lambda p: HostMemory()])
def test_what_goes_in_comes_out(tmp_path, make):
    structures = rich()
    sink = make(tmp_path)
    assert len(sink) == 0
    assert sink.to_ase() == []
    first, second = Batch.from_ase(structures[:3]), Batch.from_ase(structures[3:])
    sink.write(first)
    assert len(sink) == 3
    sink.write(second, np.zeros(5, bool))
    sink.write(second, np.arange(5) >= 1)
    assert len(sink) == 7
    for a, b in zip(sink.to_ase(), [*structures[:3], *structures[4:]], strict=True):
        check(a, b)
    batch = sink.read()
    assert batch.num_systems == 7
    assert batch.dtype == np.float64


def test_a_batch_without_systems_adds_nothing(tmp_path):
    host = Batch.from_ase(cluster(0, 4)).to_host()
    none = host.take(np.zeros(0, int))
    sinks = [ZarrData(tmp_path / "a.zarr"), ExtXYZ(tmp_path / "a.extxyz")]
    for sink in [*sinks, AseTrajectory(tmp_path / "a.traj"), HostMemory()]:
        sink.open()
        for batch in (none, host, none):
            sink.write(batch)
        sink.close()
        assert len(sink) == len(sink.read()) == 1


def test_results_and_bookkeeping_survive(tmp_path):
    batch = Batch.from_ase([cluster(0, 5), crystal(0, 1)])
    rng = np.random.default_rng(0)
    batch = batch.replace(
        energy=rng.normal(size=2),
        forces=rng.normal(size=batch.forces.shape),
        stress=rng.normal(size=(2, 3, 3)),
        status=np.array([1, 0], np.int32),
        converged=np.array([True, False]),
        steps_taken=np.array([7, 9], np.int32),
        outcome=np.array([1, 3], np.int32),
        reason=np.array([0, 16], np.int32),
        time=np.array([0.0, 4.5]),
    ).with_reasons({1: "Guard: too far"})
    sink = ZarrData(tmp_path / "x.zarr")
    sink.write(batch)
    again = ZarrData(tmp_path / "x.zarr", mode="r").read()
    assert isinstance(again, HostBatch)
    for key in batch.keys():  # noqa: SIM118
        np.testing.assert_array_equal(again[key], batch.take()[key])
    assert [system.outcome_text for system in again] == ["converged", "stopped: Guard: too far"]


def test_a_store_without_outcomes_is_read_and_goes_on(tmp_path):
    """As versions before wrote it: outcomes follow from the flags, the time is not known."""
    path, batch = tmp_path / "x.zarr", Batch.from_ase([cluster(0, 5), cluster(1, 3), cluster(2, 4)])
    batch = batch.replace(converged=np.array([True, False, False]), failed=np.array([False, True, False]))
    ZarrData(path).write(batch)
    group = json.loads((path / "zarr.json").read_text())
    for name in ("outcome", "reason", "time"):
        shutil.rmtree(path / name)
        del group["attributes"]["columns"][name]
    (path / "zarr.json").write_text(json.dumps(group))
    old, wanted = ZarrData(path, mode="r").read(), [Outcome.CONVERGED, Outcome.FAILED, Outcome.RUNNING]
    assert old.outcome.tolist() == wanted
    assert old.reason.tolist() == [0, 0, 0]
    assert np.isnan(old.time).all()
    assert Trajectory(path)["outcome"][1:].tolist() == wanted[1:]
    assert Trajectory(path).system(1).outcome.tolist() == [Outcome.FAILED]
    ZarrData(path).write(batch.replace(outcome=np.array([2, 2, 2], np.int32), time=np.ones(3)))
    both = ZarrData(path, mode="r").read()
    assert both.outcome.tolist() == [*wanted, 2, 2, 2]
    np.testing.assert_array_equal(both.time, [np.nan] * 3 + [1.0] * 3)
    np.testing.assert_array_equal(both.positions[:12], old.positions)
    assert zarr.open_group(path, mode="r")["outcome"][:].tolist() == both.outcome.tolist()


def test_the_layout_is_plain_zarr(tmp_path):
    """Anyone's zarr can read it: flat arrays, and where each system begins."""
    structures = [cluster(0, 5), crystal(0, 1), cluster(1, 3)]
    sink = ZarrData(tmp_path / "x.zarr")
    sink.write(Batch.from_ase(structures[:1]))
    sink.write(Batch.from_ase(structures[1:]))
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert group.attrs["systems"] == 3
    assert group["atoms_per_system"][:].tolist() == [5, 4, 3]
    np.testing.assert_array_equal(group["positions"][9:12], structures[2].positions)


@pytest.mark.parametrize("shard", [None, 40, 200], ids=lambda n: f"shards of {n}")
@pytest.mark.parametrize("codec", ["lz4", "zstd", None])
@given(
    pieces=st.lists(
        st.lists(st.sampled_from([0.0, 1.5, np.nan, np.inf]), min_size=1, max_size=9), max_size=6
    ),
    constant=st.booleans(),
    commits=st.lists(st.sampled_from(["no", "commit", "reopen"]), min_size=6, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_a_column_is_what_was_appended(codec, shard, pieces, constant, commits):
    """Of one value or of many, committed or reopened at any time: zarr reads what went in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "column"
        rows = [np.array([p[0]] * len(p) if constant else p, np.float32) for p in pieces] or [
            np.ones(1, "f4")
        ]
        column = Column.like(path, rows[0], 16, codec, shard)
        for piece, then in zip(rows, commits, strict=False):
            column.append(piece)
            if then != "no":
                column.commit()
            if then == "reopen":
                column = Column.existing(path, column.length)
        column.commit()
        whole = np.concatenate(rows)
        np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], whole)
        if len(set(map(str, whole))) == 1:
            assert [f.name for f in path.iterdir()] == ["zarr.json"]


def test_shards_are_few_files_of_many_chunks(tmp_path):
    """What zarr says of them; a piece of a shard is read without the rest of it."""
    batch = Batch.from_ase([crystal(i, 2) for i in range(8)])
    for shard in (None, 1 << 16):
        sink = ZarrData(tmp_path / f"{shard}.zarr", chunk_bytes=1 << 11, shard_bytes=shard)
        for _ in range(20):
            sink.write(batch)
        assert sink.read().num_systems == 160
    plain, sharded = (zarr.open_group(tmp_path / f"{s}.zarr", mode="r")["positions"] for s in (None, 1 << 16))
    np.testing.assert_array_equal(plain[:], sharded[:])
    assert sharded.shards == (85 * 32, 3)
    assert plain.chunks == sharded.chunks == (85, 3)
    files = [len(list((tmp_path / f"{s}.zarr" / "positions").iterdir())) for s in (None, 1 << 16)]
    assert files == [1 + 61, 1 + 2]
    np.testing.assert_array_equal(Trajectory(tmp_path / "65536.zarr").system(3).positions[7], sharded[96:128])
    with pytest.raises(ValueError, match="shard_bytes of ZarrData must be a positive int, not 0"):
        ZarrData("x.zarr", shard_bytes=0)


def test_an_unknown_compression_is_refused():
    with pytest.raises(
        ValueError, match=r"compression of ZarrData must be 'lz4', 'zstd' or None, not 'gzip'"
    ):
        ZarrData("x.zarr", compression="gzip")


def test_a_write_that_broke_off_does_not_count(tmp_path):
    """Arrays that are longer than the counts say are cut, and the next write goes on from there."""
    path = tmp_path / "x.zarr"
    sink = ZarrData(path)
    sink.write(Batch.from_ase(cluster(0, 5)))
    group = zarr.open_group(path, mode="r+")
    for name in ("positions", "forces", "energy", "meta"):
        array = group[name]
        array.resize((array.shape[0] + 3, *array.shape[1:]))
    again = ZarrData(path)
    assert len(again) == 1
    np.testing.assert_array_equal(again.to_ase()[0].positions, cluster(0, 5).positions)
    again.write(Batch.from_ase(cluster(1, 4)))
    assert [len(a) for a in ZarrData(path).to_ase()] == [5, 4]
    np.testing.assert_array_equal(ZarrData(path).to_ase()[1].positions, cluster(1, 4).positions)


def test_modes_and_refusals(tmp_path):
    path = tmp_path / "x.zarr"
    batch = Batch.from_ase(cluster(0, 3))
    with pytest.raises(ValueError, match=r"x\.zarr does not exist"):
        ZarrData(path, mode="r").read()
    ZarrData(path).write(batch)
    ZarrData(path, mode="a").write(batch)
    assert len(ZarrData(path)) == 2
    with pytest.raises(FileExistsError, match=r"x\.zarr exists"):
        ZarrData(path, mode="x").write(batch)
    with pytest.raises(ValueError, match="opened to read"):
        ZarrData(path, mode="r").write(batch)
    anew = ZarrData(path, mode="w")
    anew.write(batch)
    anew.close()
    anew.write(batch)
    assert len(ZarrData(path)) == 2
    with pytest.raises(ValueError, match="holds float64 systems, the new ones are float32"):
        ZarrData(path).write(Batch.from_ase(cluster(0, 3), dtype=np.float32))
    odd = cluster(0, 3)
    odd.set_array("site", np.arange(3))
    with pytest.raises(ValueError, match=r"other extras than the new ones.*: atom extra 'site'"):
        ZarrData(path).write(Batch.from_ase(odd))
    assert len(ZarrData(path)) == 2
    (tmp_path / "text").write_text("not a store")
    for mode in ("a", "w"):
        with pytest.raises(ValueError, match="text is not a zarr group"):
            ZarrData(tmp_path / "text", mode=mode).open()
    assert (tmp_path / "text").read_text() == "not a store"
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(ValueError, match="not one that ZarrData wrote"):
        ZarrData(tmp_path / "other.zarr", mode="w").open()
    with pytest.raises(OSError, match="cannot be written"):
        ZarrData(tmp_path / "text" / "below.zarr").open()
    with pytest.raises(ValueError, match="HostMemory is empty"):
        HostMemory().read()
    with pytest.raises(ValueError, match="mode of ZarrData"):
        ZarrData(path, mode="z")


# -- growing arrays --------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [None, 150], ids=lambda n: f"shards of {n}")
@pytest.mark.parametrize("codec", ["lz4", None])
def test_columns_are_arrays_that_zarr_reads(tmp_path, codec, shard):
    """Random appends, commits and reopenings: always the rows so far, to any reader of zarr."""
    rng = np.random.default_rng(0)
    zarr.open_group(tmp_path, mode="w")
    for dtype, row in (("float32", (3,)), ("bool", ()), ("int64", ()), ("uint8", ()), ("float64", (2, 2))):
        folder = tmp_path / dtype
        whole = rng.integers(0, 2, (60, *row)).astype(dtype)
        column = Column.like(folder, whole, 7 * whole[:1].nbytes, codec, shard)
        n = 0
        while n < len(whole):
            k = int(rng.integers(0, 19))
            column.append(whole[n : n + k])
            n = min(n + k, len(whole))
            if rng.random() < 0.6:
                column.commit()
                array = zarr.open_group(tmp_path, mode="r")[dtype]
                assert array.dtype == dtype
                np.testing.assert_array_equal(array[:], whole[:n])
                if rng.random() < 0.5:
                    # Rows beyond what counts are written over.
                    cut = int(rng.integers(0, n + 1))
                    column, n = Column.existing(folder, cut), cut
        column.commit()
        np.testing.assert_array_equal(zarr.open_group(tmp_path, mode="r")[dtype][:], whole)


def test_an_open_sink_commits_after_a_while_and_at_the_end(tmp_path):
    batch = Batch.from_ase([cluster(0, 5), cluster(1, 3)])
    sink = ZarrData(tmp_path / "x.zarr")
    sink.commit_seconds = 0.05
    sink.open()
    sink.write(batch)
    assert len(sink) == 2
    begun = time.monotonic()
    while len(ZarrData(tmp_path / "x.zarr")) < 2:
        assert time.monotonic() - begun < 20
        time.sleep(0.01)
    sink.commit_seconds = 1000.0
    sink.write(batch)
    assert (len(sink), len(ZarrData(tmp_path / "x.zarr"))) == (4, 2)
    assert sink.read().num_systems == 4, "reading commits"
    sink.write(batch)
    sink.close()
    assert len(ZarrData(tmp_path / "x.zarr")) == 6
    structures = ZarrData(tmp_path / "x.zarr").to_ase()
    np.testing.assert_array_equal(structures[5].positions, cluster(1, 3).positions)


@pytest.mark.parametrize("later", [False, True], ids=["at the end", "in the background"])
def test_a_full_disk_stops_the_run_and_keeps_what_was_committed(tmp_path, monkeypatch, later):
    """The error names the path and, in a run, the hook; what was committed before stays readable."""
    batch = Batch.from_ase([cluster(0, 3)])
    path = tmp_path / "x.zarr"
    ZarrData(path).write(batch)
    sink = ZarrData(path)
    sink.commit_seconds = 0.01 if later else 1000.0

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Column, "commit", full)

    class Waits:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __call__(self, ctx, stage):
            time.sleep(0.05)

    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=6, hooks=[SnapshotHook(sink), *[Waits()] * later])
    with pytest.raises(OSError, match=r"x\.zarr cannot be written: No space left on device") as e:
        engine.run(batch)
    assert any("raised in hook SnapshotHook" in note for note in e.value.__notes__)
    monkeypatch.undo()
    assert len(ZarrData(path)) == 1
    np.testing.assert_array_equal(ZarrData(path).to_ase()[0].positions, cluster(0, 3).positions)
    ZarrData(path).write(batch)
    assert len(ZarrData(path)) == 2


def test_any_file_operation_may_fail(tmp_path, monkeypatch):
    """A disk that is full at the k-th operation, whichever that is, half of it done: the error names the
    path, what was committed is there bit for bit, and once there is room again writing goes on."""
    left = [0]

    def failing(function):
        def call(first, *args):
            left[0] -= 1
            if left[0] >= 0:
                return function(first, *args)
            if function is write_bytes:
                function(first, args[0][: len(args[0]) // 2])
            if function is pwrite and not os.fstat(first).st_size:
                return function(first, args[0][: len(args[0]) // 2], 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return call

    write_bytes, pwrite, replace = Path.write_bytes, os.pwrite, os.replace
    batches, met = [Batch.from_ase([cluster(n, 1 + n % 5)]) for n in range(9)], set()

    def write_on(sink, done):
        while True:
            sink.write(batches[len(done) % 9])
            done.append(sink)

    for k in range(0, 320, 7):
        path, done = tmp_path / f"{k}.zarr", []
        left[0] = k
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", failing(write_bytes))
            patch.setattr(os, "pwrite", failing(pwrite))
            patch.setattr(os, "replace", failing(replace))
            sink = ZarrData(path, chunk_bytes=200)
            with pytest.raises(OSError, match=rf"{k}\.zarr cannot be written: No space left on device"):
                write_on(sink, done)
        met.add(len(done))
        assert len(ZarrData(path)) == len(done)
        sink.write(batches[len(done) % 9])
        for n, atoms in enumerate(Trajectory(path).to_ase()):
            np.testing.assert_array_equal(atoms.positions, cluster(n % 9, 1 + n % 9 % 5).positions)
        assert Trajectory(path).n_frames == len(done) + 1
    assert len(met) > 3


def test_a_folder_that_may_not_be_written_fails_before_the_first_step(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    steps = []
    for sink in (ZarrData(tmp_path / "x"), ExtXYZ(tmp_path / "x"), AseTrajectory(tmp_path / "x")):

        class Counts:
            stage, frequency = DynamicsStage.BEFORE_STEP, 1

            def __call__(self, ctx, stage):
                steps.append(ctx.step_count)

        engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=6, hooks=[Counts(), SnapshotHook(sink)])
        with pytest.raises(PermissionError, match="x cannot be written: Permission denied") as e:
            engine.run(Batch.from_ase(cluster(0, 3)))
        assert any("raised in hook SnapshotHook" in note for note in e.value.__notes__)
    assert not steps


@pytest.mark.parametrize("what", [RuntimeError("the writer is broken"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("later", [False, True], ids=["in the write", "in the background"])
def test_a_sink_that_raises_stops_the_run_with_its_name_and_the_step(tmp_path, monkeypatch, what, later):
    """Whatever the error is, and whichever thread meets it: earlier frames are there, and no others."""
    path, batch = tmp_path / "x.zarr", Batch.from_ase([cluster(0, 3)])
    ZarrData(path).write(batch)
    append, calls = Column.append, []

    def broken(self, rows):
        calls.append(self)
        if len(calls) > 40:
            raise what
        append(self, rows)

    monkeypatch.setattr(Column, "append", broken)
    monkeypatch.setattr("alchemi_jax.io.sinks.zarr._WAITING_BYTES", 1 << 40 if later else 0)
    sink = ZarrData(path)
    sink.commit_seconds = 0.01 if later else 1000.0

    class Waits:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __call__(self, ctx, stage):
            time.sleep(0.05 * later)

    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=99, hooks=[SnapshotHook(sink), Waits()])
    with pytest.raises(type(what), match=str(what.args[-1])) as e:
        engine.run(batch)
    assert any(re.match(r"raised in hook SnapshotHook.* step \d+", note) for note in e.value.__notes__)
    monkeypatch.undo()
    found = Trajectory(path)
    assert 1 <= found.n_frames < 99
    assert found["steps_taken"][1:].tolist() == list(range(1, found.n_frames))
    ZarrData(path).write(batch)
    assert Trajectory(path).n_frames == found.n_frames + 1


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("held_open", [False, True], ids=["each write", "in the background"])
def test_a_killed_process_leaves_a_whole_store(tmp_path, times, held_open):
    """Whenever it is killed, what it had committed is there, whole and in order, and writing goes on."""
    text = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import cluster
from alchemi_jax import Batch
from alchemi_jax.dynamics.sinks import ZarrData
sink = ZarrData(sys.argv[1], chunk_bytes=200, shard_bytes={600 if held_open else None})
sink.commit_seconds = 0.003
if {held_open}:
    sink.open()
batches = [Batch.from_ase([cluster(n, 1 + n % 5)]) for n in range(10)]
n = 0
while True:
    sink.write(batches[n % 10])
    n += 1
    # What others see is committed.
    print(len(ZarrData(sys.argv[1])), flush=True)
"""
    rng = np.random.default_rng(times)
    for k in range(times):
        path = tmp_path / f"{k}.zarr"
        process = subprocess.Popen([sys.executable, "-c", text, str(path)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        committed = [int(n) for n in process.stdout.read().split() if n.isdigit()]
        process.wait()
        process.stdout.close()
        structures = ZarrData(path).to_ase()
        # The last line may be cut.
        assert len(structures) >= max(committed[:-1], default=0)
        for n, atoms in enumerate(structures):
            np.testing.assert_array_equal(atoms.positions, cluster(n % 10, 1 + n % 10 % 5).positions)
        assert Trajectory(path).n_frames == len(structures)
        ZarrData(path).write(Batch.from_ase(cluster(0, 2)))
        assert len(ZarrData(path).to_ase()) == len(structures) + 1
        assert Trajectory(path).frame_of_row.tolist() == list(range(len(structures) + 1))
