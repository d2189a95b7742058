"""The public path of `alchemi_jax.systems.levels`."""

from alchemi_jax.systems import levels as _levels
from alchemi_jax.systems.levels import *  # noqa: F403


__all__ = _levels.__all__
