"""One step of a training, from begin to end: `STEP` lists its phases in order, `FORWARD` those that are
differentiated.

Each phase takes trainer and carry and returns the carry. Traced hooks get at each stage a context whose
fields `MAY_CHANGE` they may change.
"""

import dataclasses
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from alchemi_jax.errors import UserCodeError, check_same_structure, description, name_of, user_errors
from alchemi_jax.hooks import records
from alchemi_jax.hooks.dispatch import Dispatcher, dispatch
from alchemi_jax.hooks.groups import Group
from alchemi_jax.hooks.protocol import TracedHook, runs_on
from alchemi_jax.models.base import results_of
from alchemi_jax.systems.batch import Batch
from alchemi_jax.training.batch import Item
from alchemi_jax.training.context import TrainingContext
from alchemi_jax.training.devices import Dealt
from alchemi_jax.training.precision import Precision
from alchemi_jax.training.stage import AFTER_UPDATE, MAY_CHANGE, TrainingStage
from alchemi_jax.training.state import Report, TrainingCarry, TrainingState, all_finite, as_model, where


#: What no traced hook may change in silence.
_SEEN = (
    *("batch", "step_count", "model", "loss", "losses", "optimizer", "lr_scheduler", "gradients", "epoch"),
    *("results", "updates", "skipped"),
)


if TYPE_CHECKING:

    class Trains(Protocol):
        """What the step asks of a trainer."""

        @property
        def model(self) -> Any: ...
        @property
        def loss(self) -> Any: ...
        @property
        def optimizer(self) -> Any: ...
        @property
        def backward(self) -> Any: ...
        @property
        def update(self) -> Any: ...
        @property
        def precision(self) -> Precision | None: ...
        @property
        def groups(self) -> tuple[Group, ...]: ...
        @property
        def needs_stress(self) -> bool: ...
        @property
        def reads_gradients(self) -> bool: ...
        def frozen(self) -> Any: ...
        def _build_context(self, carry: TrainingCarry, stage: Any, group: Group) -> TrainingContext: ...

else:
    # Only for the type checker: a check at run time would evaluate all properties in each call.
    Trains = Any


Phase = Callable[[Any, TrainingCarry], TrainingCarry]


class TrainingDispatcher(Dispatcher[TrainingCarry]):
    """Hooks of a trainer at one stage."""

    def __init__(self, trainer: Trains, stage: TrainingStage):
        self.trainer, self.groups = trainer, trainer.groups
        self.fields = MAY_CHANGE.get(stage, ())
        self.fixed = tuple(name for name in _SEEN if name not in self.fields)

    def context(self, carry: TrainingCarry, stage: Any, group: Group) -> TrainingContext:
        return self.trainer._build_context(carry, stage, group)

    def before(
        self, carry: TrainingCarry, stage: Enum, group: Group, ctx: Any, number: int, hook: TracedHook
    ) -> tuple[Any, Bool[Array, ""] | None]:
        if stage is TrainingStage.AFTER_OPTIMIZER_STEP:
            # A hook before this one may have changed the updates.
            params = optax.apply_updates(carry.state.params, ctx.updates)
            ctx = dataclasses.replace(ctx, model=as_model(params, self.trainer.frozen()))
        return super().before(carry, stage, group, ctx, number, hook)

    def take_back(self, carry: TrainingCarry, stage: Enum, values: dict[str, Any]) -> TrainingCarry:
        if "optimizer" in values:
            values["optimizer"] = values["optimizer"].state
        if "updates" in values and values["updates"] is not carry.updates:
            values["params"] = optax.apply_updates(carry.state.params, values["updates"])
        return carry.update(**values)

    def observed(self, carry: TrainingCarry) -> Bool[Array, ""]:
        return ~(carry.skipped | carry.state.failed)


@dataclasses.dataclass(frozen=True)
class HooksAt:
    """The phase in which the hooks of a stage are called."""

    stage: TrainingStage

    def __call__(self, trainer: Trains, carry: TrainingCarry) -> TrainingCarry:
        dispatcher = TrainingDispatcher(trainer, self.stage)
        if carry.layouts is not None:
            _find_layouts(dispatcher, carry, self.stage)
        return dispatch(dispatcher, carry, self.stage)


def _find_layouts(dispatcher: TrainingDispatcher, carry: TrainingCarry, stage: TrainingStage) -> None:
    assert carry.layouts is not None
    for group in dispatcher.groups:
        for entry in group.hooks.recording:
            if runs_on(entry.hook, stage) and id(entry.hook) not in carry.layouts:
                ctx = dispatcher.context(carry, stage, group)
                carry.layouts[id(entry.hook)] = records.allocate(entry.hook, ctx)


def begin(trainer: Trains, state: TrainingState, given: Item) -> TrainingCarry:
    """The carry of a step that begins."""
    batch, neighbors = given.unpack()
    dealt = given if isinstance(given, Dealt) else None
    if dealt is None:
        _check_list(trainer, neighbors)
    return TrainingCarry(
        state=state,
        batch=batch,
        neighbors=neighbors,
        params=state.params,
        optimizer=state.optimizer,
        memory=state.memory,
        records=state.records,
        skipped=jnp.zeros((), bool),
        dealt=dealt,
    )


