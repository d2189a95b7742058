"""ASEModel: any calculator of ASE as a potential, called from compiled code."""

import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel, Results
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch


class ASEModel(AbstractModel):
    """An ASE calculator as a model: DFT codes, DFT-D3, and other codes that are not in JAX.

    Each evaluation calls the calculator on the host, for one system after another, while the device waits. It
    works in compiled loops, and under `vmap` one lane after another. Results have the dtype of the batch. The
    calculator gets Atoms with numbers, positions, cell, pbc and masses, with the per-atom extras of the batch
    as arrays, and with its per-system extras, `charge` and `spin` in `info`.

    `energy` has a first derivative with respect to positions (minus the calculator's forces) and, for systems
    that are periodic in all directions, with respect to the cell (from its stress). Derivatives of
    `evaluate`, hence second derivatives, are refused.

    Stress is NaN if the calculator has none. An exception in the calculator ends the run with an
    error that names the system.

    Args:
        calculator: an ASE calculator. One object serves all systems, so it gets another system at each call.
    """

    calculator: Any = eqx.field(static=True)
    cutoff: None = eqx.field(static=True, default=None)

    def __post_init__(self):
        if not isinstance(self.calculator, _Calculator):
            self.calculator = _Calculator(self.calculator)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        rest = jax.lax.stop_gradient(_rest(batch))
        return _energy(self.calculator, batch.positions, batch.cell, rest)

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        inputs = (batch.positions, batch.cell, _rest(batch))
        energy, forces, found = _evaluate(self.calculator, stress, *inputs)
        return Results(energy, forces, found if stress else None)

    def check(self, batch: Batch) -> None:
        ids, first, numbers = (np.asarray(a) for a in (batch.system_id, batch.first_atom, batch.numbers))
        for row, count in enumerate(np.asarray(batch.atoms_per_system).tolist()):
            if count:
                key = _key(ids[row], numbers[first[row] : first[row] + count])
                self.calculator.names[key] = batch.name_of(row)


def _key(system: Any, numbers: np.ndarray) -> tuple[int, bytes]:
    return int(system), numbers.astype(np.int32).tobytes()


class _Calculator:
    """A calculator, compared by identity, and the names of the systems that `check` was given. Errors use
    them: inside a compiled loop a batch has ids but no names."""

    def __init__(self, calculator: Any):
        if isinstance(calculator, type) or not hasattr(calculator, "get_potential_energy"):
            raise TypeError(
                f"ASEModel takes a calculator of ASE, not {calculator!r}"
                + (": make one of it first, with ()." if isinstance(calculator, type) else ".")
            )
        self.calculator = calculator
        self.names: dict[tuple[int, bytes], str] = {}
        #: A calculator holds the system that it was given: parts of a run on several cores take turns.
        self._turn = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return type(self.calculator).__name__

    def compute(self, stress: bool, positions: Any, cell: Any, rest: Any) -> tuple:
        """Energy, forces and stress of all systems, on the host."""
        kind = positions.dtype
        positions, cell, rest = jax.tree.map(np.asarray, (positions, cell, rest))
        energy = np.zeros(len(cell))
        forces = np.zeros(positions.shape)
        found = np.zeros(cell.shape)
        for row, count in enumerate(rest["atoms_per_system"].tolist()):
            if not count:
                continue
            first = int(rest["first_atom"][row])
            place = slice(first, first + count)
            try:
                energy[row], forces[place], found[row] = self._one(stress, row, place, positions, cell, rest)
            except Exception as error:
                numbers, system = rest["numbers"][place], rest["system_id"][row]
                unknown = f"system {system} ({Atoms(numbers).get_chemical_formula()})"
                name = self.names.get(_key(system, numbers), unknown)
                raise RuntimeError(f"{name}: {self!r} failed: {type(error).__name__}: {error}") from error
        return energy.astype(kind), forces.astype(kind), found.astype(kind)

    def _one(self, stress: bool, row: int, place: slice, positions: Any, cell: Any, rest: Any) -> tuple:
        if not np.isfinite(positions[place]).all():
            return np.nan, np.nan, np.nan
        atoms = Atoms(
            rest["numbers"][place],
            positions[place].astype(float),
            cell=cell[row].astype(float),
            pbc=rest["pbc"][row],
            masses=rest["masses"][place].astype(float),
        )
        for name, values in rest["atom_extras"].items():
            atoms.set_array(name, values[place])
        atoms.info.update({name: values[row] for name, values in rest["system_extras"].items()})
        atoms.info.update(charge=float(rest["charge"][row]), spin=float(rest["spin"][row]))
        with self._turn:
            atoms.calc = self.calculator
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            known = "stress" in getattr(self.calculator, "implemented_properties", ("stress",))
            if stress and known and atoms.pbc.all():
                return energy, forces, atoms.get_stress(voigt=False)
            return energy, forces, np.nan


