"""Hooks: when they fire, what they may do, and what is said about mistakes."""

import csv
import dataclasses
import re
import subprocess
import sys
from enum import Enum

import jax
import jax.numpy as jnp
import numpy as np
import plum
import pytest
from ase import Atoms
from cheap_xla import cheap_environment
from conftest import cluster

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook, DynamicsStage, driver
from alchemi_jax.dynamics.hooks import LoggingHook
from alchemi_jax.hooks import Hook, HookContext, HookSet, RecordingHook, TracedHook
from alchemi_jax.hooks.records import Layout
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.observables import fmax, kinetic_energy


MODEL = HarmonicModel()


@pytest.fixture(scope="module")
def batch():
    return Batch.from_ase([cluster(0, 3), cluster(1, 2), cluster(2, 4)])


class Note:
    """A host hook for several stages that notes what it sees."""

    stage = None

    def __init__(self, frequency=1, stages=tuple(DynamicsStage)):
        self.frequency, self.stages, self.seen = frequency, stages, []

    def _runs_on_stage(self, stage):
        return stage in self.stages

    def __call__(self, ctx, stage):
        self.seen.append((ctx.step_count, stage))


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.cheap_xla
def test_the_nine_stages_in_order(batch):
    """And what has happened by then: pre_update before the forces are renewed, post_update after."""
    note = Note()
    seen = {}

    class Look:
        stage, frequency = None, 1

        def _runs_on_stage(self, stage):
            return True

        def __call__(self, ctx, stage):
            b = ctx.batch
            seen[ctx.step_count, stage] = (b.positions.copy(), b.velocities.copy(), b.forces.copy())
            assert ctx.active_mask.shape == (3,)
            assert ctx.workflow is not None
            assert (ctx.converged_mask is not None) == (stage is DynamicsStage.ON_CONVERGE)

    class Leave(TracedHook):
        """All have converged after the first step."""

        stage: DynamicsStage = DynamicsStage.AFTER_STEP
        frequency: int = 1

        def __call__(self, ctx, stage):
            return ctx.with_batch(status=ctx.batch.status + ctx.active_mask)

    engine = NVE(model=MODEL, dt=1.0, n_steps=3, hooks=[note, Look(), Leave()])
    engine.run(batch)
    s = DynamicsStage
    whole = [s.BEFORE_STEP, s.BEFORE_PRE_UPDATE, s.AFTER_PRE_UPDATE, s.BEFORE_COMPUTE, s.AFTER_COMPUTE]
    whole += [s.BEFORE_POST_UPDATE, s.AFTER_POST_UPDATE, s.AFTER_STEP, s.ON_CONVERGE]
    assert note.seen == [(0, stage) for stage in whole]

    def changed(a, b):
        return [not np.array_equal(x, y) for x, y in zip(seen[0, a], seen[0, b], strict=True)]

    assert changed(s.BEFORE_STEP, s.BEFORE_PRE_UPDATE) == [False, False, False]
    assert changed(s.BEFORE_PRE_UPDATE, s.AFTER_PRE_UPDATE) == [True, True, False]
    assert changed(s.BEFORE_COMPUTE, s.AFTER_COMPUTE) == [False, False, True]
    assert changed(s.BEFORE_POST_UPDATE, s.AFTER_POST_UPDATE) == [False, True, False]
    assert changed(s.AFTER_POST_UPDATE, s.ON_CONVERGE) == [False, False, False]


