"""Laws that `python -m benchmarks.gpu` checks: results of this device beside those of the CPU in float64."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from alchemi_jax import Batch, neighbors
from alchemi_jax.cli import canaries
from alchemi_jax.dynamics import (
    FIRE,
    NPT,
    NVE,
    ConvergenceHook,
    FIREVariableCell,
    NVTLangevin,
    Sampler,
    initialize_velocities,
)
from alchemi_jax.models import EMT, LennardJones, Morse, StillingerWeber, Tersoff
from benchmarks import structures, workloads
from benchmarks.structures import CUTOFF, EPSILON, SIGMA


Row = dict[str, Any]
DTYPES = ("float32", "float64")


def _cases() -> dict[str, tuple[Any, list[Atoms]]]:
    clusters = structures.assorted_clusters(40)
    morse = Morse(depth=0.3429, width=1.3588, r0=2.866, cutoff=6.0)
    return {
        "Lennard-Jones, 40 clusters": (workloads.argon(50.0), clusters),
        "Lennard-Jones, 4 crystals": (workloads.argon(), structures.crystals(4)[0]),
        "Lennard-Jones, cell list": (workloads.argon(), structures.crystals(1, 8)[0]),
        "Morse, copper": (morse, [structures.copper(3)]),
        "Stillinger-Weber": (StillingerWeber(), [structures.silicon(2), structures.silicon(3)]),
        "Tersoff": (Tersoff.group_iv(), [structures.silicon(2), structures.silicon(3)]),
        "EMT": (EMT(), [structures.copper(3), structures.copper(2)]),
    }


@functools.partial(jax.jit, static_argnums=0)
def _evaluated(static: Any, model: Any, batch: Batch, found: Any) -> tuple[Any, Any, Any]:
    out = model.evaluate(batch, found, stress=static)
    return out.energy, out.forces, out.stress


def _evaluate(model: Any, atoms: list[Atoms], dtype: str, device: Any) -> dict[str, np.ndarray]:
    with jax.default_device(device):
        batch = Batch.from_ase(atoms, dtype=dtype)
        found = neighbors.allocate(batch, model.requirements)
        energy, forces, stress = _evaluated(True, model, batch, found)
        n, m = batch.num_atoms, batch.num_systems
        periodic = np.asarray(batch.pbc).all(axis=1)[:m]
        out = {"energy": np.asarray(energy)[:m], "forces": np.asarray(forces)[:n]}
        if periodic.any():
            out["stress"] = np.asarray(stress)[:m]
        return {k: v.astype(float) for k, v in out.items()}


def _off(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over that of what is wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


#: Largest relative error of energy, forces or stress that passes.
ALLOWED = {"float32": 2e-4, "float64": 1e-11}


def _models(names: tuple[str, ...]) -> Iterator[Row]:
    cases, cpu = _cases(), jax.devices("cpu")[0]
    for name in names:
        model, atoms = cases[name]
        wanted = _evaluate(model, atoms, "float64", cpu)
        for dtype in DTYPES:
            found = _evaluate(model, atoms, dtype, jax.devices()[0])
            off = {key: _off(found[key], wanted[key]) for key in wanted}
            yield {"what": name, "dtype": dtype, "off": off, "right": max(off.values()) < ALLOWED[dtype]}


def _canaries() -> Iterator[Row]:
    faults = canaries.finalize()
    yield {"what": "canaries of JAX", "right": not faults, "faults": faults}


#: Laws that share no compiled code, so that they may run beside one another.
LAWS: list[Callable[[], Iterator[Row]]] = [
    lambda: itertools.chain(
        _canaries(), _models(("Lennard-Jones, 40 clusters", "Lennard-Jones, 4 crystals"))
    ),
    lambda: _models(("Lennard-Jones, cell list", "Morse, copper")),
    lambda: _models(("Stillinger-Weber",)),
    lambda: _models(("Tersoff",)),
    lambda: _models(("EMT",)),
    lambda: _of_engines(_relaxes, _conserves),
    lambda: _of_engines(_restarts, _refills),
    lambda: _of_engines(_has_gradients),
    lambda: _of_engines(_keeps_pressure, _relaxes_cells),
]


def laws(size: int, which: int) -> Iterator[Row]:
    """Canaries, and results of this device beside those of the CPU in float64. `size` changes nothing."""
    jax.config.update("jax_enable_x64", True)
    yield from LAWS[which]()


def _of_engines(*laws: Callable[[str, Any, Any], Row]) -> Iterator[Row]:
    for law, dtype in itertools.product(laws, DTYPES):
        yield law(dtype, jax.devices()[0], jax.devices("cpu")[0])


def _both(
    run: Callable[[str], tuple[np.ndarray, np.ndarray]], dtype: str, here: Any, cpu: Any
) -> dict[str, float]:
    """How far positions and cells of two runs are apart, Å: here, and on the CPU in float64."""
    ends = []
    for device, kind in ((here, dtype), (cpu, "float64")):
        with jax.default_device(device):
            ends.append([np.asarray(x, float) for x in run(kind)])
    names = ("positions, Å", "cells, Å")
    return {name: float(np.abs(a - b).max()) for name, a, b in zip(names, *ends, strict=True)}


def _keeps_pressure(dtype: str, here: Any, cpu: Any) -> Row:
    """Twenty steps at constant pressure with a flexible cell: matrices act on positions and cells."""

    def run(kind: str) -> tuple[np.ndarray, np.ndarray]:
        batch = workloads.moving(structures.crystals(2), kind)
        engine = NPT(
            model=workloads.argon(), dt=4.0, temperature=30.0, pressure=0.1, cell="flexible", n_steps=20
        )
        out = engine.run(batch).take()
        return out.positions, out.cell

    apart = _both(run, dtype, here, cpu)
    right = max(apart.values()) < (1e-3 if dtype == "float32" else 1e-9)
    return {"what": "NPT, flexible", "dtype": dtype, "apart": apart, "right": right}


def _relaxes_cells(dtype: str, here: Any, cpu: Any) -> Row:
    """Twenty steps of FIRE with the cell."""

    def run(kind: str) -> tuple[np.ndarray, np.ndarray]:
        batch = Batch.from_ase(structures.crystals(2)[0], dtype=kind)
        out = FIREVariableCell(model=workloads.argon(), n_steps=20).run(batch).take()
        return out.positions, out.cell

    apart = _both(run, dtype, here, cpu)
    right = max(apart.values()) < (1e-3 if dtype == "float32" else 1e-9)
    return {"what": "FIRE with cells", "dtype": dtype, "apart": apart, "right": right}


def _relaxes(dtype: str, here: Any, cpu: Any) -> Row:
    """FIRE ends where the CPU's ends."""
    atoms = structures.perturbed_clusters(16)
    engine = FIRE(model=workloads.argon(50.0), n_steps=500, hooks=[ConvergenceHook.from_fmax(0.005)])
    ends = []
    for device, kind in ((here, dtype), (cpu, "float64")):
        with jax.default_device(device):
            ends.append(engine.run(Batch.from_ase(atoms, dtype=kind)).take())
    worst = float(np.abs(ends[0].energy - ends[1].energy).max())
    steps = [int(e.steps_taken.sum()) for e in ends]
    right = bool(ends[0].converged.all()) and worst < 1e-3
    return {
        "what": "FIRE ends as on the CPU",
        "dtype": dtype,
        "worst, eV": worst,
        "steps": steps,
        "right": right,
    }


