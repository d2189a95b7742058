"""`state` and `set_state`: what was written after the state is gone, and writing goes on from there.

The law: write a; s = state(); write b; set_state(s); write c == write a; write c.
"""

import json
import re

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

from alchemi_jax import AtomicData, HostBatch
from alchemi_jax.dynamics.hooks import ConvergedSnapshotHook, LivePlotHook, LoggingHook, ObservableHook
from alchemi_jax.dynamics.hooks.events import TensorBoardWriter
from alchemi_jax.dynamics.hooks.shown import Shown
from alchemi_jax.dynamics.hooks.writers import CSVWriter
from alchemi_jax.dynamics.sinks import (
    AseTrajectory,
    DeviceBuffer,
    ExtXYZ,
    HostMemory,
    Sink,
    SinkChain,
    ZarrData,
)
from alchemi_jax.systems.levels import level_fields


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla

SINKS = {
    "zarr": lambda folder, mode="a": ZarrData(folder / "a.zarr", mode, chunk_bytes=256),
    "shards": lambda folder, mode="a": ZarrData(folder / "a.zarr", mode, chunk_bytes=128, shard_bytes=512),
    "extxyz": lambda folder, mode="a": ExtXYZ(folder / "a.extxyz", mode),
    "traj": lambda folder, mode="a": AseTrajectory(folder / "a.traj", mode),
    "memory": lambda folder, mode="a": HostMemory(),
    "device": lambda folder, mode="a": DeviceBuffer(400, 3000),
    "chain": lambda folder, mode="a": SinkChain([HostMemory(5), ZarrData(folder / "a.zarr", mode)]),
}
FILES = ("zarr", "shards", "extxyz", "traj")


def frame(number, systems=3):
    """A batch that differs from every other one, with `info`, an extra and a constraint."""
    rng = np.random.default_rng(number)
    out = []
    for i in range(systems):
        n = 1 + (number + i) % 4
        atoms = Atoms("Ar" * n, positions=rng.normal(size=(n, 3)), info={"title": (f"{number}", i)})
        if number % 3 == 1:
            atoms.set_velocities(rng.normal(0, 0.01, (n, 3)))
        atoms.set_constraint(FixAtoms([0]))
        atoms.set_array("site", rng.integers(0, 5, n))
        out.append(AtomicData.from_ase(atoms))
    host = HostBatch.from_data_list(out)
    return host.replace(system_id=np.arange(systems, dtype=np.int32) + number)


def same(a: HostBatch, b: HostBatch):
    for name, _ in level_fields(a):
        x, y = getattr(a, name), getattr(b, name)
        pairs = [(x, y)] if not name.endswith("_extras") else [(x[k], y[k]) for k in {**x, **y}]
        for one, other in pairs:
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, err_msg=name)
    assert [(m.name, dict(m.info)) for m in a.meta] == [(m.name, dict(m.info)) for m in b.meta]


