"""A system that would fail goes back to its last good copy, with shorter steps; nobody else notices."""

import contextlib
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    FIRE,
    LBFGS,
    NVE,
    ConvergenceHook,
    DynamicsStage,
    NVTLangevin,
    OptaxOptimizer,
    Rescue,
    Sampler,
)
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.hooks import TracedHook
from alchemi_jax.levels import PerSystem
from alchemi_jax.models import AbstractModel, HarmonicModel
from alchemi_jax.segments import sum_by_system
from alchemi_jax.systems.outcome import Outcome


pytestmark = pytest.mark.cheap_xla


class Wall(AbstractModel):
    """A well at x = 1.9 Å, just before a wall at 2 Å beyond which the energy is not a number."""

    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        x = batch.positions[:, 0]
        return sum_by_system(batch, jnp.where(x > 2, jnp.nan, 0.5 * (x - 1.9) ** 2))


WELL = HarmonicModel(k=1.0)
RESCUE = Rescue(tries=4, every=10)
#: Engines, with steps that are too long for the second of three systems.
ENGINES = {
    "FIRE": lambda **k: FIRE(Wall(), dt=10.0, dt_max=10.0, max_step=5.0, **k),
    "LBFGS": lambda **k: LBFGS(Wall(), curvature=0.3, max_step=5.0, **k),
    "pipeline": lambda **k: NVE(WELL, dt=3.0, n_steps=5) + NVTLangevin(WELL, dt=60.0, temperature=10.0, **k),
}


def structures(name, bad=True):
    """In a well hydrogen needs shorter steps than argon; at the wall whoever is far away moves too far."""
    if name in ("FIRE", "LBFGS"):
        far = [0.0 if bad else 1.89] * 2
        return [Atoms("Ar2", [[x, 0, 0], [x, 3, 0]]) for x in (1.88, far[0], 1.87)]
    return [Atoms(x, [[0.1, 0, 0], [0, 0.3, 0]]) for x in ("Ar2", "H2" if bad else "Ar2", "Ar2")]


def batch_of(atoms, **fields):
    return Batch.from_ase(atoms, system_capacity=3, atom_capacity=6).replace(**fields)


def run(engine, given, **kwargs):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = engine.run(given, **kwargs)
    return out, [str(w.message) for w in seen if "rescued" in str(w.message) or "failed" in str(w.message)]


def rows(out, system, atoms=None):
    """All that is known of a system."""
    atoms = slice(2 * system, 2 * system + 2)
    names = ("positions", "velocities", "forces")
    own = [out[name][atoms] for name in names]
    return own + [out[n][system] for n in ("energy", "time", "steps_taken", "outcome", "reason", "rescues")]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", ENGINES)
