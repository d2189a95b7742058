"""The command `alchemi-jax`."""
