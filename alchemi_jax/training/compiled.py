"""The compiled step, and the compiled loss of a validation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.segments import jit_loop
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.training.batch import Item, TrainingData
from alchemi_jax.training.devices import Dealt
from alchemi_jax.training.losses import Errors
from alchemi_jax.training.losses import errors as error_sums
from alchemi_jax.training.state import Report, TrainingCarry, TrainingState
from alchemi_jax.training.step import begin, find_loss, forward, step


@functools.partial(jit_loop, donate_argnums=2)
def compiled_step(
    trainer: Partitioned, state: TrainingState, rows: Any, given: Item
) -> tuple[TrainingState, Any, Report]:
    """A step. The buffers of rows are given apart and not copied; the state comes back without them."""
    after, report = step(trainer.combine(), state.replace(records=rows), given)
    found = after.replace(records=()), after.records, report
    return given.on_all(found) if isinstance(given, Dealt) else found


@jit_loop
def compiled_loss(trainer: Partitioned, state: TrainingState, given: Item) -> Any:
    """The loss of a batch and its parts, each times the number of systems; this number; whether the list had
    no room; sums of the errors by name, if the loss has names."""
    whole = trainer.combine()
    carry: TrainingCarry = begin(whole, state, given)
    if state.ema is not None:
        carry = carry.update(params=state.ema)
    carry = forward(whole, carry)
    results = carry.results
    loss, losses = find_loss(whole, results, carry.batch, state.step_count)
    count = carry.batch.system_mask.sum().astype(loss.dtype)
    names = names_of(whole.loss)
    found = error_sums(results, carry.batch, names) if names and results is not None else {}
    return jax.tree.map(lambda x: x * count, (loss, losses)), count, carry.overflow, found


def names_of(loss: Any) -> tuple[str, ...]:
    """The results that a loss compares with labels; none if it does not say."""
    names = getattr(loss, "names", ())
    return names if isinstance(names, tuple) and all(isinstance(name, str) for name in names) else ()


class Validation:
    """What a validation found: `loss` and its parts `losses`, means over all systems; `errors`, over all
    labels, of the results that the loss names; and the last batch."""

    def __init__(self, loss: float, losses: dict[str, float], errors: dict[str, Errors], batch: Item):
        self.loss, self.losses, self.errors, self.batch = loss, losses, errors, batch


def validate(device: Partitioned, state: TrainingState, data: TrainingData) -> Validation:
    """The loss on data, with the averaged parameters if there are any.

    Raises:
        RuntimeError: if a neighbor list had no room.
    """
    state, found, last = state.replace(records=()), [], None
    for last in data.in_order():
        found.append(compiled_loss(device, state, last))
    assert last is not None
    fetched = jax.device_get(found)
    if any(bool(overflow) for _, _, overflow, _ in fetched):
        raise RuntimeError("a batch of the validation has more neighbors than its list has room for.")
    systems = sum(float(count) for _, count, _, _ in fetched)
    sums = jax.tree.map(_sum, *(s for s, _, _, _ in fetched))
    errors = jax.tree.map(_sum, *(e for _, _, _, e in fetched))
    loss, losses = jax.tree.map(lambda x: float(x) / systems, sums)
    errors = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), errors, fetched[0][3])
    return Validation(loss, losses, errors, last)


def _sum(*values: Any) -> Any:
    return np.sum(np.asarray(values, np.float64))


__all__ = ["Validation", "compiled_loss", "compiled_step", "names_of", "validate"]