def test_a_rescue_is_of_one_system(name):
    """It ends its run; the others do, to the last bit, what they do beside a system that needs none; and it
    does what it does alone. In two parts the run is the same one. With too few tries it fails, finite."""
    engine = ENGINES[name](n_steps=40, rescue=RESCUE)
    out, messages = run(engine, batch_of(structures(name)))
    count = int(out["rescues"][1])
    assert 0 < count <= 3
    assert out.outcome.tolist() == [Outcome.OUT_OF_STEPS] * 3
    assert len(messages) == 1
    assert messages[0].startswith("system 1 (")
    assert f"(rescue {count})" in messages[0]
    assert ("time step of" if engine.parts[-1].has_velocities else "of their length") in messages[0]
    if engine.parts[-1].has_velocities:
        assert 0 < out.time[1] < out.time[0]
    calm, silent = run(engine, batch_of(structures(name, bad=False)))
    assert not silent
    for system in (0, 2):
        assert_same(rows(out, system), rows(calm, system))
    alone = batch_of(structures(name)[1:2], system_id=np.array([1, -1, -1], np.int32))
    assert_same(rows(run(engine, alone)[0], 0), rows(out, 1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = engine.advance(engine.init(batch_of(structures(name))), 3)
        state = engine.advance(state, 100)
    for system in range(3):
        assert_same(rows(state.batch, system), rows(out, system))

    few = ENGINES[name](n_steps=40, rescue=Rescue(tries=1, every=10, factor=0.999))
    out, messages = run(few, batch_of(structures(name)))
    assert out.outcome[1] == Outcome.FAILED
    assert "It was rescued 1 times before. It stays in its last finite state." in messages[1]
    assert all(np.isfinite(np.asarray(x)).all() for x in rows(out, 1))
    for system in (0, 2):
        assert_same(rows(out, system), rows(calm, system))


def test_where_none_is_needed_a_rescue_changes_no_bit():
    calm = batch_of(structures("pipeline", bad=False))
    with_it, _ = run(ENGINES["pipeline"](n_steps=40, rescue=RESCUE), calm)
    without, _ = run(ENGINES["pipeline"](n_steps=40), calm)
    for field in ("positions", "velocities", "forces", "energy", "time", "steps_taken"):
        np.testing.assert_array_equal(with_it[field], without[field])
    assert "rescues" not in without.system_extras


def test_refilled_shrunk_and_mapped_runs_rescue_the_same(tmp_path):
    """Also one that was ended and goes on from its checkpoint; memories of hooks are taken back, too."""
    many = [Atoms(x, [[0.1 + i / 50, 0, 0], [0, 0.3, 0]]) for i, x in enumerate(["Ar2", "H2"] * 3)]
    engine = NVE(WELL, dt=60.0, n_steps=40, rescue=RESCUE, hooks=[Count()])
    expected, messages = run(engine, Batch.from_ase(many, system_capacity=6, atom_capacity=12))
    assert [n > 0 for n in expected["rescues"].tolist()] == [False, True] * 3
    assert len(messages) == 3
    # Two remain at the end, in a batch of half the size.
    sampler = Sampler(many, max_systems=4, max_atoms=8, shrink=True)
    refilled, told = run(engine, None, sampler=sampler)
    assert sorted(m.split(" was")[0] for m in told) == sorted(m.split(" was")[0] for m in messages)
    for system in range(6):
        assert_same(rows(refilled, system), rows(expected, system))

    begun = engine.init(Batch.from_ase(many, system_capacity=6, atom_capacity=12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = engine.advance(begun, 100)
    interrupted = engine.with_hooks(h.CheckpointHook(tmp_path, frequency=5), Interrupt(20))
    for ends in (True, False):
        with warnings.catch_warnings(), contextlib.suppress(Stop) if ends else contextlib.nullcontext():
            warnings.simplefilter("ignore")
            whole = (interrupted if ends else engine).run(begun.batch, resume=tmp_path)
    for system in range(6):
        assert_same(rows(whole, system), rows(expected, system))
    # What a hook counted since the copy is taken back, as the memory of the system is its own.
    counted = np.asarray(after.memory[0].value)
    assert (counted[1::2] < 40).all()
    assert (counted[0::2] == 40).all()

    both = jax.vmap(lambda dt: NVE(WELL, dt=dt, rescue=RESCUE, hooks=[Count()]).loop(begun, 40).batch)
    mapped = both(jnp.array([60.0, 1.0]))
    np.testing.assert_array_equal(mapped["rescues"][0], expected["rescues"])
    np.testing.assert_allclose(mapped.positions[0], expected.positions, rtol=1e-9)
    assert not mapped["rescues"][1].any()


class Stop(Exception):
    pass


class Interrupt:
    """Ends a run at a step."""

    stage = DynamicsStage.AFTER_STEP

    def __init__(self, step):
        self.frequency = step

    def __call__(self, ctx, stage):
        if ctx.step_count:
            raise Stop


class Count(TracedHook):
    """Counts the steps of each system."""

    stage: DynamicsStage = DynamicsStage.AFTER_STEP
    frequency: int = 1

    def init(self, batch):
        return PerSystem(jnp.zeros(batch.system_capacity, jnp.int32))

    def __call__(self, ctx, stage):
        return ctx.with_memory(PerSystem(ctx.memory.value + ctx.active_mask))


class Blame(TracedHook):
    """Fails the second system after a while."""

    stage: DynamicsStage = DynamicsStage.AFTER_STEP
    frequency: int = 1
    reasons = ("too late",)

    def __call__(self, ctx, stage):
        return ctx.fail((ctx.batch.system_id == 1) & (ctx.batch.time > 200.0))


def test_whether_hooks_are_overruled_is_up_to_the_rescue():
    """Steps go on, so that no two frames have the same; time goes back."""
    for hooks, rescued in ((True, True), (False, False)):
        engine = NVE(WELL, dt=60.0, n_steps=12, rescue=Rescue(tries=9, every=3, hooks=hooks))
        frames = h.SnapshotHook(HostMemory())
        out, messages = run(engine.with_hooks(Blame(), frames), batch_of(structures("NVE", bad=False)))
        seen = frames.sink.read()
        steps, time = (getattr(seen, n)[seen.system_id == 1] for n in ("steps_taken", "time"))
        # A system that has failed is shown as it stays.
        assert (np.diff(steps) > 0).all() or not rescued
        assert bool((np.diff(time) < 0).any()) is rescued
        assert bool(out["rescues"][1]) is rescued
        assert bool(out.failed[1]) is not rescued
        assert "Blame: too late" in messages[0]
        assert out.steps_taken[0] == 12
        if rescued:
            assert out.steps_taken[1] == 12
            assert 0 < out.time[1] < 300.0


def test_wrong_use():
    with pytest.raises(TypeError, match="rescue must be a Rescue"):
        NVE(WELL, dt=1.0, rescue=3)
    for wrong in ({"tries": 0}, {"factor": 1.5}, {"factor": 0.0}, {"every": 0}, {"hooks": "yes"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Rescue(**wrong)
    with pytest.raises(TypeError, match="OptaxOptimizer has no parameter that a rescue could make smaller"):
        OptaxOptimizer(WELL, optax.sgd(0.1), rescue=Rescue())
    engine = NVE(WELL, dt=1.0) + FIRE(WELL, hooks=[ConvergenceHook()])
    assert "rescue" not in repr(engine)
    assert repr(NVE(WELL, dt=1.0, rescue=Rescue())).endswith("every=50, hooks=False))")
