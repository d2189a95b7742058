"""Saver: it saves a run between two steps, and finds where an earlier one goes on.

A checkpoint has the states of the run (of a batch that has become smaller also those of the larger ones),
what hooks and sinks say of themselves by `state()`, and what a stream of systems needs. It is a point at
which all rows are written and all hooks of the last step were called.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from alchemi_jax.dynamics.checkpoints import Checkpoint
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.origin import Origin, difference
from alchemi_jax.dynamics.outside import check_traced, traced_hooks
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.sameness import Marks, check_marks
from alchemi_jax.dynamics.saved import (
    AnotherRun,
    batch_format,
    check_same_systems,
    join_tree,
    pack_state,
    same_key,
    split_tree,
    state_like,
    unpack_state,
)
from alchemi_jax.dynamics.saving import AbstractSaver, checkpoint_hook
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.io.sinks import Sink
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


@runtime_checkable
class Asked(Protocol):
    """What a driver asks between two segments: a `Saver`, or what asks one for several drivers."""

    def should_stop(self) -> bool: ...
    def is_due(self, step: int) -> bool: ...
    def next_step(self, step: int) -> int | None: ...
    def save(self, states: list[DynamicsState], rest: dict[str, Any], ended: bool = False) -> None: ...


class Saver(AbstractSaver):
    """The checkpoints of one call of `run` or `advance`.

    Args:
        engine: with its hooks. hook: says when and where. sink: of a stream.
        kind: of run, "batch", "stream", "sweep" or "cluster": a checkpoint of another kind is refused.
    """

    def __init__(self, engine: Engine, hook: CheckpointHook, kind: str = "batch", sink: Sink | None = None):
        super().__init__(engine, hook, sink)
        self.engine, self.kind = engine, kind
        self._origin = Origin(engine).describe()
        #: Of the systems with which the run begins, if it was given a batch.
        self.marks: Marks | None = None

    @property
    def out_of_steps(self) -> Path:
        """The folder of systems that left a stream without steps."""
        return self.store.folder / "out_of_steps"

    def _check_origin(self, found: Checkpoint) -> None:
        """Raises AnotherRun, naming what differs."""
        about = found.about
        if about["kind"] != self.kind:
            advice = {
                ("cluster", "stream"): " Give the client again (--cluster), or another folder.",
                ("stream", "cluster"): " Leave client (--cluster) out, or give another folder.",
            }.get((about["kind"], self.kind), "")
            raise AnotherRun(
                f"{found.path} is of a run with a {about['kind']}, this one has a {self.kind}.{advice}"
            )
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
        if key is not None and not same_key(key, states[-1].key):
            raise AnotherRun(f"{where} is of a run with another key: give the same.")
        rest = join_tree(about["rest"], arrays)
        return Saved(found, states, rest, about["ended"])

    # -- saving ----------------------------------------------------------------------------------

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
        outside, arrays = self.outside()
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
            "ended": ended,
            "origin": self._origin,
            "traced": traced_hooks(self.engine),
            "states": abouts,
            "outside": outside,
            "rest": plain,
            "marks": marks,
        }
        self._write(step, arrays, about)


def make_saver(
    engine: Engine, resume: str | os.PathLike | None, kind: str = "batch", sink: Sink | None = None
) -> Saver | None:
    """The saver of a run, by the CheckpointHook of its engine or by `resume`; None if there is neither.

    Raises:
        ValueError: if the engine has several of these hooks, or one for another folder.
    """
    hook = checkpoint_hook(engine, resume)
    return None if hook is None else Saver(engine, hook, kind, sink)


__all__ = ["Asked", "Saved", "Saver", "make_saver"]
