"""The public path of `alchemi_jax.systems.observables`."""

from alchemi_jax.systems import observables as _observables
from alchemi_jax.systems.observables import *  # noqa: F403


__all__ = _observables.__all__
