"""Optimizers: relaxation."""

from alchemi_jax.dynamics.optimizers.fire import FIRE as FIRE
