"""Pipelines: a fused run equals its stages in sequence, and hooks fire for each stage as they say."""

import dataclasses
from enum import Enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    FIRE,
    NVE,
    ConvergenceHook,
    DynamicsStage,
    FusedStage,
    NVTLangevin,
    checkpoint,
    initialize_velocities,
)
from alchemi_jax.dynamics.hooks import (
    BiasedPotentialHook,
    CallbackHook,
    ConvergedSnapshotHook,
    EnergyDriftMonitorHook,
    LoggingHook,
    ObservableHook,
    SnapshotHook,
)
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.hooks import RecordingHook, TracedHook
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.systems.observables import kinetic_energy
from alchemi_jax.systems.segments import sum_by_system


S = DynamicsStage
MODEL = HarmonicModel()


@pytest.fixture(scope="module")
def structures():
    return [cluster(0), cluster(1, 7), cluster(2, 5), crystal(3)]


@pytest.fixture(scope="module")
def batch(structures):
    return Batch.from_ase(structures)


def relaxation(lj, **kwargs):
    return FIRE(model=lj, dt=1.0, n_steps=200, hooks=[ConvergenceHook.from_fmax(0.02)], **kwargs)


def dynamics(lj, n_steps=30, **kwargs):
    return NVTLangevin(model=lj, dt=2.0, temperature=20.0, friction=0.02, n_steps=n_steps, **kwargs)


# -- the order of all calls ------------------------------------------------------------------------


class Leave(TracedHook):
    """Moves system i on after the step with number when[i]."""

    when: jax.Array
    stage: DynamicsStage = S.AFTER_STEP
    frequency: int = 1

    def __call__(self, ctx, stage):
        leaves = ctx.active_mask & (ctx.step_count == self.when)
        return ctx.with_batch(status=ctx.batch.status + leaves)


FREQUENCIES = (1, 3, 10)


def noting(kind, name, log):
    """Hooks of a kind, on all stages, one for each frequency, whose calls end up in `log` as (step, stage,
    (name, frequency))."""
    return [hook for frequency in FREQUENCIES for hook in _noting(kind, (name, frequency), frequency, log)]


def _noting(kind, name, frequency, log):
    if kind == "host":

        class Host:
            stage = None

            def __init__(self):
                self.frequency = frequency

            def _runs_on_stage(self, stage):
                return True

            def __call__(self, ctx, stage):
                log.append((ctx.step_count, stage, name))

        return [Host()]
    if kind == "recording":

        class Recording(RecordingHook):
            def __init__(self, stage):
                self.stage, self.frequency = stage, frequency

            def record(self, ctx):
                return ctx.step_count

            def write(self, rows):
                log.extend((int(step), self.stage, name) for step in rows)

        return [Recording(stage) for stage in S]

    class Traced(TracedHook):
        """Numbers its calls by a counter that all hooks of a system share."""

        stage: None = None
        frequency: int = 1

        def _runs_on_stage(self, stage):
            return True

        def init(self, batch):
            return jnp.zeros((9, 40, 5), jnp.int32)

        def __call__(self, ctx, stage):
            count = ctx.batch["count"] + ctx.active_mask
            mine = jnp.where(ctx.active_mask, count, ctx.memory[stage.value, ctx.step_count])
            memory = ctx.memory.at[stage.value, ctx.step_count].set(mine)
            return ctx.with_batch(count=count).with_memory(memory)

    return [Traced(frequency=frequency)]


#: When each of five systems leaves its first and its second stage; the last one by budgets alone.
LEAVE = (np.array([2, 4, 4, 6, -1]), np.array([3, 9, -1, 8, -1]))
BUDGETS = (9, 6)


