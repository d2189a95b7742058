"""Canaries: small computations that some versions of JAX got wrong, checked against numpy."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.products import matmul


def small_products() -> str | None:
    """Mapped products of 3x3 matrices with many vectors: jax 0.10.2 gives wrong sums on a CPU.

    In full precision: TF32, in which a GPU multiplies unless told otherwise, is not a fault of this JAX.
    """
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 3)).astype(np.float32)
    vectors = rng.normal(size=(40_000, 3)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda r: jnp.sum(matmul(matrix, r) ** 2)))(vectors)
    wanted = ((vectors.astype(float) @ matrix.T.astype(float)) ** 2).sum(axis=1)
    wrong = int(np.sum(~np.isclose(found, wanted, rtol=1e-3)))
    return f"{wrong} of 40000 mapped products are wrong" if wrong else None


def high_rank_reduction() -> str | None:
    """Sums over some axes of an array of many: jax 0.11.0 fails."""
    array = np.arange(2.0**9, dtype=np.float32).reshape((2,) * 9)
    axes = (0, 2, 4, 6, 8)
    try:
        found = np.asarray(jax.jit(lambda x: jnp.sum(x, axis=axes))(array))
    except Exception as e:
        return f"a sum over five of nine axes raises {type(e).__name__}"
    return None if np.allclose(found, array.sum(axis=axes)) else "a sum over five of nine axes is wrong"


def update_in_place() -> str | None:
    """A small update of a large buffer in a loop: jax 0.11.1 copies the buffer at every turn."""

    @jax.jit
    def fill(buffer):
        def turn(i, b):
            return jax.lax.dynamic_update_index_in_dim(b, jnp.full(4, i, b.dtype), i, 0)

        return jax.lax.fori_loop(0, 400, turn, buffer)

    buffer = jnp.zeros((1 << 20, 4), jnp.float32)
    fill(buffer).block_until_ready()
    begun = time.perf_counter()
    fill(buffer).block_until_ready()
    took = time.perf_counter() - begun
    return f"400 small updates of a buffer took {took:.2f} s: it is copied" if took > 0.4 else None


CANARIES = (small_products, high_rank_reduction, update_in_place)


def finalize() -> list[str]:
    """What is wrong with this JAX; empty if nothing was found."""
    return [fault for canary in CANARIES if (fault := canary()) is not None]
