"""Training: models fitted to energies, forces and other labels, on the hooks of `alchemi_jax.hooks`."""
