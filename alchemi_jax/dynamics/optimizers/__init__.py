"""Optimizers: relaxation."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.dynamics.optimizers.bfgs import BFGS as BFGS
    from alchemi_jax.dynamics.optimizers.fire import FIRE as FIRE
    from alchemi_jax.dynamics.optimizers.fire2 import FIRE2 as FIRE2
    from alchemi_jax.dynamics.optimizers.gradient_descent import GradientDescent as GradientDescent
    from alchemi_jax.dynamics.optimizers.lbfgs import LBFGS as LBFGS
    from alchemi_jax.dynamics.optimizers.through_optax import OptaxOptimizer as OptaxOptimizer
    from alchemi_jax.dynamics.optimizers.variable_cell import FIRE2VariableCell as FIRE2VariableCell
    from alchemi_jax.dynamics.optimizers.variable_cell import FIREVariableCell as FIREVariableCell
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
