"""A batch that does not fit the device: one sentence with what was asked, what there is, and what fits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, Sampler, driver, out_of_memory, sweep
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.errors import OutOfMemory
from alchemi_jax.models import AbstractModel, HarmonicModel
from alchemi_jax.segments import sum_by_system


pytestmark = pytest.mark.cheap_xla

#: Elements of the large array of each system. No process can have it, so nothing is ever allocated.
HUGE = 1 << 46


class Hungry(AbstractModel):
    """Sorts an array that no memory holds, for each system."""

    huge: int = eqx.field(static=True, default=HUGE)
    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        x = sum_by_system(batch, batch.positions[:, 0])
        large = jax.lax.stop_gradient(x)[:, None] + jnp.arange(self.huge, dtype=x.dtype)[None]
        return x + 0 * jnp.sort(large, axis=1)[:, 0]


def structures(n):
    return [Atoms("Ar2", [[0.1 + i / 100, 0, 0], [0, 3, 0]]) for i in range(n)]


def test_an_allocation_that_fails_says_what_fits(monkeypatch):
    """XLA asks for it in earnest, and is refused. As if there were room for three systems."""
    monkeypatch.setattr(out_of_memory, "memory", lambda: 4 * 8 * HUGE)
    with pytest.raises(
        OutOfMemory,
        match=r"^NVE with 8 systems and 16 atoms needs about [\d.e+]+ GiB \(XLA asked for [\d.e+]+ GiB at "
        r"once\), and there are [\d.e+]+ GiB: \d systems with \d atoms fit at once\. "
        r"run\(sampler=Sampler\(structures, max_systems=(\d), max_atoms=\d\)\) takes that many",
    ) as caught:
        NVE(Hungry(), dt=1.0, n_steps=3).run(structures(8))
    fits = caught.value.capacity
    assert 1 <= fits.systems <= 3
    assert fits.atoms == 2 * fits.systems
    assert isinstance(caught.value, MemoryError)
    assert "RESOURCE_EXHAUSTED" in str(caught.value.__cause__)
    with pytest.raises(OutOfMemory, match=r"sweep with 4 combinations at once .*: give together=3\.$"):
        sweep(
            NVE(Hungry(), dt=1.0, n_steps=3),
            Batch.from_ase(structures(1)),
            dt=[1.0, 2.0, 3.0, 4.0],
            together=4,
        )
    monkeypatch.setattr(out_of_memory, "memory", lambda: HUGE)
    with pytest.raises(OutOfMemory, match=r"not even system 0 \(Ar2\), the largest system, fits alone"):
        NVE(Hungry(), dt=1.0, n_steps=3).run(structures(2))


def failing(monkeypatch, after):
    """The segments after some fail, as they do where a list that has grown does not fit any more."""
    real, calls = driver.compiled_segment, []

    def segment(*arguments):
        calls.append(1)
        if len(calls) > after:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.")
        return real(*arguments)

    monkeypatch.setattr(driver, "compiled_segment", segment)


def test_what_was_reached_is_kept(monkeypatch):
    """The state is that of the last segment and goes on; frames and finished systems are where they were."""
    frames, done = HostMemory(), HostMemory()
    engine = NVE(HarmonicModel(), dt=1.0, n_steps=40)
    watched = engine.with_hooks(h.SnapshotHook(frames, frequency=10))
    expected = engine.run(structures(2))
    with monkeypatch.context() as patch:
        failing(patch, 2)
        with pytest.raises(OutOfMemory, match=r"4 KiB.*something else is using the memory") as caught:
            watched.run(structures(2))
    state = caught.value.state
    step = int(state.step_count)
    assert 0 < step < 40
    assert len(frames) == 2 * (-(-step // 10))
    on = engine.advance(state, 40 - step)
    np.testing.assert_array_equal(on.batch.positions, expected.positions)

    short = NVE(HarmonicModel(), dt=1.0, n_steps=4)
    with monkeypatch.context() as patch:
        failing(patch, 2)
        with pytest.raises(OutOfMemory, match=r"NVE with 2 systems and 4 atoms") as caught:
            short.run(sampler=Sampler(structures(9), max_systems=2), sink=done)
    assert 0 < len(done) < 9
    assert int(caught.value.state.step_count) >= 4
    assert done.read().system_id.tolist() == list(range(len(done)))
