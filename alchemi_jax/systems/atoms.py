"""AtomicData: one system on the host; batches are made from a list of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses
from ase.stress import voigt_6_to_full_3x3_stress

from alchemi_jax import units
from alchemi_jax.systems.constraints import fixed_by, to_constraints


#: Entries of `Atoms.arrays` that are fields of AtomicData.
_OWN_ARRAYS = frozenset({"numbers", "positions", "momenta", "masses"})
#: Entries of `Atoms.info` that are fields of AtomicData, if they are numbers, and their defaults.
_OWN_INFO = {"charge": 0.0, "spin": 1.0}
#: The entry of `info` with arrays per atom that a batch does not hold: text, and integers beyond 32 bits.
KEPT_ARRAYS = "_alchemi_jax_arrays"


ATOM_RESULTS = ("magmoms", "charges", "energies")
"""Names of further results of atoms that ASE knows, extras of the atoms here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtomicData:
    """One system of atoms, as numpy arrays.

    Attributes:
        positions: [atoms, 3], Å.
        numbers: [atoms], atomic numbers.
        cell: [3, 3], rows are the lattice vectors, Å; zero for a free system.
        pbc: [3], periodic along each lattice vector.
        masses: [atoms], amu; standard atomic weights if not given.
        velocities: [atoms, 3], Å/fs; zero if not given.
        fixed: [atoms], atoms that must not move.
        fixed_components: [atoms, 3], atoms that must not move along x, y or z.
        charge: total charge, e.
        spin: spin multiplicity.
        energy, forces, stress: results or labels, eV, eV/Å, eV/Å³; NaN if not given.
        atom_extras, system_extras: further arrays per atom and of the system, by name.
        info: other Python values that belong to the system; `to_ase` gives them back.
        constraints: ASE constraints that cannot be applied; `to_ase` gives them back, engines refuse the
            system.
        name: name of the system in errors and warnings.

    Raises:
        ValueError: naming the system and the field, for wrong shapes, values that are not finite, no atoms,
            or a periodic cell without volume.
    """

    # Anything that numpy converts to an array of the right shape; float64 or int32 arrays afterwards.
    positions: Any
    numbers: Any
    cell: Any = dataclasses.field(default_factory=lambda: np.zeros((3, 3)))
    pbc: Any = dataclasses.field(default_factory=lambda: np.zeros(3, bool))
    masses: Any = None
    velocities: Any = None
    fixed: Any = None
    fixed_components: Any = None
    charge: Any = 0.0
    spin: Any = 1.0
    energy: Any = float("nan")
    forces: Any = None
    stress: Any = None
    atom_extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    system_extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constraints: tuple = ()
    name: str = "system"

    def __post_init__(self):
        n = len(np.atleast_1d(self.numbers))
        if n == 0:
            raise ValueError(f"{self.name} has no atoms.")

        def put(field: str, value, default, shape: tuple, dtype) -> None:
            try:
                given = np.array(default if value is None else value)
                array = given.astype(dtype)
            except (TypeError, ValueError, OverflowError) as e:
                raise ValueError(f"{self.name}: {field} is not numeric: {e}.") from None
            if given.dtype.kind in "USc" or (dtype is np.int32 and (array != given).any()):
                kind = "whole numbers" if dtype is np.int32 else "real numbers"
                raise ValueError(f"{self.name}: {field} must be {kind}, not {_shortened(given)}.")
            if array.shape != shape:
                raise ValueError(f"{self.name}: {field} has shape {array.shape}, expected {shape}.")
            object.__setattr__(self, field, array)

        whole = np.asarray(self.numbers)
        if whole.dtype.kind not in "iu" and not (whole.dtype.kind == "f" and (whole % 1 == 0).all()):
            raise ValueError(f"{self.name}: numbers must be atomic numbers, 0 to 118, not {self.numbers!r}.")
        put("numbers", self.numbers, None, (n,), np.int32)
        put("positions", self.positions, None, (n, 3), np.float64)
        put("cell", self.cell, None, (3, 3), np.float64)
        put("pbc", np.ones(3, bool) & self.pbc if np.ndim(self.pbc) == 0 else self.pbc, None, (3,), bool)
        if self.numbers.min() < 0 or self.numbers.max() >= len(atomic_masses):
            raise ValueError(f"{self.name}: numbers must be atomic numbers, 0 to 118.")
        put("masses", self.masses, atomic_masses[self.numbers], (n,), np.float64)
        put("velocities", self.velocities, np.zeros((n, 3)), (n, 3), np.float64)
        put("fixed", self.fixed, np.zeros(n, bool), (n,), bool)
        put("fixed_components", self.fixed_components, np.zeros((n, 3), bool), (n, 3), bool)
        put("forces", self.forces, np.full((n, 3), np.nan), (n, 3), np.float64)
        put("stress", self.stress, np.full((3, 3), np.nan), (3, 3), np.float64)
        for field in ("charge", "spin"):
            if not np.isfinite(float(getattr(self, field))):
                raise ValueError(f"{self.name}: {field} is not finite.")
        for field in ("positions", "cell", "masses", "velocities"):
            bad = ~np.isfinite(getattr(self, field))
            if bad.any():
                row = int(np.argwhere(bad)[0][0])
                what = "lattice vector" if field == "cell" else "atom"
                raise ValueError(f"{self.name}: {field} of {what} {row} is not finite.")
        if (self.masses <= 0).any():
            atom = int(np.argmax(self.masses <= 0))
            raise ValueError(f"{self.name}: masses must be positive, that of atom {atom} is not.")
        for key, value in self.atom_extras.items():
            if np.shape(value)[:1] != (n,):
                raise ValueError(
                    f"{self.name}: the extra {key!r} has shape {np.shape(value)}, but there are {n} atoms: "
                    "an extra of the atoms has one entry for each."
                )
        self._check_cell()

    def _check_cell(self) -> None:
        """Check that the periodic lattice vectors are linearly independent."""
        rows = self.cell[self.pbc]
        if not len(rows):
            return
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not lengths.all() or np.linalg.svd(rows / lengths, compute_uv=False).min() < 1e-6:
            raise ValueError(
                f"{self.name}: cell has no volume along its periodic directions; "
                "give independent lattice vectors or set pbc to False there."
            )

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def from_ase(
        cls, atoms: Atoms, name: str = "system", constraints: str = "keep", results: bool = False
    ) -> AtomicData:
        """AtomicData from an ASE structure, which does not change. Nothing is calculated.

        Numeric entries of `arrays` become extras of the atoms; `info` is kept as it is. FixAtoms becomes
        `fixed`, and FixCartesian `fixed_components`; so do FixedPlane and FixedLine along an axis, and
        FixScaled in a cell along the axes. Other constraints cannot be applied.

        Args:
            atoms: the structure.
            name: name in errors and warnings.
            constraints: "keep" or "drop" those that cannot be applied. Engines refuse a system with such a
                constraint.
            results: whether to take over the energy, forces and stress that the calculator has for these
                atoms, or that a file left in `info` and `arrays`: labels for training. Magnetic moments,
                charges and energies of atoms of the calculator become extras.
        """
        if not isinstance(constraints, str) or constraints not in ("keep", "drop"):
            raise ValueError(f"constraints must be 'keep' or 'drop', not {constraints!r}.")
        atom_extras, kept_arrays = {}, {}
        for key, value in atoms.arrays.items():
            if key not in _OWN_ARRAYS:
                (atom_extras if value.dtype.kind in "biuf" else kept_arrays)[key] = value.copy()
        if results and atoms.calc is not None:
            found = {k: v for k in ATOM_RESULTS if (v := atoms.calc.results.get(k)) is not None}
            atom_extras |= {k: np.asarray(v, float) for k, v in found.items() if len(v) == len(atoms)}
        info = dict(atoms.info)
        if KEPT_ARRAYS in info:
            raise ValueError(
                f"{name}: info has an entry {KEPT_ARRAYS!r}, a name of alchemi_jax's own: rename it."
            )
        if kept_arrays:
            info[KEPT_ARRAYS] = kept_arrays
        components = np.zeros((len(atoms), 3), bool)
        others = []
        for constraint in atoms.constraints:
            held = fixed_by(constraint, len(atoms), atoms.cell.array)
            if held is not None:
                components |= held
            elif constraints == "keep":
                others.append(constraint)
        fixed: Any = components.all(axis=1)
        velocities = None
        if "momenta" in atoms.arrays:
            # Masses of zero are refused below.
            with np.errstate(all="ignore"):
                velocities = units.velocities_from_ase(atoms.get_velocities())
        own: dict[str, Any] = {k: float(info[k]) for k in _OWN_INFO if _is_number(info.get(k))}
        return cls(
            positions=atoms.positions,
            numbers=atoms.numbers,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            masses=atoms.get_masses(),
            velocities=velocities,
            fixed=fixed,
            fixed_components=components & ~fixed[:, None],
            atom_extras=atom_extras,
            info=info,
            constraints=tuple(others),
            name=name,
            **own,
            **(_known_results(atoms) if results else {}),
        )

    def to_ase(self) -> Atoms:
        """The system as ase.Atoms, with results, if there are any, in a SinglePointCalculator."""
        info = dict(self.info)
        kept_arrays = info.pop(KEPT_ARRAYS, {})
        atoms = Atoms(
            numbers=self.numbers,
            positions=self.positions,
            cell=self.cell,
            pbc=self.pbc,
        )
        if not np.allclose(self.masses, atoms.get_masses(), rtol=1e-6, atol=0):
            atoms.set_masses(self.masses)
        if np.any(self.velocities):
            atoms.set_velocities(units.velocities_to_ase(self.velocities))
        for key, value in {**self.atom_extras, **kept_arrays}.items():
            atoms.set_array(key, np.asarray(value))
        atoms.info.update(info)
        for key, value in self.system_extras.items():
            atoms.info[key] = np.asarray(value).item() if np.ndim(value) == 0 else np.asarray(value)
        for key, default in _OWN_INFO.items():
            # The entry that was given stays as it was, an integer for example, unless the number changed; in
            # a batch it may have been rounded to 32 bits.
            value = float(getattr(self, key))
            given: Any = info.get(key)
            before = float(given) if _is_number(given) else default
            if value not in (before, float(np.float32(before))):
                atoms.info[key] = value
        constraints = [*to_constraints(self.fixed, self.fixed_components), *self.constraints]
        if constraints:
            atoms.set_constraint(constraints)
        results: dict[str, Any] = {}
        if np.isfinite(self.energy):
            results["energy"] = float(self.energy)
        if self.forces is not None and np.isfinite(self.forces).all():
            results["forces"] = self.forces
        if self.stress is not None and np.isfinite(self.stress).all():
            s = self.stress
            results["stress"] = np.array([s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]])
        if results:
            # Arrays with these names are results to ASE's writers, beside an energy.
            results |= {k: atoms.arrays[k] for k in ATOM_RESULTS if k in self.atom_extras}
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms


def _is_number(value: Any) -> bool:
    # Lists need not be rectangles, and numpy refuses others.
    if isinstance(value, list | tuple | dict | set):
        return False
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"


def _shortened(values: np.ndarray) -> str:
    text = " ".join(str(values).split())
    return text if len(text) < 60 else text[:57] + "..."


def _known_results(atoms: Atoms) -> dict[str, Any]:
    """Energy, forces and stress that are known without a calculation."""
    known: dict[str, Any] = {}
    if atoms.calc is not None:
        for name in ("energy", "forces", "stress"):
            try:
                value = atoms.calc.get_property(name, atoms, allow_calculation=False)
            except (PropertyNotImplementedError, NotImplementedError):
                value = None
            if value is not None:
                known[name] = value
    for name, place in (("energy", atoms.info), ("stress", atoms.info), ("forces", atoms.arrays)):
        if name not in known and name in place:
            known[name] = place[name]
    if "stress" in known and np.shape(known["stress"]) != (3, 3):
        values = np.asarray(known["stress"], float)
        known["stress"] = values.reshape(3, 3) if values.size == 9 else voigt_6_to_full_3x3_stress(values)
    return known


__all__ = ["ATOM_RESULTS", "AtomicData"]
