"""Precision: parameters in full precision, the model in a lower one, and a factor on the loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.parameters import natural, number


class LossScale(eqx.Module):
    """The factor on the loss, and the number of steps since it was last changed."""

    factor: Float[Array, ""]
    steps: Int[Array, ""]


def _as_dtype(value: Any) -> str:
    try:
        found = jnp.dtype(value)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(
            f"compute of Precision must be a dtype of floats, such as 'bfloat16', not {value!r}."
        )
    return found.name


class Precision(eqx.Module):
    """The precision in which a training computes.

    The parameters that are trained, their gradients and the optimizer stay in the precision of the model. The
    model is called with the parameters rounded to `compute`; positions, sums over atoms and the loss keep the
    dtype of the batch. For a whole network in lower precision cast its features to the dtype of its
    parameters.

    With a `loss_scale` the loss is multiplied by a factor before it is differentiated, and the gradients are
    divided by it: float16 underflows for small numbers. A step whose gradients are not finite is skipped, and
    the factor is halved; after `period` steps without one it is doubled.

    Args:
        compute: dtype of the parameters in the model.
        loss_scale: the initial factor; None: no factor, which bfloat16 does not need.
        period: number of steps without a skipped one after which the factor is doubled.

    Source: Micikevicius et al., Mixed precision training (2018), doi:10.48550/arXiv.1710.03740.
    """

    compute: str = eqx.field(static=True, converter=_as_dtype, default="bfloat16")
    loss_scale: float | None = eqx.field(static=True, default=None)
    period: int = eqx.field(static=True, converter=natural("period of Precision"), default=2000)

    def __post_init__(self):
        if self.loss_scale is not None:
            number("loss_scale of Precision")(self.loss_scale)

    def init(self) -> LossScale | None:
        """The initial factor; None without one."""
        if self.loss_scale is None:
            return None
        # Powers of two round nothing.
        factor = 2.0 ** round(float(np.log2(self.loss_scale)))
        return LossScale(jnp.asarray(factor, jnp.float32), jnp.zeros((), jnp.int32))

    def cast(self, params: Any) -> Any:
        """The parameters as the model gets them."""
        return jax.tree.map(
            lambda x: x.astype(self.compute) if jnp.issubdtype(x.dtype, jnp.floating) else x, params
        )

    def adapt(self, scale: LossScale, finite: Bool[Array, ""]) -> LossScale:
        """The factor for the next step."""
        steps = jnp.where(finite, scale.steps + 1, 0)
        doubles = steps >= self.period
        factor = jnp.where(doubles, scale.factor * 2, scale.factor)
        factor = jnp.where(finite, jnp.minimum(factor, 2.0**24), jnp.maximum(scale.factor / 2, 1.0))
        return LossScale(factor, jnp.where(doubles, 0, steps))


__all__ = ["LossScale", "Precision"]