@pytest.mark.parametrize("frequency", [1, 3, 10])
def test_traced_and_recording_hooks_fire_at_0_f_2f(batch, frequency):
    rows = []

    class Count(TracedHook):
        stage: DynamicsStage = DynamicsStage.BEFORE_COMPUTE
        frequency: int = 1

        def init(self, batch):
            return jnp.zeros(20, jnp.int32)

        def __call__(self, ctx, stage):
            return ctx.with_memory(ctx.memory.at[ctx.step_count].add(1))

    class Record(RecordingHook):
        stage = DynamicsStage.AFTER_POST_UPDATE

        def __init__(self):
            self.frequency = frequency

        def record(self, ctx):
            return {"step": ctx.step_count, "e": ctx.batch.energy}

        def write(self, new):
            assert new["e"].shape[1:] == (3,)
            rows.extend(new["step"].tolist())

    engine = NVE(model=MODEL, dt=1.0, n_steps=20, hooks=[Count(frequency=frequency), Record()])
    state = engine.advance(engine.init(batch), 20)
    expected = list(range(0, 20, frequency))
    assert np.flatnonzero(state.memory[0]).tolist() == expected
    assert state.memory[0].max() == 1
    assert rows == expected


def test_rows_are_written_in_order_when_buffers_fill(batch):
    """More rows than a buffer holds."""
    steps = []

    class Wide(RecordingHook):
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def record(self, ctx):
            return {"step": ctx.step_count, "ballast": jnp.zeros(200_000)}

        def write(self, rows):
            steps.append(rows["step"].tolist())

    NVE(model=MODEL, dt=1.0, n_steps=50, hooks=[Wide()]).run(batch)
    assert [s for part in steps for s in part] == list(range(50))
    assert len(steps) > 2


# -- what traced hooks do --------------------------------------------------------------------------


class Clamp(TracedHook):
    """The example of the design page."""

    limit: float
    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE
    frequency: int = 1

    def __call__(self, ctx, stage):
        f = ctx.batch.forces
        norm = jnp.linalg.norm(f, axis=-1, keepdims=True)
        return ctx.with_batch(forces=f * jnp.minimum(1.0, self.limit / jnp.maximum(norm, 1e-12)))


def test_a_traced_hook_changes_the_run_from_init_on(batch):
    engine = NVE(model=MODEL, dt=1.0, hooks=[Clamp(limit=0.5)])
    state = engine.init(batch)
    assert fmax(state.batch)[:3].tolist() == pytest.approx([0.5] * 3)
    state = engine.advance(state, 2)
    assert fmax(state.batch)[:3].tolist() == pytest.approx([0.5] * 3)


@pytest.mark.cheap_xla
def test_floats_of_hooks_are_leaves(batch, compilations):
    def run(limit):
        return NVE(model=MODEL, dt=1.0, n_steps=3, hooks=[Clamp(limit=limit)]).run(batch)

    a = run(0.5)
    with compilations() as count:
        b = run(0.25)
    assert count == []
    assert fmax(b)[0] == pytest.approx(0.5 * fmax(a)[0])
    forces = jax.vmap(lambda limit: _forces_after(batch, limit))(jnp.array([0.5, 0.25]))
    np.testing.assert_allclose(forces[0], a.forces)
    np.testing.assert_allclose(forces[1], b.forces)


def _forces_after(batch, limit):
    engine = NVE(model=MODEL, dt=1.0, n_steps=3, hooks=[Clamp(limit=limit)])
    state = NVE(model=MODEL, dt=1.0, hooks=[Clamp(limit=0.5)]).init(batch)
    return engine.loop(state.replace(batch=state.batch)).batch.forces


def test_a_traced_hook_cannot_move_finished_systems(batch):
    class Push(TracedHook):
        stage: DynamicsStage = DynamicsStage.AFTER_STEP
        frequency: int = 1

        def __call__(self, ctx, stage):
            return ctx.with_batch(positions=ctx.batch.positions + 1.0)

    class FinishFirst(TracedHook):
        stage: DynamicsStage = DynamicsStage.AFTER_STEP
        frequency: int = 1

        def __call__(self, ctx, stage):
            first = jnp.arange(ctx.batch.system_capacity) == 0
            return ctx.with_batch(status=ctx.batch.status + (first & (ctx.step_count == 2)))

    engine = NVE(model=MODEL, dt=1e-6, n_steps=6, hooks=[Push(), FinishFirst()])
    out = engine.run(batch).take()
    moved = out.positions - batch.take().positions
    np.testing.assert_allclose(moved[:3], 3, atol=1e-3)
    np.testing.assert_allclose(moved[3:], 6, atol=1e-3)
    assert out.steps_taken.tolist() == [3, 6, 6]
    assert out.converged.tolist() == [True, False, False]


