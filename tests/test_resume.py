"""Runs that go on from a checkpoint: bit for bit, for every engine, fused, refilled, shrunk, extended."""

import itertools
import json
import shutil
import warnings
from pathlib import Path

import google_crc32c
import jax
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    BFGS,
    FIRE,
    FIRE2,
    LBFGS,
    NPT,
    NVE,
    ConvergenceHook,
    FIREVariableCell,
    FusedStage,
    NVTBussi,
    NVTLangevin,
    NVTNoseHoover,
    Sampler,
)
from alchemi_jax.dynamics.driver import Interrupted
from alchemi_jax.dynamics.hooks import (
    CallbackHook,
    CheckpointHook,
    EnergyDriftMonitorHook,
    LoggingHook,
    ObservableHook,
    SnapshotHook,
)
from alchemi_jax.dynamics.sinks import HostMemory, ZarrData
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.systems.observables import fmax


LJ = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0)
WELL = HarmonicModel(k=0.5)


def crystal(i):
    box = 5.3 + 0.02 * (i % 5)
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    rng = np.random.default_rng(i)
    positions = np.concatenate([corners + np.array([k, 0, 0]) for k in range(1 + i % 2)]) * box
    atoms = Atoms(f"Ar{len(positions)}", positions, cell=[box * (1 + i % 2), box, box], pbc=True)
    atoms.positions += rng.normal(0, 0.08 + 0.03 * (i % 4), atoms.positions.shape)
    atoms.set_velocities(rng.normal(0, 0.02, atoms.positions.shape))
    atoms.info["number"] = i
    return atoms


def molecule(i):
    atoms = Atoms("Ar2", np.random.default_rng(i).normal(0, 1 + 0.3 * i, (2, 3)))
    atoms.set_velocities(np.random.default_rng(i).normal(0, 0.01, (2, 3)))
    atoms.info["number"] = i
    return atoms


