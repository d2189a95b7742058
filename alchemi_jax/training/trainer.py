"""Trainer: a model, a loss, an optimizer and hooks; its methods begin, step and run a training."""

import os
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from alchemi_jax.errors import description, name_of, public_call
from alchemi_jax.hooks.groups import Group, make_groups
from alchemi_jax.hooks.protocol import RecordingHook, TracedHook, flag, runs_on
from alchemi_jax.hooks.set import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Described, function
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.training import run as runs
from alchemi_jax.training import start
from alchemi_jax.training.batch import Item, TrainingBatch, as_data
from alchemi_jax.training.context import LearningRate, Optimizer, TrainingContext
from alchemi_jax.training.hooks.schedule import ScheduleHook, find_rate
from alchemi_jax.training.parameters import as_filter, check_filters, choose
from alchemi_jax.training.precision import Precision
from alchemi_jax.training.stage import IN_STEP, OWNED, TrainingStage
from alchemi_jax.training.state import TrainingCarry, TrainingState, as_model
from alchemi_jax.training.step import step, update_by_optax, value_and_grad


def _as_optimizer(value: Any) -> Any:
    if not callable(getattr(value, "init", None)) or not callable(getattr(value, "update", None)):
        raise TypeError(
            f"optimizer of a Trainer must be a transformation of optax, such as optax.adam(1e-3), not "
            f"{description(value)}."
        )
    return value


def _as_precision(value: Any) -> Precision | None:
    if isinstance(value, str):
        value = Precision(compute=value)
    if value is not None and not isinstance(value, Precision):
        raise TypeError(f"precision of a Trainer must be a Precision or a dtype, not {description(value)}.")
    return value


class _Text(str):
    """A text whose repr is itself."""

    __repr__ = str.__str__


def _named(value: Any) -> Any:
    plain = callable(value) and not isinstance(value, eqx.Module)
    return _Text(getattr(value, "__qualname__", name_of(value))) if plain else value


