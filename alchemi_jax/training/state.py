"""TrainingState, everything that a training changes, and TrainingCarry, a step between two of its phases."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from alchemi_jax.hooks.records import RecordBuffer
from alchemi_jax.models.base import AbstractModel, Results
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch
from alchemi_jax.training.precision import LossScale


class Average(eqx.Module):
    """The memory of EMAHook: averaged parameters, and the number of steps that are in the average."""

    params: Any
    count: Int[Array, ""]


class TrainingState(eqx.Module):
    """The state of a training between two steps.

    Attributes:
        params: the trained parameters, as a tree like the model with None in place of all others.
        optimizer: the state of the optimizer.
        step_count: number of completed steps, without skipped ones.
        epoch: number of completed epochs.
        position: number of batches of this epoch that were used.
        key: PRNG key of the run, which determines the order of the data.
        memory: memories of the traced hooks, in order.
        records: rows of each recording hook that were not yet written.
        skipped: number of steps in a row that were skipped last.
        failed: whether loss or gradients were not finite and no hook skipped the step. The state is then the
            one before that step and does not change any more.
        overflow: whether a capacity of a neighbor list was too small; the state is as for `failed`.
        scale: the factor on the loss for low precision; None without one.
    """

    params: Any
    optimizer: Any
    step_count: Int[Array, ""]
    epoch: Int[Array, ""]
    position: Int[Array, ""]
    key: PRNGKeyArray
    memory: tuple[Any, ...]
    records: tuple[RecordBuffer, ...]
    skipped: Int[Array, ""]
    failed: Bool[Array, ""]
    overflow: Bool[Array, ""]
    scale: LossScale | None = None

    @property
    def ema(self) -> Any:
        """The averaged parameters of an EMAHook; None without one."""
        return next((m.params for m in self.memory if isinstance(m, Average)), None)

    def replace(self, **fields: Any) -> "TrainingState":
        """The state with some fields changed."""
        return dataclasses.replace(self, **fields)


@dataclasses.dataclass(frozen=True)
class TrainingCarry:
    """A step between two of its phases, while it is traced.

    Attributes:
        state: in which the step began.
        batch, neighbors: what the step sees.
        params: of the model, as they are now.
        optimizer, memory, records: as they are now.
        results, loss, losses, gradients, updates: None until they are computed.
        skipped: whether the step is left out.
        overflow: whether the neighbor list had no room; None until the model was evaluated.
        dealt: what evaluates the model over several devices; None on one.
        layouts: buffers of recording hooks, by the id of the hook, where these are being made.
    """

    state: TrainingState
    batch: Batch
    neighbors: NeighborList | None
    params: Any
    optimizer: Any
    memory: tuple[Any, ...]
    records: tuple[RecordBuffer, ...]
    skipped: Bool[Array, ""]
    results: Results | None = None
    loss: Any = None
    losses: Any = None
    gradients: Any = None
    updates: Any = None
    overflow: Any = None
    dealt: Any = None
    layouts: dict[int, RecordBuffer] | None = None

    @property
    def step_count(self) -> Int[Array, ""]:
        """Number of completed steps."""
        return self.state.step_count

    def update(self, **fields: Any) -> "TrainingCarry":
        """The carry with some fields changed."""
        return dataclasses.replace(self, **fields)


class Report(eqx.Module):
    """What a step leaves for the host besides the state.

    Attributes:
        loss, losses: of the step. gradients: None unless a host hook may read them.
        counts: whether the step was neither skipped nor failed.
        failed, overflow: as in the state.
    """

    loss: Float[Array, ""]
    losses: dict[str, Array]
    gradients: Any
    counts: Bool[Array, ""]
    failed: Bool[Array, ""]
    overflow: Bool[Array, ""]


def all_finite(*trees: Any) -> Bool[Array, ""]:
    """Whether all numbers in some trees are finite."""
    found = jnp.ones((), bool)
    for leaf in jax.tree.leaves(trees):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            found = found & jnp.all(jnp.isfinite(leaf))
    return found


def where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Leaves of `new` where the condition is true, those of `old` elsewhere."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), new, old)


def as_model(params: Any, frozen: Any) -> AbstractModel:
    """The model with these parameters; `frozen` has everything else."""
    return eqx.combine(params, frozen)


__all__ = ["Average", "Report", "TrainingCarry", "TrainingState", "all_finite", "as_model", "where"]
