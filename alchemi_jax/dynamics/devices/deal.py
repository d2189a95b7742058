"""Deal systems to devices, so that each has about the same to do."""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.systems.batch import Batch


class Room(NamedTuple):
    """Capacities of the batches of all devices, which are the same, so that they share traced code."""

    systems: int
    atoms: int
    largest: int


def costs(engine: Engine, batch: Batch, needs: nl.Needs | None) -> Float[np.ndarray, " systems"]:
    """[systems] What each system costs, in units that only compare: atoms times neighbors times steps.

    Args:
        needs: of the neighbor lists; None for a model without them.
    """
    n = batch.num_systems
    found = np.asarray(batch.atoms_per_system)[:n].astype(float)
    if needs is not None:
        found = found * (1.0 + needs.neighbors[:n])
    for part in engine.parts:
        steps = None if part.n_steps is None else np.asarray(part.n_steps)
        if steps is not None and steps.ndim:
            found = found * np.maximum(steps[:n], 1)
    return found


def deal(costs: Float[np.ndarray, " systems"], n: int) -> list[Int[np.ndarray, " mine"]]:
    """The systems of each of n devices, in order: the most expensive first, each to whom has least so far.

    No part is empty: there are fewer parts if there are fewer systems.
    """
    n = min(n, len(costs))
    heap, parts = [(0.0, 0, k) for k in range(n)], [list[int]() for _ in range(n)]
    for system in np.argsort(-costs, kind="stable").tolist():
        # Of devices with as much to do the one with fewer systems.
        spent, held, k = heapq.heappop(heap)
        parts[k].append(system)
        heapq.heappush(heap, (spent + float(costs[system]), held + 1, k))
    return sorted((np.array(sorted(part), int) for part in parts), key=lambda part: int(part[0]))


def room_for(batch: Batch, parts: list[Int[np.ndarray, " mine"]], spare: bool) -> Room:
    """The capacities that suffice for each part.

    Args:
        spare: whether each part has a place for a system and an atom that are padding.
    """
    sizes = np.asarray(batch.atoms_per_system)
    systems = max(len(part) for part in parts) + spare
    atoms = max(int(sizes[part].sum()) for part in parts) + spare
    # How sums over atoms are taken follows from these capacities: it must be as in the whole batch.
    if batch.system_capacity * batch.largest <= 2 * batch.atom_capacity:
        atoms = max(atoms, -(-systems * batch.largest // 2))
    elif systems * batch.largest <= 2 * atoms:
        systems = 2 * atoms // max(batch.largest, 1) + 1
    return Room(systems, atoms, batch.largest)


__all__ = ["Room", "costs", "deal", "room_for"]
