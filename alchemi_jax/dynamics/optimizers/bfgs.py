"""BFGS: the quasi-Newton method with a full Hessian, for small systems."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.optimizers.coordinates import cut_by_atom
from alchemi_jax.dynamics.optimizers.rows import from_rows, to_rows
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.products import einsum, matmul
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_atom, per_system


#: Most atoms of a system. For more, the eigenvectors of each step cost more than most models.
_MOST = 200


class BFGSState(eqx.Module):
    """The Hessian over the coordinates of a system, eV/Å², and the forces and the displacement of the last
    step."""

    hessian: Float[Array, "systems coordinates coordinates"] = per_system()
    forces: Float[Array, "atoms 3"] = per_atom()
    step: Float[Array, "atoms 3"] = per_atom()
    begun: Bool[Array, " systems"] = per_system()


class BFGS(AbstractDynamics):
    """Relaxation of the positions by BFGS, each system with its own Hessian B.

    B starts as curvature times the unit matrix. Each step s and change y of the gradient update it,
    B <- B + y y^T/(y·s) - B s s^T B/(s·B s). With eigenvalues w and eigenvectors V the step is
    V |w|^-1 V^T f, scaled down system by system so that no atom moves further than max_step. This is ASE's
    BFGS (its alpha is curvature). A step of a system of n atoms costs about (3n)³ operations. Fixed atoms do
    not move.

    Args:
        model: gives energies and forces.
        n_steps: budget of steps per system.
        hooks: a `ConvergenceHook` among them ends the run of a system when it has converged.
        curvature: eV/Å², the Hessian at the start.
        max_step: largest distance that an atom moves in a step, Å.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    curvature and max_step are numbers, or one per system.

    Raises:
        ValueError: from `init`, naming a system of more than 200 atoms.

    Source: Nocedal, Wright, Numerical Optimization (2006), doi:10.1007/978-0-387-40065-5, chapter 6; |w| as
    in ASE.
    """

    model: AbstractModel
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    curvature: Parameter = eqx.field(converter=positive("curvature"), default=70.0, kw_only=True)
    max_step: Parameter = eqx.field(converter=positive("max_step"), default=0.2, kw_only=True)

    has_velocities: ClassVar[bool] = False
    step_lengths: ClassVar[tuple[str, ...]] = ("max_step",)

    def check(self, batch: Batch) -> None:
        host = batch.take()
        for system, atoms in enumerate(host.atoms_per_system.tolist()):
            if atoms > _MOST:
                raise ValueError(
                    f"{batch.name_of(system)} has {atoms} atoms; BFGS keeps the Hessian of at most {_MOST}: "
                    "take LBFGS."
                )

    def init_state(self, batch: Batch) -> BFGSState:
        none = jnp.zeros_like(batch.positions)
        one = jnp.eye(3 * batch.largest, dtype=batch.dtype)[None]
        hessian = by_system(batch, self.curvature)[:, None, None] * one
        return BFGSState(hessian, none, none, jnp.zeros(batch.system_capacity, bool))

    def pre_update(self, batch: Batch, state: BFGSState) -> tuple[Batch, BFGSState]:
        def rows(values: Float[Array, "atoms 3"]) -> Float[Array, "systems coordinates"]:
            return to_rows(batch, values).reshape(batch.system_capacity, -1)

        hessian = jax.vmap(_update_hessian)(
            state.hessian, rows(state.step), rows(state.forces - batch.forces), state.begun
        )
        step = _newton_step(hessian, rows(batch.forces)).reshape(batch.system_capacity, -1, 3)
        # Rounding errors of the eigenvectors must not move atoms without forces.
        step = jnp.where(batch.free_components, from_rows(batch, step), 0)
        step = cut_by_atom(batch, step, self.max_step)
        known = jnp.ones_like(state.begun)
        after = BFGSState(hessian, batch.forces, step, known)
        return batch.replace(positions=batch.positions + step), after


@jax.custom_jvp
def _newton_step(
    hessian: Float[Array, "systems n n"], forces: Float[Array, "systems n"]
) -> Float[Array, "systems n"]:
    """V |w|^-1 V^T f for each system, [systems, n], with the eigenvalues w of the Hessian."""
    w, v = jnp.linalg.eigh(hessian)
    along = einsum("sij,si->sj", v, forces) / jnp.abs(w)
    return einsum("sij,sj->si", v, along)


@_newton_step.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Float[Array, "systems n"], Float[Array, "systems n"]]:
    # Those of eigenvectors are infinite where eigenvalues are equal, as all are at the start. That of
    # |H|^-1 is V (q * V^T dH V) V^T, with quotients q of differences of 1/|w| and of w.
    (hessian, forces), (d_hessian, d_forces) = primals, tangents
    w, v = jnp.linalg.eigh(hessian)
    wi, wj = w[:, :, None], w[:, None, :]
    same = wi * wj > 0
    apart = jnp.where(same, 1, wi - wj)
    quotients = jnp.where(same, -jnp.sign(wi) / (wi * wj), (1 / jnp.abs(wi) - 1 / jnp.abs(wj)) / apart)
    change = quotients * einsum("ski,skl,slj->sij", v, d_hessian, v)
    along = einsum("sij,si->sj", v, forces)
    moved = einsum("sij,sj->si", change, along) + einsum("sij,si->sj", v, d_forces) / jnp.abs(w)
    return einsum("sij,sj->si", v, along / jnp.abs(w)), einsum("sij,sj->si", v, moved)


def _update_hessian(
    hessian: Float[Array, "coordinates coordinates"],
    s: Float[Array, " coordinates"],
    y: Float[Array, " coordinates"],
    begun: Bool[Array, ""],
) -> Float[Array, "coordinates coordinates"]:
    """The Hessian of one system after a step; unchanged if the step was too short to tell anything."""
    ys, bs = matmul(y, s), matmul(hessian, s)
    sbs = matmul(s, bs)
    enough = begun & (jnp.max(jnp.abs(s)) >= 1e-7) & (ys != 0) & (sbs != 0)
    ys, sbs = jnp.where(enough, ys, 1), jnp.where(enough, sbs, 1)
    change = jnp.outer(y, y) / ys - jnp.outer(bs, bs) / sbs
    return jnp.where(enough, hessian + change, hessian)


__all__ = ["BFGS", "BFGSState"]
