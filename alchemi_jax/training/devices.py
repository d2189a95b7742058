"""A training over several devices: each evaluates the model for some systems of a batch.

Everything else of a step sees the whole batch, on all devices alike: the loss, which may be any function of
the results, hooks, the optimizer. So means are those over the whole batch however labels are distributed, and
gradients are sums over the devices, which JAX takes where it differentiates what each of them computes.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from alchemi_jax.dynamics.devices.devices import as_devices, default_device
from alchemi_jax.dynamics.devices.gather import on_device
from alchemi_jax.errors import name_of
from alchemi_jax.models.base import Results
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch
from alchemi_jax.training.batch import Item, TrainingBatch, TrainingData


#: The name of the only axis of the devices.
_AXIS = "devices"


def as_mesh(asked: Any, who: str) -> Mesh | None:
    """The devices of a training; None: the one that JAX uses anyway.

    Args:
        asked: None; "all"; a number of them; or a list of devices of JAX. who: the method, for messages.

    Raises:
        ValueError, TypeError: saying what there is.
    """
    devices = as_devices(asked, who)
    if devices is None:
        return None
    if len(set(devices)) < len(devices):
        if asked == "all" or isinstance(asked, int):
            raise ValueError(
                f"{who}: devices is {asked!r}, but JAX has started with one device of the CPU: call "
                "alchemi_jax.use_cores() before the first array is made."
            )
        raise ValueError(f"{who}: a device is in devices several times.")
    return Mesh(np.array(devices), (_AXIS,))


def on_all(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a tree on all devices; without several of them as they are."""
    if mesh is None:
        return tree
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_one(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a tree on the device that JAX uses anyway, as they were before `on_all`."""
    return tree if mesh is None else on_device(tree, default_device())


def at_first(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a tree as the first device has them, not copied."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


class Dealt(eqx.Module):
    """A batch whose systems are dealt to devices.

    Attributes:
        whole: the batch, on all devices. parts: items like it with some systems each: [devices, ...].
        places: [systems], of each system of the whole its place among those of all parts.
        mesh: the devices.
    """

    whole: Item
    parts: Any
    places: Int[Array, " systems"]
    mesh: Mesh = eqx.field(static=True)

    def unpack(self) -> tuple[Batch, NeighborList | None]:
        """The whole batch. Lists are made of the parts."""
        return self.whole.unpack()[0], None

    def to_batch(self) -> Batch:
        """The systems with their names, on the host."""
        return self.whole.to_batch()

    def evaluate(
        self, function: Any, model: Any, batch: Batch, levels: Mapping[str, str]
    ) -> tuple[Results, Bool[Array, ""]]:
        """Results of the whole batch, and whether the list of a part had no room. Traced.

        Args:
            function: function(model, batch, neighbors) -> (results, overflow) of a part.
            batch: the whole one. levels: of the extras of the results.
        """
        arrays, rest = eqx.partition(model, eqx.is_array)

        def on_each(arrays: Any, parts: Any) -> Any:
            part, neighbors = jax.tree.map(lambda x: x[0], parts).unpack()
            found = *function(eqx.combine(arrays, rest), part, neighbors), part.first_atom
            return jax.tree.map(lambda x: jnp.asarray(x)[None], found)

        same, each = PartitionSpec(), PartitionSpec(_AXIS)
        sharded = jax.shard_map(
            on_each, mesh=self.mesh, in_specs=(same, each), out_specs=each, check_vma=False
        )
        return self._gather(batch, levels, *self.on_all(sharded(arrays, self.parts)))

    def on_all(self, tree: Any) -> Any:
        """The same arrays on all devices. Traced."""
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))

    def _gather(
        self, batch: Batch, levels: Mapping[str, str], found: Results, overflow: Any, first: Any
    ) -> tuple[Results, Bool[Array, ""]]:
        """Results of all parts, [devices, ...], in the rows of the whole batch."""
        each, atoms = first.shape[1], found.forces.shape[1]
        place = jnp.where(batch.system_mask, self.places, 0)
        owner = jnp.minimum(batch.batch_idx, batch.system_capacity - 1)
        # Atoms of a system are as many places behind its first in the part as in the whole.
        moved = (place // each) * atoms + first.reshape(-1)[place] - batch.first_atom
        atom = jnp.arange(batch.atom_capacity, dtype=jnp.int32) + moved[owner]
        rows = {
            "system": (place, batch.system_mask),
            "atom": (jnp.where(batch.atom_mask, atom, 0), batch.atom_mask),
        }

        def gather(level: str, values: Any) -> Any:
            index, mask = rows[level]
            flat = values.reshape(-1, *values.shape[2:])[index]
            return jnp.where(mask.reshape(-1, *(1,) * (flat.ndim - 1)), flat, 0)

        results = Results(
            gather("system", found.energy),
            gather("atom", found.forces),
            None if found.stress is None else gather("system", found.stress),
            {name: gather(levels[name], values) for name, values in found.extras.items()},
        )
        return results, overflow.any()


def check_dealt(mesh: Mesh | None, item: Any) -> None:
    """Check that a batch can be dealt to devices, before anything is compiled or written.

    Raises:
        TypeError, ValueError: saying what to give instead.
    """
    if mesh is None:
        return
    if not callable(getattr(item, "deal", None)):
        raise TypeError(
            f"with devices= the systems of a batch are dealt to devices, but a {name_of(item)} has no "
            "method deal(n) for it: give Batches, or a list of Batch."
        )
    item.deal(mesh.size)


def deal_to(mesh: Mesh | None, data: Any) -> Any:
    """Data whose batches are dealt to devices as they are used; without several of them the data."""
    return data if mesh is None or data is None else DealtData(data, mesh)


class DealtData:
    """The data of `deal_to`."""

    def __init__(self, data: TrainingData, mesh: Mesh):
        self.data, self.mesh = data, mesh
        #: Batches whose parts are made on the host, and stay in memory.
        self._kept: dict[int, tuple[Item, Dealt]] = {}

    def __len__(self) -> int:
        return len(self.data)

    def epoch(self, key: Any, epoch: int, start: int = 0) -> Iterator[Dealt]:
        """As that of the data."""
        return self._each(self.data.epoch(key, epoch, start))

    def in_order(self) -> Iterator[Dealt]:
        """As that of the data."""
        return self._each(self.data.in_order())

    def _each(self, items: Any) -> Iterator[Dealt]:
        with contextlib.closing(items) if hasattr(items, "close") else contextlib.nullcontext():
            for item in items:
                yield self._deal(item)

    def _deal(self, item: Any) -> Dealt:
        found = self._kept.get(id(item))
        if found is not None:
            return found[1]
        whole, parts, places = item.deal(self.mesh.size)
        same, each = (NamedSharding(self.mesh, PartitionSpec(*axes)) for axes in ((), (_AXIS,)))
        (whole, places), parts = jax.device_put((whole, places), same), jax.device_put(parts, each)
        dealt = Dealt(whole, parts, places, self.mesh)
        if isinstance(item, TrainingBatch):
            self._kept[id(item)] = item, dealt
        return dealt


__all__ = ["Dealt", "as_mesh", "at_first", "check_dealt", "deal_to", "on_all", "on_one"]
