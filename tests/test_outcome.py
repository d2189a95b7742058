"""How runs of systems end: failed and stopped are final, whatever hooks are attached."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import AtomicData, Batch
from alchemi_jax.dynamics import (
    FIRE,
    NPT,
    NVE,
    ConvergenceHook,
    DynamicsStage,
    NVTLangevin,
    Sampler,
)
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.hooks import TracedHook
from alchemi_jax.levels import PerSystem
from alchemi_jax.models import AbstractModel, HarmonicModel
from alchemi_jax.segments import sum_by_system
from alchemi_jax.systems.outcome import Outcome


S = DynamicsStage


class Fragile(AbstractModel):
    """A harmonic well whose energy is not a number beyond x = 2 Å."""

    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        x = batch.positions[:, 0]
        return sum_by_system(batch, jnp.where(x > 2, jnp.nan, 0.5 * x * x))


class Identity(TracedHook):
    stage: DynamicsStage = S.AFTER_STEP
    frequency: int = 1

    def __call__(self, ctx, stage):
        return ctx


def atoms(speed=0.0):
    cell = np.eye(3) * 20.0
    return Atoms(
        "Ar2", positions=[[0.1, 0, 0], [0, 3, 0]], cell=cell, pbc=True, velocities=[[speed, 0, 0], [0, 0, 0]]
    )


def structures(failing):
    """Three systems; the second runs into the wall in its seventh step, or stands still."""
    moving = 0.3 if failing else 0.0
    out = [atoms(), atoms(), atoms()]
    for system, v in zip(out, (0.01, moving, 0.02), strict=True):
        system.set_velocities(np.array([[v, 0, 0], [0, 0, 0]]) / 0.09822694788464063)
    return out


def bias(batch):
    return 0.01 * sum_by_system(batch, jnp.sum(batch.positions**2, axis=1))


TRACED = {
    "none": lambda: [],
    "identity": lambda: [Identity()],
    "convergence": lambda: [ConvergenceHook.from_fmax(1e-9)],
    "energy change": lambda: [ConvergenceHook({"key": "energy_change", "threshold": 0.0})],
    "clamp": lambda: [h.MaxForceClampHook(5.0)],
    "bias": lambda: [
        h.BiasedPotentialHook(
            lambda b, m: bias(b) + m.value, memory=PerSystem(jnp.zeros(3)), deposit=lambda b, m: m
        )
    ],
    "freeze": lambda: [h.FreezeAtomsHook(jnp.array([False, True, False, True, False, False]))],
    "wrap": lambda: [h.WrapPeriodicHook()],
    "nan": lambda: [h.NaNDetectorHook()],
    "drift": lambda: [h.EnergyDriftMonitorHook(threshold=1e6)],
    "temperature": lambda: [h.TemperatureScheduleHook.ramp(1.0, 2.0, 10)],
    "exchange": lambda: [h.ReplicaExchangeHook([1.0, 2.0, 3.0], every=100)],
    "pressure": lambda: [h.PressureScheduleHook.ramp(0.0, 0.0, 10)],
}


def engine_of(name, hooks):
    model = Fragile()
    if name in ("temperature", "exchange"):
        return NVTLangevin(model=model, dt=1.0, temperature=1.0, friction=1e-4, n_steps=20, hooks=hooks)
    if name == "pressure":
        return NPT(model=model, dt=1.0, temperature=1e4, pressure=0.0, n_steps=20, hooks=hooks)
    return NVE(model=model, dt=1.0, n_steps=20, hooks=hooks)


def run(engine, given, **kwargs):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = engine.run(given, **kwargs)
    return out.take(), [str(w.message) for w in seen if "failed" in str(w.message)]


def check(out, messages, steps, reason="energy is not finite", finite=True):
    assert out.failed.tolist() == [False, True, False]
    assert out.outcome[1] == Outcome.FAILED
    assert len(messages) == 1, messages
    assert messages[0].startswith(f"system 1 (Ar2) failed in step {steps}: ")
    assert reason in messages[0]
    assert out.steps_taken[1] == steps
    for name in ("positions", "velocities", "forces", "energy", "cell", "masses", "time"):
        assert np.isfinite(out[name]).all(), name


def others(out):
    keep = [0, 1, 4, 5]
    return [out[name][keep] for name in ("positions", "velocities", "forces")] + [out.energy[[0, 2]]]


#: Compiled as users compile: without a hook, and with one that evaluates energies of its own.
FULL = ("none", "bias")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FULL else pytest.mark.cheap_xla) for n in TRACED]
)
def test_failed_is_final_whatever_hook_is_attached(name):
    """Failed once, by name, with its own step and reason; finite; the others as if it were not there."""
    engine = engine_of(name, TRACED[name]())
    batch = Batch.from_ase(structures(True))
    out, messages = run(engine, batch)
    check(out, messages, 6)
    assert out.status.tolist() == [1, 1, 1]
    healthy, silent = run(engine, Batch.from_ase(structures(False)))
    assert not silent
    if name != "exchange":
        for a, b in zip(others(out), others(healthy), strict=True):
            np.testing.assert_array_equal(a, b)
    assert set(out.outcome[[0, 2]].tolist()) <= {Outcome.CONVERGED, Outcome.OUT_OF_STEPS}


def test_failed_is_final_in_pipelines_and_refilled_and_shrunk_runs():
    """All hooks that one engine takes, at once."""
    names = ("convergence", "clamp", "freeze", "wrap", "nan", "drift")
    hooks = [hook for name in names if name != "freeze" for hook in TRACED[name]()]
    single = NVE(model=Fragile(), dt=1.0, n_steps=20, hooks=hooks)
    batch = Batch.from_ase(structures(True))
    fused = NVE(model=Fragile(), dt=1.0, n_steps=3) + single
    out, messages = run(fused, batch)
    check(out, messages, 6)
    assert out.status.tolist() == [2, 2, 2]
    shrunk, messages = run(single, batch, shrink=True)
    check(shrunk, messages, 6)
    refilled, messages = run(
        single, None, sampler=Sampler([*structures(True), *structures(False)], max_systems=2)
    )
    assert refilled.failed.tolist() == [False, True, False, False, False, False]
    assert len(messages) == 1
    assert "system 1 (Ar2) failed in step 6: its energy is not finite" in messages[0]
    np.testing.assert_allclose(refilled.positions[:6], shrunk.positions, atol=1e-12)


class Spoil(TracedHook):
    """Writes a NaN into a field of the second system in its fifth step."""

    field: str = eqx.field(static=True)
    stage: DynamicsStage = eqx.field(static=True, default=S.AFTER_STEP)
    frequency: int = 1

    def __call__(self, ctx, stage):
        batch = ctx.batch
        now = (batch.system_id == 1) & (batch.steps_taken == 4)
        values = batch[self.field]
        mask = now[jnp.minimum(batch.batch_idx, 2)] if batch.level(self.field) == "atom" else now
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - 1))
        return ctx.with_batch(**{self.field: jnp.where(mask, jnp.nan, values)})


@pytest.mark.parametrize(
    ("field", "stage"),
    [
        ("positions", S.AFTER_STEP),
        ("velocities", S.BEFORE_STEP),
        ("forces", S.AFTER_COMPUTE),
        ("cell", S.AFTER_POST_UPDATE),
    ],
)
def test_a_hook_that_writes_nan_fails_the_system_and_is_named(field, stage):
    out, messages = run(
        NVE(model=HarmonicModel(), dt=1.0, n_steps=9, hooks=[Spoil(field, stage)]),
        Batch.from_ase(structures(False)),
    )
    verb = "is" if field == "cell" else "are"
    check(out, messages, 4, f"its {field} {verb} not finite after Spoil")


class Guard(TracedHook):
    """Stops systems that went too far."""

    limit: float
    stage: DynamicsStage = eqx.field(static=True, default=S.AFTER_STEP)
    frequency: int = 1
    reasons = ("too far", "unused")

    def __call__(self, ctx, stage):
        far = jnp.abs(ctx.batch.positions[:, 0]) > self.limit
        return ctx.stop(sum_by_system(ctx.batch, far.astype(jnp.int32)) > 0)


@pytest.mark.parametrize(("stage", "steps"), [(S.AFTER_STEP, 4), (S.BEFORE_STEP, 4), (S.AFTER_COMPUTE, 4)])
def test_a_stopped_system_is_neither_converged_nor_failed(stage, steps):
    """It ends with the step in which the hook saw it, or before the next one; the others go on."""
    engine = NVE(model=HarmonicModel(k=0.0), dt=1.0, n_steps=12, hooks=[Guard(1.2, stage)])
    batch = Batch.from_ase(structures(True))
    out, messages = run(engine, batch)
    assert not messages
    assert out.outcome.tolist() == [Outcome.OUT_OF_STEPS, Outcome.STOPPED, Outcome.OUT_OF_STEPS]
    assert (out.failed.any(), out.converged.any()) == (False, False)
    assert out.steps_taken.tolist() == [12, steps, 12]
    assert engine.reason_text(out.reason[1]) == "Guard: too far"
    assert (out.reason[0], engine.reason_text(0)) == (0, "")
    np.testing.assert_allclose(out.time, [12.0, steps, 12.0])
    np.testing.assert_allclose(out.positions[2, 0], 0.1 + 0.3 * steps, rtol=1e-6)


def test_outcomes_say_how_a_run_ended():
    """Converged, out of steps, and before the end running; a run that goes on starts from scratch."""
    batch = Batch.from_ase(structures(False)[:2])
    engine = FIRE(model=HarmonicModel(k=0.5), n_steps=400, hooks=[ConvergenceHook.from_fmax(1e-3)])
    state = engine.advance(engine.init(batch), 2)
    assert state.batch.outcome.tolist() == [Outcome.RUNNING] * 2
    out = engine.run(batch)
    assert out.outcome.tolist() == [Outcome.CONVERGED] * 2
    assert np.asarray(out.time).tolist() == [0.0, 0.0], "a relaxation takes no time"
    short = engine.run(batch, n_steps=3)
    assert short.outcome.tolist() == [Outcome.OUT_OF_STEPS] * 2
    assert Outcome.OUT_OF_STEPS.text == "out of steps"


@pytest.mark.cheap_xla
def test_whoever_has_converged_takes_no_step():
    """Not a bit moves, ON_CONVERGE sees it in the first step, and the loop ends; alone and beside others."""
    seen = []

    def note(ctx):
        seen.append((ctx.step_count, ctx.converged_mask.tolist(), ctx.batch.positions.copy()))

    relax = FIRE(model=HarmonicModel(k=0.5), n_steps=400, hooks=[ConvergenceHook.from_fmax(1e-3)])
    relaxed = relax.run(Batch.from_ase(structures(False)[:2]))
    noting = relax.with_hooks(h.CallbackHook(note, stage=S.ON_CONVERGE))
    again = noting.run(relaxed)
    assert again.steps_taken.tolist() == [0, 0]
    assert again.outcome.tolist() == [Outcome.CONVERGED] * 2
    np.testing.assert_array_equal(again.positions, relaxed.positions)
    np.testing.assert_array_equal(seen[0][2], relaxed.take().positions)
    assert [(step, mask) for step, mask, _ in seen] == [(0, [True, True])]
    state = noting.init(relaxed)
    assert state.batch.status.tolist() == [1, 1]
    assert int(jax.jit(lambda s: relax.loop(s, 10))(state).step_count) == 1


class Count(TracedHook):
    """Counts steps in a memory of its own: one row per system, and a shared array of some length.

    What the memory says goes into extras of the systems, which they take along wherever they go.
    """

    length: int = eqx.field(static=True)
    stage: DynamicsStage = S.AFTER_STEP
    frequency: int = 1

    def init(self, batch):
        none = jnp.zeros(batch.system_capacity, jnp.int32)
        return {"shared": jnp.zeros(self.length, jnp.int32), "own": PerSystem(none)}

    def __call__(self, ctx, stage):
        shared = ctx.memory["shared"] + 1
        own = ctx.memory["own"].value + ctx.active_mask
        spread = jnp.where(ctx.active_mask, shared.max() - shared.min(), ctx.batch["spread"])
        counted = jnp.where(ctx.active_mask, own, ctx.batch["counted"])
        return ctx.with_batch(spread=spread, counted=counted).with_memory(
            {"shared": shared, "own": PerSystem(own)}
        )


@pytest.mark.parametrize("kind", ["fused", "refilled", "shrunk"])
def test_levels_are_declared_never_guessed(kind):
    """A shared array with as many entries as there are systems, or atoms, stays when systems move."""
    given = []
    for i in range(4):
        system = structures(False)[0]
        system.positions[0, 0] += 0.2 * i
        extras = {"spread": np.int32(0), "counted": np.int32(0)}
        given.append(dataclasses.replace(AtomicData.from_ase(system), system_extras=extras))
    for length in (3, 2, 4, 8):
        relax = FIRE(model=HarmonicModel(k=0.5), n_steps=300, hooks=[ConvergenceHook.from_fmax(1e-2)])
        engine = relax.with_hooks(Count(length))
        if kind == "fused":
            engine = relax + NVE(model=relax.model, dt=1.0, n_steps=7, hooks=[Count(length)])
            out = engine.run(Batch.from_data_list(given, system_capacity=4, atom_capacity=8)).take()
            expected = [7] * 4
        elif kind == "shrunk":
            out = engine.run(
                Batch.from_data_list(given, system_capacity=4, atom_capacity=8), shrink=True
            ).take()
            expected = out.steps_taken.tolist()
        else:
            out = engine.run(sampler=Sampler(given, max_systems=2, max_atoms=4)).take()
            expected = out.steps_taken.tolist()
        assert out["spread"].tolist() == [0] * 4, length
        assert out["counted"].tolist() == expected
        assert len(set(out.steps_taken.tolist())) > 1
