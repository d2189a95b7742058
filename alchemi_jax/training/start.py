"""The state before the first step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.errors import description
from alchemi_jax.hooks import records
from alchemi_jax.hooks.calls import make_memory
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.hooks.records import RecordBuffer
from alchemi_jax.parameters import as_key
from alchemi_jax.training.batch import Item
from alchemi_jax.training.stage import IN_STEP
from alchemi_jax.training.state import TrainingCarry, TrainingState
from alchemi_jax.training.step import STEP, begin, run_phases


#: Rows that wait on the device at most.
_MOST_ROWS = 512


def init(trainer: Any, given: Item, key: Any = None) -> TrainingState:
    """See `Trainer.init`."""
    batch = given.to_batch()
    dtype = batch.dtype
    key = as_key(key)
    for hook in trainer.hooks.traced:
        hook.check_in(trainer, batch)
    params = jax.tree.map(lambda x: _as_param(x, dtype), trainer.split()[0])
    zero = jnp.zeros((), jnp.int32)
    state = TrainingState(
        params=params,
        optimizer=_begin_optimizer(trainer.optimizer, params),
        step_count=zero,
        epoch=zero,
        position=zero,
        key=key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key),
        memory=tuple(_memory_of(hook, batch, params) for hook in trainer.hooks.traced),
        records=(),
        skipped=zero,
        failed=jnp.zeros((), bool),
        overflow=jnp.zeros((), bool),
        scale=None if trainer.precision is None else trainer.precision.init(),
    )
    # Of weak types the next step would make other ones, and be compiled twice.
    state = jax.tree.map(_strong, state)
    return state.replace(records=make_buffers(trainer, state, given))


def make_buffers(trainer: Any, state: TrainingState, given: Item) -> tuple[RecordBuffer, ...]:
    """Empty buffers for the rows of the recording hooks; the step is traced for it, and not compiled."""
    hooks = [entry.hook for entry in trainer.hooks.recording]
    if not any(runs_on(hook, stage) for hook in hooks for stage in IN_STEP):
        return ()
    layouts: dict[int, Any] = {}
    device = trainer.on_device()

    def trace(state: TrainingState, given: Item) -> Any:
        carry: TrainingCarry = begin(device, state.replace(records=()), given).update(layouts=layouts)
        return run_phases(device, carry, STEP).loss

    jax.eval_shape(trace, state, given)
    out = []
    for hook in hooks:
        # A hook of stages outside of the step has no rows here.
        buffer = layouts.get(id(hook)) or records.RecordBuffer(
            jnp.zeros((1, 0), jnp.uint32), jnp.zeros((), jnp.int32), records.Layout.of({})
        )
        rows = min(buffer.words.shape[0], _MOST_ROWS)
        words = jnp.zeros((rows, buffer.words.shape[1]), jnp.uint32)
        out.append(RecordBuffer(words, jnp.zeros((), jnp.int32), buffer.layout))
    return tuple(out)


def _begin_optimizer(optimizer: Any, params: Any) -> Any:
    try:
        return optimizer.init(params)
    except (TypeError, ValueError) as e:
        reason = str(e).split("\n")[0].rstrip(". ")
        raise type(e)(
            f"the optimizer cannot begin with the parameters that are trained: {reason}; a mask "
            "or labels must be a function of the parameters, or have their structure, that of "
            "`trainer.split()[0]`."
        ) from e


def check_state(trainer: Any, state: Any) -> None:
    """Raises TypeError or ValueError for a state that is not of such a trainer, saying what differs."""
    if not isinstance(state, TrainingState):
        raise TypeError(f"state of Trainer.run must be a TrainingState, not {description(state)}.")
    hooks = trainer.hooks.traced
    if len(state.memory) != len(hooks):
        raise ValueError(
            f"the state is of a trainer with {len(state.memory)} traced hooks, this one has {len(hooks)}."
        )
    params = trainer.split()[0]
    optimizer = jax.eval_shape(trainer.optimizer.init, params)
    for what, mine, given in (
        ("parameters that are trained", params, state.params),
        ("numbers of the optimizer", optimizer, state.optimizer),
    ):
        if _shapes(mine) != _shapes(given):
            raise ValueError(f"the state is of another trainer: it has other {what}.")


def check_length(state: TrainingState, epochs: int | None, n_steps: int | None, what: str) -> None:
    """Check that a training is not asked to end before it goes on: `epochs` and `n_steps` are totals.

    Raises:
        ValueError: if the state is further than that.
    """
    step, epoch, position = int(state.step_count), int(state.epoch), int(state.position)
    if n_steps is not None and step > n_steps:
        raise ValueError(
            f"{what} has {step} steps already, more than n_steps={n_steps}, the total: give a larger total, "
            "or begin another training."
        )
    if epochs is not None and (epoch, min(position, 1)) > (epochs, 0):
        raise ValueError(
            f"{what} has {epoch} epochs already{' and a part of the next' if position else ''}, more than "
            f"epochs={epochs}, the total: give a larger total, or begin another training."
        )


def _shapes(tree: Any) -> Any:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), np.shape(leaf)) for path, leaf in flat]


def _as_param(x: Any, dtype: Any) -> Any:
    """A copy; a number of Python in the model takes the dtype of the batch."""
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    return jnp.array(x, dtype=dtype if getattr(x, "weak_type", False) else x.dtype)


def _strong(x: Any) -> Any:
    return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else jnp.asarray(x)


def _memory_of(hook: Any, batch: Any, params: Any) -> Any:
    """The memory of a traced hook: from the parameters, if it has `init_params`, or from the batch."""
    make = getattr(hook, "init_params", None)
    return make_memory(hook, batch) if make is None else make(params)


__all__ = ["check_length", "check_state", "init", "make_buffers"]
