"""FunctionModel and GraphFunctionModel: potentials from a function and its parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from alchemi_jax.errors import description, name_of
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.models.elements import atomic_number
from alchemi_jax.models.graph import AbstractGraphModel, Graph
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.parameters import as_flag, as_parameter, optional, positive_length
from alchemi_jax.systems.batch import Batch


def _without_arrays(value: Any) -> Callable[..., Any]:
    """A converter that takes a function, which is static: code is compiled for it."""
    if not callable(value):
        raise TypeError(f"function must be a function of its params, not {description(value)}.")
    if any(eqx.is_array_like(x) for x in jax.tree.leaves(value)):
        raise TypeError(
            f"function must not hold arrays, as this {name_of(value)} does: give them as params, and as "
            "function what takes them, such as lambda net, graph: net(graph)."
        )
    return value


def _as_leaves(params: Any) -> Any:
    """Parameters whose numbers are leaves: also those of Python and numpy."""

    def convert(x: Any) -> Any:
        if isinstance(x, float | np.floating):
            return as_parameter(x, "params")
        return jax.device_put(x) if isinstance(x, np.ndarray) and x.dtype.kind in "biufc" else x

    return jax.tree.map(convert, params)


def _as_elements(value: Any) -> tuple[int, ...]:
    """A converter of symbols or atomic numbers to a table of atomic numbers."""
    listed = isinstance(value, list | tuple | np.ndarray)
    table = tuple(atomic_number(entry) for entry in value) if listed else ()
    if not table or len(set(table)) < len(table):
        raise ValueError(f"elements must be a list of different symbols or atomic numbers, not {value!r}.")
    return table


def _written(function: Any) -> Any:
    """Where the code of a function is: that of a method of a module, as flax's `apply`, is in its class."""
    owner = getattr(function, "__self__", None)
    return function if owner is None or not callable(owner) else type(owner).__call__


class FunctionModel(AbstractModel):
    """A function of the batch and its neighbor list, as a potential.

    Args:
        function: `function(params, batch, neighbors)` gives the energy of each system, eV, [systems],
            differentiable in positions and cell. `alchemi_jax.neighbors.pair_vectors(batch, neighbors)` has
            the pairs, `alchemi_jax.segments.sum_by_system` the sums over atoms.
        params: a pytree, such as a dict of arrays or an equinox Module. Its arrays and floats are leaves: new
            values do not recompile, gradients are taken with respect to them, `vmap` maps over them.
        cutoff: of the neighbor list, Å; None: the function gets None in place of a list.
        skin: Å, added to the cutoff of the list.

    Forces and stress are gradients of the energy.

    Raises:
        TypeError: if `function` is not callable, or contains arrays.
    """

    function: Callable[..., Any] = eqx.field(static=True, converter=_without_arrays)
    params: Any = eqx.field(repr=False, converter=_as_leaves, default=None)
    cutoff: float | None = eqx.field(static=True, converter=optional(positive_length("cutoff")), default=None)
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        return self.function(self.params, batch, neighbors)

    def source_of(self, method: str) -> Any:
        return _written(self.function)


class GraphFunctionModel(AbstractGraphModel):
    """A function of the graph, as a potential.

    Args:
        function: `function(params, graph)` gives the energy of each atom, eV, [atoms]; see `Graph`.
        params: as in `FunctionModel`.
        cutoff: of the edges, Å.
        skin: Å, added to the cutoff of the list.
        elements: symbols or atomic numbers that the function knows, in the order of `graph.species`; others
            are refused. None: any, and `graph.species` has atomic numbers.
        inner_cutoff: Å; if given, `graph.triplets` has the pairs of edges of an atom within it.
        long_cutoff: Å; if given, `graph.long_edges` has the pairs within it.
        reverse_edges: whether to make `graph.reverse`.
        per_atom: whether to make `graph.per_atom`.

    Forces and stress come from one reverse pass through the edge vectors.

    Raises:
        TypeError: if `function` is not callable, or contains arrays.
        ValueError: naming the argument; from `check`, for an element that is not among `elements`.
    """

    function: Callable[..., Any] = eqx.field(static=True, converter=_without_arrays)
    params: Any = eqx.field(repr=False, converter=_as_leaves)
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"))
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)
    elements: tuple[int, ...] | None = eqx.field(  # pyright: ignore[reportIncompatibleMethodOverride]
        static=True, converter=optional(_as_elements), default=None
    )
    inner_cutoff: float | None = eqx.field(
        static=True, converter=optional(positive_length("inner_cutoff")), default=None
    )
    long_cutoff: float | None = eqx.field(
        static=True, converter=optional(positive_length("long_cutoff")), default=None
    )
    # By name only: the base class has these two, so they would come before the others.
    reverse_edges: bool = eqx.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        static=True, converter=as_flag("reverse_edges"), default=False, kw_only=True
    )
    per_atom: bool = eqx.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        static=True, converter=as_flag("per_atom"), default=False, kw_only=True
    )

    def __check_init__(self):
        # Refuses an inner cutoff longer than the cutoff.
        _ = self.requirements

    def node_energies(self, graph: Graph) -> Float[Array, " atoms"]:
        return self.function(self.params, graph)

    def source_of(self, method: str) -> Any:
        return _written(self.function)


__all__ = ["FunctionModel", "GraphFunctionModel"]
