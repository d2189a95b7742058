"""HookSet: the hooks of a workflow by kind; it checks, opens, closes and calls them."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.errors import description, name_of
from alchemi_jax.hooks.calls import After, Before, Due, call_traced, due_at, make_memory, narrow
from alchemi_jax.hooks.check import check_hook, check_stages
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.lifecycle import Openings, note_errors
from alchemi_jax.hooks.protocol import Hook, RecordingHook, TracedHook, flag, runs_on
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace


_C = TypeVar("_C", bound=HookContext)


class StaticHook:
    """A host hook as static data: compared by identity, not by the equality of the hook."""

    __slots__ = ("hook",)

    def __init__(self, hook: Any):
        self.hook = hook

    def key(self) -> Any:
        return id(self.hook)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticHook) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        return repr(self.hook)


class StaticRecorder(StaticHook):
    """A recording hook as static data: compared by its `trace_key`, stage and frequency."""

    __slots__ = ()

    def key(self) -> Any:
        hook = self.hook
        return (type(hook), hook.stage, hook.frequency, flag(hook, "own_steps"), hook.trace_key())


class HookSet(eqx.Module):
    """The hooks of a workflow, from any iterable of them.

    Raises:
        TypeError: for an object that is not a hook; ValueError: for an invalid frequency. Both name the hook.
    """

    nodes: tuple[Partitioned[TracedHook], ...] = eqx.field(repr=False)
    recording: tuple[StaticRecorder, ...] = eqx.field(static=True)
    host: tuple[StaticHook, ...] = eqx.field(static=True)
    openings: Openings = eqx.field(static=True, repr=False)

    def __init__(self, hooks: Any = ()):
        if isinstance(hooks, Hook) or not isinstance(hooks, Iterable):
            raise TypeError(f"hooks must be a list of hooks, not a {name_of(hooks)}.")
        self.openings = hooks.openings if isinstance(hooks, HookSet) else Openings()
        hooks = list(hooks)
        for i, hook in enumerate(hooks):
            check_hook(hook, f"hooks[{i}] ({name_of(hook)})")
        traced = [h for h in hooks if isinstance(h, TracedHook)]
        self.nodes = tuple(Partitioned(_numbers_as_leaves(h)) for h in traced)
        self.recording = tuple(StaticRecorder(h) for h in hooks if isinstance(h, RecordingHook))
        self.host = tuple(StaticHook(h) for h in hooks if not isinstance(h, TracedHook | RecordingHook))

    @property
    def traced(self) -> tuple[TracedHook, ...]:
        """The traced hooks, in order. As leaves of the set they have only their arrays; everything else is
        static."""
        return tuple(node.combine() for node in self.nodes)

    def __iter__(self) -> Iterator[Any]:
        yield from self.traced
        yield from (entry.hook for entry in self.recording)
        yield from (entry.hook for entry in self.host)

    def __len__(self) -> int:
        return len(self.nodes) + len(self.recording) + len(self.host)

    def __repr__(self) -> str:
        return "[" + ", ".join(repr(hook) for hook in self) + "]"

    def on_device(self) -> "HookSet":
        """The set without host hooks, for compiled code."""
        if not self.host:
            return self
        return unsafe_replace(self, host=())

    def only_memories(self) -> "HookSet":
        """The set with only what `init` depends on: programs that do not call hooks are then the same for all
        hooks without a memory."""
        pairs = zip(self.traced, self.nodes, strict=True)
        nodes = [_NO_MEMORY if type(hook).init is TracedHook.init else node for hook, node in pairs]
        return unsafe_replace(self, nodes=tuple(nodes))

    def check_stages(self, accepted: Any) -> None:
        """Check that each hook fits a workflow with stages of the enum(s) `accepted` (None: any).

        Raises:
            TypeError: naming the hook, for a stage of another enum, or if no `plum.dispatch` overload of
                `__call__` takes a stage on which the hook runs.
        """
        if accepted is None:
            return
        types = accepted if isinstance(accepted, tuple) else (accepted,)
        for hook in self:
            check_stages(hook, types)

    # -- opening and closing ---------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """A context in which the hooks are open. Inside another such context it does nothing."""
        self.open()
        try:
            yield
        except BaseException as e:
            self.close(type(e), e, e.__traceback__)
            raise
        else:
            self.close()

    def open(self) -> None:
        """Enter each hook that has `__enter__`, in order."""
        self.openings.open(self)

    def close(self, *exc: Any) -> None:
        """Exit the hooks, in reverse order, when the outermost opening ends."""
        self.openings.close(*exc)

    # -- calling ---------------------------------------------------------------------------------

    def init(self, batch: Batch) -> tuple[Any, ...]:
        """The memory of each traced hook."""
        return tuple(make_memory(hook, batch) for hook in self.traced)

    def any_traced(self, stage: Enum) -> bool:
        """Whether a traced hook runs on a stage."""
        return any(runs_on(hook, stage) for hook in self.traced)

    def run_traced(
        self,
        ctx: _C,
        stage: Enum,
        memory: tuple[Any, ...],
        fields: tuple[str, ...] = ("batch",),
        before: Before | None = None,
        after: After | None = None,
        fixed: tuple[str, ...] = (),
    ) -> tuple[_C, tuple[Any, ...]]:
        """The context and the memories after the traced hooks of a stage, in order. Traced.

        Args:
            memory: of each traced hook, from `init` or the last call.
            fields: fields of the context that hooks may change; other changes are dropped.
            fixed: fields whose change is an error.
            before: before(ctx, i, hook) -> ctx, due: the context that hook i gets, and whether it is called
                (None: yes); by default the context as it is, and the frequency of the hook.
            after: after(ctx before, ctx after, i, hook) -> ctx: the context to keep; by default the one
                after the call.
        """
        memories = list(memory)
        for i, hook in enumerate(self.traced):
            if not runs_on(hook, stage):
                continue
            given = dataclasses.replace(ctx, memory=memories[i])
            due = due_at(hook, ctx.step_count)
            if before is not None:
                given, due = before(given, i, hook)
            changed = call_traced(hook, given, stage, fields, due, fixed)
            if after is not None:
                changed = after(given, changed, i, hook)
            memories[i] = changed.memory
            ctx = dataclasses.replace(ctx, **{name: getattr(changed, name) for name in fields})
        return ctx, tuple(memories)

    def host_due(self, stage: Enum, due: Due) -> bool:
        """Whether a host hook is due at a stage."""
        return any(runs_on(entry.hook, stage) and np.any(due(entry.hook)) for entry in self.host)

    def reads_batch(self, stage: Enum, due: Due) -> bool:
        """Whether a host hook that is due reads the batch."""
        return any(
            flag(entry.hook, "reads_batch")
            for entry in self.host
            if runs_on(entry.hook, stage) and np.any(due(entry.hook))
        )

    def run_host(self, ctx: HookContext, stage: Enum, step: int, due: Due | None = None) -> None:
        """Call the host hooks that are due, by default by their frequency. A hook that is due for some
        systems only gets a context with these in its masks. An exception gets a note with hook, stage and
        step."""
        for entry in self.host:
            hook = entry.hook
            if not runs_on(hook, stage):
                continue
            called = step % hook.frequency == 0 if due is None else due(hook)
            if not np.any(called):
                continue
            call_host(hook, narrow(ctx, called) if np.ndim(called) else ctx, stage, step)


def call_host(hook: Any, ctx: HookContext, stage: Enum, step: int) -> None:
    """Call a host hook. Exceptions get a note with hook, stage and step.

    Raises:
        TypeError: naming the hook, if it returns anything.
    """
    with note_errors(hook, f"at {stage.name} of step {step}"):
        answer = hook(ctx, stage)
    if answer is not None:
        raise TypeError(
            f"{name_of(hook)} returned {description(answer)} at {stage.name}: a host hook "
            "observes and returns None; to change or stop the run write a TracedHook."
        )


class _WithoutMemory(TracedHook):
    """In place of a traced hook that has no memory."""

    stage: Any = None
    frequency: int = 1

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        return ctx


_NO_MEMORY = Partitioned(_WithoutMemory())


def _numbers_as_leaves(hook: TracedHook) -> TracedHook:
    """The hook with arrays in place of floats and of numpy's arrays."""
    return jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, float | np.ndarray | np.inexact) else x, hook
    )


__all__ = ["HookSet", "StaticHook", "StaticRecorder", "call_host"]
