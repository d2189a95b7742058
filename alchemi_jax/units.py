"""Units: eV, Å, amu, fs, K. The only place that holds a conversion factor.

The values are ASE's, so that what goes in through `Batch.from_ase` and out through `to_ase` agrees
with ASE to the last digit.
"""

from ase import units as _ase


ASE_TIME = 1.0 / float(_ase.fs)
"""One ASE time unit, Å (amu/eV)^(1/2), in fs: 10.1805."""

ACCELERATION = float(_ase.fs) ** 2
"""1 eV/(Å amu) in Å/fs²: turns force over mass into an acceleration."""

KB = float(_ase.kB)
"""Boltzmann's constant, eV/K."""

GPA = float(_ase.GPa)
"""1 GPa in eV/Å³."""

DENSITY = 1.0 / (float(_ase.kg) * 1e-3 / float(_ase.m) ** 3 * 1e6)
"""1 amu/Å³ in g/cm³."""


BOHR = float(_ase.Bohr)
"""Bohr's radius, Å."""

COULOMB = float(_ase.Hartree) * float(_ase.Bohr)
"""e²/(4 pi epsilon_0), eV Å: the energy of two elementary charges 1 Å apart."""


def velocities_from_ase(velocities):
    """Velocities in Å/fs, from ASE's velocities in Å per ASE time unit."""
    return velocities / ASE_TIME


def velocities_to_ase(velocities):
    """ASE's velocities in Å per ASE time unit, from velocities in Å/fs."""
    return velocities * ASE_TIME


__all__ = [
    "ACCELERATION",
    "ASE_TIME",
    "BOHR",
    "COULOMB",
    "DENSITY",
    "GPA",
    "KB",
    "velocities_from_ase",
    "velocities_to_ase",
]