def _rest(batch: Batch) -> dict[str, Any]:
    """What the calculator needs besides positions and cells; nothing of it has a gradient."""
    names = ("numbers", "masses", "pbc", "charge", "spin", "atoms_per_system", "first_atom", "system_id")
    names += ("atom_extras", "system_extras")
    return {name: getattr(batch, name) for name in names}


def _call(
    calculator: _Calculator,
    stress: bool,
    positions: Float[Array, "atoms 3"],
    cell: Float[Array, "systems 3 3"],
    rest: Any,
) -> tuple:
    kind = positions.dtype
    shapes = (
        jax.ShapeDtypeStruct(cell.shape[:1], kind),
        jax.ShapeDtypeStruct(positions.shape, kind),
        jax.ShapeDtypeStruct(cell.shape, kind),
    )

    def host(positions: Any, cell: Any, rest: Any) -> tuple:
        return calculator.compute(stress, positions, cell, rest)

    return jax.pure_callback(host, shapes, positions, cell, rest, vmap_method="sequential")


@eqx.filter_custom_jvp
def _evaluate(
    calculator: _Calculator,
    stress: bool,
    positions: Float[Array, "atoms 3"],
    cell: Float[Array, "systems 3 3"],
    rest: Any,
) -> tuple:
    return _call(calculator, stress, positions, cell, rest)


@_evaluate.def_jvp
def _refuse_derivative(primals: tuple, tangents: tuple) -> tuple:
    raise NotImplementedError(
        f"ASEModel({primals[0]!r}) cannot be differentiated here: a calculator of ASE gives energies and "
        "forces, no derivatives of forces. Differentiate model.energy, once."
    )


@eqx.filter_custom_jvp
def _energy(
    calculator: _Calculator, positions: Float[Array, "atoms 3"], cell: Float[Array, "systems 3 3"], rest: Any
) -> Float[Array, " systems"]:
    return _call(calculator, False, positions, cell, rest)[0]


@_energy.def_jvp
def _energy_jvp(primals: tuple, tangents: tuple) -> tuple[Float[Array, " systems"], Float[Array, " systems"]]:
    calculator, positions, cell, rest = primals
    d_positions, d_cell = tangents[1:3]
    energy, forces, stress = _evaluate(calculator, d_cell is not None, positions, cell, rest)
    systems = len(energy)
    counts = rest["atoms_per_system"]
    owner = jnp.repeat(jnp.arange(systems), counts, total_repeat_length=len(positions))
    owner = jnp.where(jnp.arange(len(positions)) < counts.sum(), owner, systems)

    def total(values: Float[Array, "atoms *dims"]) -> Float[Array, "systems *dims"]:
        return jax.ops.segment_sum(values, owner, systems, indices_are_sorted=True)

    change = jnp.zeros_like(energy)
    if d_positions is not None:
        change = change - total(jnp.sum(forces * d_positions, axis=-1))
    if d_cell is not None:
        # For a strain F of positions and cell, dE/dF = V stress at F = 1.
        periodic = jnp.all(rest["pbc"], axis=-1)
        safe = jnp.where(periodic[:, None, None], cell, jnp.eye(3, dtype=cell.dtype)[None])
        moment = total(positions[:, :, None] * forces[:, None, :])
        size = jnp.abs(jnp.linalg.det(safe))[:, None, None]
        slope = einsum("sba,sbc->sac", jnp.linalg.inv(safe), size * stress + moment)
        # The energy of a free system does not depend on its cell.
        slope = jnp.where(jnp.any(rest["pbc"], axis=-1)[:, None, None], slope, 0)
        change = change + jnp.sum(slope * d_cell, axis=(1, 2))
    return energy, change


__all__ = ["ASEModel"]
