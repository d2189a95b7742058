"""AbstractSaver: when a run or a training is saved, and from which checkpoint it goes on."""

import abc
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from alchemi_jax._version import __version__
from alchemi_jax.dynamics.checkpoints import Checkpoint, Checkpoints
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.interrupt import Interrupted, carry_state
from alchemi_jax.dynamics.outside import Workflow, collect, put_back
from alchemi_jax.dynamics.saved import AnotherRun, Arrays, join_tree, split_tree
from alchemi_jax.errors import name_of
from alchemi_jax.io.parts import check_parts, own_path
from alchemi_jax.io.sinks import Sink
from alchemi_jax.parameters import as_path
from alchemi_jax.shared import others_ended


#: Whether JAX has numbers of 64 bits, in the description of a checkpoint.
_X64 = "x64"


class AbstractSaver(abc.ABC):
    """The checkpoints of one call of a workflow.

    A checkpoint is of a moment at which all rows are written and all hooks of the last step were called.

    Args:
        workflow: an engine or a trainer, with its hooks. hook: says when and where. sink: of a stream.
    """

    #: What is saved, for messages.
    what: ClassVar[str] = "run"

    def __init__(self, workflow: Workflow, hook: CheckpointHook, sink: Sink | None = None):
        self.workflow, self.hook, self.sink = workflow, hook, sink
        self.store = Checkpoints(own_path(hook.folder), hook.keep)
        self._saved_at = time.monotonic()
        self._saved_step = -1

    # -- where it goes on ------------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(
        self, resume: bool, step: int = 0, look: Callable[[Checkpoint], Any] = lambda found: None
    ) -> Iterator[Any]:
        """A context in which the folder is open. Gives what `look` made of the checkpoint from which the run
        goes on, if there is one.

        Hooks and sinks are then as they were at that checkpoint; where there is none, as they were when the
        run began for the first time.

        Args:
            resume: whether the run may go on from a checkpoint.
            step: number of steps of the state with which the run goes on otherwise.
            look: refuses a checkpoint of another run, before files of hooks and sinks are touched.

        Raises:
            ValueError: if there are checkpoints of another run.
        """
        check_parts(self.hook.folder)
        self.store.open()
        try:
            found = self.store.newest()
            if not resume:
                self._refuse_later(found, step)
                found = None
            seen = None
            if found is not None:
                _check_x64(found)
                self._check_origin(found)
                seen = look(found)
                self._saved_step = int(found.about["step"])
                outside = join_tree(found.about["outside"], found.arrays)
                put_back(self.workflow, self.sink, outside, str(found.path))
            else:
                begun = self.store.begin() if resume else None
                if begun is not None:
                    put_back(self.workflow, self.sink, begun, str(self.store.folder))
                self.store.write_begin(collect(self.workflow, self.sink))
            yield seen
        except BaseException as e:
            try:
                self.store.close()
            except Exception as second:
                # Who was told that the run is saved must know that it is not. Other errors matter more.
                if isinstance(e, Interrupted):
                    carry_state(second, getattr(e, "state", None), f"the {self.what} ended after step {{}}")
                    raise second from e
                if str(second) != str(e):
                    e.add_note(str(second))
            raise
        self.store.close()

    def _refuse_later(self, found: Checkpoint | None, step: int) -> None:
        if found is not None and found.about["step"] > step:
            raise ValueError(
                f"{self.store.folder} holds checkpoints of an earlier {self.what}, up to step "
                f"{found.about['step']}: go on from them with run(..., resume={str(self.hook.folder)!r}), or "
                "give another folder."
            )

    @abc.abstractmethod
    def _check_origin(self, found: Checkpoint) -> None:
        """Raises AnotherRun, naming what differs."""

    # -- saving ----------------------------------------------------------------------------------

    def next_step(self, step: int) -> int | None:
        """The next number of completed steps at which the run is to be saved; None: there is none."""
        every = self.hook.every
        return None if every is None else (step // every + 1) * every

    def is_due(self, step: int) -> bool:
        """Whether the run is to be saved after so many steps."""
        if step == self._saved_step:
            return False
        every, seconds = self.hook.every, self.hook.every_seconds
        if every is not None and step > 0 and step % every == 0:
            return True
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def should_stop(self) -> bool:
        """Whether the run is to be saved and to end."""
        return others_ended() or (self.hook.should_stop is not None and bool(self.hook.should_stop()))

    def outside(self) -> tuple[Any, Arrays]:
        """What hooks and sinks say of themselves, as a tree for JSON and arrays.

        Asked for before the state is copied: the run goes on only after that, so both are of one moment.
        """
        return split_tree(collect(self.workflow, self.sink), "outside.")

    def _write(self, step: int, arrays: Arrays, about: dict[str, Any]) -> None:
        """Write a checkpoint.

        Raises:
            OSError: naming the folder, if it cannot be written.
        """
        versions = {"alchemi_jax": __version__, "jax": jax.__version__, "numpy": np.__version__}
        self.store.write(arrays, {"step": step, "versions": versions, _X64: _has_x64(), **about})
        self._saved_at, self._saved_step = time.monotonic(), step


def checkpoint_hook(
    workflow: Workflow, resume: str | os.PathLike | None, what: str = "run"
) -> CheckpointHook | None:
    """The CheckpointHook of a workflow, or one for `resume`; None if there is neither.

    Raises:
        ValueError: if the workflow has several of these hooks, or one for another folder.
    """
    hooks = [h for group in workflow.groups for h in group.hooks if isinstance(h, CheckpointHook)]
    if len(hooks) > 1:
        raise ValueError(f"{name_of(workflow)} has {len(hooks)} CheckpointHooks: one {what} has one folder.")
    if resume is not None:
        folder = as_path("resume")(resume)
        if hooks and _absolute(hooks[0].folder) != _absolute(folder):
            raise ValueError(
                f"resume is {str(folder)!r}, but the CheckpointHook saves to {str(hooks[0].folder)!r}: give "
                "one folder."
            )
        hooks = hooks or [CheckpointHook(folder)]
    return hooks[0] if hooks else None


def _has_x64() -> bool:
    return bool(jax.config.jax_enable_x64)  # pyright: ignore


def _check_x64(found: Checkpoint) -> None:
    """Check that numbers have the precision that they had.

    Parameters are rounded by it, and what is computed of them, also where the batch is in float32.

    Raises:
        AnotherRun: if it is another one.
    """
    before, now = found.about.get(_X64, _has_x64()), _has_x64()
    if before != now:
        raise AnotherRun(
            f"{found.path} is of a run with jax_enable_x64 {before}, which is {now} now: set it as it was. "
            "Give another folder to begin again."
        )


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


__all__ = ["AbstractSaver", "checkpoint_hook"]