# -- convergence -----------------------------------------------------------------------------------


def converged_at_once(batch, *args, **kwargs):
    hook = ConvergenceHook(*args, **kwargs)
    out = NVE(model=MODEL, dt=1e-9, n_steps=1, hooks=[hook]).run(batch).take()
    return out.converged.tolist()


def test_criteria(batch):
    """Each form, against numpy."""
    host = NVE(model=MODEL, dt=1.0).init(batch).batch.take()
    parts = np.split(np.linalg.norm(host.forces, axis=1), np.cumsum(host.atoms_per_system)[:-1])
    worst = np.array([p.max() for p in parts])
    limit = float(np.sort(worst)[1])
    expected = (worst <= limit).tolist()
    assert sum(expected) == 2
    almost = limit * (1 + 1e-12)
    assert converged_at_once(batch, {"key": "fmax", "threshold": almost}) == expected
    forces = {"key": "forces", "threshold": almost, "reduce_op": "norm", "reduce_dims": -1}
    assert converged_at_once(batch, forces) == expected
    largest = max(np.abs(host.forces[:3]).max() * (1 + 1e-12), 0)
    component = [np.abs(f).max() <= largest for f in np.split(host.forces, [3, 5])]
    assert converged_at_once(batch, {"key": "forces", "threshold": largest}) == component
    custom = {"key": "energy", "custom_op": lambda e: e <= float(host.energy[1])}
    assert converged_at_once(batch, custom) == (host.energy <= host.energy[1]).tolist()
    per_atom = {"key": "forces", "custom_op": lambda f: jnp.linalg.norm(f, axis=1) <= almost}
    assert converged_at_once(batch, [per_atom]) == expected
    both = [forces, {"key": "energy", "threshold": 0.0}]
    assert converged_at_once(batch, both) == [False] * 3
    assert converged_at_once(batch, {"key": "fmax", "threshold": 1e3}, source_status=1) == [False] * 3
    assert converged_at_once(batch) == [False] * 3


def test_a_threshold_that_is_met_exactly_is_converged(batch):
    exact = {"key": "energy", "custom_op": None, "threshold": 0.0}
    rest = Batch.from_ase([Atoms("Ar", positions=[[0, 0, 0]])])
    assert converged_at_once(rest, exact) == [True]


def test_energy_change_is_infinite_at_first(batch):
    hook = ConvergenceHook({"key": "energy_change", "threshold": 1e3})
    out = NVE(model=MODEL, dt=1.0, n_steps=5, hooks=[hook]).run(batch).take()
    assert out.steps_taken.tolist() == [2, 2, 2]
    assert out.converged.all()