def told(fused):
    """The calls (step, stage, (name, frequency), systems), worked out from the rules."""
    groups = {"sum": {0, 1}, "first": {0}, "second": {1}} if fused else {"first": {0}}
    status, taken = np.zeros(5, int), np.zeros(5, int)
    out, step, n = [], 0, 2 if fused else 1
    while (status < n).any():
        begun = status.copy()
        newly = np.array([s < n and LEAVE[s][i] == step for i, s in enumerate(begun)])
        for stage in S:
            names = list(groups) if stage.name.startswith("BEFORE") else [*groups][1:] + [*groups][:1]
            for name in names:
                seen = {i for i in range(5) if begun[i] in groups[name]}
                fires = seen & set(np.flatnonzero(newly).tolist()) if stage is S.ON_CONVERGE else seen
                if fires:
                    out += [(step, stage, (name, f), seen) for f in FREQUENCIES if step % f == 0]
        taken[begun < n] += 1
        for i in range(5):
            if begun[i] < n and (newly[i] or taken[i] == BUDGETS[begun[i]]):
                status[i], taken[i] = status[i] + 1, 0
        step += 1
    return out


@pytest.mark.parametrize("kind", ["host", "recording", "traced"])
@pytest.mark.parametrize("fused", [False, True], ids=["single", "fused"])
def test_every_call_of_every_hook(fused, kind):
    """(step, stage, hook) for every kind, at every stage, at every frequency, in order."""
    batch = Batch.from_ase([cluster(i, 2) for i in range(5)], system_capacity=5)
    batch = dataclasses.replace(batch, system_extras={"count": jnp.zeros(5, jnp.int32)})
    log = []
    parts = [
        NVE(model=MODEL, dt=1.0, n_steps=n, hooks=[Leave(jnp.asarray(w)), *noting(kind, name, log)])
        for name, n, w in zip(("first", "second"), BUDGETS, LEAVE, strict=True)
    ]
    engine = FusedStage(parts, hooks=noting(kind, "sum", log)) if fused else parts[0]
    state = engine.advance(engine.init(batch), 40)
    assert state.batch.status.tolist() == [engine.exit_status] * 5
    calls = told(fused)
    if kind == "host":
        assert log == [call[:3] for call in calls]
    elif kind == "recording":
        assert sorted(log, key=str) == sorted((call[:3] for call in calls), key=str)
        assert all(log.index(a) < log.index(b) for a, b in _pairs(log))
    else:
        # `init` and admission evaluate with hooks, too: the counter does not begin at one.
        names = [(n, f) for n in (["sum", "first", "second"] if fused else ["first"]) for f in FREQUENCIES]
        memories = [np.asarray(m) for m in state.memory if m is not None]
        for i in range(5):
            found = [
                (int(m[s.value, step, i]), (step, s, name))
                for name, m in zip(names, memories, strict=True)
                for s in S
                for step in range(40)
                if m[s.value, step, i]
            ]
            assert [c for _, c in sorted(found, key=lambda f: f[0])] == [c[:3] for c in calls if i in c[3]]
            assert len({k for k, _ in found}) == len(found), "no two calls at once"


def _pairs(log):
    """Rows of one hook, one after another."""
    last = {}
    for step, stage, name in log:
        if (stage, name) in last:
            yield last[stage, name], (step, stage, name)
        last[stage, name] = (step, stage, name)


# -- a fused run is its stages in sequence ---------------------------------------------------------


@pytest.fixture(scope="module")
def in_sequence(lj, batch):
    key = jax.random.key(5)
    relaxed = relaxation(lj).run(batch)
    later = jax.random.fold_in(key, 1)
    return relaxed, dynamics(lj).run(initialize_velocities(relaxed, 20.0, later), key=later)


def test_relax_and_md_in_one_loop(lj, batch, in_sequence):
    """One model for both, velocities drawn on arrival, the noise of the second stage."""
    relaxed, after = (x.take() for x in in_sequence)
    engine = relaxation(lj) + dynamics(lj)
    assert (engine.n_stages, engine.exit_status) == (2, 2)
    out = engine.run(batch, key=jax.random.key(5)).take()
    np.testing.assert_allclose(out.positions, after.positions, atol=1e-9)
    np.testing.assert_allclose(out.velocities, after.velocities, atol=1e-10)
    assert len(set(relaxed.steps_taken.tolist())) == 4, "the systems arrive at different times"
    assert out.steps_taken.tolist() == (relaxed.steps_taken + 30).tolist()
    assert out.status.tolist() == [2] * 4
    assert out.converged.all()
    # And alone.
    alone = engine.run(Batch.from_ase(batch.to_ase()[0]), key=jax.random.key(5)).take()
    np.testing.assert_allclose(alone.positions, out.positions[:13], atol=1e-9)