def _check_list(trainer: Trains, neighbors: Any) -> None:
    if neighbors is None and trainer.model.requirements.cutoff is not None:
        raise ValueError(
            f"{name_of(trainer.model)} needs a neighbor list, and the batch has no room for one: give "
            "TrainingBatch(batch, sizes, requirements=...) or TrainingBatch(batch, neighbors=...)."
        )


def forward(trainer: Trains, carry: TrainingCarry) -> TrainingCarry:
    """Results of the model with the present parameters, on several devices if the batch is dealt to them."""
    params = carry.params if trainer.precision is None else trainer.precision.cast(carry.params)
    model, batch = as_model(params, trainer.frozen()), carry.batch

    def evaluate(model: Any, batch: Batch, neighbors: Any) -> tuple[Any, Bool[Array, ""]]:
        _check_list(trainer, neighbors)
        results = results_of(model, batch, neighbors, stress=trainer.needs_stress)
        # Sums over atoms, and the loss, in the dtype of the batch.
        results = jax.tree.map(lambda x: x.astype(batch.dtype), results)
        return results, jnp.zeros((), bool) if neighbors is None else neighbors.overflow

    if carry.dealt is None:
        results, overflow = evaluate(model, batch, carry.neighbors)
    else:
        results, overflow = carry.dealt.evaluate(evaluate, model, batch, trainer.model.extra_results)
    return carry.update(results=results, overflow=overflow)


def compute_loss(trainer: Trains, carry: TrainingCarry) -> TrainingCarry:
    """The loss, and its parts by name."""
    loss, losses = find_loss(trainer, carry.results, carry.batch, carry.step_count)
    return carry.update(loss=loss, losses=losses)


def find_loss(trainer: Trains, results: Any, batch: Any, step: Any) -> tuple[Any, dict[str, Any]]:
    """What the loss function returns, checked: a float without dimensions, and floats by name.

    Raises:
        UserCodeError: naming the loss.
    """
    name = getattr(trainer.loss, "__name__", name_of(trainer.loss))
    with user_errors(name, "model"):
        found = trainer.loss(results, batch, step)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise UserCodeError(
            f"the loss {name} returned {description(found)}: it must return a number and its parts by name, "
            "(loss, {'energy': ..., 'forces': ...})."
        )
    loss, losses = found
    for what, value in (("", loss), *((f" {part!r}", x) for part, x in losses.items())):
        value = jnp.asarray(value)
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserCodeError(
                f"the loss {name} returned{what} {description(value)}; it must be one float: take the mean "
                "over systems or atoms."
            )
    return jnp.asarray(loss), {part: jnp.asarray(x) for part, x in losses.items()}


def differentiate(trainer: Trains, carry: TrainingCarry) -> TrainingCarry:
    """Forward, loss and gradients, by the function of the trainer for this (DO_BACKWARD)."""
    scale = carry.state.scale

    def function(params: Any) -> tuple[Array, Any]:
        inner = run_phases(trainer, carry.update(params=params), FORWARD)
        loss = inner.loss if scale is None else inner.loss * scale.factor.astype(inner.loss.dtype)
        return loss, (inner.results, inner.overflow, inner.loss, inner.losses, inner.memory, inner.records)

    (_, found), gradients = trainer.backward(function, carry.params)
    results, overflow, loss, losses, memory, rows = found
    gradients = check_same_structure("backward of the Trainer", "gradients", gradients, carry.params)
    skipped = carry.skipped
    if scale is not None:
        gradients = jax.tree.map(lambda g: g / scale.factor.astype(g.dtype), gradients)
        skipped = ~all_finite(gradients) & all_finite(loss) & (scale.factor > 1)
    return carry.update(
        results=results,
        overflow=overflow,
        loss=loss,
        losses=losses,
        memory=memory,
        records=rows,
        gradients=gradients,
        skipped=skipped,
    )


def optimizer_step(trainer: Trains, carry: TrainingCarry) -> TrainingCarry:
    """Updates, by the function of the trainer for this (DO_OPTIMIZER_STEP), and the parameters with them."""
    given = carry.gradients, carry.optimizer, carry.params
    if trainer.update is update_by_optax:
        updates, optimizer = _update_with_loss(trainer.optimizer, *given, carry.loss)
    else:
        updates, optimizer = trainer.update(trainer.optimizer, *given)
    updates = check_same_structure("update of the Trainer", "updates", updates, carry.params)
    optimizer = check_same_structure("update of the Trainer", "state", optimizer, carry.optimizer)
    params = optax.apply_updates(carry.params, updates)
    return carry.update(updates=updates, optimizer=optimizer, params=params)


