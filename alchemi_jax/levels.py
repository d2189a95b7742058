"""The public path of `alchemi_jax.systems.levels`."""

from alchemi_jax.systems.levels import *  # noqa: F403
