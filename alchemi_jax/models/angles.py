"""Angles at an atom, of all pairs of its neighbors, as sums over single neighbors."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alchemi_jax.products import einsum


#: The powers of the cosine.
POWERS = (1, 2, 3)


def sums_of_angles(
    g: Float[Array, "neighbors atoms channels"],
    x: Float[Array, "neighbors atoms"],
    y: Float[Array, "neighbors atoms"],
    z: Float[Array, "neighbors atoms"],
) -> Float[Array, "atoms features"]:
    """For each power l of the cosine and each pair of channels c <= d, the sum over neighbors j and k of
    g_jc g_kd cos^l(angle between j and k).

    A power of the product of two unit vectors is the product of two tensors, u_j^l and u_k^l, so that it is
    enough to sum g_jc u_j^l over the neighbors.

    Args:
        g: zero where there is no neighbor.
        x, y, z: of unit vectors.
    """
    u, channels = (x, y, z), g.shape[-1]
    rows, columns = np.triu_indices(channels)
    out = []
    for power in POWERS:
        total = jnp.zeros((g.shape[1], channels, channels), g.dtype)
        for axes in itertools.combinations_with_replacement(range(3), power):
            # So many components of the tensor are this one.
            times = math.factorial(power) / math.prod(math.factorial(axes.count(k)) for k in range(3))
            product = math.prod((u[k] for k in axes[1:]), start=u[axes[0]])
            sums = jnp.sum(g * product[..., None], axis=0)
            total = total + times * einsum("ac,ad->acd", sums, sums)
        out.append(total[:, rows, columns])
    return jnp.concatenate(out, axis=-1)


__all__ = ["POWERS", "sums_of_angles"]