class Stops:
    """A function that is true when it was called so many times."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        return self.left < 0


def go_on_until_done(run):
    """Call a run that stops again and again until it ends; the result and how many times it stopped."""
    for stops in range(100):
        try:
            return run(), stops
        except Interrupted:
            continue
    raise AssertionError("it does not end")


def assert_equal(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


CONVERGES = [ConvergenceHook.from_fmax(0.02)]
ENGINES = {
    "NVE": lambda **f: NVE(WELL, dt=1.0, **f),
    "Langevin": lambda **f: NVTLangevin(WELL, dt=2.0, temperature=50.0, friction=0.05, **f),
    "Nose-Hoover": lambda **f: NVTNoseHoover(WELL, dt=2.0, temperature=50.0, **f),
    "Bussi": lambda **f: NVTBussi(WELL, dt=2.0, temperature=50.0, **f),
    "FIRE": lambda hooks=(), **f: FIRE(WELL, dt=0.5, hooks=[*CONVERGES, *hooks], **f),
    "FIRE2": lambda hooks=(), **f: FIRE2(WELL, dt=0.5, hooks=[*CONVERGES, *hooks], **f),
    "LBFGS": lambda hooks=(), **f: LBFGS(WELL, hooks=[*CONVERGES, *hooks], **f),
    "BFGS": lambda hooks=(), **f: BFGS(WELL, hooks=[*CONVERGES, *hooks], **f),
    "NPT": lambda **f: NPT(LJ, dt=2.0, temperature=50.0, pressure=0.01, **f),
    "variable cell": lambda hooks=(), **f: FIREVariableCell(
        LJ, dt=1.0, hooks=[ConvergenceHook([{"key": "fmax", "threshold": 0.001}]), *hooks], **f
    ),
}


#: The others are of the same kinds.
SHORT = {"Langevin": (), "FIRE": pytest.mark.cheap_xla, "LBFGS": pytest.mark.cheap_xla}


@pytest.mark.parametrize("name", [pytest.param(n, marks=SHORT.get(n, pytest.mark.long)) for n in ENGINES])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name, tmp_path):
    """Also memories of hooks, tables of observers, and a key of another generator."""
    make = ENGINES[name]
    of = crystal if name in ("NPT", "variable cell") else molecule
    batch, key = Batch.from_ase([of(i) for i in range(3)]), jax.random.key(7, impl="rbg")

    def engine(*more, n_steps=30):
        monitor = EnergyDriftMonitorHook() if "N" in name else None
        table = ObservableHook({"fmax": fmax}, frequency=4, final=True)
        return make(hooks=[h for h in (monitor, table, *more) if h], n_steps=n_steps), table

    whole, table = engine()
    expected = whole.run(batch, key=key)

    def part():
        mine, rows = engine(CheckpointHook(tmp_path / "c", frequency=7, should_stop=Stops(1)))
        return mine.run(batch, key=key, resume=tmp_path / "c"), rows

    (found, rows), stops = go_on_until_done(part)
    assert stops
    assert_equal(expected, found)
    assert found.meta[0].name == batch.meta[0].name
    assert_equal(table.table, rows.table)
    # All is done: the same call gives the result again.
    again, rows = engine()
    assert_equal(expected, again.run(batch, key=key, resume=tmp_path / "c"))
    assert_equal(table.table, rows.table)


def relax(*hooks, n_steps=40):
    return FIRE(WELL, dt=0.5, n_steps=n_steps, hooks=[*CONVERGES, *hooks])


def relax_and_move(*hooks, n_steps=12):
    moves = NVTLangevin(LJ, dt=2.0, temperature=60.0, friction=0.05, n_steps=n_steps)
    return FusedStage([FIRE(LJ, dt=1.0, n_steps=15, hooks=CONVERGES), moves], hooks=hooks)


def move(*hooks, n_steps=14):
    return NVTNoseHoover(WELL, dt=2.0, temperature=60.0, n_steps=n_steps, hooks=hooks)


def observers(folder):
    folder.mkdir(exist_ok=True)
    first = {"stage": DynamicsStage.BEFORE_STEP, "final": True}
    log = LoggingHook(log_path=folder / "log.csv", frequency=3, **first)
    return [log, SnapshotHook(ZarrData(folder / "frames.zarr"), frequency=5, finished=False, **first)]


#: Engine, more steps, whether the batch shrinks, structures. One has a neighbor list.
STREAMS = {
    "relax": (relax, 60, False, molecule),
    "pipeline": (relax_and_move, 20, True, crystal),
    "dynamics": (move, 20, False, molecule),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("relax", marks=pytest.mark.long),
        pytest.param("pipeline", marks=pytest.mark.cheap_xla),
        "dynamics",
    ],
)
def test_a_stream_that_was_stopped_goes_on_bit_for_bit(name, tmp_path):
    """Finished systems, rows and frames; then all systems get more steps, those that have left, too."""
    make, more, shrinks, structure = STREAMS[name]
    source = [structure(i) for i in range(6)]

    def run(folder, *hooks, sink=True, **given):
        out = ZarrData(folder / "finished.zarr") if sink else None
        sampler = Sampler(source, max_systems=4, shrink=shrinks)
        resume = folder / "checkpoints" if hooks or given else None
        return make(*observers(folder), *hooks, **given).run(sampler=sampler, sink=out, resume=resume)

    first_steps = []

    def part():
        """Observed, so that no step is seen twice."""
        stops = CheckpointHook(tmp_path / "b" / "checkpoints", frequency=6, should_stop=Stops(5))
        seen = []
        look = CallbackHook(lambda ctx: seen.append(ctx.step_count), DynamicsStage.BEFORE_STEP)
        look.follows_systems = True
        try:
            return run(tmp_path / "b", stops, look)
        finally:
            first_steps.append((seen[0], seen[-1]))

    expected = run(tmp_path / "a")
    found, stops = go_on_until_done(part)
    assert stops > 2
    # No step that a checkpoint covers is taken again.
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(first_steps))
    assert_equal(expected.read(), found.read())
    assert (tmp_path / "a" / "log.csv").read_bytes() == (tmp_path / "b" / "log.csv").read_bytes()
    frames = [ZarrData(tmp_path / f / "frames.zarr").read() for f in "ab"]
    assert_equal(*frames)
    assert [m.info for m in frames[0].meta] == [m.info for m in frames[1].meta]

    longer = run(tmp_path / "b", n_steps=more).read()
    last = {i: row for row, i in enumerate(longer.system_id.tolist())}
    longer = longer.take(np.array([last[i] for i in sorted(last)]))
    direct = run(tmp_path / "c", sink=False, n_steps=more).to_host()
    for field in ("positions", "velocities", "forces", "energy", "steps_taken", "outcome", "time"):
        np.testing.assert_array_equal(longer[field], direct[field], field)


@pytest.mark.cheap_xla
def test_a_batch_that_shrinks_goes_on_bit_for_bit(tmp_path):
    """Stopped so often that it is saved in several of the batches that it goes through."""
    batch = Batch.from_ase([molecule(i) for i in range(8)])
    expected = relax().run(batch, shrink=True)

    def part():
        stops = CheckpointHook(tmp_path / "c", frequency=1, should_stop=Stops(4))
        return relax(stops).run(batch, resume=tmp_path / "c", shrink=True)

    found, stops = go_on_until_done(part)
    assert stops > 3
    assert_equal(expected, found)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of a run, and its batch."""
    folder = tmp_path_factory.mktemp("saved") / "c"
    batch = Batch.from_ase([molecule(i) for i in range(3)])
    hook = CheckpointHook(folder, frequency=5)
    ENGINES["Langevin"](n_steps=12, hooks=[hook]).run(batch, resume=folder)
    return folder, batch