def _conserves(dtype: str, here: Any, cpu: Any) -> Row:
    """NVE keeps its total energy, and follows the CPU's path for 20 steps."""
    batch = workloads.moving(structures.crystals(2), dtype)
    # Continuous at the cutoff: energies must not jump there.
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF, shift=True)
    engine = NVE(model=model, dt=4.0)
    state = engine.init(batch)

    def total(state: Any) -> np.ndarray:
        b = state.batch
        kinetic = jax.ops.segment_sum(
            0.5 * b.masses * (b.velocities**2).sum(1), b.batch_idx, num_segments=b.system_capacity + 1
        )[: b.system_capacity]
        return np.asarray(b.energy + kinetic / structures.SPEED**2, float)[: b.num_systems]

    begin = total(state)
    near = engine.advance(state, 20)
    later = engine.advance(near, 180)
    drift = float(np.abs(total(later) - begin).max() / 256)
    with jax.default_device(cpu):
        theirs = engine.advance(engine.init(workloads.moving(structures.crystals(2), "float64")), 20)
    n = batch.num_atoms
    apart = float(
        np.abs(np.asarray(near.batch.positions - 0.0)[:n] - np.asarray(theirs.batch.positions)[:n]).max()
    )
    right = drift < 2e-6 and apart < (1e-3 if dtype == "float32" else 1e-9)
    return {
        "what": "NVE",
        "dtype": dtype,
        "drift, eV/atom": drift,
        "apart after 20 steps, Å": apart,
        "right": right,
    }


