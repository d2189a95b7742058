"""What hooks may do to the outcome of a system, and what must not be lost without a word."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook, DynamicsStage, checkpoint
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.hooks import RecordingHook, TracedHook
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.outcome import Outcome


S = DynamicsStage


def structures():
    """Three systems of two atoms at rest, not in equilibrium."""
    return [Atoms("Ar2", positions=[[0.1, 0, 0], [0, 3, 0]], cell=np.eye(3) * 20.0, pbc=True)] * 3


def run(engine, given, **kwargs):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = engine.run(given, **kwargs)
    return out.take(), [str(w.message) for w in seen if "failed" in str(w.message)]


class Act(TracedHook):
    """Does something to the second system: stops it, fails it, or writes a NaN; `what` chooses."""

    what: jax.Array
    stage: DynamicsStage = eqx.field(static=True, default=S.AFTER_STEP)
    frequency: int = 1
    reasons = ("because",)

    def __call__(self, ctx, stage):
        now = (ctx.batch.system_id == 1) & (ctx.batch.steps_taken >= 4)
        if ctx.converged_mask is not None:
            now = now & ctx.converged_mask
        atoms = now[jnp.minimum(ctx.batch.batch_idx, 2)][:, None]
        ctx = ctx.stop(now & (self.what == 1)).fail(now & (self.what == 2))
        spoiled = jnp.where(atoms & (self.what == 3), jnp.nan, ctx.batch.positions)
        return ctx.with_batch(positions=spoiled)


@pytest.mark.parametrize("stage", [S.BEFORE_STEP, S.AFTER_STEP])
def test_of_two_hooks_in_a_stage_the_first_to_fail_a_system_gives_the_reason(stage):
    """And a system that was just stopped does not keep what is not finite."""
    batch = Batch.from_ase(structures())
    for first, second, outcome, why in (
        (2, 1, Outcome.FAILED, "Act: because"),
        (3, 1, Outcome.FAILED, "positions are not finite after Act"),
        (1, 2, Outcome.STOPPED, "Act: because"),
        (1, 3, Outcome.FAILED, "positions are not finite after Act"),
    ):
        hooks = [Act(what=jnp.asarray(what), stage=stage) for what in (first, second)]
        engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=9, hooks=hooks)
        out, messages = run(engine, batch)
        assert out.outcome.tolist() == [Outcome.OUT_OF_STEPS, outcome, Outcome.OUT_OF_STEPS]
        assert engine.reason_text(out.reason[1]).endswith(why)
        assert np.isfinite(out.positions).all()
        assert len(messages) == (outcome == Outcome.FAILED)


def test_hooks_at_on_converge_stop_and_fail_at_once():
    """A stopped system does not enter the next part; a NaN does not stay in a system that has converged."""
    seen = []
    note = h.CallbackHook(
        lambda ctx: seen.extend(ctx.batch.system_id[ctx.converged_mask]), stage=S.ON_CONVERGE
    )
    batch = Batch.from_ase(structures())
    for what, outcome in ((0, Outcome.CONVERGED), (1, Outcome.STOPPED), (3, Outcome.FAILED)):
        act = Act(what=jnp.asarray(what), stage=S.ON_CONVERGE)
        relax = FIRE(
            model=HarmonicModel(k=0.5), n_steps=400, hooks=[ConvergenceHook.from_fmax(1e-3), act, note]
        )
        seen.clear()
        fused, _ = run(relax + NVE(model=relax.model, dt=1.0, n_steps=5), batch)
        assert fused.outcome.tolist() == [Outcome.CONVERGED, outcome, Outcome.CONVERGED]
        np.testing.assert_allclose(fused.time, [5.0, 5.0 * (what == 0), 5.0])
        assert sorted(seen) == ([0, 2] if what == 3 else [0, 1, 2])
        single, messages = run(relax, batch)
        assert (single.outcome[1] == Outcome.FAILED) == (what == 3) == bool(messages)
        assert np.isfinite(single.positions).all()


def test_who_waits_for_on_converge_still_gets_the_steps_of_the_budget():
    relax = FIRE(model=HarmonicModel(k=0.5), n_steps=9, hooks=[ConvergenceHook.from_fmax(10.0)])
    fused = relax + NVE(model=relax.model, dt=1.0, n_steps=9)
    out, _ = run(fused, Batch.from_ase(structures()), n_steps=3)
    assert out.steps_taken.tolist() == [3] * 3
    assert out.outcome.tolist() == [Outcome.CONVERGED] * 3


class Rows(RecordingHook):
    """Large rows at two stages."""

    stage = S.AFTER_STEP

    def _runs_on_stage(self, stage):
        return stage in (S.BEFORE_STEP, S.AFTER_STEP)

    def record(self, ctx):
        return jnp.zeros(70_000), ctx.step_count

    def write(self, rows):
        pass


def test_no_row_is_lost_without_a_word():
    """A pure loop makes room for rows of all stages; where it cannot, that is an overflow."""
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=100, hooks=[Rows()])
    begun = engine.init(Batch.from_ase(structures()))
    loop = jax.jit(lambda s: engine.loop(s, 20))
    state = loop(begun)
    assert (int(state.step_count), int(state.records[0].count), bool(state.overflow)) == (20, 40, False)
    more = engine.rollout(state, 20)
    assert (int(more.step_count), int(more.records[0].count), bool(more.overflow)) == (40, 80, False)
    lost = loop(state)
    assert bool(lost.overflow)
    assert np.isnan(lost.batch.energy).all()


def test_derivatives_go_backwards_through_the_first_evaluation():
    engine = FIRE(model=HarmonicModel(k=0.5), n_steps=9)
    batch = Batch.from_ase(structures())
    begun = engine.init(batch)

    def energy(positions):
        return engine.init(batch.replace(positions=positions), like=begun).batch.energy.sum()

    np.testing.assert_allclose(jax.grad(energy)(batch.positions), -begun.batch.forces, atol=1e-6)


class Bare(TracedHook):
    """A memory with an empty array."""

    stage: DynamicsStage = S.AFTER_STEP
    frequency: int = 1

    def init(self, batch):
        return jnp.zeros((0, 3))

    def __call__(self, ctx, stage):
        return ctx


@pytest.mark.cheap_xla
def test_empty_memories_and_other_kinds_of_keys_are_stored(tmp_path):
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=9, hooks=[Bare()])
    state = engine.init(Batch.from_ase(structures()), key=jax.random.key(1, impl="rbg"))
    checkpoint.save(tmp_path / "state", state)
    again = checkpoint.load(tmp_path / "state", state)
    assert again.key.dtype == state.key.dtype
    assert again.memory[0].shape == (0, 3)
    np.testing.assert_array_equal(jax.random.key_data(again.key), jax.random.key_data(state.key))


@pytest.mark.cheap_xla
def test_run_and_init_take_whatever_holds_systems():
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=3)
    given = structures()
    batch = Batch.from_ase(given)
    expected = engine.run(batch)
    for systems in (given, batch.to_host(), list(batch)):
        out = engine.run(systems)
        np.testing.assert_array_equal(out.positions, expected.positions)
        np.testing.assert_array_equal(engine.init(systems).batch.energy, engine.init(batch).batch.energy)
    assert len(engine.run(given[0])) == 1
