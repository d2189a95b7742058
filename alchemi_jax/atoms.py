"""The public path of `alchemi_jax.systems.atoms`."""

from alchemi_jax.systems.atoms import AtomicData as AtomicData


__all__ = ["AtomicData"]