OTHERS = {
    "engine": ({}, NVE, "the engine was NVTLangevin and is NVE"),
    "model": ({"model": HarmonicModel(k=0.7)}, None, r"HarmonicModel\.k was 0\.5 and is 0\.7"),
    "parameter": ({"temperature": 60.0}, None, r"NVTLangevin\.temperature was 50\.0 and is 60\.0"),
    "steps": ({"n_steps": 6}, None, "has taken 12 steps already, more than the n_steps"),
    "key": ({"key": 4}, None, "another key"),
    "element": ({"batch": "ArNe"}, None, "atom 1 was Ar and is Ne"),
    "systems": ({"batch": 2}, None, "it has 3 systems, this one 2"),
    "precision": ({"batch": np.float32}, None, "is in float64, the batch in float32"),
    "bits": ({"x64": False}, None, "of a run with jax_enable_x64 True, which is False now: set it as it was"),
    "kind": ({"batch": "stream"}, None, "is of a run with a batch, this one has a stream"),
    "folder": ({"hooks": [CheckpointHook("elsewhere")]}, None, "give one folder"),
    "no resume": ({"resume": None}, None, "checkpoints of an earlier run, up to step 12"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(name, saved):
    changed, kind, message = OTHERS[name]
    folder, _ = saved
    given = {"n_steps": 12, **changed}
    key = jax.random.key(given.pop("key")) if "key" in given else None
    x64 = given.pop("x64", True)
    resume, other, model = given.pop("resume", folder), given.pop("batch", None), given.pop("model", WELL)
    if resume is None:
        given["hooks"] = [CheckpointHook(folder)]
    structures = [molecule(i) for i in range(3)]
    if isinstance(other, int):
        structures = structures[:other]
    elif other == "ArNe":
        structures[0].symbols = "ArNe"
    given = {"temperature": 50.0, "friction": 0.05, **given} if kind is None else given
    engine = (kind or NVTLangevin)(model, dt=2.0, **given)
    dtype = other if other is np.float32 else None
    what = {"batch": Batch.from_ase(structures, dtype=dtype)}
    if other == "stream":
        what = {"sampler": Sampler(structures)}
    with jax.enable_x64(x64), pytest.raises(ValueError, match=message) as caught:
        engine.run(**what, key=key, resume=resume)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_version_is_refused(saved, tmp_path):
    """Its form is another; it is not taken for a damaged one."""
    folder, batch = saved
    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    for path in copy.glob("*/about/metadata"):
        content = json.loads(path.read_text())
        content["about"]["format"] = 1
        content["sum"] = google_crc32c.value(json.dumps(content["about"], sort_keys=True).encode())
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="written by another version of alchemi_jax"):
        ENGINES["Langevin"](n_steps=12).run(batch, resume=copy)


def test_a_damaged_checkpoint_is_passed_over(saved, tmp_path):
    """Half written, a byte changed, a file lost: the one before is taken, and it is said."""
    folder, batch = saved
    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    engine = ENGINES["Langevin"](n_steps=12)
    expected = engine.run(batch, resume=folder)
    numbers = sorted(int(p.name) for p in copy.iterdir() if p.name.isdecimal())
    assert len(numbers) == 3
    (copy / f"{numbers[-1] + 1}.orbax-checkpoint-tmp-12").mkdir()
    largest = max((copy / str(numbers[-1])).rglob("d/*"), key=lambda p: p.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    with pytest.warns(RuntimeWarning, match=rf"{numbers[-1]} is damaged: .*from the checkpoint before it"):
        assert_equal(expected, engine.run(batch, resume=copy))
    assert not list(copy.glob("*orbax-checkpoint-tmp*"))
    for number in copy.iterdir():
        if number.name.isdecimal():
            (number / "about" / "metadata").write_text("{}")
    with pytest.raises(ValueError, match=r"none of the \d checkpoints in .* can be read"):
        engine.run(batch, resume=copy)


def test_a_run_that_never_reached_a_checkpoint_begins_again_without_its_rows(tmp_path):
    """What was in the log before the run stays; rows of the run that ended without a checkpoint do not."""
    batch, log = Batch.from_ase([molecule(0)]), tmp_path / "log.csv"

    def engine(*more):
        return ENGINES["NVE"](n_steps=6, hooks=[LoggingHook(log_path=log), *more])

    class Breaks:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __call__(self, ctx, stage):
            if ctx.step_count == 3:
                raise RuntimeError("the power is gone")

    engine().run(batch)
    before = log.read_text()
    with pytest.raises(RuntimeError, match="the power is gone"):
        engine(Breaks()).run(batch, resume=tmp_path / "c")
    assert len(log.read_text()) > len(before)
    engine().run(batch, resume=tmp_path / "c")
    assert log.read_text() == before + before[before.index("\n") + 1 :]


def test_hooks_that_are_open_already_go_back_too(tmp_path):
    """In a `with` block of the user's the sinks are open before the run knows of any checkpoint."""
    batch, folder = Batch.from_ase([molecule(0)]), tmp_path / "c"

    def part(stops=None):
        log = LoggingHook(log_path=tmp_path / "log.csv")
        hook = CheckpointHook(folder, frequency=2, should_stop=stops)
        with ENGINES["NVE"](n_steps=8, hooks=[log, hook]) as engine:
            return engine.run(batch, resume=folder)

    with pytest.raises(Interrupted):
        part(Stops(2))
    with open(tmp_path / "log.csv", "a") as file:
        file.write("99,0,0,1.0,1.0,1.0,99\n")
    part()
    steps = [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert steps == ["step", *map(str, range(8))]


def test_a_source_with_other_systems_is_refused(tmp_path):
    source = [molecule(i) for i in range(4)]
    folder = tmp_path / "c"

    def run(structures, stops=None):
        hook = CheckpointHook(folder, frequency=2, should_stop=stops)
        return ENGINES["NVE"](n_steps=6, hooks=[hook]).run(
            sampler=Sampler(structures, max_systems=2), sink=HostMemory(), resume=folder
        )

    with pytest.raises(Interrupted):
        run(source, Stops(1))
    other = [a.copy() for a in source]
    other[1].symbols = "ArNe"
    with pytest.raises(ValueError, match="has other atoms than the system that the checkpoint has"):
        run(other)
    assert len(run(source)) == 4


def test_advance_saves_too_and_warnings_are_not_repeated(tmp_path):
    """`advance` saves by the hook of the engine; a folder with later checkpoints is refused."""
    batch = Batch.from_ase([molecule(0)])
    engine = ENGINES["NVE"](hooks=[CheckpointHook(tmp_path / "c", frequency=2)])
    begun = engine.init(batch)
    state = engine.advance(begun, 4)
    engine.advance(state, 4)
    with pytest.raises(ValueError, match="earlier run, up to step"):
        engine.advance(begun, 4)
    assert Path(tmp_path / "c" / "begin.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "CheckpointHook" in repr(engine)
