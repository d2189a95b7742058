"""Ensembles by `physical_validation` (Merz and Shirts, PLoS ONE 13, e0202764 (2018)): the distribution of the
kinetic energy, and the ratio of the distributions at two temperatures or pressures.

`python -m benchmarks.ensembles` samples crystals of 108 argon-like atoms for some ten minutes; tests do the
same in a short form. In float64: pymbar, which physical_validation uses, switches JAX to it anyway.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import physical_validation as pv
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.dynamics import NPT, NVTBussi, NVTLangevin, NVTNoseHoover, initialize_velocities
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import Morse
from alchemi_jax.systems.observables import degrees_of_freedom, kinetic_energy, volume
from alchemi_jax.units import KB


#: About argon, smooth at the cutoff, so that the error of a step is its own and not the cutoff's.
MODEL = Morse(depth=0.0104, width=1.6, r0=3.8, cutoff=5.6, onset=4.4)
#: eV, Å, K, GPa, fs, in the units that physical_validation computes in: kJ/mol, nm, K, bar, ps.
UNITS = pv.data.UnitData(
    kb=KB,
    energy_conversion=96.48533212,
    length_conversion=0.1,
    volume_conversion=1e-3,
    temperature_conversion=1.0,
    pressure_conversion=1e4,
    time_conversion=1e-3,
    energy_str="eV",
    length_str="Å",
    volume_str="Å³",
    temperature_str="K",
    pressure_str="GPa",
    time_str="fs",
)


def _barostat(cell: str) -> Callable[..., Any]:
    return lambda **k: NPT(cell=cell, thermostat_time=150.0, barostat_time=300.0, **k)


ENGINES: dict[str, Callable[..., Any]] = {
    "NVTLangevin": lambda **k: NVTLangevin(friction=0.01, **k),
    "NVTNoseHoover": lambda **k: NVTNoseHoover(thermostat_time=150.0, **k),
    "NVTBussi": lambda **k: NVTBussi(thermostat_time=150.0, **k),
    "NPT": _barostat("isotropic"),
    "NPT, anisotropic": _barostat("anisotropic"),
    "NPT, flexible": _barostat("flexible"),
}
#: Two states each, K and GPa, as far apart as distributions of 32 atoms are wide.
TEMPERATURES = ((30.0, 0.0), (38.0, 0.0))
PRESSURES = ((30.0, 0.0), (30.0, 0.05))


def sampled(
    name: str, states: tuple, *, repeat: int, replicas: int, samples: int, every: int, dt: float = 4.0
) -> list[pv.data.SimulationData]:
    """What `physical_validation` asks of each state, from replicas in one batch, one after the other, once
    they have settled for a quarter of the time."""
    kelvin, pressure = np.repeat(np.array(states), replicas, axis=0).T
    settings: dict[str, Any] = {"model": MODEL, "dt": dt, "temperature": kelvin}
    if constant_pressure := name.startswith("NPT"):
        settings["pressure"] = pressure
    make = ENGINES[name]
    crystals = []
    for seed in range(len(kelvin)):
        atoms = bulk("Ar", "fcc", a=5.40, cubic=True).repeat(repeat)
        atoms.positions += np.random.default_rng(seed).normal(0, 0.12, atoms.positions.shape)
        crystals.append(atoms)
    batch = initialize_velocities(Batch.from_ase(crystals), kelvin, jax.random.key(5))
    count = int(degrees_of_freedom(batch, name == "NVTLangevin")[0])
    rows = {"u": lambda ctx: ctx.batch.energy, "k": kinetic_energy, "v": volume}
    seen = ObservableHook(rows, frequency=every)
    settled = samples // 4
    make(**settings, n_steps=(settled + samples) * every, hooks=[seen]).run(batch, key=jax.random.key(7))
    out = []
    for k, (t, p) in enumerate(states):
        u, kinetic, v = (
            seen.table[key][settled:, k * replicas : (k + 1) * replicas].T.astype(float).ravel()
            for key in "ukv"
        )
        atoms = 4 * repeat**3
        system = pv.data.SystemData(
            natoms=atoms,
            nconstraints=0,
            ndof_reduction_tra=3 * atoms - count,
            ndof_reduction_rot=0,
            mass=np.full(atoms, 39.948),
        )
        where = {"pressure": p} if constant_pressure else {"volume": float(v[0])}
        ensemble = pv.data.EnsembleData(
            "NPT" if constant_pressure else "NVT", natoms=atoms, temperature=t, **where
        )
        observed = pv.data.ObservableData(
            kinetic_energy=kinetic, potential_energy=u, total_energy=u + kinetic, volume=v
        )
        out.append(
            pv.data.SimulationData(
                units=UNITS, dt=dt * every, system=system, ensemble=ensemble, observables=observed
            )
        )
    return out


def kinetic(data: pv.data.SimulationData, seed: int = 1) -> tuple[float, float]:
    """How far the temperatures of mean and of width of K are from the one asked for, in standard errors."""
    return pv.kinetic_energy.distribution(data, strict=False, verbosity=0, bootstrap_seed=seed)


def ratio(two: list[pv.data.SimulationData]) -> float:
    """How far the slope of the logarithm of the ratio of two distributions is from the true one, in errors.

    Of the potential energy at constant volume, else of enthalpy or volume.
    """
    return float(np.max(pv.ensemble.check(*two, verbosity=0)))


def main() -> None:
    """Prints a line for each engine and pair of states."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensembles", description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3, help="cells along each side")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    sizes = {"replicas": args.replicas, "samples": args.samples, "every": args.every, "repeat": args.repeat}
    print(f"{4 * args.repeat**3} atoms, {sizes}; distances in standard errors")
    print(f"{'':20}{'states':34}{'<K>':>8}{'var K':>8}{'ratio':>8}")
    for name in ENGINES:
        for states in (TEMPERATURES, PRESSURES) if name.startswith("NPT") else (TEMPERATURES,):
            two = sampled(name, states, **sizes)
            mean, width = np.max([kinetic(one) for one in two], axis=0)
            shown = " and ".join(f"{t:g} K, {p:g} GPa" for t, p in states)
            print(f"{name:20}{shown:34}{mean:8.1f}{width:8.1f}{ratio(two):8.1f}", flush=True)


if __name__ == "__main__":
    main()
