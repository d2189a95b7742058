"""HookSet: the hooks of a workflow, told apart once, checked, opened, closed and called."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.errors import (
    UserCodeError,
    check_same_structure,
    defined,
    described,
    is_array,
    name_of,
    user_errors,
)
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.protocol import Hook, RecordingHook, TracedHook
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace


_C = TypeVar("_C", bound=HookContext)


class StaticHook:
    """A host hook as static data: compared by identity, whatever the hook's own equality."""

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
    """A recording hook as static data: compared by what its `record` depends on."""

    __slots__ = ()

    def key(self) -> Any:
        hook = self.hook
        return (type(hook), hook.stage, hook.frequency, hook.trace_key())


class _Openings:
    """How often a set of hooks is open, and how to close it; shared by all copies of an engine.

    All are equal: compiled code does not depend on it.
    """

    def __init__(self):
        self.depth = 0
        self.stack = contextlib.ExitStack()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Openings)

    def __hash__(self) -> int:
        return 0


def runs_on(hook: Any, stage: Enum) -> bool:
    """Whether a hook is called at a stage."""
    asked = getattr(hook, "_runs_on_stage", None)
    return bool(asked(stage)) if asked is not None else hook.stage == stage


class HookSet(eqx.Module):
    """The hooks of a workflow, from any iterable of them.

    Raises:
        TypeError: for something that is no hook; ValueError for a bad frequency. Both name it.
    """

    traced: tuple[TracedHook, ...]
    recording: tuple[StaticRecorder, ...] = eqx.field(static=True)
    host: tuple[StaticHook, ...] = eqx.field(static=True)
    openings: _Openings = eqx.field(static=True, repr=False)

    def __init__(self, hooks: Any = ()):
        if isinstance(hooks, Hook) or not isinstance(hooks, Iterable):
            raise TypeError(f"hooks must be a list of hooks, not a {name_of(hooks)}.")
        self.openings = hooks.openings if isinstance(hooks, HookSet) else _Openings()
        hooks = list(hooks)
        for i, hook in enumerate(hooks):
            _check(hook, f"hooks[{i}] ({name_of(hook)})")
        self.traced = tuple(_floats_as_leaves(h) for h in hooks if isinstance(h, TracedHook))
        self.recording = tuple(StaticRecorder(h) for h in hooks if isinstance(h, RecordingHook))
        self.host = tuple(StaticHook(h) for h in hooks if not isinstance(h, TracedHook | RecordingHook))

    def __iter__(self) -> Iterator[Any]:
        yield from self.traced
        yield from (held.hook for held in self.recording)
        yield from (held.hook for held in self.host)

    def __len__(self) -> int:
        return len(self.traced) + len(self.recording) + len(self.host)

    def __repr__(self) -> str:
        return "[" + ", ".join(repr(hook) for hook in self) + "]"

    def on_device(self) -> "HookSet":
        """The set without host hooks: what compiled code may depend on."""
        if not self.host:
            return self
        return unsafe_replace(self, host=())

    def check_stages(self, accepted: Any) -> None:
        """Whether every hook fits a workflow whose stages are of the enum(s) `accepted` (None: any).

        Raises:
            TypeError: naming the hook, for a stage of another enum, or a `__call__` of
                `plum.dispatch` overloads none of which takes a stage on which the hook runs.
        """
        if accepted is None:
            return
        types = accepted if isinstance(accepted, tuple) else (accepted,)
        for hook in self:
            if not hasattr(hook, "_runs_on_stage") and not isinstance(hook.stage, types):
                names = " or ".join(t.__name__ for t in types)
                raise TypeError(f"{name_of(hook)}.stage must be a {names}, not {hook.stage!r}.")
            for stage in (member for t in types for member in t):
                if runs_on(hook, stage):
                    _check_overload(hook, stage)

    # -- opening and closing ---------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Opens the hooks that can be opened; within another opening it does nothing."""
        self.open()
        try:
            yield
        except BaseException as e:
            self.close(type(e), e, e.__traceback__)
            raise
        else:
            self.close()

    def open(self) -> None:
        """Enters every hook that has `__enter__`, in order."""
        if self.openings.depth == 0:
            with contextlib.ExitStack() as stack:
                for hook in self:
                    if hasattr(hook, "__enter__") and hasattr(hook, "__exit__"):
                        with note_errors(hook, "when it was opened"):
                            stack.enter_context(_named(hook))
                self.openings.stack = stack.pop_all()
        self.openings.depth += 1

    def close(self, *exc: Any) -> None:
        """Leaves them again, in reverse order, when the outermost opening ends."""
        self.openings.depth -= 1
        if self.openings.depth > 0:
            return
        stack, self.openings.stack = self.openings.stack, contextlib.ExitStack()
        first = exc[1] if exc else None
        try:
            stack.__exit__(*(exc or (None, None, None)))
        except Exception as e:
            # Whoever reads the traceback wants what broke the run, not what broke after it.
            if first is None or e is first:
                raise
            first.add_note(f"then a hook could not be closed: {type(e).__name__}: {e}")

    # -- calling ---------------------------------------------------------------------------------

    def init(self, batch: Batch) -> tuple[Any, ...]:
        """The memory of each traced hook."""
        return tuple(_memory(hook, batch) for hook in self.traced)

    def any_traced(self, stage: Enum) -> bool:
        """Whether a traced hook runs on a stage."""
        return any(runs_on(hook, stage) for hook in self.traced)

    def run_traced(
        self,
        ctx: _C,
        stage: Enum,
        memory: tuple[Any, ...],
        fields: tuple[str, ...] = ("batch",),
    ) -> tuple[_C, tuple[Any, ...]]:
        """The context and the memories after the traced hooks of a stage, in order. Traced.

        Args:
            memory: of each traced hook, as `init` made it or the last call left it.
            fields: of the context, those that hooks may change; what they make of others is not
                taken over.
        """
        memories = list(memory)
        for i, hook in enumerate(self.traced):
            if runs_on(hook, stage):
                before = dataclasses.replace(ctx, memory=memories[i])
                changed = _call_traced(hook, before, stage, fields)
                memories[i] = changed.pop("memory")
                ctx = dataclasses.replace(ctx, **changed)
        return ctx, tuple(memories)

    def host_due(self, stage: Enum, step: int) -> bool:
        """Whether a host hook is to be called at a stage of a step."""
        return any(step % held.hook.frequency == 0 and runs_on(held.hook, stage) for held in self.host)

    def reads_batch(self, stage: Enum, step: int) -> bool:
        """Whether a host hook that is due looks at the batch; one with `reads_batch = False` does not."""
        return any(
            getattr(held.hook, "reads_batch", True)
            for held in self.host
            if step % held.hook.frequency == 0 and runs_on(held.hook, stage)
        )

    def run_host(self, ctx: HookContext, stage: Enum, step: int) -> None:
        """Calls the host hooks that are due. What goes wrong is noted with hook, stage and step."""
        for held in self.host:
            hook = held.hook
            if step % hook.frequency != 0 or not runs_on(hook, stage):
                continue
            with note_errors(hook, f"at {stage.name} of step {step}"):
                answer = hook(ctx, stage)
            if answer is not None:
                raise TypeError(
                    f"{name_of(hook)} returned a {name_of(answer)} at {stage.name}: a host hook "
                    "observes and returns None; to change the run write a TracedHook."
                )


