"""TrainingSaver: it saves a training between two steps, and finds where an earlier one goes on.

A checkpoint has the state (parameters, optimizer, memories of hooks, counts and key, from which the order of
the data follows) and what host and recording hooks say of themselves by `state()`. It is a point at which all
rows are written and all hooks of the last step were called.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax._version import __version__
from alchemi_jax.dynamics.checkpoints import Checkpoint, Checkpoints
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.saved import AnotherRun, is_key, join_tree, named_leaves, plain, split_tree
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import TracedHook
from alchemi_jax.parameters import as_path
from alchemi_jax.training.origin import difference
from alchemi_jax.training.state import TrainingState


class TrainingSaver:
    """The checkpoints of one training.

    Args:
        trainer: with its hooks. hook: says when and where. origin: what `describe` says of the training.
    """

    def __init__(self, trainer: Any, hook: CheckpointHook, origin: dict[str, Any]):
        self.trainer, self.hook, self.origin = trainer, hook, origin
        self.store = Checkpoints(hook.folder, hook.keep)
        self._saved_at = time.monotonic()
        self._saved_step = -1

    @contextlib.contextmanager
    def opened(self, resume: bool, state: TrainingState) -> Iterator[Checkpoint | None]:
        """A context in which the folder is open. Gives the checkpoint from which the training goes on, if
        any; hooks are then as they were at that checkpoint.

        Raises:
            ValueError: if there are checkpoints of another training.
        """
        self.store.open()
        try:
            found = self.store.newest()
            if found is not None and found.about.get("kind") != "training":
                raise AnotherRun(f"{found.path} is no checkpoint of a training: give another folder.")
            if not resume:
                if found is not None and found.about["step"] > int(state.step_count):
                    raise ValueError(
                        f"{self.store.folder} holds checkpoints of an earlier training, up to step "
                        f"{found.about['step']}: go on from them with run(..., resume="
                        f"{str(self.hook.folder)!r}), or give another folder."
                    )
                found = None
            if found is not None:
                self._check_origin(found)
                self._saved_step = int(found.about["step"])
                self._set_states(join_tree(found.about["outside"], found.arrays))
            else:
                begun = self.store.begin() if resume else None
                if begun is not None:
                    self._set_states(begun)
                self.store.write_begin(self._states())
            yield found
        except BaseException:
            # The error that ended the training matters more than one of its last checkpoint.
            with contextlib.suppress(Exception):
                self.store.close()
            raise
        self.store.close()

    def _check_origin(self, found: Checkpoint) -> None:
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
        if not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(like.key)):
            raise AnotherRun(f"{found.path} is of a training with another key: give the same.")
        return state.replace(records=like.records)

    # -- saving ----------------------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Whether the training is to be saved after so many steps."""
        if step == self._saved_step:
            return False
        every, seconds = self.hook.every, self.hook.every_seconds
        if every is not None and step > 0 and step % every == 0:
            return True
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def should_stop(self) -> bool:
        """Whether the training is to be saved and to end."""
        return self.hook.should_stop is not None and bool(self.hook.should_stop())

    def save(self, state: TrainingState, step: int, ended: bool = False) -> None:
        """Save a training whose rows are all written."""
        named = named_leaves(state.replace(records=()))
        keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in named if is_key(leaf)}
        fetched = jax.device_get({f"state{name}": plain(leaf) for name, leaf in named if leaf.size})
        outside, arrays = split_tree(self._states(), "outside.")
        arrays = arrays | {name: np.asarray(x) for name, x in fetched.items()}
        about = {
            "kind": "training",
            "step": step,
            "ended": ended,
            "origin": self.origin,
            "versions": {"alchemi_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
            "keys": keys,
            "outside": outside,
        }
        self.store.write(arrays, about)
        self._saved_at, self._saved_step = time.monotonic(), step

    # -- hooks -----------------------------------------------------------------------------------

    def _outside(self) -> dict[str, Any]:
        """Hooks that have a state of their own, by name and number."""
        found: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for hook in self.trainer.hooks:
            if isinstance(hook, TracedHook) or not hasattr(hook, "set_state"):
                continue
            name = name_of(hook)
            counts[name] = counts.get(name, 0) + 1
            found[f"{name} {counts[name]}"] = hook
        return found

    def _states(self) -> dict[str, Any]:
        states = {}
        for name, thing in self._outside().items():
            with note_errors(thing, "when its state was saved"):
                states[name] = thing.state()
        return states

    def _set_states(self, states: dict[str, Any]) -> None:
        """Let hooks go back; those that were not there stay as they are."""
        hooks = self.trainer.hooks
        with hooks.openings.suspended(hooks):
            for name, thing in self._outside().items():
                if name in states:
                    with note_errors(thing, "when it went back to a checkpoint"):
                        thing.set_state(states[name])


def make_saver(
    trainer: Any, resume: str | os.PathLike | None, describe: Callable[[], dict[str, Any]]
) -> TrainingSaver | None:
    """The saver of a training, by its CheckpointHook or by `resume`; None if there is neither.

    Args:
        describe: gives the origin.

    Raises:
        ValueError: if the trainer has several of these hooks, or one for another folder.
    """
    hooks = [hook for hook in trainer.hooks if isinstance(hook, CheckpointHook)]
    if len(hooks) > 1:
        raise ValueError(f"{name_of(trainer)} has {len(hooks)} CheckpointHooks: one training has one folder.")
    if resume is not None:
        folder = as_path("resume")(resume)
        if hooks and os.path.abspath(hooks[0].folder) != os.path.abspath(folder):
            raise ValueError(
                f"resume is {str(folder)!r}, but the CheckpointHook saves to {str(hooks[0].folder)!r}: give "
                "one folder."
            )
        hooks = hooks or [CheckpointHook(folder)]
    return TrainingSaver(trainer, hooks[0], describe()) if hooks else None


__all__ = ["TrainingSaver", "make_saver"]
