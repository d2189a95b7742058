"""Runs that go on when something about them was changed: hooks, systems, files; what is told and kept."""

import builtins
import os
import re
import shutil
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, FusedStage, Rescue, Sampler
from alchemi_jax.dynamics.checkpoints import Checkpoints
from alchemi_jax.dynamics.driver import Interrupted
from alchemi_jax.dynamics.hooks import (
    CheckpointHook,
    EnergyDriftMonitorHook,
    GuardHook,
    LoggingHook,
    ObservableHook,
    SnapshotHook,
)
from alchemi_jax.dynamics.origin import Origin, difference
from alchemi_jax.dynamics.out_of_steps import OutOfSteps
from alchemi_jax.dynamics.outside import check_traced, collect, match, put_back, traced_hooks
from alchemi_jax.dynamics.sameness import SourceMarks, marks_of
from alchemi_jax.dynamics.saved import FORMAT, AnotherRun, join_tree, split_tree
from alchemi_jax.dynamics.saver import Saver
from alchemi_jax.dynamics.sinks import HostMemory, ZarrData
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.io.sinks import ExtXYZ, SinkChain
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.observables import fmax, temperature


WELL = HarmonicModel(k=0.5)


def molecule(i):
    atoms = Atoms("Ar2", np.random.default_rng(i).normal(0, 1, (2, 3)))
    atoms.set_velocities(np.random.default_rng(i).normal(0, 0.01, (2, 3)))
    return atoms


def engine(*hooks, **given):
    return NVE(WELL, dt=1.0, hooks=hooks, **given)


def table(name, frequency=1, rows=0, of=fmax):
    hook = ObservableHook({name: of}, frequency=frequency)
    if rows:
        columns = {name: np.zeros((rows, 1)), "active": np.ones((rows, 1), bool)}
        hook.write(columns | {c: np.zeros((rows, 1), int) for c in ("step", "system_id", "steps_taken")})
    return hook


def rows_of(hook):
    return len(hook.table["active"]) if hook.table else 0