def test_budgets_count_from_arrival(lj, batch):
    """Three stages; the first ends by its budget, the last is not reached within the sum's own budget."""
    first = FIRE(model=lj, dt=1.0, n_steps=7, hooks=[ConvergenceHook.from_fmax(1e-9)])
    engine = FusedStage([first, NVE(model=lj, dt=1.0, n_steps=5), NVE(model=lj, dt=1.0, n_steps=9)])
    out = engine.run(batch).take()
    assert out.steps_taken.tolist() == [21] * 4
    assert out.converged.tolist() == [False] * 4
    assert int(engine.max_steps) == 21
    out = dataclasses.replace(engine, n_steps=15).run(batch).take()
    assert (out.steps_taken.tolist(), out.status.tolist()) == ([15] * 4, [3] * 4)
    state = engine.advance(engine.init(batch), 10)
    assert state.batch.status.tolist() == [1] * 4
    assert state.batch.stage_steps.tolist() == [3] * 4
    with pytest.raises(ValueError, match="FusedStage has no n_steps"):
        (first + NVE(model=lj, dt=1.0)).run(batch)


def test_hooks_of_a_stage_begin_when_a_system_arrives(lj, batch, in_sequence):
    """Memories by system: the drift monitor counts from the first step of dynamics of each system."""
    relaxed, _ = in_sequence
    md = NVE(model=lj, dt=2.0, n_steps=20, temperature=15.0, hooks=[EnergyDriftMonitorHook()])
    key = jax.random.key(2)
    start = initialize_velocities(relaxed, 15.0, jax.random.fold_in(key, 1))
    alone = md.advance(md.init(start), 20).memory[0]
    engine = relaxation(lj) + md
    fused = engine.advance(engine.init(batch, key=key), 400).memory[1]
    np.testing.assert_allclose(fused.reference, alone.reference, atol=1e-9)
    np.testing.assert_allclose(fused.worst, alone.worst, atol=1e-9)
    assert (np.asarray(fused.worst[:4]) > 0).all()


def test_forces_are_renewed_where_a_stage_shapes_them(batch):
    """A restraint in the second stage acts from its first half kick on, and not before."""

    def pull(b):
        return 0.05 * sum_by_system(b, jnp.sum(b.positions**2, axis=1))

    hook = BiasedPotentialHook(pull)
    first = NVE(model=MODEL, dt=2.0, n_steps=5, hooks=[Leave(jnp.array([1, 2, -1, 3]))])
    second = NVE(model=MODEL, dt=2.0, n_steps=6, hooks=[hook])
    middle = first.run(batch)
    expected = second.run(middle).take()
    out = (first + second).run(batch).take()
    np.testing.assert_allclose(out.positions, expected.positions, atol=1e-10)
    np.testing.assert_allclose(out.energy, expected.energy, rtol=1e-11)
    free = NVE(model=MODEL, dt=2.0, n_steps=5)
    back = (second + free).run(batch).take()
    np.testing.assert_allclose(back.positions, free.run(second.run(batch)).take().positions, atol=1e-10)


def test_one_model_evaluation_in_a_step(batch):
    """Whatever the number of stages."""
    count = []

    class Counting(HarmonicModel):
        def evaluate(self, *args, **kwargs):
            count.append(1)
            return super().evaluate(*args, **kwargs)

    model = Counting()
    fire = FIRE(model=model, dt=1.0, n_steps=5)
    engine = FusedStage([fire, NVE(model=model, dt=1.0, n_steps=5), NVE(model=model, dt=1.0, n_steps=5)])
    state = engine.init(batch)
    count.clear()
    jax.make_jaxpr(lambda s: engine.step(s))(state)
    assert len(count) == 1


