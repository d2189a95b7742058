"""What hooks of the host see on a worker, kept in order, and shown to the hooks themselves afterwards.

Hooks write where the run was called, and only what belongs to systems that have come back: so a row or a
frame is written once, whatever happens to workers.
"""

from typing import Any, NamedTuple

import numpy as np

from alchemi_jax.dynamics.devices.proxies import Wrap
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.errors import name_of, user_errors
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.set import call_host
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import unsafe_replace


class Event(NamedTuple):
    """One call of a hook.

    Attributes:
        kind: "call" of a host hook, "rows" of a recording hook, or either's "final" state.
        recording: whether the hook is a recording one. group, number: which one it is.
        given: what it was called with.
    """

    kind: str
    recording: bool
    group: int
    number: int
    given: tuple


class Recorder:
    """Makes what stands in for the hooks of an engine on a worker.

    Attributes:
        events: so far; the list is replaced for each task.
    """

    def __init__(self, engine: Engine):
        self.events: list[Event] = []
        self._places: dict[int, tuple[bool, int, int]] = {}
        for number, group in enumerate(engine.groups):
            for recording, entries in ((False, group.hooks.host), (True, group.hooks.recording)):
                for i, entry in enumerate(entries):
                    self._places[id(entry.hook)] = recording, number, i
        self.wrap = Wrap(self._call, self._write, self._final, self._final_rows)

    def _add(self, kind: str, hook: Any, *given: Any) -> None:
        self.events.append(Event(kind, *self._places[id(hook)], given))

    def _call(self, where: Any, hook: Any, ctx: Any, stage: Any) -> None:
        self._add("call", hook, _alone(ctx), stage)

    def _write(self, where: Any, hook: Any, rows: Any) -> None:
        self._add("rows", hook, rows["row"])

    def _final(self, hook: Any, ctx: Any) -> None:
        self._add("final", hook, _alone(ctx))

    def _final_rows(self, hook: Any, rows: Any, systems: Any) -> None:
        self._add("final", hook, rows, np.asarray(systems))


def _alone(ctx: Any) -> Any:
    """A context without engine and model, which are where it goes."""
    batch = ctx.batch if isinstance(ctx.batch, HostBatch) else None
    return unsafe_replace(ctx, batch=batch, model=None, workflow=None, memory=None)


def show(engine: Engine, event: Event) -> None:
    """Call the hook of an event.

    Args:
        engine: with the hooks themselves, open.
    """
    hooks = engine.groups[event.group].hooks
    hook = (hooks.recording if event.recording else hooks.host)[event.number].hook
    if event.kind == "rows":
        with user_errors(f"{name_of(hook)}.write", "hook"), note_errors(hook, "writing rows"):
            hook.write(*event.given)
    elif event.recording:
        with note_errors(hook, "recording the last state"):
            hook.write_final(*event.given)
    else:
        ctx, *stage = event.given
        ctx = unsafe_replace(ctx, workflow=engine, model=engine.model)
        if event.kind == "call":
            call_host(hook, ctx, stage[0], int(ctx.step_count))
            return
        with note_errors(hook, "showing the last state"):
            hook.call_final(ctx)


__all__ = ["Event", "Recorder", "show"]
