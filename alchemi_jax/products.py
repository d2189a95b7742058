"""Products of matrices in full precision on every device.

On a GPU JAX multiplies float32 matrices in TF32 unless told otherwise, with relative errors of 1e-3.
Positions must not pass through that, so the package uses these functions in place of `@` and `jnp.einsum`.
"""

import functools

import jax
import jax.numpy as jnp


_FULL = jax.lax.Precision.HIGHEST

einsum = functools.partial(jnp.einsum, precision=_FULL)
"""`jnp.einsum` in full precision."""
matmul = functools.partial(jnp.matmul, precision=_FULL)
"""`jnp.matmul` in full precision."""


__all__ = ["einsum", "matmul"]
