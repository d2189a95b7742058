"""Engines inside programs of others: under settings of JAX, in threads, as arguments of transforms."""

import jax
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook, NVTLangevin, Sampler
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.systems.observables import fmax


PAIR = Atoms("Ar2", positions=[[0.2, 0, 0], [3.8, 0, 0]])


def relax_move_and_stream():
    """A relaxation, dynamics with hooks of all kinds, and a sampler: positions and what hooks have seen."""
    lj = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0)
    relaxed = FIRE(model=lj, n_steps=3, hooks=[ConvergenceHook.from_fmax(0.01)]).run(PAIR)
    frames, table = HostMemory(), h.ObservableHook({"fmax": fmax}, frequency=2)
    md = NVTLangevin(
        model=HarmonicModel(),
        dt=1.0,
        temperature=30.0,
        n_steps=4,
        hooks=[h.MaxForceClampHook(limit=5.0), table, h.SnapshotHook(frames, frequency=2)],
    )
    moved = md.run(relaxed)
    streamed = NVE(model=HarmonicModel(), dt=1.0, n_steps=2).run(
        sampler=Sampler([PAIR, PAIR, PAIR], max_systems=2)
    )
    out = [np.asarray(b.positions)[: b.num_atoms] for b in (relaxed, moved, streamed)]
    return [*out, table.table["fmax"], frames.read().positions]


@pytest.fixture(scope="module")
def plain():
    return relax_move_and_stream()


MODES = {
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "NaNs reported": lambda: jax.debug_nans(True),
    "no transfers": lambda: jax.transfer_guard("disallow"),
    "leaks looked for": lambda: jax.checking_leaks(),
    "not compiled": lambda: jax.disable_jit(),
}


@pytest.mark.parametrize("mode", MODES)
def test_settings_of_jax_change_nothing(mode, plain):
    with MODES[mode]():
        found = relax_move_and_stream()
    for a, b in zip(found, plain, strict=True):
        # Code that is not compiled rounds otherwise.
        np.testing.assert_allclose(a, b, rtol=1e-9 if mode == "not compiled" else 0, atol=0)