class Trainer(Described):
    """Fits the parameters of a model to labels, by gradients of a loss.

        trainer = Trainer(model, loss, optax.adam(1e-3), hooks=[EMAHook(0.999)])
        state = trainer.run(data, epochs=100, validation=others, resume="checkpoints")
        model = trainer.averaged(state)

    Args:
        model: any model. A loss on forces differentiates its energy twice.
        loss: `loss(results, batch, step)` gives a number and a dictionary of its parts. `results` are those
            of the model, `batch` has the labels (NaN if missing), `step` the number of completed steps. An
            attribute `needs_stress` that is true asks for the stress.
        optimizer: a gradient transformation of optax.
        hooks: hooks of any kind, with stages of `TrainingStage`.
        trainable: what is trained: None, all arrays of floats of the model except those that it names in
            `untrained`; paths such as "variables.params", with wildcards; or a function of path and leaf.
        frozen: what of these is not trained; given like `trainable`.
        precision: a `Precision`, or the dtype in which the model computes.
        backward: the function for DO_BACKWARD: `backward(function, params)` gives
            `((value, auxiliary), gradients)`, as `jax.value_and_grad(function, has_aux=True)(params)` does.
        update: the function for DO_OPTIMIZER_STEP: `update(optimizer, gradients, state, params)` gives
            `(updates, state)`.

    Raises:
        TypeError, ValueError: naming the argument or the hook.
    """

    model: AbstractModel
    loss: Any
    optimizer: Any = eqx.field(static=True, converter=_as_optimizer)
    hooks: HookSet = eqx.field(converter=HookSet, default=())
    trainable: Any = eqx.field(static=True, converter=as_filter("trainable"), default=None)
    frozen_parts: Any = eqx.field(static=True, default=None)
    precision: Precision | None = eqx.field(converter=_as_precision, default=None)
    backward: Any = eqx.field(static=True, converter=function("backward"), default=value_and_grad)
    update: Any = eqx.field(static=True, converter=function("update"), default=update_by_optax)
    #: Whether a host hook may read the gradients after a step.
    reads_gradients: bool = eqx.field(static=True, repr=False, default=False)

    def __init__(
        self,
        model: Any,
        loss: Any,
        optimizer: Any,
        hooks: Any = (),
        *,
        trainable: Any = None,
        frozen: Any = None,
        precision: Any = None,
        backward: Any = value_and_grad,
        update: Any = update_by_optax,
    ):
        if not isinstance(model, AbstractModel):
            raise TypeError(f"model of a Trainer must be a model, not {description(model)}.")
        if not callable(loss):
            raise TypeError(
                f"loss of a Trainer must be a function of results, batch and step, not {description(loss)}."
            )
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.hooks, self.precision = HookSet(hooks), precision
        self.reads_gradients = any(
            runs_on(entry.hook, TrainingStage.AFTER_BATCH) and flag(entry.hook, "reads_batch")
            for entry in self.hooks.host
        )
        self.trainable, self.frozen_parts = trainable, as_filter("frozen")(frozen)
        self.backward, self.update = backward, update

    def __check_init__(self):
        check_filters(self.model, self.trainable, self.frozen_parts)
        if callable(getattr(self.loss, "check", None)):
            self.loss.check(self.model)
        self.hooks.check_stages(TrainingStage)
        for hook in self.hooks:
            check_hook_of_training(hook)
            if isinstance(hook, TracedHook):
                hook.check_engine(self)

    # -- a training ------------------------------------------------------------------------------

    def init(self, batch: Any, key: PRNGKeyArray | None = None) -> TrainingState:
        """The state before the first step.

        Args:
            batch: one batch of the data, for which memories of hooks are made.
            key: PRNG key for the order of the data.
        """
        with public_call():
            ready = isinstance(batch, Item) and not isinstance(batch, TrainingBatch)
            given = batch if ready else next(iter(as_data(batch, self.model, self.loss).in_order()))
            return start.init(self, given, key)

    def step(self, state: TrainingState, batch: Item) -> TrainingState:
        """One step, a pure function for loops of your own, under `eqx.filter_jit`. Host hooks are not called,
        and rows of recording hooks stay in the state.

        If the loss is not finite, only `state.failed` changes.
        """
        with public_call():
            return step(self.on_device(), state, batch)[0]

    def run(
        self,
        data: Any,
        epochs: int | None = None,
        *,
        n_steps: int | None = None,
        validation: Any = None,
        resume: str | os.PathLike | None = None,
        key: PRNGKeyArray | None = None,
        state: TrainingState | None = None,
        devices: Any = None,
    ) -> TrainingState:
        """Trains the model; returns the last state.

        Args:
            data: `Batches`, or a source for them (structures with labels, a path); a list of Batch; or an
                object with `len`, `epoch(key, epoch, start)` and `in_order()`.
            epochs: total number of epochs, counted from the first step of the training; or
            n_steps: total number of steps, counted likewise.
            validation: data on which the loss is evaluated after each epoch; hooks at AFTER_VALIDATION see
                it.
            resume: a folder of checkpoints. The training continues from the newest one, bit for bit, or
                starts if there is none.
            key: PRNG key for the order of the data; the same key gives the same training.
            state: state of an earlier run, from which this one continues.
            devices: "all", a number, or a list of JAX devices; each evaluates the model for some systems of a
                batch. The cores of a CPU are devices after `alchemi_jax.use_cores()`.

        Raises:
            FloatingPointError: if the loss or its gradients are not finite. Like all exceptions of a run it
                has the state reached as its attribute `state`.
        """
        with public_call():
            return runs.run(self, data, epochs, n_steps, validation, resume, key, state, devices)

    def validate(self, state: TrainingState, data: Any) -> tuple[float, dict[str, float]]:
        """The loss on data and its parts by name, means over systems; with averaged parameters if there are
        any."""
        with public_call():
            found = runs.validate(self, state, as_data(data, self.model, self.loss))
            return found.loss, found.losses

    def trained(self, state: TrainingState) -> AbstractModel:
        """The model with the parameters of a state."""
        return as_model(state.params, self.frozen())

    def averaged(self, state: TrainingState) -> AbstractModel:
        """The model with the averaged parameters of an EMAHook, or else those of the state."""
        return as_model(state.params if state.ema is None else state.ema, self.frozen())

    def __enter__(self) -> "Trainer":
        """Open the hooks."""
        self.hooks.open()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.hooks.close(*exc)

    def _shown(self) -> list[tuple[str, Any]]:
        """Functions by their names: addresses differ from process to process."""
        own = {value_and_grad, update_by_optax}
        shown = [(name, value) for name, value in super()._shown() if value is not None]
        return [
            (name, _Text(name_of(value)) if name == "optimizer" else _named(value))
            for name, value in shown
            if not (callable(value) and not isinstance(value, eqx.Module) and value in own)
        ]

    # -- what the step and the loop ask ----------------------------------------------------------

    @property
    def groups(self) -> tuple[Group, ...]:
        """The hooks as one group."""
        return make_groups([(None, self.hooks)])

    @property
    def needs_stress(self) -> bool:
        """Whether the loss or a hook reads the stress."""
        wanted = any(flag(hook, "needs_stress") for hook in self.hooks)
        return bool(getattr(self.loss, "needs_stress", False)) or wanted

    def split(self) -> tuple[Any, Any]:
        """The trained parameters, and the model without them."""
        return eqx.partition(self.model, choose(self.model, self.trainable, self.frozen_parts))

    def frozen(self) -> Any:
        """The model without the trained parameters."""
        return self.split()[1]

    def on_device(self) -> "Trainer":
        """The trainer for compiled code: without host hooks and trained parameters."""
        return unsafe_replace(
            self, model=self.frozen(), hooks=self.hooks.on_device(), trainable=(), frozen_parts=None
        )

    def _build_context(self, carry: TrainingCarry, stage: Any, group: Group) -> TrainingContext:
        """What hooks see inside a step. Of what traced hooks return, `MAY_CHANGE` is taken back."""
        return TrainingContext(
            batch=carry.batch,
            step_count=carry.state.step_count,
            model=as_model(carry.params, self.frozen()),
            active_mask=carry.batch.system_mask,
            loss=carry.loss,
            losses=carry.losses,
            optimizer=Optimizer(self.optimizer, carry.optimizer),
            lr_scheduler=self.learning_rate(carry.optimizer),
            gradients=carry.gradients,
            epoch=carry.state.epoch,
            global_rank=jax.process_index(),
            world_size=jax.process_count(),
            workflow=self,
            results=carry.results,
            updates=carry.updates,
            skipped=carry.skipped,
        )

    def learning_rate(self, optimizer: Any) -> LearningRate:
        """The schedule of a ScheduleHook, if there is one, and the present learning rate.

        Args:
            optimizer: a state of the optimizer.
        """
        schedules = [hook.schedule for hook in self.hooks.traced if isinstance(hook, ScheduleHook)]
        return LearningRate(schedules[0] if schedules else None, find_rate(optimizer))


def check_hook_of_training(hook: Any) -> None:
    """Check that a hook runs where hooks of its kind can.

    Raises:
        TypeError: naming hook and stage.
    """
    in_step = isinstance(hook, TracedHook | RecordingHook)
    for stage in TrainingStage:
        if not runs_on(hook, stage):
            continue
        if stage in OWNED:
            raise TypeError(
                f"{name_of(hook)} runs on {stage.name}, which has one owner: give the Trainer a function as "
                f"{OWNED[stage]}."
            )
        if not in_step and not stage.on_host:
            raise TypeError(
                f"the host hook {name_of(hook)} runs on {stage.name}, which is inside the compiled step: "
                "write a TracedHook or a RecordingHook, or observe at AFTER_BATCH."
            )
        if isinstance(hook, TracedHook) and stage not in IN_STEP:
            raise TypeError(
                f"the traced hook {name_of(hook)} runs on {stage.name}, which is outside of the compiled "
                "step: write a host hook, or use a stage from BEFORE_BATCH to AFTER_BATCH."
            )


__all__ = ["Trainer", "check_hook_of_training"]
