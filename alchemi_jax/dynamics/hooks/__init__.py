"""Hooks for dynamics."""

from alchemi_jax.dynamics.hooks.convergence import ConvergenceHook as ConvergenceHook
from alchemi_jax.dynamics.hooks.logging import LoggingHook as LoggingHook
from alchemi_jax.dynamics.hooks.snapshot import ConvergedSnapshotHook as ConvergedSnapshotHook
from alchemi_jax.dynamics.hooks.snapshot import SnapshotHook as SnapshotHook
