"""Saver: it saves a run between two steps, and finds where an earlier one goes on.

A checkpoint has the states of the run (of a batch that has become smaller also those of the larger ones),
what hooks and sinks say of themselves by `state()`, and what a stream of systems needs. It is a point at
which all rows are written and all hooks of the last step were called.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alchemi_jax._version import __version__
from alchemi_jax.dynamics.checkpoints import Checkpoint, Checkpoints
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.interrupt import Interrupted, carry_state
from alchemi_jax.dynamics.origin import Origin, difference
from alchemi_jax.dynamics.outside import check_traced, collect, put_back, traced_hooks
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.sameness import Marks, check_marks
from alchemi_jax.dynamics.saved import (
    AnotherRun,
    batch_format,
    check_same_systems,
    join_tree,
    pack_state,
    split_tree,
    state_like,
    unpack_state,
)
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.io.sinks import Sink
from alchemi_jax.parameters import as_path
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace


@dataclasses.dataclass
class Saved:
    """What a checkpoint says, hooks and sinks apart.

    Attributes:
        at: the checkpoint.
        states: of the larger batches, the largest first, and of the one that steps were taken in.
        rest: what the run added: rows of the systems that stayed, the stream.
        ended: whether the run had ended.
    """

    at: Checkpoint
    states: list[DynamicsState]
    rest: dict[str, Any]
    ended: bool


class Saver:
    """The checkpoints of one call of `run` or `advance`.

    Args:
        engine: with its hooks. hook: says when and where. sink: of a stream.
        kind: of run, "batch", "stream" or "sweep": a checkpoint of another kind is refused.
    """

    def __init__(self, engine: Engine, hook: CheckpointHook, kind: str = "batch", sink: Sink | None = None):
        self.engine, self.hook, self.kind, self.sink = engine, hook, kind, sink
        self.store = Checkpoints(hook.folder, hook.keep)
        self._origin = Origin(engine).describe()
        self._saved_at = time.monotonic()
        self._saved_step = -1
        #: Of the systems with which the run begins, if it was given a batch.
        self.marks: Marks | None = None

    # -- where a run goes on ---------------------------------------------------------------------

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
        self.store.open()
        try:
            found = self.store.newest()
            if not resume:
                self._refuse_later(found, step)
                found = None
            seen = None
            if found is not None:
                self._check_origin(found)
                seen = look(found)
                self._saved_step = int(found.about["step"])
                outside = join_tree(found.about["outside"], found.arrays)
                put_back(self.engine, self.sink, outside, str(found.path))
            else:
                begun = self.store.begin() if resume else None
                if begun is not None:
                    put_back(self.engine, self.sink, begun, str(self.store.folder))
                self.store.write_begin(collect(self.engine, self.sink))
            yield seen
        except BaseException as e:
            try:
                self.store.close()
            except Exception as second:
                # Who was told that the run is saved must know that it is not. Other errors matter more.
                if isinstance(e, Interrupted):
                    carry_state(second, getattr(e, "state", None))
                    raise second from e
                if str(second) != str(e):
                    e.add_note(str(second))
            raise
        self.store.close()

    def _refuse_later(self, found: Checkpoint | None, step: int) -> None:
        if found is not None and found.about["step"] > step:
            raise ValueError(
                f"{self.store.folder} holds checkpoints of an earlier run, up to step {found.about['step']}: "
                f"go on from them with run(..., resume={str(self.hook.folder)!r}), or give another folder."
            )

    def _check_origin(self, found: Checkpoint) -> None:
        """Raises AnotherRun, naming what differs."""
        about = found.about
        if about["kind"] != self.kind:
            raise AnotherRun(f"{found.path} is of a run with a {about['kind']}, this one has a {self.kind}.")
        other, changed = difference(about["origin"], self._origin)
        if other or changed:
            raise AnotherRun(f"{found.path} is of another run: {other or changed}. Give another folder.")
        check_traced(str(found.path), about["traced"], self.engine)

    def restore(self, found: Checkpoint, batch: Batch | None = None, key: Any = None) -> Saved:
        """The states of a checkpoint.

        Args:
            batch: the systems of the run, which must be those of the checkpoint; None for a stream. Compared
            with `marks`, if these are set.
            key: with which the run was called.

        Raises:
            AnotherRun: naming what differs.
        """
        about, arrays, where = found.about, found.arrays, str(found.path)
        if batch is not None:
            check_same_systems(where, arrays, batch, "0")
            if self.marks is not None:
                check_marks(where, join_tree(about["marks"], arrays), self.marks, batch.to_host())
        states = []
        for number, one in enumerate(about["states"]):
            form = one
            if batch is not None and number == 0:
                form = one | {"batch": batch_format(batch)}
            prefix = f"{number}."
            mine = {name[len(prefix) - 1 :]: x for name, x in arrays.items() if name.startswith(prefix)}
            state = unpack_state(where, mine, one, state_like(self.engine, form))
            states.append(unsafe_replace(state, origin=Origin(self.engine)))
        if key is not None and not _same_key(key, states[-1].key):
            raise AnotherRun(f"{where} is of a run with another key: give the same.")
        rest = join_tree(about["rest"], arrays)
        return Saved(found, states, rest, about["ended"])

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
        return self.hook.should_stop is not None and bool(self.hook.should_stop())

    def save(
        self,
        states: list[DynamicsState],
        rest: dict[str, Any],
        ended: bool = False,
        step: int | None = None,
    ) -> None:
        """Save the run. All rows are written and all hooks of the last step were called.

        Args:
            states, rest, ended: as in `Saved`.
            step: number of completed steps; by default that of the last state.

        Raises:
            OSError: naming the folder, if it cannot be written.
        """
        step = int(states[-1].step_count) if step is None else step
        # First what is outside: the run goes on only after the state was copied, so both are of one moment.
        outside, arrays = split_tree(collect(self.engine, self.sink), "outside.")
        plain, more = split_tree(rest, "rest.")
        marks, of_systems = split_tree(self.marks, "marks.")
        arrays |= more | of_systems
        abouts = []
        for number, state in enumerate(states):
            packed, about = pack_state(state)
            arrays |= {f"{number}{name}": x for name, x in packed.items()}
            abouts.append(about)
        about = {
            "kind": self.kind,
            "step": step,
            "ended": ended,
            "origin": self._origin,
            "traced": traced_hooks(self.engine),
            "versions": {"alchemi_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
            "states": abouts,
            "outside": outside,
            "rest": plain,
            "marks": marks,
        }
        self.store.write(arrays, about)
        self._saved_at, self._saved_step = time.monotonic(), step


def make_saver(
    engine: Engine, resume: str | os.PathLike | None, kind: str = "batch", sink: Sink | None = None
) -> Saver | None:
    """The saver of a run, by the CheckpointHook of its engine or by `resume`; None if there is neither.

    Raises:
        ValueError: if the engine has several of these hooks, or one for another folder.
    """
    hooks = [h for group in engine.groups for h in group.hooks if isinstance(h, CheckpointHook)]
    if len(hooks) > 1:
        raise ValueError(f"{name_of(engine)} has {len(hooks)} CheckpointHooks: one run has one folder.")
    if resume is not None:
        folder = as_path("resume")(resume)
        if hooks and _absolute(hooks[0].folder) != _absolute(folder):
            raise ValueError(
                f"resume is {str(folder)!r}, but the CheckpointHook saves to {str(hooks[0].folder)!r}: give "
                "one folder."
            )
        hooks = hooks or [CheckpointHook(folder)]
    return Saver(engine, hooks[0], kind, sink) if hooks else None


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _same_key(a: Any, b: Any) -> bool:
    if jax.random.key_impl(a) != jax.random.key_impl(b):
        return False
    return np.array_equal(jax.random.key_data(a), jax.random.key_data(b))


__all__ = ["Saved", "Saver", "make_saver"]
