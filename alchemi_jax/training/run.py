"""The loop of a training on the host: epochs, batches, host hooks, rows, validations, checkpoints."""

import contextlib
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alchemi_jax.dynamics.checkpoints import Checkpoint
from alchemi_jax.dynamics.interrupt import Interrupted, carry_state
from alchemi_jax.hooks.host_calls import host_context
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.hooks.records import RecordBuffer, emptied, write_rows
from alchemi_jax.parameters import natural
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.training import start
from alchemi_jax.training.batch import Item, TrainingData, as_data
from alchemi_jax.training.compiled import Validation, compiled_step
from alchemi_jax.training.compiled import validate as validate_compiled
from alchemi_jax.training.context import Optimizer, TrainingContext
from alchemi_jax.training.devices import as_mesh, at_first, check_dealt, deal_to, on_all, on_one
from alchemi_jax.training.hooks.validation import ValidationHook
from alchemi_jax.training.origin import describe
from alchemi_jax.training.references import check_same_references
from alchemi_jax.training.saver import TrainingSaver, make_saver
from alchemi_jax.training.stage import IN_STEP, MAY_CHANGE, TrainingStage
from alchemi_jax.training.state import Report, TrainingState, as_model
from alchemi_jax.transforms import is_traced


_BATCH = (TrainingStage.BEFORE_BATCH, TrainingStage.AFTER_BATCH)
_EPOCH = (TrainingStage.BEFORE_EPOCH, TrainingStage.AFTER_EPOCH)
_BEFORE = (TrainingStage.BEFORE_BATCH, TrainingStage.BEFORE_EPOCH, TrainingStage.BEFORE_TRAINING)
#: Seconds between two looks at whether the loss is still finite.
_SECONDS = 1.0
#: Steps that may be skipped in a row, at least an epoch.
_MOST_SKIPPED = 1000


def run(
    trainer: Any,
    data: Any,
    epochs: int | None,
    n_steps: int | None,
    validation: Any,
    resume: str | os.PathLike | None,
    key: Any,
    state: TrainingState | None,
    devices: Any = None,
) -> TrainingState:
    """See `Trainer.run`."""
    mesh = as_mesh(devices, "Trainer.run")
    if is_traced((trainer, data, state)):
        raise ValueError("Trainer.run calls the host, so it cannot be traced: inside transforms use step.")
    if (epochs is None) == (n_steps is None):
        raise TypeError("Trainer.run takes either epochs or n_steps.")
    if n_steps is None:
        natural("epochs of Trainer.run")(epochs)
    else:
        natural("n_steps of Trainer.run")(n_steps)
    if state is not None:
        start.check_state(trainer, state)
        start.check_length(state, epochs, n_steps, "the state")
    if state is not None and key is not None:
        raise TypeError("Trainer.run takes a key or a state, which has one.")
    ready = as_data(data, trainer.model, trainer.loss)
    others = None if validation is None else as_data(validation, trainer.model, trainer.loss, "validation")
    check_same_references(ready, others, "validation of Trainer.run")
    example = next(iter(ready.in_order()))
    check_dealt(mesh, example)
    begun = start.init(trainer, example, key) if state is None else state
    if state is not None:
        # Hooks see what they record before they are opened.
        fresh = start.make_buffers(trainer, state, example)
        begun = state if state.records else state.replace(records=fresh)
    saver = make_saver(trainer, resume, lambda: describe(trainer, ready, others, begun.params))

    def look(found: Checkpoint) -> TrainingState:
        assert saver is not None
        restored = saver.restore(found, begun)
        start.check_length(restored, epochs, n_steps, f"the checkpoint in {resume}")
        return restored

    step = int(begun.step_count)
    opened = contextlib.nullcontext() if saver is None else saver.opened(resume is not None, step, look)
    with opened as restored:
        begun = begun if restored is None else restored
        loop = Loop(trainer, ready, others, example, begun, saver, mesh)
        with trainer:
            try:
                loop.train(epochs, n_steps, resumed=restored is not None)
            except BaseException as e:
                with contextlib.suppress(Exception):
                    loop.drain()
                carry_state(e, loop.whole_state(), "the training ended after {} steps")
                raise
        return loop.whole_state()