def test_a_snapshot_sees_the_system_as_it_left(lj, batch, in_sequence):
    """A converged system is written before its velocities are drawn; a stage writes its own systems."""
    relaxed, _ = in_sequence
    steps = relaxed.take().steps_taken
    left, frames, whole = HostMemory(), HostMemory(), HostMemory()
    first = relaxation(lj).with_hooks(ConvergedSnapshotHook(left))
    second = dynamics(lj, 10, hooks=[SnapshotHook(frames, frequency=2)])
    engine = FusedStage([first, second], hooks=[SnapshotHook(whole, frequency=5)])
    out = engine.run(batch, key=jax.random.key(5)).take()
    kept = left.read().take()
    assert sorted(kept.system_id.tolist()) == [0, 1, 2, 3]
    assert kept.system_id.tolist() == np.argsort(steps, kind="stable").tolist()
    for i, system in enumerate(kept.system_id.tolist()):
        mine = relaxed.take([system])
        np.testing.assert_allclose(kept.take([i]).positions, mine.positions, atol=1e-9)
        assert not np.any(kept.take([i]).velocities)
    assert len(whole) == 4 * -(-int(out.steps_taken.max()) // 5)
    expected = sum(-(-(s + 10) // 2) - -(-s // 2) for s in steps.tolist())
    assert len(frames) == expected


@pytest.mark.cheap_xla
def test_host_hooks_change_no_bit(batch, tmp_path):
    """Observers of the sum and of its stages, at the edges of a step; at BEFORE_STEP they see the
    velocities that the step begins with."""
    seen = []

    def look(ctx):
        velocities = np.split(ctx.batch.velocities, ctx.batch.first_atom[1:])
        seen.append([bool(np.any(v)) for v in velocities])

    log = LoggingHook(log_path=tmp_path / "md.csv", frequency=3)
    relax, md = relaxation(MODEL), dynamics(MODEL)
    engine = relax + md
    watched = FusedStage(
        [relax.with_hooks(CallbackHook(lambda ctx: None, S.AFTER_STEP)), md.with_hooks(log)],
        hooks=[CallbackHook(look, S.BEFORE_STEP), ObservableHook({"k": kinetic_energy})],
    )
    a, b = engine.run(batch).take(), watched.run(batch).take()
    for name in ("positions", "velocities", "energy", "status", "steps_taken"):
        assert np.array_equal(a[name], b[name]), name
    moving = np.array(seen)
    assert [int(np.argmax(m)) for m in moving.T] == (a.steps_taken - 30).tolist()
    rows = np.genfromtxt(tmp_path / "md.csv", delimiter=",", names=True)
    assert set(rows["status"]) <= {1, 2}
    for i, n in enumerate(a.steps_taken.tolist()):
        mine = rows["step"][rows["system_id"] == i]
        assert mine.tolist() == [s for s in range(n - 30, n) if s % 3 == 0]


# -- sums ------------------------------------------------------------------------------------------


class Opens:
    stage, frequency = S.AFTER_STEP, 1

    def __init__(self, name, events):
        self.name, self.events = name, events

    def __enter__(self):
        self.events.append(f"open {self.name}")
        return self

    def __exit__(self, *exc):
        self.events.append(f"close {self.name}")

    def __call__(self, ctx, stage):
        self.events.append((ctx.step_count, self.name, ctx.active_mask.tolist()))


def test_nested_sums_flatten(batch):
    """Hooks of an inner sum go on looking at its stages."""
    events = []
    a, b, c = (NVE(model=MODEL, dt=1.0, n_steps=1, hooks=[Opens(name, events)]) for name in ("a", "b", "c"))
    inner = (b + c).with_hooks(Opens("b+c", events))
    engine = (a + inner).with_hooks(Opens("all", events))
    assert [type(p) for p in engine.stages] == [NVE] * 3
    assert engine.n_stages == 3
    engine.run(batch)
    all4 = [True] * 4
    names = ["all", "b+c", "a", "b", "c"]
    called = [(0, "a", all4), (0, "all", all4)]
    for step, name in ((1, "b"), (2, "c")):
        called += [(step, name, all4), (step, "b+c", all4), (step, "all", all4)]
    assert events == [*(f"open {n}" for n in names), *called, *(f"close {n}" for n in reversed(names))]


def test_hooks_are_closed_when_one_cannot_be_opened(batch):
    events = []

    class Broken(Opens):
        def __enter__(self):
            raise OSError("no room")

    engine = NVE(model=MODEL, dt=1.0, n_steps=1, hooks=[Opens("a", events)]) + NVE(
        model=MODEL, dt=1.0, n_steps=1, hooks=[Broken("b", events)]
    )
    with pytest.raises(OSError, match="no room") as e:
        engine.run(batch)
    assert e.value.__notes__ == ["raised in hook Broken when it was opened"]
    assert events == ["open a", "close a"]


def test_refusals(lj, batch):
    other = LennardJones(epsilon=0.01, sigma=3.3)
    a, b = NVE(model=lj, dt=1.0, n_steps=2), NVE(model=other, dt=1.0, n_steps=2)
    with pytest.raises(ValueError, match="NVE and NVE share one model evaluation per step, but their models"):
        a + b
    with pytest.raises(TypeError, match="a stage of FusedStage must be an engine, not a int"):
        FusedStage([a, 3])
    with pytest.raises(ValueError, match="at least one stage"):
        FusedStage([])
    with pytest.raises(ValueError, match="a pipeline within a pipeline cannot have n_steps"):
        FusedStage([FusedStage([a, a], n_steps=3), a])
    with pytest.raises(TypeError):
        a + 3

    class Other(Enum):
        HERE = 0

    strange = type("Strange", (Opens,), {"stage": Other.HERE})("x", [])
    with pytest.raises(TypeError, match=r"Strange\.stage must be a DynamicsStage"):
        (a + a).with_hooks(strange)
    text = repr(a + dynamics(lj))
    assert "stage 0: NVE(" in text
    assert "stage 1: NVTLangevin(" in text
    assert "temperature=20" in text


def test_a_system_that_fails_leaves_the_others_alone(lj, batch, in_sequence, structures):
    """It is finished whatever stage it was in."""
    bad = structures[1].copy()
    bad.positions[0] = bad.positions[1]
    broken = Batch.from_ase([structures[0], bad, *structures[2:]])
    engine = relaxation(lj) + dynamics(lj)
    with pytest.warns(RuntimeWarning, match="system 1 .* failed"):
        out = engine.run(broken, key=jax.random.key(5)).take()
    assert out.failed.tolist() == [False, True, False, False]
    assert out.status.tolist() == [2] * 4
    after = in_sequence[1].take()
    np.testing.assert_allclose(out.take([0]).positions, after.take([0]).positions, atol=1e-9)


# -- JAX -------------------------------------------------------------------------------------------


# The programs are those of the tests above; bits of a run that goes on: test_checkpoint.
@pytest.mark.cheap_xla
def test_nothing_recompiles_and_runs_go_on(lj, batch, compilations, tmp_path):
    engine = relaxation(lj) + dynamics(lj)
    whole = engine.advance(engine.init(batch), 120)
    state = engine.advance(engine.init(batch), 47)
    checkpoint.save(tmp_path / "c", state)
    state = engine.advance(checkpoint.load(tmp_path / "c", engine.init(batch)), 73)
    for a, b in zip(jax.tree.leaves(whole.batch), jax.tree.leaves(state.batch), strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    engine.run(batch, 1)
    other = FIRE(model=lj, dt=1.1, n_steps=90, hooks=[ConvergenceHook.from_fmax(0.05)]) + NVTLangevin(
        model=lj, dt=1.0, temperature=33.0, friction=0.01, n_steps=3
    )
    with compilations() as count:
        other.run(batch)
    assert count == []


def test_vmap_equals_a_loop(batch):
    """Over temperatures and keys."""

    def engine(t):
        fire = FIRE(model=MODEL, dt=5.0, n_steps=6)
        return fire + NVTLangevin(model=MODEL, dt=5.0, temperature=t, friction=0.05, n_steps=8)

    state = engine(1.0).init(batch)
    temperatures, keys = jnp.array([5.0, 50.0]), jax.random.split(jax.random.key(3), 2)

    def final(t, key):
        return engine(t).loop(state.replace(key=key)).batch.velocities

    mapped = jax.jit(jax.vmap(final))(temperatures, keys)
    for k in range(2):
        np.testing.assert_allclose(mapped[k], final(temperatures[k], keys[k]), atol=1e-10)
    # The first half kick is of the wells; the noise is of the temperature.
    assert np.abs(mapped[1] - mapped[0]).max() > 1e-4
