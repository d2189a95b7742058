"""Integrators: molecular dynamics."""

from alchemi_jax.dynamics.integrators.langevin import NVTLangevin as NVTLangevin
from alchemi_jax.dynamics.integrators.nve import NVE as NVE
