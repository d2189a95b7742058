"""The public path of `alchemi_jax.systems.observables`."""

from alchemi_jax.systems.observables import *  # noqa: F403
