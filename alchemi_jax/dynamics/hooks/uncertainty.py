"""UncertaintyHook: stops or marks systems in which the members of a committee differ too much."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.parameters import Described, Parameter, number, one_of
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system
from alchemi_jax.systems.segments import max_by_system


class Uncertainty(Described):
    """The memory of UncertaintyHook.

    Attributes:
        worst: [systems], the largest value so far, in the unit of the key.
        marked: [systems], whether it exceeded the limit.
        step: [systems], the step of the system, from 0, in which it first did; -1 if it never did.
    """

    worst: Float[Array, " systems"] = per_system()
    marked: Bool[Array, " systems"] = per_system()
    step: Int[Array, " systems"] = per_system()


class UncertaintyHook(TracedHook):
    """Stops or marks systems in which a spread is larger than a limit. Traced, at AFTER_STEP.

    Reads a result of the model, by default `forces_spread` of a `CommitteeModel`. For a result per atom the
    largest value in the system counts. A system that is stopped ends with this step, neither converged nor
    failed, and sinks get it in this state. With both actions the memory (in `state.memory`, an `Uncertainty`)
    has the marks. Costs one pass over the result.

    Args:
        limit: in the unit of the key: eV/Å for `forces_spread`, eV per atom for `energy_spread`.
        key: name of a result of the model, a field or an extra of the batch: one number per atom or system.
        action: "stop", or "mark": the system continues and is only marked in the memory.

    Raises:
        ValueError: naming the argument; when a run begins, for a key that is not in the batch.
    """

    limit: Parameter = eqx.field(converter=number("limit"))
    key: str = eqx.field(static=True, default="forces_spread")
    action: str = eqx.field(static=True, converter=one_of("action", ("stop", "mark")), default="stop")
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.AFTER_STEP

    reasons: ClassVar[tuple[str, ...]] = ("the spread passed its limit",)

    def __check_init__(self):
        if not isinstance(self.key, str):
            raise TypeError(f"key must be the name of a result or an extra, not {self.key!r}.")

    def init(self, batch: Batch) -> Uncertainty:
        extras = {**batch.atom_extras, **batch.system_extras}
        value = extras.get(self.key, getattr(batch, self.key, None))
        shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", bool)
        if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"UncertaintyHook: neither model nor batch has {self.key!r} with one number per atom or "
                "system: use a CommitteeModel, or another key."
            )
        zero = jnp.zeros_like(batch.energy)
        return Uncertainty(
            worst=zero, marked=jnp.zeros_like(batch.failed), step=jnp.full_like(batch.steps_taken, -1)
        )

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        batch, memory = ctx.batch, ctx.memory
        value = batch[self.key]
        if batch.level(self.key) == "atom":
            value = max_by_system(batch, value, 0)
        now = jnp.where(ctx.active_mask, value, 0).astype(batch.dtype)
        passed = now > self.limit
        memory = Uncertainty(
            worst=jnp.maximum(memory.worst, now),
            marked=memory.marked | passed,
            step=jnp.where(passed & ~memory.marked, batch.steps_taken, memory.step),
        )
        ctx = ctx.with_memory(memory)
        return ctx.stop(passed) if self.action == "stop" else ctx


__all__ = ["Uncertainty", "UncertaintyHook"]
