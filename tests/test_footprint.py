"""Bytes of a run, known before it: against the bytes of the arrays, and what `max_batch` makes of it."""

import jax
import pytest
from conftest import crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, max_batch
from alchemi_jax.dynamics.hooks import CallbackHook, ObservableHook
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.observables import fmax


def held(state):
    """Bytes of the arrays of a state."""
    return sum(
        leaf.nbytes
        for leaf in jax.tree.leaves(state)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


@pytest.fixture(scope="module")
def batch():
    return Batch.from_ase([crystal(i) for i in range(4)])


@pytest.fixture(scope="module")
def engine():
    return NVE(model=HarmonicModel(), dt=1.0, n_steps=10, hooks=[ObservableHook({"fmax": fmax})])


def test_the_state_is_what_its_arrays_are(lj, batch):
    """Neighbor list and rows of recording hooks included."""
    engine = NVE(model=lj, dt=1.0, n_steps=10, hooks=[ObservableHook({"fmax": fmax})])
    state = engine.init(batch)
    expected = engine.footprint(batch)
    assert expected.state == pytest.approx(held(state), rel=0.02)
    assert expected.result == pytest.approx(held(state), rel=0.02)
    assert expected.temporary > 0
    assert expected.total == expected.state + expected.result + expected.temporary
    assert repr(expected).startswith("Footprint(")


def test_what_is_not_on_the_device_does_not_count(engine, batch):
    expected = engine.footprint(batch)
    assert engine.footprint(engine.init(batch)) == expected
    assert engine.with_hooks(CallbackHook(print)).footprint(batch) == expected


def test_a_budget_gives_the_largest_batch(engine, batch):
    """What it finds fits, one more does not; nothing of that size is made."""
    one = engine.footprint(batch).total
    found = max_batch(engine, batch, 20.5 * one)
    assert found.systems == found.copies * batch.system_capacity
    assert found.atoms == found.copies * batch.atom_capacity
    assert found.footprint.total <= 20.5 * one
    assert found.footprint.total * (found.copies + 1) / found.copies > 20.5 * one
    real = Batch.from_ase(
        [crystal(i % 4) for i in range(4 * found.copies)],
        atom_capacity=found.atoms,
        system_capacity=found.systems,
    )
    assert engine.footprint(real).total == pytest.approx(found.footprint.total, rel=0.05)
    assert max_batch(engine, batch, 80e9).systems > 10_000
    with pytest.raises(ValueError, match=r"needs .* the budget is 1000 bytes"):
        max_batch(engine, batch, 1000)
