"""The public path of `alchemi_jax.systems.segments`."""

from alchemi_jax.systems import segments as _segments
from alchemi_jax.systems.segments import *  # noqa: F403


__all__ = _segments.__all__