def stored(state):
    """The state after a way through JSON and arrays, as in a checkpoint."""
    arrays = []

    def out(value):
        if isinstance(value, np.ndarray):
            arrays.append(value.copy())
            return {"array": len(arrays) - 1}
        if isinstance(value, dict):
            assert all(type(k) is str for k in value)
            return {k: out(v) for k, v in value.items()}
        return [out(v) for v in value] if isinstance(value, list | tuple) else value

    def back(value):
        if isinstance(value, dict):
            return (
                arrays[value["array"]] if set(value) == {"array"} else {k: back(v) for k, v in value.items()}
            )
        return [back(v) for v in value] if isinstance(value, list) else value

    return back(json.loads(json.dumps(out(state))))


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        (kind, counts)
        for kind in SINKS
        for counts in [(3, 2, 2), (0, 2, 1), (1, 15, 1), (15, 1, 0), (2, 0, 2)]
        # A table in a .traj file grows at the 43rd structure; the others go no other way for more rows.
        if 15 not in counts or kind in ("zarr", "traj")
        if counts[0] != 2 or kind in FILES
    ],
)
def test_what_was_written_after_the_state_is_gone(tmp_path, kind, counts):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    numbers = iter(range(200))
    a, b, c = ([frame(next(numbers)) for _ in range(n)] for n in counts)
    sink, wanted = SINKS[kind](tmp_path / "one", "w"), SINKS[kind](tmp_path / "two")
    sink.open()
    for batch in a:
        sink.write(batch)
    state = stored(sink.state())
    for batch in b:
        sink.write(batch)
    sink.close()
    # A fresh object, as in another process; set twice, as by one that was killed.
    again = SINKS[kind](tmp_path / "one", "x")
    again.set_state(state)
    again.set_state(state)
    assert len(again) == sum(len(batch) for batch in a)
    wanted.open()
    for batch in a:
        wanted.write(batch)
    assert stored(wanted.state()) == pytest.approx(state) if kind in FILES else True
    again.open()
    for batch in c:
        again.write(batch)
        wanted.write(batch)
    again.close()
    wanted.close()
    assert len(again) == len(wanted)
    if a or c:
        same(again.read(), wanted.read())
    if kind in ("extxyz", "traj"):
        files = [next((tmp_path / name).iterdir()) for name in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    for name in ("one", "two"):
        assert not [p for p in (tmp_path / name).rglob("*") if p.suffix in (".new", ".begun")]


@pytest.mark.parametrize("kind", FILES)
def test_none_removes_what_the_killed_run_made(tmp_path, kind):
    sink = SINKS[kind](tmp_path)
    assert sink.state() is None
    sink.write(frame(0))
    # It is replaced when a run opens it, so nothing of it counts.
    assert SINKS[kind](tmp_path, "w").state() is None
    with pytest.raises(FileExistsError, match="exists"):
        SINKS[kind](tmp_path, "x").state()
    SINKS[kind](tmp_path, "x").set_state(None)
    assert not list(tmp_path.iterdir())
    SINKS[kind](tmp_path, "x").set_state(None)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_not_what_the_checkpoint_says_is_refused(tmp_path, kind):
    sink = SINKS[kind](tmp_path)
    for k in range(3):
        sink.write(frame(k))
    state = sink.state()
    (path,) = tmp_path.iterdir()
    said = r"the checkpoint says .*9 (systems|structures).*: put it back as the run left it, or begin again"
    sink.zero()
    sink.write(frame(0))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} has \d+ (systems|bytes), {said}"):
        SINKS[kind](tmp_path).set_state(state)
    assert len(SINKS[kind](tmp_path)) == 3
    # As long as the other, or longer, and another file.
    for k in range(20, 26):
        sink.write(frame(k))
    with pytest.raises(ValueError, match=r"is not the (file|store) of the checkpoint"):
        SINKS[kind](tmp_path).set_state(state)
    assert len(SINKS[kind](tmp_path)) == 21
    sink.set_state(None)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} does not exist, {said}"):
        SINKS[kind](tmp_path).set_state(state)
    with pytest.raises(ValueError, match="mode 'r'"):
        SINKS[kind](tmp_path, "r").set_state(state)


def test_a_file_of_somebody_else_is_not_removed(tmp_path):
    (tmp_path / "a.extxyz").write_text("1\nProperties=species:S:1:pos:R:3\nAr 0 0 0\n")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "notes.txt").write_text("mine")
    Atoms("Ar").write(tmp_path / "a.traj")
    for kind in ("zarr", "extxyz", "traj"):
        with pytest.raises(ValueError, match=r"zarr group|not all of it was written by alchemi_jax"):
            SINKS[kind](tmp_path).set_state(None)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a log with these columns"):
        CSVWriter(tmp_path / "a.csv", ["step"], "x").set_state(None)
    assert len(list(tmp_path.rglob("*.*"))) == 5


def test_a_sink_of_a_user_stays_where_it_is(tmp_path):
    class Mine(Sink):
        def __init__(self):
            self.batches = []

        def write(self, batch, mask=None):
            self.batches.append(batch)

        def read(self):
            return HostBatch.concatenate(self.batches)

        def __len__(self):
            return sum(map(len, self.batches))

    sink = Mine()
    sink.write(frame(0))
    state = stored(sink.state())
    sink.set_state(state)
    sink.write(frame(1))
    with pytest.raises(NotImplementedError, match=r"has 6 systems, the checkpoint says 3, and a Mine cannot"):
        sink.set_state(state)
    with pytest.raises(ValueError, match=r"has 0 systems, the checkpoint says 3"):
        Mine().set_state(state)
    with pytest.raises(ValueError, match=r"has 2 sinks, that of the checkpoint 1"):
        SinkChain([HostMemory(), Mine()]).set_state(SinkChain([HostMemory()]).state())


COLUMNS = ["step", "system_id", "energy"]


def table(k):
    """Two rows."""
    return {"step": np.array([k, k]), "system_id": np.array([0, 1]), "energy": np.array([0.1 * k, np.nan])}


