"""Sinks under the path of the user guide; they are in `alchemi_jax.io.sinks`."""

from alchemi_jax.io.sinks import *  # noqa: F403
