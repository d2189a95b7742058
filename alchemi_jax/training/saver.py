"""TrainingSaver: it saves a training between two steps, and finds where an earlier one goes on.

A checkpoint has the state (parameters, optimizer, memories of hooks, counts and key, from which the order of
the data follows) and what host and recording hooks say of themselves by `state()`. It is a point at which all
rows are written and all hooks of the last step were called.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.checkpoints import Checkpoint
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.saved import AnotherRun, Arrays, is_key, named_leaves, plain, same_key
from alchemi_jax.dynamics.saving import AbstractSaver, checkpoint_hook
from alchemi_jax.training.origin import difference
from alchemi_jax.training.state import TrainingState


class TrainingSaver(AbstractSaver):
    """The checkpoints of one training.

    Args:
        trainer: with its hooks. hook: says when and where. origin: what `describe` says of the training.
    """

    what = "training"

    def __init__(self, trainer: Any, hook: CheckpointHook, origin: dict[str, Any]):
        super().__init__(trainer, hook)
        self.origin = origin

    def _refuse_later(self, found: Checkpoint | None, step: int) -> None:
        self._check_kind(found)
        super()._refuse_later(found, step)

    def _check_kind(self, found: Checkpoint | None) -> None:
        if found is not None and found.about.get("kind") != "training":
            raise AnotherRun(f"{found.path} is no checkpoint of a training: give another folder.")

    def _check_origin(self, found: Checkpoint) -> None:
        """Raises AnotherRun, naming what differs."""
        self._check_kind(found)
        other = difference(found.about["origin"], self.origin)
        if other:
            raise AnotherRun(
                f"{found.path} is of another training: {other}. Give another folder, or go on with the "
                "state of that training, run(..., state=...)."
            )

    def restore(self, found: Checkpoint, like: TrainingState) -> TrainingState:
        """The state of a checkpoint.

        Args:
            like: the state with which the training began.

        Raises:
            AnotherRun: naming the array that differs.
        """
        keys, arrays = found.about["keys"], found.arrays
        named = named_leaves(like.replace(records=()))
        wanted = {f"state{name}" for name, leaf in named if leaf.size}
        odd = sorted({name for name in arrays if name.startswith("state")} ^ wanted)
        if odd:
            raise AnotherRun(
                f"{found.path} is of another training: only one of them has {odd[0].removeprefix('state.')}. "
                "Give another folder."
            )
        new = []
        for name, leaf in named:
            value: Any = arrays.get(f"state{name}", leaf)
            if name in keys:
                value = jax.random.wrap_key_data(jnp.asarray(value), impl=keys[name])
            if value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise AnotherRun(
                    f"{found.path} is of another training: {name} is {value.dtype}{list(value.shape)}, "
                    f"expected {leaf.dtype}{list(leaf.shape)}."
                )
            new.append(value if name in keys else jnp.asarray(value))
        state = jax.tree.unflatten(jax.tree.structure(like.replace(records=())), new)
        if not same_key(state.key, like.key):
            raise AnotherRun(f"{found.path} is of a training with another key: give the same.")
        return state.replace(records=like.records)

    def copy_outside(self) -> tuple[Any, Arrays]:
        """What hooks say of themselves now, which stays so when they go on."""
        tree, arrays = self.outside()
        return tree, {name: np.array(x) for name, x in arrays.items()}

    def save(
        self,
        state: TrainingState,
        step: int,
        outside: tuple[Any, Arrays] | None = None,
        *,
        ended: bool = False,
    ) -> None:
        """Save a training whose rows are all written.

        Args:
            outside: what hooks said of themselves, if that is of an earlier moment.
        """
        tree, given = self.outside() if outside is None else outside
        arrays = dict(given)
        named = named_leaves(state.replace(records=()))
        keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in named if is_key(leaf)}
        fetched = jax.device_get({f"state{name}": plain(leaf) for name, leaf in named if leaf.size})
        arrays |= {name: np.asarray(x) for name, x in fetched.items()}
        about = {"kind": "training", "ended": ended, "origin": self.origin, "keys": keys, "outside": tree}
        self._write(step, arrays, about)


def make_saver(
    trainer: Any, resume: str | os.PathLike | None, describe: Callable[[], dict[str, Any]]
) -> TrainingSaver | None:
    """The saver of a training, by its CheckpointHook or by `resume`; None if there is neither.

    Args:
        describe: gives the origin.

    Raises:
        ValueError: if the trainer has several of these hooks, or one for another folder.
    """
    hook = checkpoint_hook(trainer, resume, "training")
    return None if hook is None else TrainingSaver(trainer, hook, describe())


__all__ = ["TrainingSaver", "make_saver"]
