"""Rows of LoggingHook in a workflow whose context has a loss: of the whole batch, not of systems."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from alchemi_jax.hooks import HookContext


FIRST, LAST = ("step", "epoch", "loss"), ("rate",)


def record_whole(ctx: HookContext, scalars: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The row of a step: step, epoch, loss, the parts of the loss by name, learning rate, custom scalars."""
    rate = getattr(ctx.lr_scheduler, "rate", None)
    row: dict[str, Any] = {
        "step": jnp.asarray(ctx.step_count, jnp.int32),
        "epoch": jnp.asarray(0 if ctx.epoch is None else ctx.epoch, jnp.int32),
        "loss": jnp.asarray(ctx.loss),
        "rate": jnp.asarray(jnp.nan if rate is None else rate),
    }
    parts = {} if ctx.losses is None else dict(ctx.losses)
    for name, value in parts.items():
        if name in row or name in scalars:
            raise ValueError(f"the part {name!r} of the loss has the name of another column of LoggingHook.")
        row[name] = jnp.asarray(value)
    for name, scalar in scalars.items():
        row[name] = jnp.asarray(scalar(ctx))
        if row[name].shape != ():
            raise TypeError(
                f"custom scalar {name!r} of LoggingHook has shape {row[name].shape}, expected one number in "
                "a training."
            )
    return row


def columns_of(row: Mapping[str, Any], scalars: Mapping[str, Any]) -> list[str]:
    """Names of the columns of such rows, in order: JAX sorts the keys of a dictionary."""
    taken = {*FIRST, *LAST, *scalars}
    return [*FIRST, *sorted(set(row) - taken), *LAST, *scalars]


def table_of(rows: dict[str, Shaped[np.ndarray, "..."]], columns: list[str]) -> dict[str, np.ndarray]:
    """Rows as a table."""
    return {name: np.asarray(rows[name]) for name in columns}


def is_whole(rows: Mapping[str, Shaped[Array, "..."] | np.ndarray]) -> bool:
    """Whether rows are of this kind."""
    return "system_id" not in rows


__all__ = ["columns_of", "is_whole", "record_whole", "table_of"]
