"""Rows of recording hooks of a run over several devices: merged by step, in order, and written once.

A leaf of a row has an axis of systems, one of atoms, or neither. Which it is follows from the shapes that the
hook records for batches of other capacities, never from a length that happens to fit. A leaf with neither
must be the same on all devices (the number of the step): a sum over all systems would be over those of one
device, and is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.devices.check import DEVICES, Division
from alchemi_jax.dynamics.devices.gather import Places
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.saved import batch_format, state_like
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.step import make_carry
from alchemi_jax.errors import name_of, user_errors
from alchemi_jax.hooks.groups import Group
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.transforms import RUNS_ONCE


_filter_jit: Any = eqx.filter_jit
#: Of a leaf of a row: its level, and the axis.
_Level = tuple[str, int]


def _context(engine: Engine, group: Group, hook: Any, state: DynamicsState) -> Any:
    """The context of a hook in which no system moves."""
    stage = next(s for s in DynamicsStage if runs_on(hook, s))
    none = jnp.zeros(state.batch.status.shape, bool)
    ctx = engine._build_context(make_carry(state, none, None, jnp.ones((), bool)), stage, group)
    masks = {name: none for name in ("active_mask", "converged_mask") if getattr(ctx, name) is not None}
    return unsafe_replace(ctx, **masks)


@_filter_jit(compiler_options=RUNS_ONCE)
def _record(entry: Any, ctx: Any) -> Any:
    return entry.hook.record(ctx)


def row_levels(
    engine: Engine, group: Group, hook: Any, batch: Batch, division: Division = DEVICES
) -> list[_Level]:
    """The level of each leaf of the rows of a hook.

    Raises:
        ValueError: naming the hook, if its rows cannot be merged.
    """
    form = batch_format(batch)
    device = engine.on_device()

    def shapes(**more: int) -> list[tuple[int, ...]]:
        like = state_like(engine, {"batch": form | {k: form[k] + n for k, n in more.items()}, "list": None})
        row = jax.eval_shape(lambda s: hook.record(_context(device, group, hook, s)), like)
        return [leaf.shape for leaf in jax.tree.leaves(row)]

    stages = [stage for stage in DynamicsStage if runs_on(hook, stage)]
    if len(stages) != 1:
        raise ValueError(
            f"{name_of(hook)} records at {len(stages)} stages, but rows of several devices are merged by "
            "step: attach one hook for each stage."
        )
    with user_errors(f"{name_of(hook)}.record", "hook"):
        as_it_is, systems, atoms = shapes(), shapes(systems=1), shapes(atoms=1)
        depends = _depends_on_systems(device, group, hook, form)
    levels: list[_Level] = []
    for a, s, t, of_systems in zip(as_it_is, systems, atoms, depends, strict=True):
        odd = [("system", n) for n, (x, y) in enumerate(zip(a, s, strict=True)) if x != y]
        odd += [("atom", n) for n, (x, y) in enumerate(zip(a, t, strict=True)) if x != y]
        if len(odd) > 1 or (not odd and of_systems):
            raise ValueError(
                f"{name_of(hook)} records a number that several systems have in common, such as their sum, "
                f"but {division.where}: record it for each system, or {division.instead}."
            )
        levels.append(odd[0] if odd else ("shared", 0))
    return levels


def _depends_on_systems(engine: Engine, group: Group, hook: Any, form: dict[str, Any]) -> list[bool]:
    """Whether each leaf of a row depends on arrays with values of systems or atoms."""
    like = state_like(engine, {"batch": form, "list": None})
    closed = jax.make_jaxpr(lambda s: hook.record(_context(engine, group, hook, s)))(like)
    pairs = zip(closed.jaxpr.invars, jax.tree.leaves(like), strict=True)
    found = {id(var) for var, leaf in pairs if leaf.ndim}
    for equation in closed.jaxpr.eqns:
        if any(id(var) in found for var in equation.invars):
            found |= {id(var) for var in equation.outvars}
    return [id(var) in found for var in closed.jaxpr.outvars]


class Merged:
    """The rows of one hook that wait until all parts have come so far.

    Args:
        hook: the hook itself. levels: from `row_levels`. places: of the parts in the whole.
        idle: idle(part) -> the row of a part in which nothing moves.
    """

    def __init__(
        self, hook: Any, levels: Sequence[_Level], places: Places, idle: Callable[[int], list[np.ndarray]]
    ):
        self.hook, self.levels, self.places, self.idle = hook, levels, places, idle
        parts = len(places.of)
        #: Steps and leaves of the rows of each part.
        self._waiting: list[list[tuple[np.ndarray, list[np.ndarray]]]] = [[] for _ in range(parts)]
        self._last = [-1] * parts
        self._tree: Any = None

    def deposit(self, part: int, rows: Any) -> None:
        """Rows of a part, as its driver gives them."""
        leaves, self._tree = jax.tree.flatten(rows["row"])
        self._waiting[part].append((np.asarray(rows["step"]), leaves))
        self._last[part] = int(rows["step"][-1])

    def ready(self, running: set[int], until: int | None = None) -> int | None:
        """The step up to which no part will give more rows, if any rows wait for that; `until`: at least."""
        last = min((self._last[k] for k in running), default=2**62)
        last = last if until is None else max(last, until)
        return last if any(w and int(w[0][0][0]) <= last for w in self._waiting) else None

    def take(self, last: int) -> Callable[[], None]:
        """What writes the rows up to a step, which are taken out."""
        taken = []
        for k, waiting in enumerate(self._waiting):
            steps, leaves = _joined(waiting)
            n = int(np.searchsorted(steps, last, side="right"))
            taken.append((steps[:n], [x[:n] for x in leaves]))
            self._waiting[k] = [(steps[n:], [x[n:] for x in leaves])] if n < len(steps) else []
        return lambda: self._write(taken)

    def _write(self, taken: list[tuple[np.ndarray, list[np.ndarray]]]) -> None:
        steps = np.unique(np.concatenate([s for s, _ in taken]))
        parts = []
        for k, (mine, leaves) in enumerate(taken):
            index = np.searchsorted(mine, steps)
            there = np.isin(steps, mine)
            if not there.all():
                # The part has ended, or the hook was not due there.
                empty = self.idle(k)
                leaves = [
                    np.concatenate([x, y[None]]) if leaves else y[None]
                    for x, y in zip(leaves or empty, empty, strict=True)
                ]
                index = np.where(there, index, len(mine))
            parts.append((there, [x[index] for x in leaves]))
        out = [self._merge(n, parts) for n in range(len(self.levels))]
        rows = jax.tree.unflatten(self._tree, out)
        hook = self.hook
        when = f"writing rows up to step {int(steps[-1])}"
        with user_errors(f"{name_of(hook)}.write", "hook"), note_errors(hook, when):
            hook.write(rows)

    def _merge(self, number: int, parts: list[tuple[np.ndarray, list[np.ndarray]]]) -> np.ndarray:
        level, axis = self.levels[number]
        leaves = [leaves[number] for _, leaves in parts]
        if level == "shared":
            out = np.array(leaves[0])
            for (there, _), leaf in zip(parts, leaves, strict=True):
                out[there] = leaf[there]
            return out
        moved = [np.moveaxis(leaf, axis + 1, 0) for leaf in leaves]
        length = self.places.lengths[level]
        out = np.zeros((length, *moved[0].shape[1:]), moved[0].dtype)
        for places, leaf in zip(self.places.of, moved, strict=True):
            index = places[level]
            if len(leaf) > len(index):
                # What the hook records of padding.
                out[self.places.padding[level]] = leaf[len(index)]
        for places, leaf in zip(self.places.of, moved, strict=True):
            index = places[level]
            out[index] = leaf[: len(index)]
        return np.ascontiguousarray(np.moveaxis(out, 0, axis + 1))


def _joined(waiting: list[tuple[np.ndarray, list[np.ndarray]]]) -> tuple[np.ndarray, list[np.ndarray]]:
    if not waiting:
        return np.zeros(0, int), []
    steps = np.concatenate([s for s, _ in waiting])
    return steps, [np.concatenate(x) for x in zip(*(leaves for _, leaves in waiting), strict=True)]


def idle_row(engine: Engine, group: Group, entry: Any, state: DynamicsState) -> list[np.ndarray]:
    """The row of a state in which no system moves."""
    slim = unsafe_replace(state, neighbors=None, records=())
    ctx = _context(engine.on_device(), group, entry.hook, slim)
    row = _record(entry, ctx)
    row = row["row"] if isinstance(row, dict) and set(row) == {"step", "row"} else row
    return [np.asarray(x) for x in jax.tree.leaves(row)]


__all__ = ["Merged", "idle_row", "row_levels"]
