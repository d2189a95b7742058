"""OptaxOptimizer: any optax optimizer, one for each system."""

import functools
import operator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.optimizers.rows import from_rows, to_rows
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import as_count
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system


class OptaxState(eqx.Module):
    """The optimizer's state of each system."""

    inner: PyTree[Shaped[Array, "systems ..."]] = per_system()


def _is_zero(tree: Any, shape: tuple[int, ...]) -> Bool[Array, "largest 3"]:
    """Components that are zero in all arrays of this shape: padding, and atoms at rest that always were."""
    arrays = [x for x in jax.tree.leaves(tree) if jnp.shape(x) == shape]
    return functools.reduce(operator.and_, [x == 0 for x in arrays])


def _without_slopes(tree: Any, where: Bool[Array, "largest 3"]) -> Any:
    """The same values, with derivatives of zero where it is said.

    There optimizers with moments take the square root of zero, whose infinite slope would make all of a
    derivative NaN.
    """

    def change(x: Any) -> Any:
        real = jnp.shape(x) == where.shape and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        return jnp.where(where, jax.lax.stop_gradient(x), x) if real else x

    return jax.tree.map(change, tree)


class OptaxOptimizer(AbstractDynamics):
    """Relaxation of the positions by an optimizer of optax, such as `optax.adam(0.01)`.

    Each system has its own optimizer state: step counts, moments and norms do not mix with those of other
    systems, and a system that enters later starts from the initial state. The parameters are its positions,
    [atoms, 3], the gradient is -forces; optimizers that ask for `value` get the energy. Lengths are in Å, so
    a learning rate of Adam is about the distance that an atom moves in a step. Fixed atoms do not move.

    Args:
        model: gives energies and forces.
        optimizer: an `optax.GradientTransformation`. Another one recompiles; numbers that should
            change without recompiling go through `optax.inject_hyperparams`.
        n_steps: budget of steps per system.
        hooks: a `ConvergenceHook` among them ends the run of a system when it has converged.
        rescue: a `Rescue`, which lets a failing system try again with shorter steps; None: it fails at once.

    Raises:
        TypeError: if `optimizer` is not an optimizer of optax.

    Source: DeepMind, the DeepMind JAX ecosystem (2020), github.com/google-deepmind/optax.
    """

    model: AbstractModel
    optimizer: Any = eqx.field(static=True)
    n_steps: Int[Array, ""] | None = eqx.field(converter=as_count("n_steps"), default=None)
    hooks: HookSet = eqx.field(converter=HookSet, default=())

    has_velocities: ClassVar[bool] = False
    step_lengths: ClassVar[tuple[str, ...]] = ()

    def __check_init__(self):
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise TypeError(
                f"optimizer must be an optax.GradientTransformation, not a {type(self.optimizer).__name__}."
            )

    def init_state(self, batch: Batch) -> OptaxState:
        return OptaxState(jax.vmap(self.optimizer.init)(to_rows(batch, batch.positions)))

    def pre_update(self, batch: Batch, state: OptaxState) -> tuple[Batch, OptaxState]:
        optimizer = optax.with_extra_args_support(self.optimizer)

        def update(
            gradient: Float[Array, "largest 3"],
            inner: Any,
            positions: Float[Array, "largest 3"],
            energy: Float[Array, ""],
        ) -> Any:
            # Optax itself relies on promotion (a float to the power of a count).
            with jax.numpy_dtype_promotion("standard"):
                at_rest = _is_zero((gradient, inner), gradient.shape)
                gradient, inner = _without_slopes((gradient, inner), at_rest)
                step, inner = optimizer.update(gradient, inner, positions, value=energy)
                return _without_slopes((step, inner), at_rest)

        rows = to_rows(batch, -batch.forces), state.inner, to_rows(batch, batch.positions), batch.energy
        step, inner = jax.vmap(update)(*rows)
        step = jnp.where(batch.free_components, from_rows(batch, step), 0)
        return batch.replace(positions=batch.positions + step), OptaxState(inner)


__all__ = ["OptaxOptimizer", "OptaxState"]
