"""What checkpoints have of hooks and sinks: what each says of itself by `state()`, and which of them it is.

Hooks may come, go and change places between two calls, so that their order alone does not tell which is
which. A table of one observable must not go on with the rows of another.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from alchemi_jax.dynamics.hooks.logging import LoggingHook
from alchemi_jax.dynamics.saved import AnotherRun
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import TracedHook
from alchemi_jax.hooks.groups import Group
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.io.sinks import Sink, SinkChain


if TYPE_CHECKING:

    class Workflow(Protocol):
        """An engine or a trainer: what has hooks."""

        @property
        def groups(self) -> tuple[Group, ...]: ...

else:
    # Only for the type checker: a check at run time would evaluate the property in each call.
    Workflow = Any


#: How a hook is known: its class, or "sink"; what it writes to; the name of its file and when it is called.
_WHO, _KIND, _NAME, _STATE = "who", "kind", "name", "state"


def collect(workflow: Workflow, sink: Sink | None) -> list[dict[str, Any]]:
    """Ask all hooks that have something to keep, and the sink of a stream. Entries of a checkpoint."""
    return [_description(thing) | {_STATE: _ask(thing)} for thing in _things(workflow, sink)]


def put_back(workflow: Workflow, sink: Sink | None, entries: list[dict[str, Any]], where: str) -> None:
    """Let hooks and sink go back to the entries of a checkpoint; hooks that were not there stay as they are.

    Args:
        where: the checkpoint, for messages.

    Raises:
        AnotherRun: if it is not known which hook an entry is of, or if the sink is another one.
    """
    things = list(_things(workflow, sink))
    pairs = match(where, [dict(entry) for entry in entries], [_description(thing) for thing in things])
    with contextlib.ExitStack() as stack:
        for group in workflow.groups:
            stack.enter_context(group.hooks.openings.suspended(group.hooks))
        for old, new in pairs:
            with note_errors(things[new], "when it went back to a checkpoint"):
                things[new].set_state(entries[old][_STATE])


def match(where: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Which entries of a checkpoint belong to which hooks: pairs of their numbers, in the order of the hooks.

    Raises:
        AnotherRun: if it is not known, or if the sink of the run is another one.
    """
    sinks = [[entry[_KIND] for entry in entries if entry[_WHO] == "sink"] for entries in (old, new)]
    if sinks[0] != sinks[1]:
        was, now = (kinds[0] if kinds else "none" for kinds in sinks)
        raise AnotherRun(f"{where} is of a run with another sink: it was {was} and is {now}. Give the same.")
    pairs: list[tuple[int, int]] = []
    for who, kind in dict.fromkeys((entry[_WHO], entry[_KIND]) for entry in new):
        before, now = (
            [
                (n, entry[_NAME])
                for n, entry in enumerate(entries)
                if (entry[_WHO], entry[_KIND]) == (who, kind)
            ]
            for entries in (old, new)
        )
        found = _pairs(before, now)
        if found is None:
            what = f"{who} of {kind}" if kind else who
            raise AnotherRun(
                f"{where} has {len(before)} of {what}, this engine {len(now)}, and which is which is not "
                "known: give all of them, as they were."
            )
        pairs += found
    return sorted(pairs, key=lambda pair: pair[1])


def _pairs(old: list[tuple[int, str]], new: list[tuple[int, str]]) -> list[tuple[int, int]] | None:
    """Pairs of the numbers of hooks of one kind: those of the same name, then the others by their order.

    None if they are not equally many, and their names do not tell which have come or gone.
    """
    pairs = []
    for name in dict.fromkeys(name for _, name in new):
        same = [[n for n, other in entries if other == name] for entries in (old, new)]
        if len(old) != len(new) and same[0] and len(same[0]) != len(same[1]):
            return None
        pairs += zip(*same, strict=False)
    left = [n for n, _ in old if n not in {n for n, _ in pairs}]
    over = [n for n, _ in new if n not in {n for _, n in pairs}]
    if left and over and len(left) != len(over):
        return None
    return [*pairs, *zip(left, over, strict=False)]