def _restarts(dtype: str, here: Any, cpu: Any) -> Row:
    """run(n) = run(k) + run(n-k), bit for bit, with random numbers."""
    batch = initialize_velocities(
        Batch.from_ase(structures.perturbed_clusters(8), dtype=dtype), 20.0, jax.random.key(0)
    )
    engine = NVTLangevin(model=workloads.argon(50.0), dt=4.0, temperature=20.0, friction=0.01)
    state = engine.init(batch, key=jax.random.key(1))
    whole, parts = engine.advance(state, 30), engine.advance(engine.advance(state, 11), 19)
    right = bool((np.asarray(whole.batch.positions) == np.asarray(parts.batch.positions)).all())
    return {"what": "run(30) = run(11) + run(19)", "dtype": dtype, "right": right}


def _refills(dtype: str, here: Any, cpu: Any) -> Row:
    """A refilled run ends as a fixed batch."""
    batch = Batch.from_ase(structures.assorted_clusters(24), dtype=dtype)
    engine = FIRE(model=workloads.argon(50.0), n_steps=500, hooks=[ConvergenceHook.from_fmax(0.005)])
    fixed = engine.run(batch).take()
    refilled = engine.run(sampler=Sampler(batch, max_systems=8)).take()
    worst = float(np.abs(fixed.energy - refilled.energy).max())
    same = bool((fixed.positions == refilled.positions).all())
    return {
        "what": "refilled = fixed",
        "dtype": dtype,
        "worst, eV": worst,
        "bits": same,
        "right": worst < 1e-4,
    }


def _has_gradients(dtype: str, here: Any, cpu: Any) -> Row:
    """The derivative of an end energy in epsilon through ten steps is that of the CPU."""
    atoms = structures.perturbed_clusters(4)

    def slope(device: Any, kind: str) -> float:
        with jax.default_device(device):
            batch = Batch.from_ase(atoms, dtype=kind)
            engine = NVE(model=workloads.argon(50.0), dt=4.0)
            state = engine.init(batch)

            def end(epsilon: Any) -> Any:
                model = LennardJones(epsilon=epsilon, sigma=SIGMA, cutoff=50.0)
                moved = NVE(model=model, dt=4.0).rollout(state, 10)
                return (moved.batch.positions**2).sum()

            return float(jax.grad(end)(jnp.asarray(EPSILON, kind)))

    found, wanted = slope(here, dtype), slope(cpu, "float64")
    off = abs(found / wanted - 1)
    return {
        "what": "gradient of a rollout",
        "dtype": dtype,
        "off": off,
        "right": off < (1e-2 if dtype == "float32" else 1e-8),
    }
