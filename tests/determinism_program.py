"""A small program that two processes run to compare what it prints: `determinism_program.py FOLDER`."""

import hashlib
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.dynamics import ConvergenceHook, DynamicsStage, FIREVariableCell, NVTLangevin, Sampler
from alchemi_jax.dynamics.hooks import LoggingHook, SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import AbstractModel, LennardJones
from alchemi_jax.systems.segments import sum_by_system


MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=50.0)


class Springs(AbstractModel):
    """E = (k/2) |h h^T / side² - 1|² of the cell h, and springs on atoms: no list, quickly compiled."""

    k: float = 2.0
    side: float = 5.0
    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        metric = jnp.einsum("sab,scb->sac", batch.cell, batch.cell) / self.side**2
        of_cell = jnp.sum((metric - jnp.eye(3)[None]) ** 2, axis=(1, 2)) * batch.system_mask
        of_atoms = sum_by_system(batch, jnp.sum(batch.positions**2, axis=-1))
        return self.k / 2 * (of_cell + of_atoms)


def clusters():
    rng = np.random.default_rng(5)
    grid = 3.8 * np.array([(i, j, k) for i in range(2) for j in range(2) for k in range(2)], float)
    return [Atoms(f"Ar{n}", grid[:n] + rng.normal(0, 0.1, (n, 3))) for n in (5, 2, 7, 3, 4, 6)]


def crystals():
    rng = np.random.default_rng(6)
    atoms = [bulk("Ar", "fcc", a=5.2 + 0.1 * i, cubic=True) for i in range(2)]
    for a in atoms:
        a.positions += rng.normal(0, 0.1, (4, 3))
    return atoms


def digest(*arrays):
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()


def refilled(folder):
    """Langevin dynamics through a batch of two places: digests of the results, the frames and the log."""
    folder.mkdir()
    frames, first = HostMemory(), {"stage": DynamicsStage.BEFORE_STEP, "final": True}
    hooks = [
        LoggingHook(log_path=folder / "log.csv", frequency=3, **first),
        SnapshotHook(frames, 4, finished=False, **first),
    ]
    engine = NVTLangevin(model=MODEL, dt=2.0, temperature=40.0, friction=0.02, n_steps=30, hooks=hooks)
    out = engine.run(sampler=Sampler(clusters(), max_systems=2), key=jax.random.key(7)).take()
    seen = frames.read()
    return (
        digest(out.positions, out.velocities, out.energy, out.forces),
        digest(seen.system_id, seen.steps_taken, seen.positions, seen.energy),
        hashlib.sha256((folder / "log.csv").read_bytes()).hexdigest(),
    )


def relaxed():
    """Crystals with their cells: a digest of the results."""
    hooks = [ConvergenceHook.from_fmax(0.01)]
    engine = FIREVariableCell(model=Springs(), n_steps=100, hooks=hooks)
    out = engine.run(Batch.from_ase(crystals())).take()
    return (digest(out.positions, out.cell, out.energy, out.stress, out.steps_taken),)


def everything(folder):
    return [*refilled(folder), *relaxed()]


if __name__ == "__main__":
    # By the environment: the model above is made with it.
    assert MODEL.epsilon.dtype == np.float64
    print("\n".join(everything(Path(sys.argv[1]))))
