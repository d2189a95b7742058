"""GradientDescent: steps in proportion to the forces."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Int

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.optimizers.coordinates import cut_by_atom
from alchemi_jax.dynamics.updates import at_atoms
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Parameter, as_count, positive
from alchemi_jax.systems.batch import Batch


class GradientDescent(AbstractDynamics):
    """Relaxation of the positions by r <- r + rate f. The step of a system is scaled down so that no atom
    moves further than max_step.

    It converges if rate is below two divided by the largest curvature. In a harmonic well of constant k each
    step multiplies the displacement by 1 - rate k.

    Args:
        model: gives energies and forces.
        rate: step per force, Å²/eV.
        n_steps: budget of steps per system.
        hooks: a `ConvergenceHook` among them ends the run of a system when it has converged.
        max_step: largest distance that an atom moves in a step, Å.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    rate and max_step are numbers, or one per system.

    Source: Nocedal, Wright, Numerical Optimization (2006), doi:10.1007/978-0-387-40065-5, chapter 3.
    """

    model: AbstractModel
    rate: Parameter = eqx.field(converter=positive("rate"), default=0.01)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    max_step: Parameter = eqx.field(converter=positive("max_step"), default=0.2, kw_only=True)

    has_velocities: ClassVar[bool] = False
    step_lengths: ClassVar[tuple[str, ...]] = ("rate", "max_step")

    def pre_update(self, batch: Batch, state: None) -> tuple[Batch, None]:
        step = cut_by_atom(batch, at_atoms(batch, self.rate) * batch.forces, self.max_step)
        return batch.replace(positions=batch.positions + step), state


__all__ = ["GradientDescent"]