@contextlib.contextmanager
def _named(hook: Any) -> Iterator[None]:
    """The hook opened; it cannot swallow an exception, and what goes wrong in closing it names it."""
    hook.__enter__()
    try:
        yield
    except BaseException as e:
        with note_errors(hook, "when it was closed"):
            hook.__exit__(type(e), e, e.__traceback__)
        raise
    with note_errors(hook, "when it was closed"):
        hook.__exit__(None, None, None)


@contextlib.contextmanager
def note_errors(hook: Any, when: str) -> Iterator[None]:
    """Adds the hook's name and the place to whatever exception passes."""
    try:
        yield
    except UserCodeError:
        raise
    except Exception as e:
        e.add_note(f"raised in hook {name_of(hook)} {when}")
        raise


def _check(hook: Any, what: str) -> None:
    if isinstance(hook, type):
        raise TypeError(f"{what} is a class: pass an instance of {hook.__name__}.")
    if not isinstance(hook, Hook):
        missing = [a for a in ("stage", "frequency") if not hasattr(hook, a)]
        missing += [] if callable(hook) else ["__call__(ctx, stage)"]
        raise TypeError(f"{what} is not a hook: it has no {' and no '.join(missing)}.")
    frequency = hook.frequency
    whole = isinstance(frequency, int | np.integer) and not isinstance(frequency, bool)
    if not whole or frequency < 1:
        raise ValueError(f"{what}: frequency must be a positive int, not {frequency!r}.")
    if not hasattr(hook, "_runs_on_stage") and not isinstance(hook.stage, Enum):
        raise TypeError(f"{what}: stage must be a member of an Enum, not {hook.stage!r}.")


def _check_overload(hook: Any, stage: Enum) -> None:
    """A hook for several workflows overloads `__call__` by the enum: one must fit."""
    call: Any = next((vars(c)["__call__"] for c in type(hook).__mro__ if "__call__" in vars(c)), None)
    # Importing plum is slow, and whoever has made an overload has imported it.
    plum = sys.modules.get("plum")
    if plum is None or not isinstance(call, plum.Function):
        return
    for method in call.methods:
        # The stage is the third argument, after the hook and the context.
        types = method.signature.types
        if len(types) == 3 and plum.Signature(*types[:2], type(stage)) <= method.signature:
            return
    raise TypeError(
        f"{name_of(hook)} runs on {stage!r}, but none of its __call__ overloads takes a {name_of(stage)}."
    )


def _floats_as_leaves(hook: TracedHook) -> TracedHook:
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, hook)


def _memory(hook: TracedHook, batch: Batch) -> Any:
    with user_errors(f"{name_of(hook)}.init", "hook"):
        memory = hook.init(batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(memory):
        if not is_array(leaf):
            raise UserCodeError(
                f"{name_of(hook)}.init made memory{jax.tree_util.keystr(path)} {described(leaf)}: "
                f"a memory is a pytree of arrays{defined(type(hook).init)}."
            )
    return jax.tree.map(jnp.asarray, memory)


def _call_traced(hook: TracedHook, ctx: HookContext, stage: Enum, fields: tuple[str, ...]) -> dict[str, Any]:
    """What the hook, if it is due, makes of some fields of the context and of its memory; checked, so
    that a mistake names the hook and not a while_loop."""
    held = {name: getattr(ctx, name) for name in (*fields, "memory")}

    def call(held: dict[str, Any]) -> dict[str, Any]:
        with user_errors(f"{name_of(hook)} at {stage.name}", "hook"):
            new = hook(dataclasses.replace(ctx, **held), stage)
        function = type(hook).__call__
        if not isinstance(new, HookContext):
            raise UserCodeError(
                f"{name_of(hook)} returned {described(new)} at {stage.name}: a traced hook returns the "
                f"context, for example ctx.with_batch(forces=...){defined(function)}."
            )
        who = name_of(hook)
        return {
            name: check_same_structure(who, name, getattr(new, name), old, function)
            for name, old in held.items()
        }

    if hook.frequency == 1:
        return call(held)
    due = ctx.step_count % hook.frequency == 0
    return jax.lax.cond(due, call, lambda held: held, held)
