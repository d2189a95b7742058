"""implicit_relax: relaxed structures with derivatives that do not go through the relaxation.

At a minimum y* of the enthalpy H(y; p) the gradient g(y, p) = dH/dy is zero for all parameters p, so that
dy*/dp = -(d²H/dy²)^-1 dg/dp: one linear solve with Hessian-vector products, however many steps the relaxation
took. Source: implicit function theorem; Blondel et al., NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float, Shaped

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.check import with_budget
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.hooks.convergence import ConvergenceHook
from alchemi_jax.dynamics.loop import loop
from alchemi_jax.dynamics.optimizers import FIRE
from alchemi_jax.dynamics.start import initial_state
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.status import waits_for_convergence
from alchemi_jax.dynamics.step import reads_stress
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.errors import name_of
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import moves_as_whole, volume
from alchemi_jax.systems.segments import sum_by_system, to_atoms
from alchemi_jax.transforms import is_traced, root
from alchemi_jax.units import GPA


class _Move(NamedTuple):
    """Displacements (Å), and a strain times the number of atoms; None if cells are fixed."""

    atoms: Float[Array, "atoms 3"]
    cell: Float[Array, "systems 3 3"] | None


def implicit_relax(
    engine: AbstractDynamics | AbstractModel,
    start: Batch | DynamicsState,
    *,
    n_steps: int | None = None,
    fmax: float | None = None,
    tolerance: float = 1e-10,
) -> Batch:
    """The relaxed batch, differentiable with respect to the model's parameters without unrolling.

    Positions, cell and all quantities computed from them have derivatives, forward and reverse and of any
    order, with respect to each array of the model and the external pressure, if the engine has one; if cells
    are fixed, also with respect to the cell of `start`. Derivatives with respect to the starting positions
    are zero, since the minimum does not depend on them. Translations, and rotations of free systems, are left
    out of the linear system if a product with the Hessian shows that they cost no energy.

    Errors of positions and derivatives are of the order of the remaining force. Systems that did not converge
    get derivatives of NaN. Results at saddle points are wrong: CG needs a Hessian without negative
    eigenvalues.

    Args:
        engine: an optimizer with a `ConvergenceHook`, and a budget of steps; or a model, relaxed by FIRE.
        start: a batch; or, inside `jit`, `vmap` and `grad`, where neighbor lists cannot be made, a state that
            `init` made from a batch, with any parameters. A start near the minimum saves steps.
        n_steps: budget of steps; by default that of the engine, or 10,000 for a model.
        fmax: threshold for a model, eV/Å; by default 1e-8, in single precision 1e-4.
        tolerance: relative tolerance of the linear solve.

    Returns:
        The relaxed batch, energy, forces (and stress) evaluated at its positions and cell.

    Raises:
        TypeError: for an engine without a ConvergenceHook.
        ValueError: inside a transform, if `start` is a batch and the model has a neighbor list.

    Source: Blondel et al., Adv. Neural Inf. Process. Syst. 35 (2022), doi:10.48550/arXiv.2105.15183.
    """
    batch = start.batch if isinstance(start, DynamicsState) else start
    if isinstance(engine, AbstractModel):
        fmax = fmax if fmax is not None else 1e-8 if batch.dtype == jnp.float64 else 1e-4
        n_steps = 10_000 if n_steps is None else n_steps
        engine = FIRE(model=engine, hooks=[ConvergenceHook.from_fmax(fmax)])  # pyright: ignore[reportCallIssue]
    elif not waits_for_convergence(engine, 0):
        raise TypeError(
            f"implicit_relax: {name_of(engine)} needs a ConvergenceHook with a tight threshold: "
            "derivatives are those of a minimum."
        )
    engine = with_budget(engine, n_steps).on_device()
    if isinstance(start, DynamicsState):
        meta, neighbors = batch.meta, start.neighbors
    elif is_traced((engine, batch)) and engine.model.cutoff is not None:
        raise ValueError(
            "implicit_relax: a batch is relaxed with lists that grow, which cannot be traced. Inside jit, "
            "vmap and grad give it the state that engine.init(batch) made outside."
        )
    else:
        meta, neighbors = batch.meta, None
        if engine.model.cutoff is not None:
            # Relaxed here, where lists can grow, so that the rest starts at the minimum.
            state = engine.advance(engine.init(batch), int(engine.max_steps))  # pyright: ignore[reportArgumentType]
            batch, neighbors = state.batch, state.neighbors
    out = _relax(engine, batch, neighbors, tolerance)
    return out.with_meta(meta)


@eqx.filter_jit
def _relax(engine: AbstractDynamics, batch: Batch, neighbors: Any, tolerance: float) -> Batch:
    arrays, static = eqx.partition(engine, eqx.is_array)
    moves_cell = _moves_cell(engine)

    # All arrays are arguments, since a derivative rule must not close over tracers.
    @jax.custom_jvp
    def minimum(
        arrays: Any, start_cell: Float[Array, "systems 3 3"], others: tuple
    ) -> tuple[Float[Array, "atoms 3"], Float[Array, "systems 3 3"], Batch, Any]:
        own, (batch, neighbors) = eqx.combine(arrays, static), others
        state = initial_state(own, batch.replace(cell=start_cell), neighbors, jax.random.key(0))
        state = loop(own, state, None, with_fresh=True)
        lists = state.neighbors
        if lists is not None:
            lists = nl.update(state.batch, lists)
        return state.batch.positions, state.batch.cell, state.batch, lists

    @minimum.defjvp
    def _(primals: Any, tangents: Any) -> tuple:
        out = minimum(*primals)
        positions, cell, found, lists = out
        at = found.replace(positions=positions, cell=cell)

        def slope(arrays: Any, start_cell: Float[Array, "systems 3 3"]) -> _Move:
            # If cells are fixed, the relaxed cell is that of the start.
            here = at if moves_cell else at.replace(cell=start_cell)
            return _slope(eqx.combine(arrays, static), here, lists, moves_cell)

        change = jax.jvp(slope, primals[:2], tangents[:2])[1]
        own = eqx.combine(primals[0], static)
        move = _solve_move(own, at, lists, moves_cell, change, tolerance)
        new = _apply_move(at, move)
        strained = new.cell - cell if moves_cell else tangents[1]
        return out, (new.positions - positions, strained, *jax.tree.map(_zero_tangent, (found, lists)))

    others = jax.lax.stop_gradient((batch, neighbors))
    positions, cell, found, lists = minimum(arrays, batch.cell, others)
    found = jax.lax.stop_gradient(found).replace(positions=positions, cell=cell)
    result = engine.model.evaluate(found, lists, stress=reads_stress(engine))
    lost = jnp.where(lists.overflow, jnp.nan, 0) if lists is not None else 0.0
    forces = jnp.where(found.free_components, result.forces, 0)
    found = found.replace(
        energy=(result.energy + lost).astype(batch.dtype), forces=forces.astype(batch.dtype)
    )
    return found if result.stress is None else found.replace(stress=result.stress.astype(batch.dtype))


def _zero_tangent(x: Shaped[Array, "..."]) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


# -- equations of the minimum ----------------------------------------------------------------------


def _moves_cell(engine: AbstractDynamics) -> bool:
    return type(engine).relaxes_cell is not AbstractDynamics.relaxes_cell


def _cells_that_move(engine: Any, batch: Batch) -> Bool[Array, " systems"]:
    return engine.relaxes_cell(batch) & jnp.all(batch.pbc, axis=-1) & batch.system_mask


def _apply_move(batch: Batch, move: _Move) -> Batch:
    """Positions displaced, then positions and cell strained."""
    positions = batch.positions + move.atoms
    if move.cell is None:
        return batch.replace(positions=positions)
    f = jnp.eye(3, dtype=batch.dtype)[None] + move.cell / _length(batch)
    return batch.replace(
        positions=einsum("na,nab->nb", positions, to_atoms(batch, f)),
        cell=einsum("sab,sbc->sac", batch.cell, f),
    )


def _length(batch: Batch) -> Float[Array, "systems 1 1"]:
    """The factor of strains in a move, the number of atoms, so that both parts have similar weights."""
    return jnp.maximum(batch.atoms_per_system, 1).astype(batch.dtype)[:, None, None]


def _slope(engine: Any, batch: Batch, neighbors: Any, moves_cell: bool) -> _Move:
    """dH/dy for the coordinates that the engine moves, at the structure of the batch."""
    results = engine.model.evaluate(batch, neighbors, stress=moves_cell)
    atoms = -jnp.where(batch.atom_mask[:, None] & batch.free_components, results.forces, 0)
    if not moves_cell:
        return _Move(atoms, None)
    # The stress that the algorithm relaxes, with its pressure, mask and hydrostatic part.
    stress = engine.unbalanced_stress(batch.replace(stress=results.stress))
    moving = _cells_that_move(engine, batch)[:, None, None]
    size = jnp.where(moving[:, 0, 0], volume(batch), 0)[:, None, None]
    return _Move(atoms, jnp.where(moving, stress, 0) * size / _length(batch))


def _hessian(engine: Any, batch: Batch, neighbors: Any, moves_cell: bool) -> Callable[[_Move], _Move]:
    """The function v -> d²H/dy² v."""

    def energy_slope(move: _Move) -> _Move:
        """dH/dy after a move, in the coordinates before it."""

        def enthalpy(move: _Move) -> Float[Array, ""]:
            at = _apply_move(batch, move)
            energy = jnp.where(batch.system_mask, engine.model.energy(at, neighbors), 0)
            if moves_cell:
                periodic = _cells_that_move(engine, batch)
                pressure = GPA * by_system(batch, engine._outer(batch))
                energy = energy + jnp.where(periodic, pressure * jnp.where(periodic, volume(at), 0), 0)
            return energy.sum()

        return jax.grad(enthalpy)(move)

    zero = _Move(jnp.zeros_like(batch.positions), jnp.zeros_like(batch.cell) if moves_cell else None)

    def product(v: _Move) -> _Move:
        return _project_move(
            engine, batch, jax.jvp(energy_slope, (zero,), (_project_move(engine, batch, v),))[1]
        )

    return product


def _project_move(engine: Any, batch: Batch, move: _Move) -> _Move:
    """The projection of a move onto the coordinates that the engine moves."""
    atoms = jnp.where(batch.atom_mask[:, None] & batch.free_components, move.atoms, 0)
    if move.cell is None:
        return _Move(atoms, None)
    cell = (move.cell + move.cell.swapaxes(1, 2)) / 2
    if engine.hydrostatic:
        one = jnp.eye(3, dtype=batch.dtype)[None]
        cell = (jnp.trace(cell, axis1=1, axis2=2) / 3)[:, None, None] * one
    else:
        cell = jnp.where(jnp.array(engine.mask)[None], cell, 0)
    return _Move(atoms, jnp.where(_cells_that_move(engine, batch)[:, None, None], cell, 0))


# -- the solve -------------------------------------------------------------------------------------


def _solve_move(
    engine: Any, batch: Batch, neighbors: Any, moves_cell: bool, change: _Move, tolerance: float
) -> _Move:
    """-(d²H/dy²)^-1 times a change of the gradient."""
    hessian = _hessian(engine, batch, neighbors, moves_cell)
    free = jax.lax.stop_gradient(_free_motions(batch, hessian, moves_cell))

    def project(v: _Move) -> _Move:
        v = _project_move(engine, batch, v)
        for w in free:
            along = sum_by_system(batch, jnp.sum(v.atoms * w, axis=-1))
            v = _Move(v.atoms - to_atoms(batch, along)[:, None] * w, v.cell)
        return v

    def product(v: _Move) -> _Move:
        return project(hessian(project(v)))

    reliable = batch.converged | ~batch.system_mask
    factor = jnp.where(reliable, 1, jnp.nan).astype(batch.dtype)

    def solve(product: Any, b: _Move) -> _Move:
        # In reverse mode b is any cotangent, so it must be projected. NaN is applied after the solve, in both
        # modes, so that it does not spread to other systems.
        x = cg(product, project(b), tol=tolerance)[0]
        atoms = to_atoms(batch, factor)[:, None] * x.atoms
        return _Move(atoms, None if x.cell is None else factor[:, None, None] * x.cell)

    move = project(jax.lax.custom_linear_solve(product, project(change), solve, symmetric=True))
    return jax.tree.map(jnp.negative, move)


def _free_motions(batch: Batch, hessian: Any, moves_cell: bool) -> list[Float[Array, "atoms 3"]]:
    """Translations and rotations that cost no energy, orthonormal within each system.

    They are zero for systems in which they cost energy, or with fixed atoms.
    """
    mass = batch.atom_mask[:, None].astype(batch.dtype)
    count = jnp.maximum(batch.atoms_per_system, 1).astype(batch.dtype)[:, None]
    centre = sum_by_system(batch, batch.positions * mass) / count
    r = (batch.positions - to_atoms(batch, centre)) * mass
    has_fixed = ~jnp.all(moves_as_whole(batch), axis=1)
    axes = jnp.eye(3, dtype=batch.dtype)
    motions = [axes[k][None] * mass for k in range(3)]
    motions += [jnp.cross(axes[k][None], r) for k in range(3)]

    def norm(v: Float[Array, "atoms 3"]) -> Float[Array, " systems"]:
        return root(sum_by_system(batch, jnp.sum(v * v, axis=-1)))

    def divide(
        v: Float[Array, "atoms 3"], size: Float[Array, " systems"], floor: Any
    ) -> Float[Array, "atoms 3"]:
        fit = size > floor
        return to_atoms(batch, jnp.where(fit, 1 / jnp.where(fit, size, 1), 0))[:, None] * v

    # The scale of the Hessian, from a random direction.
    still = jnp.zeros_like(batch.cell) if moves_cell else None
    rough = jax.random.normal(jax.random.key(1), batch.positions.shape, batch.dtype) * mass
    scale = norm(hessian(_Move(divide(rough, norm(rough), 0), still)).atoms)
    epsilon = jnp.sqrt(jnp.finfo(batch.dtype).eps)
    limit = epsilon * scale + 2 * norm(batch.forces)
    out: list[Float[Array, "atoms 3"]] = []
    for v in motions:
        length = norm(v)
        for w in out:
            along = sum_by_system(batch, jnp.sum(v * w, axis=-1))
            v = v - to_atoms(batch, along)[:, None] * w
        v = divide(v, norm(v), 1e-6 * length)
        free = (norm(hessian(_Move(v, still)).atoms) <= limit) & ~has_fixed
        out.append(jnp.where(to_atoms(batch, free)[:, None], v, 0))
    return out


__all__ = ["implicit_relax"]
