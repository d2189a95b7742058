"""What a relaxation moves: the atoms, or the atoms and the cell.

A `Vector` has a part for the atoms and one for the cell, None where the cell is fixed. Coordinates of the
cell are those of ASE's FrechetCellFilter: with h_0 the cell at the start and F = exp(U), h = h_0 F^T and
r = z F^T. The vector is (z, n U), n being the number of atoms, so that both parts are lengths. The force on
it is (f F, -dE/dU / n). With an external pressure P the energy is E + P V.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.dynamics.matrices import exp
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.products import einsum, matmul
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system
from alchemi_jax.systems.observables import volume
from alchemi_jax.systems.segments import max_by_system, sum_by_system, to_atoms
from alchemi_jax.transforms import root
from alchemi_jax.units import GPA


class Vector(NamedTuple):
    """A force, a velocity or a step: [atoms, 3] and [systems, 3, 3] or None."""

    atoms: Float[Array, "atoms 3"]
    cell: Float[Array, "systems 3 3"] | None


def dots(batch: Batch, *pairs: tuple[Vector, Vector]) -> list[Float[Array, " systems"]]:
    """Scalar products over all coordinates of each system, [systems], one for each pair of vectors."""

    def product(a: Float[Array, "atoms 3"], b: Float[Array, "atoms 3"]) -> Float[Array, " atoms"]:
        return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]

    of_atoms = jnp.stack([product(a.atoms, b.atoms) for a, b in pairs], axis=-1)
    sums = sum_by_system(batch, of_atoms)
    found = [sums[:, k] for k in range(len(pairs))]
    return [
        s if a.cell is None or b.cell is None else s + jnp.sum(a.cell * b.cell, axis=(1, 2))
        for s, (a, b) in zip(found, pairs, strict=True)
    ]


def weighted_sum(batch: Batch, *terms: tuple[Float[Array, " systems"], Vector]) -> Vector:
    """The sum of vectors times factors, which are one per system, [systems]."""
    at = to_atoms(batch, jnp.stack([factor for factor, _ in terms], axis=-1))
    atoms = sum((at[:, k : k + 1] * v.atoms for k, (_, v) in enumerate(terms)), jnp.zeros((), batch.dtype))
    if any(v.cell is None for _, v in terms):
        return Vector(atoms, None)
    cells = [factor[:, None, None] * v.cell for factor, v in terms if v.cell is not None]
    return Vector(atoms, sum(cells, jnp.zeros((), batch.dtype)))


def squared_sum(
    a: Any, b: Any, vv: Float[Array, " systems"], vf: Float[Array, " systems"], ff: Float[Array, " systems"]
) -> Float[Array, " systems"]:
    """|a v + b f|² of each system, [systems], from the products v·v, v·f and f·f."""
    return a * a * vv + 2 * a * b * vf + b * b * ff


def shortening_factor(
    batch: Batch, squared: Float[Array, " systems"], longest: Any
) -> Float[Array, " systems"]:
    """The factor, [systems], that shortens a step to a length (Å) over all coordinates of its system, 1 if it
    is not longer.

    Args:
        squared: [systems], Å², the square of the length, from products that are known already.
    """
    length = root(jnp.maximum(squared, 0))
    return jnp.minimum(1, by_system(batch, longest) / jnp.where(length > 0, length, 1))


def largest_atom(batch: Batch, step: Float[Array, "atoms 3"]) -> Float[Array, " systems"]:
    """The largest displacement of an atom of each system, [systems], Å."""
    return root(max_by_system(batch, jnp.sum(step * step, axis=-1)))


def cut_by_atom(batch: Batch, step: Float[Array, "atoms 3"], longest: Any) -> Float[Array, "atoms 3"]:
    """The step, [atoms, 3], scaled system by system so that no atom moves further than `longest`, Å."""
    far = largest_atom(batch, step)
    cut = jnp.minimum(1, by_system(batch, longest) / jnp.where(far > 0, far, 1))
    return step * to_atoms(batch, cut)[:, None]


class CellPart(eqx.Module):
    """Of each system: U (`log`), the cell at the start, Å, and the velocity of n U, Å/fs."""

    log: Float[Array, "systems 3 3"] = per_system()
    start: Float[Array, "systems 3 3"] = per_system()
    velocity: Float[Array, "systems 3 3"] = per_system()


def new_cell_part(batch: Batch) -> CellPart:
    """The present cell as the start, at rest."""
    nothing = jnp.zeros_like(batch.cell)
    return CellPart(nothing, batch.cell, nothing)


def stress_to_relax(
    batch: Batch, pressure: Any, mask: tuple, hydrostatic: bool
) -> Float[Array, "systems 3 3"]:
    """Stress + P in the components that may relax, [systems, 3, 3], eV/Å³; `pressure` is in GPa."""
    one = jnp.eye(3, dtype=batch.dtype)[None]
    stress = batch.stress + (GPA * by_system(batch, pressure))[:, None, None] * one
    if hydrostatic:
        return (jnp.trace(stress, axis1=1, axis2=2) / 3)[:, None, None] * one
    return jnp.where(jnp.array(mask)[None], stress, 0)


def generalized_forces(
    batch: Batch, cell: CellPart, stress: Float[Array, "systems 3 3"], mask: tuple
) -> Vector:
    """The force on (z, n U), from the forces and the stress that the cell is to relax."""
    gradient, pull_back = jax.vjp(exp, cell.log)
    virial = -volume(batch)[:, None, None] * stress
    # Force on F: virial F^-T, with F^-1 = exp(-U).
    slope = matmul(virial, exp(-cell.log).swapaxes(1, 2))
    (on_log,) = pull_back(slope)
    on_log = jnp.where(jnp.array(mask)[None], on_log, 0) / _atoms(batch)
    return Vector(einsum("na,nab->nb", batch.forces, to_atoms(batch, gradient)), on_log)


def deform(batch: Batch, cell: CellPart, step: Vector) -> tuple[Batch, CellPart]:
    """Batch and cell after a step of (z, n U)."""
    assert step.cell is not None
    log = cell.log + step.cell / _atoms(batch)
    back, onward = exp(-cell.log), exp(log)
    z = einsum("na,nba->nb", batch.positions, to_atoms(batch, back)) + step.atoms
    positions = einsum("na,nba->nb", z, to_atoms(batch, onward))
    after = batch.replace(positions=positions, cell=einsum("sab,scb->sac", cell.start, onward))
    return after, CellPart(log, cell.start, cell.velocity)


def _atoms(batch: Batch) -> Float[Array, "systems 1 1"]:
    return jnp.maximum(batch.atoms_per_system, 1).astype(batch.dtype)[:, None, None]


def as_mask(value: Any) -> tuple:
    """Three rows of three booleans from six (xx, yy, zz, yz, xz, xy) or from nine.

    Raises:
        ValueError: for another shape.
    """
    rows = [bool(x) for x in jax.tree.leaves(value if not hasattr(value, "tolist") else value.tolist())]
    if len(rows) == 6:
        xx, yy, zz, yz, xz, xy = rows
        rows = [xx, xy, xz, xy, yy, yz, xz, yz, zz]
    if len(rows) != 9:
        raise ValueError(
            f"mask must have six entries (xx, yy, zz, yz, xz, xy) or three by three, not {len(rows)}."
        )
    return tuple(tuple(rows[3 * k : 3 * k + 3]) for k in range(3))


__all__ = [
    "CellPart",
    "Vector",
    "as_mask",
    "cut_by_atom",
    "deform",
    "dots",
    "generalized_forces",
    "largest_atom",
    "new_cell_part",
    "shortening_factor",
    "squared_sum",
    "stress_to_relax",
    "weighted_sum",
]