def validate(trainer: Any, state: TrainingState, data: TrainingData) -> Validation:
    """The loss on data."""
    return validate_compiled(Partitioned(trainer.on_device()), state, data)


class Loop:
    """A training that goes on.

    Attributes:
        mesh: the devices; None: the one that JAX uses anyway.
        state: without the rows that wait on the device, which are in `rows`; both are on all devices.
        step, epoch, position: as in the state, known on the host.
    """

    def __init__(
        self,
        trainer: Any,
        data: TrainingData,
        validation: TrainingData | None,
        example: Item,
        state: TrainingState,
        saver: TrainingSaver | None,
        mesh: Mesh | None = None,
    ):
        self.trainer, self.saver, self.mesh = trainer, saver, mesh
        self.data, self.validation = deal_to(mesh, data), deal_to(mesh, validation)
        self.device = on_all(mesh, Partitioned(trainer.on_device()))
        self.frozen = trainer.frozen()
        self.hooks = trainer.hooks
        self.observers = [entry.hook for entry in self.hooks.host]
        self.rows: tuple[RecordBuffer, ...] = on_all(mesh, state.records)
        self.state = on_all(mesh, state.replace(records=()))
        self.step, self.epoch = int(state.step_count), int(state.epoch)
        self.position = int(state.position)
        self.batch = example
        self.report: Report | None = None
        # Whether the number of completed steps can be less than that of the batches seen.
        self.may_skip = state.scale is not None or any(
            "skipped" in MAY_CHANGE.get(stage, ()) and runs_on(hook, stage)
            for hook in self.hooks.traced
            for stage in IN_STEP
        )
        # Looked up once: reading an attribute of a Module takes a microsecond.
        recording = [entry.hook for entry in self.hooks.recording]
        self.at_stage = {
            stage: (
                [hook for hook in recording if stage not in IN_STEP and runs_on(hook, stage)],
                [hook for hook in self.observers if runs_on(hook, stage)],
            )
            for stage in TrainingStage
        }
        self.enders = [hook for hook in self.observers if hasattr(hook, "ends_run")]
        watched = [h for h in self.observers if any(runs_on(h, stage) for stage in _BATCH)]
        self.validations = [hook for hook in self.observers if isinstance(hook, ValidationHook)]
        self.counts_exactly = self.may_skip and bool(watched or saver or self.validations)
        # No buffers if all of these hooks record outside of the step.
        self.per_step = [sum(runs_on(hook, stage) for stage in IN_STEP) for hook in recording if self.rows]
        self.waiting = [int(buffer.count) for buffer in self.rows]
        self.room = [buffer.capacity // 2 for buffer in self.rows]
        self.looked = time.monotonic()
        for hook in self.validations:
            others = as_data(hook.data, trainer.model, trainer.loss, "data of ValidationHook")
            check_same_references(data, others, "the data of ValidationHook")
            hook.ready = deal_to(mesh, others)

    # -- the whole -------------------------------------------------------------------------------

    def train(self, epochs: int | None, n_steps: int | None, resumed: bool = False) -> None:
        """Train until so many epochs or steps are complete, or a hook ends it.

        Args:
            resumed: whether it goes on from a checkpoint.
        """
        self.call(TrainingStage.SETUP)
        self.call(TrainingStage.BEFORE_TRAINING)
        started = self.step
        while not self._ends(epochs, n_steps):
            self._epoch(n_steps)
            self.check()
            skipped = int(self.state.skipped)
            if skipped > max(_MOST_SKIPPED, len(self.data)):
                self._raise(f"the last {skipped} steps were skipped")
        self.drain()
        # Of hooks the last checkpoint has what they are before the end: with a larger total a training goes
        # on from there as if it had never ended, and one that is complete ends again.
        outside = None if self.saver is None else self.saver.copy_outside()
        if resumed or self.step > started:
            self._validate_at_end()
        self.call(TrainingStage.AFTER_TRAINING)
        if self.saver is not None:
            self.saver.save(self.whole_state(), self.step, outside, ended=True)

    def _validate_at_end(self) -> None:
        """The validations that were not due after the last step."""
        for hook in self.validations:
            if self.step % hook.every:
                hook.put(self.step, self.epoch, self.validate(hook.ready))
        if self.validation is not None and self.position:
            self.validate(self.validation)

    def _ends(self, epochs: int | None, n_steps: int | None) -> bool:
        if any(hook.ends_run for hook in self.enders):
            return True
        return self.epoch >= epochs if epochs is not None else self.step >= (n_steps or 0)

    def _epoch(self, n_steps: int | None) -> None:
        """The rest of an epoch."""
        if self.position == 0:
            # Saved before the hooks are called, which a run that goes on calls, too.
            self._save_if_due()
            self.call(TrainingStage.BEFORE_EPOCH)
        key = jax.random.fold_in(self.state.key, 1)
        batches: Any = self.data.epoch(key, self.epoch, self.position)
        with contextlib.closing(batches) if hasattr(batches, "close") else contextlib.nullcontext():
            stops = False
            for self.batch in batches:
                if self.position > 0:
                    self._save_if_due()
                self._one_batch()
                stops = self._ends(None, n_steps if n_steps is not None else self.step + 1)
                if stops:
                    break
        self.check()
        if self.position < len(self.data):
            if not stops:
                raise RuntimeError(
                    f"epoch {self.epoch} of the data ended after {self.position} of {len(self.data)} batches."
                )
            # If steps were skipped, there are fewer than was thought, and the epoch goes on.
            return
        self.drain()
        self.call(TrainingStage.AFTER_EPOCH)
        self.epoch, self.position = self.epoch + 1, 0
        counts = on_all(self.mesh, (jnp.asarray(self.epoch, jnp.int32), jnp.zeros((), jnp.int32)))
        self.state = self.state.replace(epoch=counts[0], position=counts[1])
        if self.validation is not None:
            self.validate(self.validation)

    def _one_batch(self) -> None:
        step = self.step
        self.call(TrainingStage.BEFORE_BATCH)
        if self.rows and any(n > most for n, most in zip(self.waiting, self.room, strict=True)):
            self.drain()
        self.state, self.rows, report = compiled_step(self.device, self.state, self.rows, self.batch)
        self.report = report
        self.waiting = [n + more for n, more in zip(self.waiting, self.per_step, strict=True)]
        self.position += 1
        counted = not self.counts_exactly or bool(report.counts)
        self.step += counted
        if counted:
            self.call(TrainingStage.AFTER_BATCH, step)
            for hook in self.validations:
                if self.step % hook.every == 0:
                    hook.put(self.step, self.epoch, self.validate(hook.ready))
        if time.monotonic() - self.looked > _SECONDS:
            self.check()
            self.drain()

    def validate(self, data: Any) -> Validation:
        """Validate, and call the hooks of AFTER_VALIDATION."""
        self.check()
        found = validate_compiled(self.device, self.state, data)
        self.call(TrainingStage.AFTER_VALIDATION, found=found)
        return found

    # -- what goes wrong -------------------------------------------------------------------------

    def check(self) -> None:
        """Read how many steps are complete, and raise an error if the training has failed."""
        self.looked = time.monotonic()
        self.step, self.position = int(self.state.step_count), int(self.state.position)
        if bool(self.state.failed):
            self._raise()

    def _raise(self, text: str | None = None) -> None:
        state = self.state
        if bool(state.overflow):
            raise RuntimeError(
                f"batch {self.position} of epoch {self.epoch} has more neighbors than its list has room for: "
                "give its TrainingBatch larger sizes."
            )
        key = jax.random.fold_in(state.key, 1)
        batch = next(iter(self.data.epoch(key, self.epoch, self.position)), None) if text is None else None
        which = "" if batch is None else _odd_systems(batch)
        what = text or f"the loss or a gradient of batch {self.position} of epoch {self.epoch} is not finite"
        raise FloatingPointError(
            f"{what}{which}: look at the labels and the learning rate; SkipNonFiniteHook skips such steps."
        )

    # -- rows ------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Give the rows that wait on the device to their hooks."""
        if not any(self.waiting):
            return
        buffers = jax.device_get(self.rows)
        self.rows = on_all(self.mesh, emptied(self.rows))
        self.waiting = [0] * len(self.waiting)
        write_rows([entry.hook for entry in self.hooks.recording], buffers, self.step)

    def whole_state(self) -> TrainingState:
        """The state with the rows that wait, on one device."""
        return on_one(self.mesh, self.state.replace(records=self.rows))

    # -- checkpoints -----------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        saver = self.saver
        if saver is None:
            return
        stops = saver.should_stop()
        if stops or saver.is_due(self.step):
            self.check()
            self.drain()
            saver.save(self.whole_state(), self.step)
        if stops:
            raise Interrupted(
                "the training was told to stop; the state so far is the `state` of this exception."
            )

    # -- host hooks ------------------------------------------------------------------------------

    def call(self, stage: TrainingStage, step: int | None = None, found: Validation | None = None) -> None:
        """Call the host hooks of a stage, and the recording hooks of a stage outside of the step."""
        if self.at_stage[stage] == ([], []):
            return
        step = self.step if step is None else step

        def due(hook: Any) -> bool:
            count = step if stage in _BATCH else self.epoch if stage in _EPOCH else 0
            return count % hook.frequency == 0

        recording, observers = self.at_stage[stage]
        outside = [hook for hook in recording if due(hook)]
        if not outside and not any(due(hook) for hook in observers):
            return
        if stage is TrainingStage.AFTER_BATCH and not self.counts_exactly:
            # Hooks are not shown a step that has failed.
            self.check()
        ctx = self.context(stage, step, found)
        for hook in outside:
            with note_errors(hook, f"at {stage.name} of step {step}"):
                hook(ctx, stage)
        if self.hooks.host_due(stage, due):
            if self.hooks.reads_batch(stage, due):
                ctx = host_context(ctx, ctx.batch.meta, step)
            self.hooks.run_host(ctx, stage, step, due)

    def context(self, stage: TrainingStage, step: int, found: Validation | None) -> TrainingContext:
        """What host hooks see; before a batch or an epoch there is no loss yet."""
        state, report = at_first(self.mesh, (self.state, None if stage in _BEFORE else self.report))
        batch = (self.batch if found is None else found.batch).to_batch()
        params = state.params
        loss, losses, gradients = None, None, None
        if found is not None:
            loss, losses = np.float64(found.loss), found.losses
            params = params if state.ema is None else state.ema
        elif report is not None:
            loss, losses, gradients = report.loss, report.losses, report.gradients
        return TrainingContext(
            batch=batch,
            step_count=step,
            model=as_model(params, self.frozen),
            active_mask=batch.system_mask,
            loss=loss,
            losses=losses,
            optimizer=Optimizer(self.trainer.optimizer, state.optimizer),
            lr_scheduler=self.trainer.learning_rate(state.optimizer),
            gradients=gradients,
            epoch=self.epoch,
            global_rank=jax.process_index(),
            world_size=jax.process_count(),
            workflow=self.trainer,
            errors=None if found is None else found.errors,
        )


def _odd_systems(given: Item) -> str:
    """Names of systems whose positions or labels are infinite; of NaN labels none train."""
    batch = given.to_batch().to_host()
    odd = [
        batch.name_of(row)
        for row, system in enumerate(batch)
        if not np.isfinite(system.positions).all()
        or np.isinf(np.asarray(system.energy)).any()
        or np.isinf(np.asarray(system.forces)).any()
    ]
    return f" (numbers of {', '.join(odd[:5])} are not finite)" if odd else ""


__all__ = ["Loop", "run", "validate"]
