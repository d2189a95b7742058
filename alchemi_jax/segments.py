"""The public path of `alchemi_jax.systems.segments`."""

from alchemi_jax.systems.segments import *  # noqa: F403