HOOKS = {
    "the same": ([table("a", rows=1), table("b", rows=2)], [table("a"), table("b")], [1, 2]),
    "others first": ([table("a", rows=1), table("b", rows=2)], [table("b"), table("a")], [2, 1]),
    "the first gone": ([table("a", rows=1), table("b", rows=2)], [table("b")], [2]),
    "one more": ([table("b", rows=2)], [table("a"), table("b")], [0, 2]),
    "by frequency": ([table("a", 2, rows=1), table("a", 3, rows=2)], [table("a", 3)], [2]),
    "another frequency": ([table("a", 2, rows=1)], [table("a", 3)], [1]),
    "all gone": ([table("a", rows=1)], [table("b")], [0]),
    "which is not known": ([table("a", rows=1), table("a", rows=2, of=temperature)], [table("a")], None),
    "nor by frequency": ([table("a", 2, rows=1), table("a", 3, rows=2)], [table("a", 4)], None),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_go_on_with_what_is_theirs(name):
    """Whichever come, go or change places."""
    before, now, rows = HOOKS[name]
    stored, arrays = split_tree(collect(engine(*before), None), "")
    entries = join_tree(stored, arrays)
    if rows is None:
        with pytest.raises(AnotherRun, match=r"here has 2 of ObservableHook of a, this engine 1, and which"):
            put_back(engine(*now), None, entries, "here")
        return
    put_back(engine(*now), None, entries, "here")
    assert [rows_of(hook) for hook in now] == rows


def test_logs_and_frames_are_known_by_their_files(tmp_path):
    """Also in another folder. What writes to something else begins anew; the sink of a stream has to stay."""

    def hooks(folder, *names):
        return [
            LoggingHook(log_path=folder / name)
            if name.endswith("csv")
            else SnapshotHook(ZarrData(folder / name) if name.endswith("zarr") else HostMemory())
            for name in names
        ]

    def found(old, new):
        entries = [
            collect(engine(*hooks(tmp_path / f, *names)), None) for f, names in (("x", old), ("y", new))
        ]
        return match("here", *entries)

    assert found(["a.csv", "b.csv"], ["c.csv", "b.csv", "a.csv"]) == [(1, 1), (0, 2)]
    assert len(found(["a.csv", "memory"], ["b.zarr", "b.csv"])) == 1
    assert found(["memory"], ["b.zarr"]) == []
    assert found(["a.zarr", "b.zarr"], ["b.zarr"]) == [(1, 0)]
    store = ZarrData(tmp_path / "f.zarr")
    for before, now in ((HostMemory(), store), (SinkChain([HostMemory(), store]), SinkChain([store]))):
        with pytest.raises(AnotherRun, match=r"here is of a run with another sink: it was \w+.* and is \w+"):
            put_back(engine(), now, collect(engine(), before), "here")


def test_traced_hooks_are_a_part_of_the_run():
    """They have memories and numbers for their reasons, so they must be the same."""
    hot, far = (GuardHook(lambda batch: batch.energy > 1, text) for text in ("it is hot", "it is far"))
    stored = traced_hooks(engine(hot, far))
    check_traced("here", stored, engine(ObservableHook({"a": fmax}), hot, far))
    with pytest.raises(
        AnotherRun, match=r"number 1 was GuardHook \(it is hot\) and is GuardHook \(it is far\)"
    ):
        check_traced("here", stored, engine(far, hot))
    with pytest.raises(AnotherRun, match=r"number 3 was none and is EnergyDriftMonitorHook .*They act"):
        check_traced("here", stored, engine(hot, far, EnergyDriftMonitorHook()))


def test_the_rescue_of_a_pipeline_is_compared():
    """It is of all its parts that have none of their own."""
    found = [
        Origin(FusedStage([engine(), engine(rescue=Rescue(tries=9))], rescue=rescue)).describe()
        for rescue in (Rescue(tries=3), Rescue(tries=5), None)
    ]
    assert difference(found[0], found[1])[1] == "stage 0, NVE.rescue.tries was 3 and is 5"
    assert "stage 0, NVE.rescue was " in difference(found[1], found[2])[1]


def test_systems_of_a_source_are_known_again():
    """Another place of an atom, too few, and none at all."""
    hosts = [Batch.from_ase([molecule(i) for i in of]).to_host() for of in ([0, 1, 2], [0, 3, 2], [0, 1])]
    begun = SourceMarks()
    begun.look(hosts[0])
    begun.end()
    saved = begun.of(np.array([0, 1, 2]))
    assert len(set(saved["marks"].tolist())) == 3
    same = SourceMarks(saved)
    same.look(hosts[0])
    same.end()
    with pytest.raises(
        AnotherRun, match=r"system 1 \(Ar2\) is not the system that .* number 1 of the source"
    ):
        SourceMarks(saved).look(hosts[1])
    short = SourceMarks(saved)
    short.look(hosts[2])
    with pytest.raises(AnotherRun, match=r"no system number 2, .*A generator can be read once"):
        short.end()


def test_extras_are_a_part_of_a_system():
    """A model or a hook may read them."""
    atoms = [molecule(0) for _ in range(2)]
    for one, head in zip(atoms, (0.0, 1.0), strict=True):
        one.set_array("heads", np.full(2, head))
        one.info["text"] = str(head)
    marks = marks_of(Batch.from_ase(atoms).to_host())
    assert marks[0] != marks[1]


def test_another_prepare_is_told():
    """Also of systems that have entered. What it makes is computed, so that last digits may differ."""

    def warm(factor):
        return lambda batch: batch.replace(velocities=batch.velocities * factor)

    def read(prepare, saved=None):
        marks = SourceMarks(saved)
        sampler = Sampler([molecule(i) for i in range(3)], prepare=prepare)
        assert not list(sampler.chunks([0, 1, 2], marks.look, marks.look_prepared))
        marks.end()
        return marks.of(np.arange(3))

    saved = read(warm(2.0))
    again = read(warm(2.0 + 1e-9), saved)
    assert saved["prepared"]["sums"].shape == (3, 10, 2)
    np.testing.assert_array_equal(saved["prepared"]["sums"], again["prepared"]["sums"])
    for other in (None, warm(2.1), warm(-2.0)):
        with pytest.warns(
            RuntimeWarning, match=r"^system 0 \(Ar2\) enters with other positions.*prepare"
        ) as told:
            read(other, saved)
        assert len(told) == 1


def test_arrays_that_orbax_does_not_have():
    """Text, times, and numbers of other machines."""
    given = {
        "text": np.array(["a", "bc"]),
        "time": np.array(["2026-11-27"], "datetime64[s]"),
        "big": np.array([[1.5, 2.5]], ">f8"),
        "none": np.zeros((0, 2), "<U3"),
    }
    plain, arrays = split_tree(given, "x")
    assert {x.dtype.kind for x in arrays.values()} == {"u"}
    for name, found in join_tree(plain, arrays).items():
        assert found.dtype == given[name].dtype
        np.testing.assert_array_equal(found, given[name])
    with pytest.raises(TypeError, match="an array of object cannot be in a checkpoint"):
        split_tree(np.array([None]), "x")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six steps in a folder: with what it is called, and what an uninterrupted one gives."""
    batch = Batch.from_ase([molecule(0)])

    def called(folder, *hooks, batch=batch, stop=None, n_steps=6, key=None):
        log = LoggingHook(log_path=folder / "log.csv", final=True)
        saves = CheckpointHook(folder / "c", frequency=2, should_stop=stop)
        return engine(log, *hooks, saves, n_steps=n_steps).run(batch, resume=folder / "c", key=key)

    folder = tmp_path_factory.mktemp("whole")
    return called, called(folder), folder


def rows(folder):
    return (folder / "log.csv").read_text()


@pytest.mark.cheap_xla
def test_a_notebook_goes_on_after_ctrl_c(run, tmp_path, monkeypatch):
    """It gets the state so far. The step in which the hooks were interrupted is taken again."""
    called, whole, folder = run

    class Interrupts:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __call__(self, ctx, stage):
            if ctx.step_count == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    with pytest.warns(RuntimeWarning, match="was interrupted after step 5; this is the state so far"):
        part = called(tmp_path, Interrupts())
    assert int(part.steps_taken[0]) == 5
    np.testing.assert_array_equal(called(tmp_path).positions, whole.positions)
    assert rows(tmp_path) == rows(folder)


def test_other_positions_are_told(run, tmp_path):
    called, _, folder = run
    shutil.copytree(folder, tmp_path / "copy")
    other = Batch.from_ase([molecule(1)])
    with pytest.raises(AnotherRun, match=r"velocities, cell, masses or charge of system 0 were others"):
        called(tmp_path / "copy", batch=other)
    assert rows(tmp_path / "copy") == rows(folder)
    assert len(set(marks_of(Batch.from_ase([molecule(0), molecule(1), molecule(0)]).to_host()).tolist())) == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"key": jax.random.key(5)}, "is of a run with another key"),
        ({"n_steps": 3}, "has taken 6 steps already, more than the n_steps of NVE now"),
    ],
)
def test_a_run_is_refused_before_its_files_are_cut(run, tmp_path, given, sentence):
    called, _, folder = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    later = rows(copy) + "6,0,0,1,1,1,7\n"
    (copy / "log.csv").write_text(later)
    with pytest.raises(AnotherRun, match=sentence):
        called(copy, **given)
    assert rows(copy) == later


def test_a_row_of_the_last_state_is_that_of_a_longer_run(tmp_path):
    """To the last digit, also where a shorter run ended; there it says that the system was finished."""
    batch = Batch.from_ase([molecule(i) for i in range(3)])
    for name, lengths in (("a", (4, 8)), ("b", (8,))):
        for n_steps in lengths:
            stage = DynamicsStage.BEFORE_STEP
            log = LoggingHook(log_path=tmp_path / f"{name}.csv", frequency=2, stage=stage, final=True)
            engine(log, n_steps=n_steps).run(batch, resume=tmp_path / name)
    found, wanted = (
        [line.split(",") for line in (tmp_path / f"{name}.csv").read_text().splitlines()] for name in "ab"
    )
    status = wanted[0].index("status")
    assert [row[status] for row in found if row[0] == "4"] == ["1"] * 3
    for row in [*found, *wanted]:
        del row[status]
    assert found == wanted


def test_the_process_may_change_its_folder_during_a_run(run, tmp_path, monkeypatch):
    """Paths are those from where the run began."""
    called, _, _ = run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    class Moves:
        stage, frequency = DynamicsStage.AFTER_STEP, 3

        def __call__(self, ctx, stage):
            os.chdir(tmp_path / "elsewhere")

    frames = [SnapshotHook(ZarrData("f.zarr")), SnapshotHook(ExtXYZ("f.extxyz"))]
    assert int(called(Path(), *frames, Moves()).steps_taken[0]) == 6
    assert rows(tmp_path).count("\n") == 7
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [len(sink(tmp_path / f"f.{end}")) for sink, end in ((ZarrData, "zarr"), (ExtXYZ, "extxyz"))] == [
        6,
        6,
    ]


def test_a_folder_of_checkpoints_is_of_one_run_and_stays(tmp_path):
    """A second run is refused; if somebody removes or moves the folder, the next checkpoint says so."""
    one, two = (Checkpoints(tmp_path / "c") for _ in range(2))
    one.open()
    with pytest.raises(ValueError, match=r"c is in use by another run: in this process.*give another folder"):
        two.open()
    os.rename(tmp_path / "c", tmp_path / "d")
    for again in range(2):
        if again:
            (tmp_path / "c").mkdir()
        with pytest.raises(OSError, match=r"c was removed or replaced while the run used it"):
            one.wait()
    with pytest.raises(OSError, match="was removed or replaced"):
        one.close()


def test_systems_out_of_steps_are_those_that_were_written(tmp_path):
    """Their files have checksums in the checkpoint."""
    (tmp_path / "0.npz").write_bytes(b"another one")
    for number, what in ((0, "is not what was written"), (1, "cannot be read: No such file")):
        found = OutOfSteps(tmp_path, [zlib.crc32(b"another one")] * number + [1])
        with pytest.raises(
            ValueError, match=rf"{number}\.npz, with systems .*{what}.*: put it back as the run"
        ):
            found._content(number)


def test_half_of_what_checkpoints_need_is_told():
    class Half:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __call__(self, ctx, stage): ...

        def write(self, table): ...

    for name, lacks in (("state", "set_state"), ("set_state", "state")):
        half = Half()
        setattr(half, name, print)
        for hook in (half, LoggingHook(half)):
            with pytest.raises(TypeError, match=rf"Half has {name}\(\) and no {lacks}\(\)"):
                collect(engine(hook), None)
    half = Half()
    half.state = "of its own"
    assert collect(engine(half), None) == []


def test_checkpoints_that_are_gone_do_not_take_the_rows_with_them(run, tmp_path):
    """Without them the run would begin again, and remove all rows first."""
    called, _, folder = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in (copy / "c").iterdir():
        if path.name.isdecimal():
            shutil.rmtree(path)
    with pytest.raises(ValueError, match=r"c had checkpoints, which are gone\. Give another folder"):
        called(copy)
    assert rows(copy) == rows(folder)
    begin = copy / "c" / "begin.json"
    for text in ("", "{}", "[1]", f'{{"format": {FORMAT}}}'):
        begin.write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"{begin} is damaged")):
            Checkpoints(copy / "c").begin()


def test_a_run_whose_first_checkpoint_failed_begins_again(tmp_path):
    """It has no checkpoints, so none are gone."""

    class Full:
        """Writes nothing, and says so once, as the manager of orbax does."""

        begun = 0

        def save(self, *given, **more):
            self.begun += 1

        def wait_until_finished(self):
            if self.begun == 1:
                self.begun = 2
                raise OSError("the disk is full")

        def close(self): ...

    store = Checkpoints(tmp_path / "c")
    store.open()
    store.write_begin(["as it was"])
    store._manager = Full()
    store.write({}, {})
    with pytest.raises(OSError, match="the disk is full"):
        store.write({}, {})
    store.close()
    assert Checkpoints(tmp_path / "c").begin() == ["as it was"]


def test_who_is_told_that_a_run_is_saved_knows_if_it_is_not(tmp_path, monkeypatch):
    """The last checkpoint is written in the background, and may fail when the run has ended already."""

    def full(self):
        raise OSError("no checkpoint was written: the disk is full")

    monkeypatch.setattr(Checkpoints, "close", full)
    saver = Saver(engine(), CheckpointHook(tmp_path / "c"))
    with pytest.raises(OSError, match="the disk is full"), saver.opened(True):
        raise Interrupted("told to stop")
    saver.store._release()
    with pytest.raises(RuntimeError, match="bang") as caught, saver.opened(True):
        raise RuntimeError("bang")
    assert caught.value.__notes__ == ["no checkpoint was written: the disk is full"]
    saver.store._release()


def test_a_generator_is_not_read_twice(tmp_path):
    """It is told; before, the run ended with the systems that it had."""
    source = (molecule(i) for i in range(4))

    def stream(stop=None):
        saves = CheckpointHook(tmp_path / "c", frequency=2, should_stop=stop)
        sampler = Sampler(source, max_systems=1)
        return engine(saves, n_steps=6).run(sampler=sampler, sink=HostMemory(), resume=tmp_path / "c")

    times = iter([False, False, True])
    with pytest.raises(Interrupted):
        stream(lambda: next(times))
    with pytest.raises(AnotherRun, match="A generator can be read once"):
        stream()
