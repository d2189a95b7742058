"""Exponentials of 3x3 matrices, one per system, for changes of the cell."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.products import matmul


#: With three doublings, ten terms are exact to rounding for matrices of norm 1 and good to 1e-11 up to 4.
_TERMS, _DOUBLINGS = 10, 3


def exp_and_mean(
    a: Float[Array, "systems 3 3"],
) -> tuple[Float[Array, "systems 3 3"], Float[Array, "systems 3 3"]]:
    """exp(A) and the integral of exp(t A) over t from 0 to 1.

    Taylor's series of A/8, doubled three times: exp(2B) = exp(B)², mean(2B) = mean(B) (exp(B) + 1)/2.
    Differentiable everywhere, unlike a form with eigenvectors.
    """
    one = jnp.broadcast_to(jnp.eye(3, dtype=a.dtype)[None], a.shape)
    a = a / 2**_DOUBLINGS
    mean = one
    for n in range(_TERMS, 1, -1):
        mean = one + matmul(a, mean) / n
    exp = one + matmul(a, mean)
    for _ in range(_DOUBLINGS):
        mean = matmul(mean, exp + one) / 2
        exp = matmul(exp, exp)
    return exp, mean


def exp(a: Float[Array, "systems 3 3"]) -> Float[Array, "systems 3 3"]:
    """exp(A) of each matrix."""
    return exp_and_mean(a)[0]


__all__ = ["exp", "exp_and_mean"]