def test_from_fmax_and_from_forces_agree(batch):
    a, b = (
        FIRE(model=MODEL, dt=5.0, n_steps=100, hooks=[make(0.01)]).run(batch).take()
        for make in (ConvergenceHook.from_fmax, ConvergenceHook.from_forces)
    )
    assert a.steps_taken.tolist() == b.steps_taken.tolist()
    assert a.converged.all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConvergenceHook({"threshold": 1}), ValueError, "a criterion needs a key"),
        (lambda: ConvergenceHook({"key": "fmax"}), ValueError, "'fmax' needs a threshold"),
        (lambda: ConvergenceHook({"key": "a", "treshold": 1}), ValueError, "no entry 'treshold'"),
        (lambda: ConvergenceHook([3]), TypeError, "a criterion is a dict"),
        (lambda: ConvergenceHook.from_fmax(-1), ValueError, "threshold must be zero or positive"),
        (
            lambda: ConvergenceHook({"key": "a", "threshold": 1, "reduce_op": "median"}),
            ValueError,
            "reduce_op must be one of norm",
        ),
    ],
)
def test_bad_criteria(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_criterion_on_an_unknown_field_names_it(batch):
    with pytest.raises(KeyError, match="no field 'forcez'"):
        converged_at_once(batch, {"key": "forcez", "threshold": 1.0})


# -- logging ---------------------------------------------------------------------------------------


def read(path):
    with open(path) as f:
        return list(csv.DictReader(f))


def test_log_says_what_the_steps_were(batch, tmp_path):
    """Columns, custom scalars, steps, and values against a run by hand."""
    log = LoggingHook(
        log_path=tmp_path / "log.csv",
        frequency=5,
        custom_scalars={"kinetic": lambda ctx: kinetic_energy(ctx.batch)},
    )
    NVE(model=MODEL, dt=1.0, n_steps=12, hooks=[log]).run(batch)
    rows = read(tmp_path / "log.csv")
    assert list(rows[0]) == [
        "step",
        "system_id",
        "status",
        "energy",
        "fmax",
        "temperature",
        "steps_taken",
        "kinetic",
    ]
    assert [(int(r["step"]), int(r["system_id"])) for r in rows] == [
        (s, i) for s in (0, 5, 10) for i in range(3)
    ]
    engine = NVE(model=MODEL, dt=1.0)
    state = engine.init(batch)
    for step in range(11):
        state = engine.advance(state, 1)
        for r in (r for r in rows if int(r["step"]) == step):
            i = int(r["system_id"])
            assert float(r["energy"]) == pytest.approx(float(state.batch.energy[i]), rel=1e-12)
            assert float(r["fmax"]) == pytest.approx(float(fmax(state.batch)[i]), rel=1e-12)
            assert float(r["kinetic"]) == pytest.approx(float(kinetic_energy(state.batch)[i]), rel=1e-9)


def test_two_runs_in_one_with_lose_no_rows(batch, tmp_path):
    path = tmp_path / "log.csv"
    with NVE(model=MODEL, dt=1.0, n_steps=4, hooks=[LoggingHook(log_path=path)]) as engine:
        engine.run(batch)
        engine.run(batch)
    steps = [int(r["step"]) for r in read(path) if r["system_id"] == "0"]
    assert steps == [0, 1, 2, 3] * 2
    NVE(model=MODEL, dt=1.0, n_steps=4, hooks=[LoggingHook(log_path=path)]).run(batch)
    assert len(read(path)) == 36
    NVE(model=MODEL, dt=1.0, n_steps=4, hooks=[LoggingHook(log_path=path, mode="w")]).run(batch)
    assert len(read(path)) == 12


def test_advance_goes_on_in_the_same_log(batch, tmp_path):
    engine = NVE(model=MODEL, dt=1.0, hooks=[LoggingHook(log_path=tmp_path / "a.csv", frequency=3)])
    state = engine.init(batch)
    for k in (1, 4, 5):
        state = engine.advance(state, k)
    assert [int(r["step"]) for r in read(tmp_path / "a.csv") if r["system_id"] == "1"] == [0, 3, 6, 9]


def test_rows_survive_an_exception(batch, tmp_path):
    """And the exception says which hook raised it, and when."""

    class Break:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __call__(self, ctx, stage):
            if ctx.step_count == 4:
                raise RuntimeError("enough")

    log = LoggingHook(log_path=tmp_path / "log.csv")
    with pytest.raises(RuntimeError, match="enough") as e:
        NVE(model=MODEL, dt=1.0, n_steps=50, hooks=[log, Break()]).run(batch)
    assert "raised in hook Break at AFTER_STEP of step 4" in e.value.__notes__
    assert len(read(tmp_path / "log.csv")) == 15
    assert log.writer._file is None


def test_the_device_works_while_host_hooks_are_called(batch, monkeypatch):
    """The next segment is started before them; the run is the same, and a hook that raises leaves the state
    of its own step."""
    events = []

    def noted(*arguments, segment=driver.compiled_segment):
        events.append("segment")
        return segment(*arguments)

    class Look:
        stage, frequency, last = DynamicsStage.AFTER_STEP, 2, 99

        def __call__(self, ctx, stage):
            events.append(ctx.step_count)
            if ctx.step_count == self.last:
                raise RuntimeError("enough")

    look = Look()
    engine, alone = (NVE(model=MODEL, dt=1.0, n_steps=7, hooks=hooks) for hooks in ([look], []))
    state = engine.init(batch)
    monkeypatch.setattr(driver, "compiled_segment", noted)
    watched, unwatched = engine.advance(state, 7), alone.advance(alone.init(batch), 7)
    np.testing.assert_array_equal(watched.batch.positions, unwatched.batch.positions)
    assert events[:8] == ["segment", "segment", 0, "segment", 2, "segment", 4, 6]
    look.last = 4
    run = driver.Run(engine, state)
    with pytest.raises(RuntimeError, match="enough"):
        run.advance(7)
    assert int(run.state.step_count) == 5


def test_a_backend_of_ones_own(batch):
    events, tables = [], []

    class Mine:
        def open(self):
            events.append("open")

        def write(self, table):
            tables.append(table)

        def close(self):
            events.append("close")

    NVE(model=MODEL, dt=1.0, n_steps=4, hooks=[LoggingHook(backend=Mine(), frequency=2)]).run(batch)
    assert events == ["open", "close"]
    assert np.concatenate([t["step"] for t in tables]).tolist() == [0, 0, 0, 2, 2, 2]
    assert np.concatenate([t["system_id"] for t in tables]).tolist() == [0, 1, 2] * 2
    assert set(tables[0]) == {"step", "system_id", "status", "energy", "fmax", "temperature", "steps_taken"}


def test_tensorboard(batch, tmp_path):
    """The event file has the numbers that a CSV file has."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    hooks = [
        LoggingHook(backend="tensorboard", log_path=tmp_path / "tb", frequency=3),
        LoggingHook(log_path=tmp_path / "log.csv", frequency=3),
    ]
    NVE(model=MODEL, dt=1.0, n_steps=7, hooks=hooks).run(batch)
    (path,) = (tmp_path / "tb").iterdir()
    data, found = path.read_bytes(), {}
    while data:
        # Length, its checksum, the event, its checksum.
        n = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + n])
        data = data[16 + n :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    for row in read(tmp_path / "log.csv"):
        tag = f"energy/system_{row['system_id']}"
        tag = tag if (tag, int(row["step"])) in found else f"energy/system {row['system_id']}"
        assert found[tag, int(row["step"])] == pytest.approx(float(row["energy"]), rel=1e-6)


def test_log_refusals(batch, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")

    def run(**kwargs):
        NVE(model=MODEL, dt=1.0, n_steps=2, hooks=[LoggingHook(**kwargs)]).run(batch)

    with pytest.raises(ValueError, match=r"other\.csv has the columns a,b"):
        run(log_path=tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"
    with pytest.raises(FileExistsError):
        run(log_path=tmp_path / "other.csv", mode="x")
    with pytest.raises(FileNotFoundError):
        run(log_path=tmp_path / "nowhere" / "log.csv")
    with pytest.raises(ValueError, match=r"must be 'csv', 'tensorboard' or an object .*, not 'excel'"):
        LoggingHook(backend="excel")
    with pytest.raises(ValueError, match="'energy' has the name of a column"):
        LoggingHook(custom_scalars={"energy": lambda ctx: 0})
    with pytest.raises(TypeError, match=r"custom scalar 'x' of LoggingHook has shape \(\)"):
        run(log_path=tmp_path / "x.csv", custom_scalars={"x": lambda ctx: 1.0})


# -- lifecycle -------------------------------------------------------------------------------------


def test_opening_is_reentrant_and_closing_is_in_reverse(batch):
    events = []

    class Opens:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __init__(self, name):
            self.name = name

        def __enter__(self):
            events.append(f"open {self.name}")
            return self

        def __exit__(self, *exc):
            events.append(f"close {self.name}")

        def __call__(self, ctx, stage):
            events.append(self.name)
            if self.name == "b" and ctx.step_count == 1:
                raise KeyboardInterrupt

    engine = NVE(model=MODEL, dt=1.0, n_steps=1, hooks=[Opens("a"), Opens("b")])
    with engine:
        engine.run(batch)
        engine.run(batch)
    assert events == ["open a", "open b", "a", "b", "a", "b", "close b", "close a"]
    events.clear()
    with pytest.raises(KeyboardInterrupt):
        engine.run(batch, 5)
    assert events == ["open a", "open b", "a", "b", "a", "b", "close b", "close a"]


# -- the registry ----------------------------------------------------------------------------------


class Plain:
    stage, frequency = DynamicsStage.AFTER_STEP, 1

    def __call__(self, ctx, stage): ...


def test_a_hook_is_what_looks_like_one():
    assert isinstance(Plain(), Hook)
    assert not isinstance(object(), Hook)


class OtherStage(Enum):
    AFTER_EPOCH = 0


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            [object()],
            r"hooks\[0\] \(object\) is not a hook: it has no stage and no frequency and no __call__",
        ),
        ([Plain], r"is a class: pass an instance of Plain"),
        (Plain(), "hooks must be a list of hooks, not a Plain"),
        (
            [type("F", (Plain,), {"frequency": 0})()],
            r"hooks\[0\] \(F\): frequency must be a positive int, not 0",
        ),
        ([type("F", (Plain,), {"frequency": 1.5})()], "frequency must be a positive int, not 1.5"),
        ([type("S", (Plain,), {"stage": "after"})()], "stage must be a member of an Enum, not 'after'"),
        ([type("S", (Plain,), {"stage": OtherStage.AFTER_EPOCH})()], r"S\.stage must be a DynamicsStage"),
    ],
)
def test_wrong_hooks_are_refused_by_name(hooks, message):
    with pytest.raises((TypeError, ValueError), match=message):
        NVE(model=MODEL, dt=1.0, hooks=hooks)


def test_answers_of_the_wrong_kind_are_refused_by_name(batch):
    class Answers(Plain):
        def __call__(self, ctx, stage):
            return ctx

    class Forgets(TracedHook):
        stage: DynamicsStage = DynamicsStage.AFTER_STEP
        frequency: int = 1

        def __call__(self, ctx, stage):
            ctx.with_batch(energy=ctx.batch.energy)

    class Reshapes(Forgets):
        def __call__(self, ctx, stage):
            return ctx.with_batch(forces=jnp.zeros((2, 3)))

    def run(hook):
        NVE(model=MODEL, dt=1.0, n_steps=2, hooks=[hook]).run(batch)

    with pytest.raises(TypeError, match="Answers returned a HookContext at AFTER_STEP: a host hook"):
        run(Answers())
    with pytest.raises(TypeError, match="Forgets returned None at AFTER_STEP: a traced hook returns"):
        run(Forgets())
    with pytest.raises((TypeError, ValueError), match=r"Reshapes|forces"):
        run(Reshapes())


def test_overloads_are_checked_when_the_hook_is_attached():
    class Both:
        frequency = 1

        def __init__(self, stage):
            self.stage = stage

        @plum.dispatch
        def __call__(self, ctx: HookContext, stage: OtherStage): ...

    HookSet([Both(OtherStage.AFTER_EPOCH)]).check_stages(OtherStage)
    with pytest.raises(
        TypeError, match=r"Both runs on .*none of its __call__ overloads takes a DynamicsStage"
    ):
        NVE(model=MODEL, dt=1.0, hooks=[Both(DynamicsStage.AFTER_STEP)])


def test_any_workflow(batch):
    """A loop of one's own, with its own stages, in a few lines of the public pieces."""

    class Stage(Enum):
        BEFORE_ROUND = 0
        AFTER_ROUND = 1

    class Shrink(TracedHook):
        stage: Stage = Stage.BEFORE_ROUND
        frequency: int = 2

        def __call__(self, ctx, stage):
            return ctx.with_batch(positions=ctx.batch.positions / 2)

    note = type("N", (Plain,), {"stage": Stage.AFTER_ROUND, "seen": []})()
    type(note).__call__ = lambda self, ctx, stage: self.seen.append(float(ctx.batch.positions[0, 0]))
    hooks = HookSet([Shrink(), note])
    hooks.check_stages(Stage)
    memory = hooks.init(batch)
    ctx = HookContext(batch=batch)
    with hooks.opened():
        for step in range(4):
            ctx = dataclasses.replace(ctx, step_count=step)
            ctx, memory = hooks.run_traced(ctx, Stage.BEFORE_ROUND, memory)
            hooks.run_host(ctx, Stage.AFTER_ROUND, step)
    np.testing.assert_allclose(np.array(note.seen) / float(batch.positions[0, 0]), [0.5, 0.5, 0.25, 0.25])


# -- the user guide --------------------------------------------------------------------------------


GUIDE = """
from alchemi_jax.dynamics import FIRE, ConvergenceHook
from alchemi_jax.dynamics.hooks import ConvergedSnapshotHook, LoggingHook, SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
with FIRE(model=model, dt=0.1, n_steps=500, hooks=[
    ConvergenceHook.from_fmax(0.05),
    LoggingHook(backend="csv", log_path="hooks.csv", frequency=10),
    SnapshotHook(sink=ZarrData("/tmp/traj.zarr"), frequency=50),
    ConvergedSnapshotHook(sink=ZarrData("/tmp/relaxed.zarr")),
]) as opt:
    relaxed = opt.run(batch)
"""


def test_the_closing_example_of_the_user_guide_runs_in_a_fresh_process(tmp_path):
    text = f"""
import ase.io
from alchemi_jax import Batch
from alchemi_jax.models import LennardJones
model = LennardJones(epsilon=0.0104, sigma=3.4)
batch = Batch.from_ase(ase.io.read("in.extxyz", ":"))
{GUIDE.replace("/tmp/", str(tmp_path) + "/")}
atoms = relaxed.to_ase()
assert all((a.get_forces()**2).sum(1).max()**0.5 <= 0.05 for a in atoms)
steps = relaxed.take().steps_taken
assert len(ZarrData("relaxed.zarr")) == 2
assert len(ZarrData("traj.zarr")) == 2 * -(-steps.max() // 50)
print(relaxed)
"""
    import ase.io

    ase.io.write(tmp_path / "in.extxyz", [cluster(0, 7), cluster(1, 6)])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", text],
        cwd=tmp_path,
        env=cheap_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"Batch\(2 systems, 13 atoms; 2 converged, 0 failed", done.stdout)
    rows = read(tmp_path / "hooks.csv")
    assert {int(r["step"]) % 10 for r in rows} == {0}


@pytest.mark.cheap_xla
def test_recorded_rows_come_back_as_they_were():
    """Rows are packed into words; every dtype and shape is the same again, on the host, traced and mapped."""
    rng = np.random.default_rng(0)
    kinds = [bool, np.int8, np.uint16, np.float16, np.int32, np.float32, np.float64, np.complex64]
    row = {
        f"{np.dtype(kind)}{shape}": rng.normal(0, 30, shape).astype(kind)
        for kind in kinds
        for shape in ((), (3,), (2, 0), (2, 3))
    }
    layout = Layout.of(row)
    unpack = jax.jit(layout.unpack)
    words = jax.jit(layout.pack)(row)
    assert words.shape == (layout.words,)
    mapped = jax.jit(jax.vmap(layout.pack))(jax.tree.map(lambda x: np.stack([x, x, x]), row))
    for found in (
        unpack(words),
        layout.unpack(np.asarray(words)),
        jax.tree.map(lambda x: np.asarray(x)[1], unpack(mapped)),
        jax.tree.map(lambda x: np.asarray(x)[1], layout.unpack(np.asarray(mapped))),
    ):
        for name, value in row.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, err_msg=name)
