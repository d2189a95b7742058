"""A run that goes on from a checkpoint, also with a larger budget of steps."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rows import capacities, plan_rows
from alchemi_jax.dynamics.saved import AnotherRun
from alchemi_jax.dynamics.saver import Saved
from alchemi_jax.dynamics.segments import Report
from alchemi_jax.dynamics.shrink import merge_back
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.status import waits_for_convergence
from alchemi_jax.errors import name_of
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.metadata import Metadata
from alchemi_jax.systems.outcome import Outcome


@dataclasses.dataclass
class Begun:
    """The states with which a run goes on.

    Attributes:
        states: of the larger batches, the largest first, and of the one in which steps are taken; with names.
        stayed: for each larger batch [stay], the rows of the systems that went on in the next.
        min_active: of a batch that shrinks, see `ShrinkingRun`.
        ended: whether nothing is left to do.
        interrupted: whether Ctrl-C ended the steps in a notebook, which gets the state so far.
        report: that of the last state, if it is known.
    """

    states: list[DynamicsState]
    stayed: list[np.ndarray] = dataclasses.field(default_factory=list)
    min_active: int | None = None
    ended: bool = False
    interrupted: bool = False
    report: Report | None = None


def go_on(engine: Engine, saved: Saved, meta: Metadata, shrinks: bool) -> Begun:
    """The states of a checkpoint; where the budget is larger systems go on.

    Args:
        meta: names of the systems of the largest batch.
        shrinks: whether the batch may go on being smaller than it was; otherwise it is whole again.

    Raises:
        AnotherRun: if systems have taken more steps than the budget allows.
    """
    stayed = [np.asarray(rows) for rows in saved.rest.get("stayed", [])]
    states = name_systems(saved.states, stayed, meta)
    begun = Begun(states, stayed, saved.rest.get("min_active"), saved.ended)
    return reopen_all(engine, begun, saved, shrinks)


def reopen_all(engine: Engine, begun: Begun, saved: Saved, shrinks: bool) -> Begun:
    """What `reopen` makes of all states of a run; larger batches are whole again if any of their systems goes
    on, or if the batch does not shrink any more."""
    where = str(saved.at.path)
    states = [reopen(engine, state, where) for state in begun.states]
    goes_on = any(new is not old for new, old in zip(states, begun.states, strict=True))
    if not goes_on and (shrinks or not begun.stayed):
        return begun
    whole = merge_all(begun.states, begun.stayed)
    return Begun([reopen(engine, whole, where)], ended=begun.ended and not goes_on)


def merge_all(states: list[DynamicsState], stayed: list[np.ndarray]) -> DynamicsState:
    """The state of the largest batch with what has happened in the smaller ones."""
    state = states[-1]
    for before, stay in zip(reversed(states[:-1]), reversed(stayed), strict=True):
        sizes = np.asarray(before.batch.atoms_per_system)
        plan = plan_rows(sizes, stay, capacities(state.batch))
        merged = jax.device_put(merge_back(before, state, plan, sizes))
        state = unsafe_replace(merged, batch=merged.batch.with_meta(before.batch.meta), origin=before.origin)
    return state


def name_systems(
    states: list[DynamicsState], stayed: list[np.ndarray], meta: Metadata
) -> list[DynamicsState]:
    """The states with the names of their systems: `meta` is of the first, those of the others stay."""
    out = []
    for number, state in enumerate(states):
        if number:
            meta = meta.of_rows(stayed[number - 1])
        out.append(unsafe_replace(state, batch=state.batch.with_meta(meta)))
    return out


def reopen(engine: Engine, state: DynamicsState, where: str) -> DynamicsState:
    """The state in which systems that were out of steps go on, if the budget is larger now.

    Raises:
        AnotherRun: if a system has taken more steps than the budget allows.
    """
    batch = state.batch
    fields = ("outcome", "status", "stage_steps", "steps_taken", "atoms_per_system")
    found: dict[str, Any] = jax.device_get({name: getattr(batch, name) for name in fields})
    came_from = np.asarray(state.came_from)
    expired = ended_by_budget(engine, state) & (found["atoms_per_system"] > 0)
    running = (found["outcome"] == Outcome.RUNNING) & (found["atoms_per_system"] > 0)
    part = np.where(expired, np.maximum(came_from, 0), np.minimum(found["status"], engine.n_stages - 1))
    allowed = _budgets(engine, len(part))[part, np.arange(len(part))]
    total = np.inf if engine.n_stages == 1 or engine.n_steps is None else np.asarray(engine.n_steps)
    beyond = (expired | running) & ((found["stage_steps"] > allowed) | (found["steps_taken"] > total))
    if beyond.any():
        row = int(np.flatnonzero(beyond)[0])
        raise AnotherRun(
            f"{where}: {batch.name_of(row)} has taken {found['stage_steps'][row]} steps already, more than "
            f"the n_steps of {name_of(engine)} now: give at least as many."
        )
    goes: Bool[np.ndarray, " systems"] = (
        expired & (found["stage_steps"] < allowed) & (found["steps_taken"] < total)
    )
    if not goes.any():
        return state
    changed = {
        "outcome": np.where(goes, np.int32(Outcome.RUNNING), found["outcome"]),
        "status": np.where(goes, part.astype(np.int32), found["status"]),
    }
    return unsafe_replace(state, batch=batch.replace(**jax.device_put(changed)))


def ended_by_budget(engine: Engine, state: DynamicsState) -> Bool[np.ndarray, " systems"]:
    """[systems] Those that ended because their steps were used up.

    In a pipeline a system whose relaxation had converged counts as converged after its dynamics, too.
    """
    outcome, came_from = np.asarray(state.batch.outcome), np.asarray(state.came_from)
    counts = [n for n in range(engine.n_stages) if not waits_for_convergence(engine, n)]
    converged = (outcome == Outcome.CONVERGED) & np.isin(came_from, counts)
    return (outcome == Outcome.OUT_OF_STEPS) | converged


def budgets_of(engine: Engine) -> list[Any]:
    """The steps that systems may take, of each part and of the whole pipeline, as JSON has it."""
    both = [*(part.n_steps for part in engine.parts), engine.n_steps]
    return [None if n is None else np.asarray(n).tolist() for n in both]


def _budgets(engine: Engine, systems: int) -> np.ndarray:
    """[parts, systems] The steps that each system may take in each part."""
    rows = []
    for part in engine.parts:
        most = np.inf if part.n_steps is None else np.asarray(part.n_steps, float)
        most = np.atleast_1d(most)
        rows.append(np.pad(most, (0, max(systems - len(most), 0)), mode="edge")[:systems])
    return np.stack(rows)


__all__ = [
    "Begun",
    "budgets_of",
    "ended_by_budget",
    "go_on",
    "merge_all",
    "name_systems",
    "reopen",
    "reopen_all",
]
