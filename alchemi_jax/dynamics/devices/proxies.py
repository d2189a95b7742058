"""What stands in for a hook in the engine of one device: it hands on to the hook that all devices share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.devices.gather import on_device
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.hooks import HookSet, RecordingHook
from alchemi_jax.hooks.lifecycle import Openings
from alchemi_jax.hooks.set import StaticHook, StaticRecorder
from alchemi_jax.systems.levels import unsafe_replace


class HostPart:
    """A host hook of one device. All that is asked of it is answered by the hook itself.

    Args:
        hook: that all devices share. call: called as call(hook, ctx, stage). final: whether the last states
            of its systems are shown by the device; called as final(hook, ctx).
    """

    def __init__(self, hook: Any, call: Callable[..., None], final: Callable[..., None] | None = None):
        self._hook, self._call, self._final = hook, call, final

    def __getattr__(self, name: str) -> Any:
        # Only what is not found here.
        if name.startswith("__") or name in ("_hook", "state", "set_state"):
            raise AttributeError(name)
        return getattr(self._hook, name)

    @property
    def final(self) -> bool:
        return self._final is not None and bool(getattr(self._hook, "final", False))

    def __call__(self, ctx: Any, stage: Any) -> None:
        self._call(self._hook, ctx, stage)

    def call_final(self, ctx: Any) -> None:
        """The last state of systems."""
        assert self._final is not None
        self._final(self._hook, ctx)


class RecordingPart(RecordingHook):
    """A recording hook of one device; a row has the number of the step beside what the hook records.

    Args:
        hook: that all devices share. write: called as write(hook, rows). final: as for `HostPart`, called as
            final(hook, rows, systems).
    """

    def __init__(self, hook: Any, write: Callable[..., None], final: Callable[..., None] | None = None):
        self._hook, self._write, self._final = hook, write, final

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_hook", "state", "set_state"):
            raise AttributeError(name)
        return getattr(self._hook, name)

    stage = property(lambda self: self._hook.stage)  # pyright: ignore
    frequency = property(lambda self: self._hook.frequency)  # pyright: ignore

    @property
    def final(self) -> bool:
        return self._final is not None and bool(getattr(self._hook, "final", False))

    def trace_key(self) -> Any:
        return self._hook.trace_key()

    def record(self, ctx: Any) -> Any:
        return {"step": ctx.step_count, "row": self._hook.record(ctx)}

    def write(self, rows: Any) -> None:
        self._write(self._hook, rows)

    def write_final(self, rows: Any, systems: Any) -> None:
        """The last state of systems."""
        assert self._final is not None
        self._final(self._hook, rows["row"], systems)


def under_name_of(thing: Any, kind: type) -> Any:
    """The class under the name of what it stands for, for messages."""
    return _named(kind, type(thing).__name__)


@functools.cache
def _named(kind: type, name: str) -> Any:
    return type(name, (kind,), {})


class Wrap:
    """Makes what stands in for hooks. The functions are those of the two classes above.

    `final_host`, `final_rows`: None where the caller shows the last state of all systems himself.
    """

    def __init__(
        self,
        call: Callable[..., None],
        write: Callable[..., None],
        final_host: Callable[..., None] | None = None,
        final_rows: Callable[..., None] | None = None,
    ):
        self.call, self.write, self.final_host, self.final_rows = call, write, final_host, final_rows

    def hook_set(self, hooks: HookSet, group: int) -> HookSet:
        """The set of one device. Opening it opens nothing: the hooks are open already.

        Args:
            group: the number of the set among all sets of the engine.
        """
        host = [
            StaticHook(
                under_name_of(h, HostPart)(h, functools.partial(self.call, (group, i)), self.final_host)
            )
            for i, h in enumerate(entry.hook for entry in hooks.host)
            if not isinstance(h, CheckpointHook)
        ]
        recording = [
            StaticRecorder(
                under_name_of(h, RecordingPart)(h, functools.partial(self.write, (group, i)), self.final_rows)
            )
            for i, h in enumerate(entry.hook for entry in hooks.recording)
        ]
        return unsafe_replace(hooks, host=tuple(host), recording=tuple(recording), openings=Openings())


def engine_of_part(engine: Engine, wrap: Wrap, device: Any, rows: Any = None, systems: int = 0) -> Engine:
    """The engine of one device: arrays there, hooks that hand on, values per system those of its rows.

    Args:
        device: None: the one that JAX uses anyway.
        rows: of the systems of the device; None for a stream, whose engine has no values per system.
        systems: places for them.
    """
    part = with_hook_sets(engine, wrap)
    if rows is not None:
        part = with_rows(part, rows, systems)
    return on_device(part, device)


def with_hook_sets(engine: Engine, wrap: Any) -> Engine:
    """The engine with other sets of hooks: `wrap.hook_set(hooks, group)` of each.

    Groups are numbered as in `engine.groups`.
    """
    if engine.n_stages == 1:
        return unsafe_replace(engine, hooks=wrap.hook_set(engine.hooks, 0))
    inner: Any = getattr(engine, "inner", ())
    first = 1 + len(inner)
    return unsafe_replace(
        engine,
        hooks=wrap.hook_set(engine.hooks, 0),
        inner=tuple(wrap.hook_set(hooks, 1 + i) for i, hooks in enumerate(inner)),
        stages=tuple(
            unsafe_replace(part, hooks=wrap.hook_set(part.hooks, first + i))
            for i, part in enumerate(engine.parts)
        ),
    )


def with_rows(engine: Engine, rows: Any, systems: int) -> Engine:
    """The engine with the values per system of some rows, in a batch with so many places."""
    changed: dict[str, Any] = {}
    for f in dataclasses.fields(engine):  # pyright: ignore
        value = getattr(engine, f.name)
        if isinstance(value, jax.Array) and value.ndim == 1:
            mine = np.asarray(value)[rows]
            changed[f.name] = jnp.asarray(np.pad(mine, (0, systems - len(mine)), mode="edge"))
    if engine.n_stages > 1:
        changed["stages"] = tuple(with_rows(part, rows, systems) for part in engine.parts)
    return unsafe_replace(engine, **changed) if changed else engine


__all__ = [
    "HostPart",
    "RecordingPart",
    "Wrap",
    "engine_of_part",
    "under_name_of",
    "with_hook_sets",
    "with_rows",
]
