"""`rollout`: the loop as a scan, its bits, its memory and its derivatives."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EPSILON, SIGMA, cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    FIRE,
    NVE,
    ConvergenceHook,
    DynamicsStage,
    NVTLangevin,
    initialize_velocities,
)
from alchemi_jax.dynamics.hooks import LoggingHook
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import HarmonicModel, LennardJones


class Count(TracedHook):
    """Mean of the energy of the steps so far."""

    stage: DynamicsStage = DynamicsStage.AFTER_STEP
    frequency: int = 1

    def init(self, batch):
        return jnp.zeros_like(batch.energy)

    def __call__(self, ctx, stage):
        return dataclasses.replace(ctx, memory=ctx.memory + ctx.batch.energy)


def plain(batch):
    return batch


def start_of(engine, batch):
    state = engine.init(batch)
    return state.replace(batch=plain(state.batch))


@pytest.fixture(scope="module")
def hot():
    """A cluster and a crystal whose lists are renewed within a few steps."""
    batch = Batch.from_ase([cluster(0, 4), crystal(0, 1)])
    return initialize_velocities(batch, jnp.array([20.0, 200.0]))


def same(a, b):
    """Bit for bit, NaN included."""
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def engines(model, log):
    stop, wells = ConvergenceHook.from_fmax(0.02), HarmonicModel()
    return {
        "NVE": NVE(model=model, dt=8.0, hooks=[Count(), log], n_steps=30),
        "pipeline": FIRE(model=wells, hooks=[stop], n_steps=12)
        + NVTLangevin(model=wells, dt=4.0, temperature=20.0, n_steps=6, hooks=[log]),
    }


@pytest.mark.parametrize("name", ["NVE", pytest.param("pipeline", marks=pytest.mark.cheap_xla)])
def test_rollout_is_loop_bit_for_bit(name, hot, tmp_path):
    """Rows, memories, a stop before the last step; and `advance`, whose report changes nothing."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=6.0, skin=0.3)
    engine = engines(model, LoggingHook(log_path=tmp_path / "never.csv", frequency=4))[name]
    start = start_of(engine, hot)
    n = 23
    loop = eqx.filter_jit(lambda e, s: e.loop(s, n))(engine, start)
    assert name != "NVE" or int(loop.neighbors.builds) > 2
    assert int(loop.step_count) == (23 if name == "NVE" else 18)
    checkpoint = 5 if name == "NVE" else None
    assert not loop.overflow, "advance would grow the list and go on"
    out = eqx.filter_jit(lambda e, s: e.rollout(s, n, checkpoint=checkpoint))(engine, start)
    same(out, loop)
    alone = engine.advance(start, n)
    same(alone.replace(records=()), loop.replace(records=()))


def test_overflow_poisons(hot):
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=6.0, skin=0.3)
    engine = NVE(model=model, dt=8.0)
    start = start_of(engine, hot)
    # Rows of the list that hold nobody's neighbors but the first few.
    small = dataclasses.replace(start.neighbors.sizes, neighbors=8)
    lost = dataclasses.replace(start.neighbors, sizes=small, index=start.neighbors.index[:8])
    out = engine.rollout(start.replace(neighbors=lost), 20, checkpoint=4)
    assert bool(out.overflow)
    assert np.isnan(np.asarray(out.batch.energy)).all()
    assert int(out.step_count) < 20


def test_what_rollout_refuses(hot, lj):
    class Look:
        stage = DynamicsStage.AFTER_STEP
        frequency = 1

        def __call__(self, ctx, stage): ...

    engine = NVE(model=lj, dt=1.0)
    start = start_of(engine, hot)
    with pytest.raises(ValueError, match="hooks Look cannot be called from a loop under rollout: write a"):
        engine.with_hooks(Look()).rollout(start, 3)
    with pytest.raises(ValueError, match=r"NVE\.rollout: n_steps must be a positive int, not 2\.5"):
        engine.rollout(start, 2.5)
    with pytest.raises(ValueError, match=r"checkpoint must be 'sqrt', a positive int or None, not 'all'"):
        engine.rollout(start, 3, checkpoint="all")
    with pytest.raises(ValueError, match=r"NVE\.rollout: checkpoint must be a positive int, not 0"):
        engine.rollout(start, 3, checkpoint=0)


def gradient_memory(start, n, checkpoint):
    """Bytes of the backward pass, told by XLA: nothing is run."""

    def energy(k):
        engine = NVE(model=HarmonicModel(k=k), dt=2.0)
        return engine.rollout(start, n, checkpoint=checkpoint).batch.energy.sum()

    return jax.jit(jax.grad(energy)).lower(1.0).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.cheap_xla
def test_memory_of_the_backward_pass(hot):
    """Grows as n without rematerialisation, as its root with it."""
    start = start_of(NVE(model=HarmonicModel(), dt=2.0), hot)
    few, many = (gradient_memory(start, n, None) for n in (16, 144))
    small, large = (gradient_memory(start, n, "sqrt") for n in (16, 144))
    assert many / few > 5
    assert large / small < 4
    assert large < many