def check_traced(where: str, stored: list[str], workflow: Workflow) -> None:
    """Check that the traced hooks, which are a part of the run, are those of a checkpoint, in their order.

    Raises:
        AnotherRun: naming the first that differs.
    """
    now = traced_hooks(workflow)
    if stored == now:
        return
    both = zip([*stored, *["none"] * len(now)], [*now, *["none"] * len(stored)], strict=False)
    number, (old, new) = next((n, pair) for n, pair in enumerate(both, 1) if pair[0] != pair[1])
    raise AnotherRun(
        f"{where} is of a run with other traced hooks: number {number} was {old} and is {new}. They act on "
        "the run: give the same in the same order. Give another folder to begin again."
    )


def traced_hooks(workflow: Workflow) -> list[str]:
    """The traced hooks of an engine, in order: class, reasons, and the parts of a pipeline."""
    found = []
    for group in workflow.groups:
        parts = "" if group.codes is None else f" of part {', '.join(map(str, group.codes))}"
        for hook in group.hooks.traced:
            reasons = "; ".join(flag(hook, "reasons"))
            found.append(f"{name_of(hook)}{parts}{f' ({reasons})' if reasons else ''}")
    return found


# -- who is who ------------------------------------------------------------------------------------


def _things(workflow: Workflow, sink: Sink | None) -> Iterator[Any]:
    """The sink, and hooks that have a state of their own."""
    if sink is not None:
        yield sink
    for group in workflow.groups:
        for hook in group.hooks:
            if not isinstance(hook, TracedHook) and _has_state(hook):
                yield hook


def _has_state(thing: Any) -> bool:
    """Whether a hook, or what it writes with, keeps something in checkpoints.

    Raises:
        TypeError: if it has one of the two methods alone.
    """
    for one in (thing.writer, thing) if isinstance(thing, LoggingHook) else (thing,):
        has = [name for name in ("state", "set_state") if callable(getattr(one, name, None))]
        if len(has) == 1:
            lacks = "set_state" if has == ["state"] else "state"
            raise TypeError(
                f"{name_of(one)} has {has[0]}() and no {lacks}(), and checkpoints need both: define "
                f"{lacks}(), or call {has[0]}() something else if it is not meant for checkpoints."
            )
    return callable(getattr(thing, "set_state", None))


def _ask(thing: Any) -> Any:
    with note_errors(thing, "when its state was saved"):
        return thing.state()


def _description(thing: Any) -> dict[str, Any]:
    if isinstance(thing, Sink):
        return {_WHO: "sink", _KIND: _sink_kind(thing), _NAME: ""}
    kind = name = ""
    if isinstance(getattr(thing, "sink", None), Sink):
        kind, name = _sink_kind(thing.sink), _file(getattr(thing.sink, "path", ""))
    elif hasattr(thing, "writer"):
        kind, name = name_of(thing.writer), _file(getattr(thing, "log_path", ""))
    elif hasattr(thing, "observables"):
        kind = ", ".join(thing.observables)
    stage = getattr(getattr(thing, "stage", None), "name", "")
    return {_WHO: name_of(thing), _KIND: kind, _NAME: f"{name} {stage} {getattr(thing, 'frequency', 1)}"}


def _sink_kind(sink: Sink) -> str:
    if isinstance(sink, SinkChain):
        return f"{name_of(sink)} of {', '.join(_sink_kind(inner) for inner in sink.sinks)}"
    return name_of(sink)


def _file(path: Any) -> str:
    """The name without folders, which may have been moved."""
    return str(path).rstrip("/\\").replace("\\", "/").rpartition("/")[2]


__all__ = ["Workflow", "check_traced", "collect", "match", "put_back", "traced_hooks"]