def _update_with_loss(optimizer: Any, gradients: Any, state: Any, params: Any, loss: Any) -> Any:
    """As `update_by_optax`; transformations that ask for the value of the loss get it."""
    more: dict[str, Any] = {}
    if isinstance(optimizer, optax.GradientTransformationExtraArgs | optax.MultiSteps):
        more = {"value": loss, "grad": gradients}
    try:
        return optimizer.update(gradients, state, params, **more)
    except TypeError as e:
        if "missing" not in str(e) or "argument" not in str(e):
            raise
        raise UserCodeError(
            f"the optimizer of the Trainer needs more than gradients, state, parameters and loss ({e}): "
            "one that evaluates the loss again, as the line search of optax.lbfgs does, cannot be used; take "
            "another, such as optax.adam(1e-3) or optax.lbfgs(1e-3, linesearch=None)."
        ) from None


def end(trainer: Trains, carry: TrainingCarry) -> TrainingCarry:
    """Count the step, if it counts; otherwise parameters and optimizer stay as they were.

    The memory of a hook that is called only after the update stays, too.
    """
    old, skipped = carry.state, carry.skipped
    overflow = old.overflow | carry.overflow
    lost = ~all_finite(carry.loss, carry.gradients, carry.updates) & ~skipped
    failed = old.failed | lost | overflow
    counts = ~(failed | skipped)
    hooks = [hook for group in trainer.groups for hook in group.hooks.traced]
    memory = tuple(
        where(counts if _only_after_update(hook) else ~failed, new, before)
        for hook, new, before in zip(hooks, carry.memory, old.memory, strict=True)
    )
    scale = old.scale
    if scale is not None:
        assert trainer.precision is not None
        scale = where(~failed, trainer.precision.adapt(scale, ~skipped), scale)
    state = TrainingState(
        params=where(counts, carry.params, old.params),
        optimizer=where(counts, carry.optimizer, old.optimizer),
        step_count=old.step_count + counts.astype(jnp.int32),
        epoch=old.epoch,
        position=old.position + (~failed).astype(jnp.int32),
        key=old.key,
        memory=memory,
        records=carry.records,
        skipped=jnp.where(counts, 0, old.skipped + (skipped & ~failed).astype(jnp.int32)),
        failed=failed,
        overflow=overflow,
        scale=scale,
    )
    return carry.update(state=state)


def _only_after_update(hook: TracedHook) -> bool:
    return not any(runs_on(hook, stage) for stage in TrainingStage if stage not in AFTER_UPDATE)


#: The phases that are differentiated, in order.
FORWARD: tuple[Phase, ...] = (
    HooksAt(TrainingStage.BEFORE_FORWARD),
    forward,
    HooksAt(TrainingStage.AFTER_FORWARD),
    HooksAt(TrainingStage.BEFORE_LOSS),
    compute_loss,
    HooksAt(TrainingStage.AFTER_LOSS),
    HooksAt(TrainingStage.BEFORE_BACKWARD),
)

#: The phases of a step. Their order is defined here and nowhere else.
STEP: tuple[Phase, ...] = (
    HooksAt(TrainingStage.BEFORE_BATCH),
    differentiate,
    HooksAt(TrainingStage.AFTER_BACKWARD),
    HooksAt(TrainingStage.BEFORE_OPTIMIZER_STEP),
    optimizer_step,
    HooksAt(TrainingStage.AFTER_OPTIMIZER_STEP),
    HooksAt(TrainingStage.AFTER_BATCH),
    end,
)


def run_phases(trainer: Trains, carry: TrainingCarry, phases: tuple[Phase, ...]) -> TrainingCarry:
    """Run some phases of a step, in order."""
    for phase in phases:
        name = phase.stage.name.lower() if isinstance(phase, HooksAt) else getattr(phase, "__name__", "phase")
        with jax.named_scope(name):
            carry = phase(trainer, carry)
    return carry


def step(trainer: Trains, state: TrainingState, given: Item) -> tuple[TrainingState, Report]:
    """One step. Pure."""
    carry = run_phases(trainer, begin(trainer, state, given), STEP)
    after = carry.state
    counts = after.step_count > state.step_count
    gradients = carry.gradients if trainer.reads_gradients else None
    return after, Report(carry.loss, carry.losses, gradients, counts, after.failed, after.overflow)


def value_and_grad(function: Callable[[Any], Any], params: Any) -> Any:
    """The default for DO_BACKWARD: ((value, auxiliary), gradients) of a function, in reverse mode."""
    return jax.value_and_grad(function, has_aux=True)(params)


def update_by_optax(optimizer: Any, gradients: Any, state: Any, params: Any) -> Any:
    """The default for DO_OPTIMIZER_STEP: (updates, state) of the transformation of optax. A transformation
    that takes the loss as `value`, such as `optax.contrib.reduce_on_plateau`, gets it."""
    return optimizer.update(gradients, state, params)


__all__ = [
    "FORWARD",
    "STEP",
    "HooksAt",
    "Phase",
    "TrainingDispatcher",
    "Trains",
    "begin",
    "compute_loss",
    "differentiate",
    "end",
    "find_loss",
    "forward",
    "optimizer_step",
    "run_phases",
    "step",
    "update_by_optax",
    "value_and_grad",
]