@pytest.mark.parametrize("counts", [(3, 2, 2), (0, 2, 1), (2, 0, 1)])
def test_a_log_goes_back(tmp_path, counts):
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    log, wanted = CSVWriter(path, COLUMNS, "w"), CSVWriter(other, COLUMNS, "a")
    assert CSVWriter(path, COLUMNS, "a").state() is None
    numbers = iter(range(100))
    a, b, c = ([table(next(numbers)) for _ in range(n)] for n in counts)
    wanted.open()
    for log_to, tables in ((log, a), (wanted, a)):
        log_to.open()
        for rows in tables:
            log_to.write(rows)
    state = stored(log.state())
    assert state["rows"] == 2 * len(a)
    for rows in b:
        log.write(rows)
    log.close()
    with open(path, "ab") as file:
        file.write(b"7,0")
    again = CSVWriter(path, COLUMNS, "x")
    again.set_state(state)
    again.open()
    assert again.state() == state
    for rows in c:
        again.write(rows)
        wanted.write(rows)
    again.close()
    wanted.close()
    assert path.read_bytes() == other.read_bytes()
    if a:
        path.write_text(path.read_text().replace("0.1", "0.2"))
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not the file of the checkpoint"):
            again.set_state(state)
        path.write_text(",".join(COLUMNS) + "\n")
        with pytest.raises(ValueError, match=rf"has 22 bytes, .* says \d+ bytes with {2 * len(a)} r"):
            again.set_state(state)
    again.set_state(None)
    assert not path.exists()


def test_event_files_go_back(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    def points():
        found = []
        for path in sorted(tmp_path.iterdir()):
            data = path.read_bytes()
            while data:
                n = int.from_bytes(data[:8], "little")
                event = Event.FromString(data[12 : 12 + n])
                found += [event.step for _ in event.summary.value]
                data = data[16 + n :]
        return found

    (tmp_path / "events.out.tfevents.1.mine").touch()
    other = TensorBoardWriter(tmp_path)
    log = TensorBoardWriter(tmp_path)
    log.write(table(0))
    log.open()
    log.write(table(1))
    state = stored(log.state())
    log.write(table(2))
    log.close()
    log.write(table(3))
    # Another run writes into the same folder.
    other.write(table(9))
    assert sorted(points()) == [0, 0, 1, 1, 2, 2, 3, 3, 9, 9]
    again = TensorBoardWriter(tmp_path)
    again.set_state(state)
    assert sorted(points()) == [0, 0, 1, 1, 9, 9]
    again.write(table(2))
    assert sorted(points()) == [0, 0, 1, 1, 2, 2, 9, 9]
    again.set_state(None)
    assert points() == [9, 9]
    other.set_state(None)
    assert [p.name for p in tmp_path.iterdir()] == ["events.out.tfevents.1.mine"]
    with pytest.raises(ValueError, match="does not exist, the checkpoint says"):
        again.set_state(state)


def test_hooks_have_what_is_theirs(tmp_path):
    shown = Shown()
    shown.note([4, 2], [10, 11])
    snapshot = ConvergedSnapshotHook(HostMemory())
    snapshot.sink.write(frame(0))
    snapshot._shown = shown
    log = LoggingHook(log_path=tmp_path / "a.csv", frequency=2)
    log.writer.write({name: np.zeros(2) for name in log.columns})
    observed = ObservableHook({"energy": lambda ctx: ctx.batch.energy})
    for k in (2, 1):
        row = {"step": np.arange(k), "active": np.ones((k, 2), bool), "energy": np.ones((k, 2), np.float32)}
        observed.write(row | {"system_id": np.zeros((k, 2), int), "steps_taken": np.zeros((k, 2), int)})
    plot = LivePlotHook()
    plot._steps, plot._values = [0, 10], [np.array([1.0, np.nan]), np.array([2.0, 3.0])]
    for hook, fresh in (
        (snapshot, ConvergedSnapshotHook(HostMemory())),
        (log, LoggingHook(log_path=tmp_path / "a.csv", frequency=2)),
        (observed, ObservableHook({"energy": lambda ctx: ctx.batch.energy})),
        (plot, LivePlotHook()),
    ):
        state = stored(hook.state())
        fresh.set_state(state)
        np.testing.assert_equal(stored(fresh.state()), state)
        fresh.set_state(None)
        assert not getattr(fresh, "table", None)
        assert not getattr(fresh, "_values", None)
    assert not snapshot._shown.is_new([2, 4], [11, 10]).any()
    assert not (tmp_path / "a.csv").exists()


def test_a_writer_without_a_state_has_none():
    class Mine:
        def write(self, table):
            pass

    log = LoggingHook(backend=Mine())
    log.set_state(stored(log.state()))
