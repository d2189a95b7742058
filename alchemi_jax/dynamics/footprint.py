"""Footprint of a run without running it: bytes on the device, from the analysis of XLA."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.segments import run_segment
from alchemi_jax.dynamics.start import initial_state
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import level_fields


class Footprint(NamedTuple):
    """Bytes of device memory while the loop runs. `total` is their sum."""

    state: int
    """The state from which a segment starts; it is kept until the segment is accepted, to replay it."""
    result: int
    """The state that the segment makes."""
    temporary: int
    """Temporary memory of the compiled code."""

    @property
    def total(self) -> int:
        """The sum of the three."""
        return sum(self)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {readable(n)}" for name, n in self._asdict().items())
        return f"Footprint({readable(self.total)}: {parts})"


class Capacity(NamedTuple):
    """The largest batch within a number of bytes, see `max_batch`."""

    copies: int
    """Number of copies of the given batch that fit."""
    systems: int
    """`system_capacity` of all copies together."""
    atoms: int
    """`atom_capacity` of all copies together."""
    footprint: Footprint
    """Bytes of that batch."""


def footprint(engine: Engine, batch: Batch | DynamicsState) -> Footprint:
    """Bytes of the compiled loop of a run, without running it; see `AbstractDynamics.footprint`."""
    if isinstance(batch, DynamicsState):
        return _of_state(engine, batch)
    engine.model.check(batch)
    return _of_copies(engine, batch, 1)


def max_batch(engine: Engine, batch: Batch, budget: float | int) -> Capacity:
    """The number of systems like those of `batch` that fit into a number of bytes with an engine.

    Bytes are a linear function of the number of systems. Two analyses determine it, and a third checks the
    result. Nothing is run or allocated, but each analysis compiles the loop.

    Args:
        batch: systems with the sizes and densities of the run.
        budget: bytes, such as 0.9 * 80e9.

    Returns:
        A Capacity with `copies` of the batch, `systems` and `atoms` (the capacities for `Batch.from_ase`),
        and its `footprint`.

    Raises:
        ValueError: if not even the batch itself fits.
    """
    engine.model.check(batch)
    one, two = (_of_copies(engine, batch, n) for n in (1, 2))
    if one.total > budget:
        raise ValueError(
            f"a batch of {batch.system_capacity} systems and {batch.atom_capacity} atoms needs "
            f"{readable(one.total)}, the budget is {readable(budget)}."
        )
    slope = max(two.total - one.total, 1)
    copies = max(1, int((budget - one.total) // slope) + 1)
    found = _of_copies(engine, batch, copies)
    # The function is not exactly linear: reduce the number until it fits.
    while found.total > budget:
        copies -= max(1, -int((budget - found.total) // slope))
        found = _of_copies(engine, batch, max(copies, 1))
    return Capacity(copies, copies * batch.system_capacity, copies * batch.atom_capacity, found)


def _of_copies(engine: Engine, batch: Batch, copies: int) -> Footprint:
    """The footprint of the loop for `copies` copies of a batch, of which only the shapes are made."""
    engine = engine.on_device()

    def repeat(batch: Batch) -> Batch:
        def tile(x: Any) -> Any:
            return jnp.broadcast_to(x[None], (copies, *x.shape)).reshape(-1, *x.shape[1:])

        names = [name for name, level in level_fields(batch) if level != "shared"]
        return dataclasses.replace(batch, **{n: jax.tree.map(tile, getattr(batch, n)) for n in names})

    shapes = eqx.filter_eval_shape(repeat, batch)
    r, lists = engine.model.requirements, None
    if r.cutoff is not None:
        sizes = nl.guess_sizes(batch, r.cutoff, r.skin, requirements=r).times(copies)
        lists = eqx.filter_eval_shape(nl.empty_list, shapes, r.cutoff, r.skin, sizes, r)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = eqx.filter_eval_shape(initial_state, engine, shapes, lists, key)
    return _of_state(engine, state)


def _of_state(engine: Engine, state: DynamicsState) -> Footprint:
    stop, wait, least = (jax.ShapeDtypeStruct((), d) for d in (np.int32, np.bool_, np.int32))
    arguments = (engine.on_device(), state, stop, wait, least)
    found = _analyze(run_segment, *arguments)
    return Footprint(
        state=int(found.argument_size_in_bytes),
        result=int(found.output_size_in_bytes - found.alias_size_in_bytes),
        temporary=int(found.temp_size_in_bytes),
    )


def _analyze(function: Callable[..., Any], *arguments: Any) -> Any:
    def is_leaf(x: Any) -> bool:
        return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)

    given, rest = eqx.partition(arguments, is_leaf)

    def run(given: Any) -> Any:
        return eqx.filter(function(*eqx.combine(given, rest)), eqx.is_array)

    analysis = jax.jit(run).lower(given).compile().memory_analysis()
    if analysis is None:
        raise NotImplementedError(f"XLA gives no memory analysis on {jax.default_backend()}.")
    return analysis


def readable(n: float | int) -> str:
    """A number of bytes for a message: "3.2 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n /= 1024
    return f"{n:.4g} GiB"


__all__ = ["Capacity", "Footprint", "footprint", "max_batch", "readable"]
