"""ScheduleHook: the learning rate, or another number of the optimizer, by a schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from alchemi_jax.hooks.protocol import TracedHook
from alchemi_jax.parameters import function
from alchemi_jax.training.context import TrainingContext
from alchemi_jax.training.stage import TrainingStage


class ScheduleHook(TracedHook):
    """Sets a hyperparameter of the optimizer, such as the learning rate, by the number of completed steps.
    Traced, at BEFORE_OPTIMIZER_STEP.

        Trainer(model, loss, optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
                hooks=[ScheduleHook(optax.cosine_decay_schedule(1e-3, 50_000))])

    `ctx.lr_scheduler` then has the schedule and the present rate.

    Args:
        schedule: a schedule of optax, or another function of the number of completed steps, written with
            jax.numpy.
        name: name of the hyperparameter.

    Raises:
        TypeError: for an optimizer without hyperparameters in its state; see `optax.inject_hyperparams`.
    """

    schedule: Callable[..., Any] = eqx.field(static=True, converter=function("schedule"))
    name: str = eqx.field(static=True, default="learning_rate")
    frequency: int = 1
    stage: TrainingStage = TrainingStage.BEFORE_OPTIMIZER_STEP

    def check_engine(self, engine: Any) -> None:
        shapes = jax.eval_shape(engine.optimizer.init, {"x": jnp.zeros(())})
        if not any(self.name in numbers for numbers in _numbers(shapes)):
            raise TypeError(
                f"ScheduleHook sets {self.name!r}, which is not in the state of this optimizer: make it by "
                f"optax.inject_hyperparams(optax.adam)({self.name}=...)."
            )

    def __call__(self, ctx: TrainingContext, stage: Any) -> TrainingContext:
        value = self.schedule(ctx.step_count)

        def put(state: Any) -> Any:
            if not _has_numbers(state) or self.name not in state.hyperparams:
                return state
            old = jnp.asarray(state.hyperparams[self.name])
            numbers = {**state.hyperparams, self.name: jnp.asarray(value).astype(old.dtype)}
            return state._replace(hyperparams=numbers)

        state = jax.tree.map(put, ctx.optimizer.state, is_leaf=_has_numbers)
        return dataclasses.replace(ctx, optimizer=dataclasses.replace(ctx.optimizer, state=state))


def find_rate(optimizer: Any) -> Any:
    """The present learning rate in the state of an optimizer; NaN if it is not there."""
    for numbers in _numbers(optimizer):
        if "learning_rate" in numbers:
            return numbers["learning_rate"]
    return jnp.float32(jnp.nan)


def _has_numbers(state: Any) -> bool:
    return hasattr(state, "hyperparams")


def _numbers(optimizer: Any) -> list[dict[str, Any]]:
    states = jax.tree.leaves(optimizer, is_leaf=_has_numbers)
    return [state.hyperparams for state in states if _has_numbers(state)]


__all__ = ["ScheduleHook", "find_rate"]
